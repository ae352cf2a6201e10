"""The kinds of hostile clients that there are, each of which goes on until SIGTERM.

    python -m tests.hostile_clients SOCKET KIND

Says ``begun`` on stdout when its attack has begun. A kind is what it does with one connection; where it is hung up on, it
comes again.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from tests.hostile_descriptors import Stalling, lingering_socket, stalling_file
from tests.raw_client import REGISTRY, RawClient

_PAUSE_S = 0.01
Attack = Callable[[RawClient], None]
#: Called once the attack is on its way.
_begun: list[bool] = []


def begun() -> None:
    if not _begun:
        _begun.append(True)
        print("begun", flush=True)


def for_ever() -> NoReturn:
    begun()
    while True:
        signal.pause()


# --- descriptors that stall ----------------------------------------------------------------------------------------------

_files: dict[str, Stalling] = {}
_peers: list[socket.socket] = []


def _stalling(request: str, *, fails: bool = False, as_a_user: bool = False) -> int:
    if request not in _files:
        _files[request] = stalling_file(request, fails=fails, as_a_user=as_a_user)
    return _files[request].fd


def _lingering() -> int:
    made = lingering_socket()
    _peers.append(made.peer)
    return made.fd


def _let_go(fd: int) -> None:
    """Of a socket that lingers whoever closes it last waits. A file that stalls is kept, for the next time."""
    if all(file.fd != fd for file in _files.values()):
        os.close(fd)


def _end(_signal: int, _frame: object) -> NoReturn:
    """The daemons first: else this process would hang in closing their files."""
    for file in _files.values():
        file.end()
    os._exit(0)


def as_a_pool(fd_of: Callable[[], int]) -> Attack:
    def attack(client: RawClient) -> None:
        shm = client.bind("wl_shm")
        fd = fd_of()
        client.send("wl_shm.create_pool", shm, client.new_id(), "fd", 4096, fds=(fd,))
        _let_go(fd)
        begun()
        client.round_trip()

    return attack


def with_no_message(fd_of: Callable[[], int]) -> Attack:
    def attack(client: RawClient) -> None:
        fd = fd_of()
        client.send("wl_display.sync", 1, client.new_id(), fds=(fd,) * 29)
        _let_go(fd)
        begun()
        client.round_trip()

    return attack


def never_received(fd_of: Callable[[], int]) -> Attack:
    """Behind so much, which is refused at once, that it is still unread when the connection is closed; as a rule."""

    def attack(client: RawClient) -> None:
        fd = fd_of()
        try:
            client.send_raw(struct.pack("=II", 99, 8 << 16) * (1 << 14))
            client.send_raw(bytes(8), (fd,))
        finally:
            _let_go(fd)
            begun()

    return attack


# --- silence -------------------------------------------------------------------------------------------------------------


def never_reads(client: RawClient) -> None:
    client.sock.settimeout(0.2)
    try:
        while True:
            client.send_raw(client.message("wl_display.get_registry", 1, client.new_id()))
    except TimeoutError:
        for_ever()


def half_a_message(client: RawClient) -> None:
    client.send_raw(client.message("wl_display.sync", 1, client.new_id())[:9])
    for_ever()


def half_a_large_message(client: RawClient) -> None:
    client.send_raw(struct.pack("=III", REGISTRY, 65532 << 16, 1) + bytes(60_000))
    for_ever()


def connections_that_say_nothing(client: RawClient) -> None:
    path = client.sock.getpeername()
    more = []
    for _ in range(200):  # of the 256 that one guest may have
        more.append(RawClient(path))
        time.sleep(0.001)
    for_ever()


# --- floods --------------------------------------------------------------------------------------------------------------


def endless(make: Callable[[RawClient], Callable[[], bytes]]) -> Attack:
    """Sends one chunk after the other."""

    def attack(client: RawClient) -> None:
        chunk = make(client)
        while True:
            client.flood(chunk())
            begun()

    return attack


def syncs(client: RawClient) -> Callable[[], bytes]:
    ids = iter(range(1 << 30))

    def chunk() -> bytes:
        return b"".join(client.message("wl_display.sync", 1, 1000 + next(ids) % 20_000) for _ in range(500))

    return chunk


def objects(client: RawClient) -> Callable[[], bytes]:
    compositor = client.bind("wl_compositor")
    return lambda: b"".join(
        client.message("wl_compositor.create_region", compositor, client.new_id()) for _ in range(500)
    )


def surfaces(client: RawClient) -> Callable[[], bytes]:
    compositor = client.bind("wl_compositor")
    return lambda: b"".join(
        client.message("wl_compositor.create_surface", compositor, client.new_id()) for _ in range(200)
    )


def keyboards(client: RawClient) -> Callable[[], bytes]:
    seat = client.bind("wl_seat")
    return lambda: b"".join(client.message("wl_seat.get_keyboard", seat, client.new_id()) for _ in range(50))


def damage(client: RawClient) -> Callable[[], bytes]:
    surface = client.window().surface
    one = b"".join(client.message("wl_surface.damage", surface, x, x, 1, 1) for x in range(64))
    return lambda: one * 20 + client.message("wl_surface.commit", surface)


def commits(client: RawClient) -> Callable[[], bytes]:
    window = client.window(512, 512)
    one = (
        client.message("wl_surface.attach", window.surface, window.buffer, 0, 0)
        + client.message("wl_surface.damage", window.surface, 0, 0, 512, 512)
        + client.message("wl_surface.commit", window.surface)
    )
    return lambda: one * 20


def titles(client: RawClient) -> Callable[[], bytes]:
    toplevel = client.window().toplevel
    one = client.message("xdg_toplevel.set_title", toplevel, "\N{SNOWMAN}".encode() * 1300)
    return lambda: one * 30


def small_buffers(client: RawClient) -> None:
    """Pools and buffers of a page, kept."""
    while True:
        pool, fd = client.pool(4096)
        os.close(fd)
        client.send("wl_shm_pool.create_buffer", pool, client.new_id(), 0, 8, 8, 32, 0)
        begun()
        client.skim()


def pools(client: RawClient) -> None:
    """Pools that come and go."""
    shm = client.bind("wl_shm")
    fd = os.memfd_create("hostile", os.MFD_CLOEXEC)
    os.ftruncate(fd, 1 << 20)
    try:
        while True:
            pool = client.new_id()
            client.send("wl_shm.create_pool", shm, pool, "fd", 1 << 20, fds=(fd,))
            client.send("wl_shm_pool.destroy", pool)
            begun()
            client.skim()
    finally:
        os.close(fd)


def titles_without_end(client: RawClient) -> None:
    toplevel = client.window().toplevel
    begun()
    for _ in range(16):
        client.send("xdg_toplevel.set_title", toplevel, b"x" * 65_000)
    client.round_trip()


def fds_with_no_message(client: RawClient) -> None:
    with open(os.devnull, "rb") as null:
        begun()
        for _ in range(100):
            client.send("wl_display.sync", 1, client.new_id(), fds=(null.fileno(),) * 28)


def clients_that_come_and_go(client: RawClient) -> None:
    client.send("wl_display.get_registry", 1, client.new_id())
    begun()


def garbage(client: RawClient) -> None:
    begun()
    client.send_raw(random.randbytes(1 << 18))


# --- memory --------------------------------------------------------------------------------------------------------------


def pool_of_nothing(client: RawClient) -> None:
    begun()
    client.pool(0)
    client.round_trip()


def buffers_of_absurd_sizes(client: RawClient) -> None:
    begun()
    pool, fd = client.pool(4096)
    os.close(fd)
    client.send("wl_shm_pool.create_buffer", pool, client.new_id(), 0, 0x7FFFFFFF, 0x7FFFFFFF, 0x7FFFFFFF, 0)
    client.round_trip()


def pool_beyond_its_file(client: RawClient) -> None:
    """The file is there for the first page alone."""
    window = client.window()
    begun()
    pool, fd = client.pool(1 << 20, file_bytes=4096)
    window.buffer = client.new_id()
    client.send("wl_shm_pool.create_buffer", pool, window.buffer, 0, 512, 512, 2048, 0)
    os.close(fd)
    window.show()
    client.round_trip()


def pool_that_shrinks_while_it_is_shown(client: RawClient) -> None:
    window = client.window(256, 256)
    begun()
    while True:
        os.ftruncate(window.fd, 0)
        window.show()
        client.round_trip()
        os.ftruncate(window.fd, 256 * 256 * 4)
        window.show()
        client.round_trip()


KINDS: dict[str, Attack] = {
    "a socket that lingers, as a pool": as_a_pool(_lingering),
    "a socket that lingers, with no message": with_no_message(_lingering),
    "a socket that lingers, never received": never_received(_lingering),
    "a file that stalls in flush, as a pool": as_a_pool(lambda: _stalling("flush")),
    "a file that stalls in statfs, as a pool": as_a_pool(lambda: _stalling("statfs")),
    "a file that stalls in getattr, as a pool": as_a_pool(lambda: _stalling("getattr")),
    "a file that stalls in flush, of a user namespace, as a pool": as_a_pool(
        lambda: _stalling("flush", as_a_user=True)
    ),
    "a file that stalls in flush, with no message": with_no_message(lambda: _stalling("flush")),
    "a file that fails to close, with no message": with_no_message(lambda: _stalling("flush", fails=True)),
    "never reads": never_reads,
    "half a message": half_a_message,
    "half a large message": half_a_large_message,
    "connections that say nothing": connections_that_say_nothing,
    "a flood of syncs": endless(syncs),
    "a flood of objects": endless(objects),
    "a flood of surfaces": endless(surfaces),
    "a flood of keyboards": endless(keyboards),
    "a flood of damage": endless(damage),
    "a flood of commits": endless(commits),
    "a flood of titles": endless(titles),
    "a flood of small buffers": small_buffers,
    "a flood of pools": pools,
    "titles without end": titles_without_end,
    "descriptors with no message": fds_with_no_message,
    "clients that come and go": clients_that_come_and_go,
    "garbage": garbage,
    "a pool of nothing": pool_of_nothing,
    "buffers of absurd sizes": buffers_of_absurd_sizes,
    "a pool beyond its file": pool_beyond_its_file,
    "a pool that shrinks while it is shown": pool_that_shrinks_while_it_is_shown,
}
_MEETS_NOBODY = (
    "never reads",
    "half a large message",
    "connections that say nothing",
    "clients that come and go",
    "garbage",
)


def main(path: str, kind: str) -> NoReturn:
    attack = KINDS[kind]
    signal.signal(signal.SIGTERM, _end)
    while True:
        try:
            client = RawClient(path)
        except OSError:  # it has ended
            for_ever()
        try:
            if kind not in _MEETS_NOBODY:
                client.meet()
            attack(client)
        except (OSError, KeyError):
            begun()  # it is refused already, or lacks the global
        finally:
            client.close()
        time.sleep(_PAUSE_S)


if __name__ == "__main__":
    main(*sys.argv[1:])
