"""Nothing that a client does makes another wait: one hostile client of each kind, and the round trips of an innocent one."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from tests.foreign.strange import fuse_file, lingering_socket
from tests.relay.between import Between, Peer, begin, bind, spec_of
from waylend.wire.codec import encode, header
from waylend.wire.objects import DISPLAY_ID

#: What such a client does would take for ever, or half a minute; a busy machine takes a fraction of this.
MOST_S = 2.0
FOR_S = 0.6

Fds = Callable[[], contextlib.AbstractContextManager[int]]


@contextlib.contextmanager
def memfd() -> Iterator[int]:
    fd = os.memfd_create("m")
    yield fd
    os.close(fd)


@contextlib.contextmanager
def epoll() -> Iterator[int]:
    with select.epoll() as made, socket.socket() as watched:
        made.register(watched, select.EPOLLIN)
        yield made.fileno()


@contextlib.contextmanager
def large_memfd() -> Iterator[int]:
    fd = os.memfd_create("large")
    os.posix_fallocate(fd, 0, 256 << 20)
    yield fd
    os.close(fd)


@contextlib.contextmanager
def socket_full_of(strange: Fds) -> Iterator[int]:
    """A unix socket in whose queue a descriptor waits that holds up whoever closes it last."""
    ours, theirs = socket.socketpair()
    with strange() as fd:
        socket.send_fds(ours, [b"."], [fd])
        ours.close()
        yield theirs.fileno()
        theirs.close()


def flush() -> contextlib.AbstractContextManager[int]:
    return fuse_file("flush")


def flush_fails() -> contextlib.AbstractContextManager[int]:
    return fuse_file("flush-fails")


def unasked(client: Peer, fd: int) -> None:
    for number in range(12):
        client.send("wl_display.sync", DISPLAY_ID, 100 + number, fds=(fd,) * 100)


def pool(client: Peer, fd: int) -> None:
    client.send("wl_shm.create_pool", 3, 20, "", 4096, fds=(fd,))


def unasked_then_a_bad_pool(client: Peer, fd: int) -> None:
    client.send("wl_display.sync", DISPLAY_ID, 100, fds=(fd,))
    client.send_raw(header(3, 0, 4), (fd,))


def paste(client: Peer, fd: int) -> None:
    client.send("wl_data_offer.receive", 0xFF000000, b"text/plain", "", fds=(fd,))


def hang_up_with_it_unread(client: Peer, fd: int) -> None:
    client.send_raw(header(99, 0, 8), (fd,))
    for _ in range(20):
        client.send_raw(bytes(8), (fd,))


def ask_without_reading(client: Peer, _fd: int) -> None:
    client.sock.settimeout(0.1)
    with contextlib.suppress(TimeoutError):
        client.sock.sendall(b"".join(encode(spec_of("wl_display.sync"), 1, (one,))[0] for one in range(30, 60_000)))


def half_a_message(client: Peer, _fd: int) -> None:
    client.send_raw(header(1, 0, 12)[:7])


def garbage(client: Peer, _fd: int) -> None:
    client.send_raw(os.urandom(1 << 16))


def bytes_one_by_one(client: Peer, fd: int) -> None:
    for octet in header(1, 0, 12) * 20:
        client.send_raw(bytes([octet]), (fd,))


HOSTILE: list[tuple[str, Callable[[Peer, int], None], Fds]] = [
    ("a pool whose file never answers", pool, flush),
    ("a pool whose close fails", pool, flush_fails),
    ("a pool that lingers", pool, lingering_socket),
    ("a pool of epoll", pool, epoll),
    ("a large pool that is refused", unasked_then_a_bad_pool, large_memfd),
    ("a paste into a file that never answers", paste, flush),
    ("a paste into one whose close fails", paste, flush_fails),
    ("a paste into what lingers", paste, lingering_socket),
    ("a paste into a socket full of what lingers", paste, lambda: socket_full_of(lingering_socket)),
    ("files that never answer, unasked for", unasked, flush),
    ("files whose close fails, unasked for", unasked, flush_fails),
    ("what lingers, unasked for", unasked, lingering_socket),
    ("a socket full of what lingers, unasked for", unasked, lambda: socket_full_of(lingering_socket)),
    ("a large memfd, unasked for", unasked, large_memfd),
    ("files that never answer, left unread", hang_up_with_it_unread, flush),
    ("what lingers, left unread", hang_up_with_it_unread, lingering_socket),
    ("never reading", ask_without_reading, memfd),
    ("half a message", half_a_message, memfd),
    ("garbage", garbage, memfd),
    ("byte by byte, each with a file that never answers", bytes_one_by_one, flush),
]


def opened(between: Between) -> tuple[Peer, Peer]:
    client, compositor = between.open()
    begin(client, compositor, (1, "wl_shm", 1), (2, "wl_seat", 7), (3, "wl_data_device_manager", 3))
    bind(client, compositor, 1, "wl_shm", 1, 3)
    bind(client, compositor, 2, "wl_seat", 7, 4)
    bind(client, compositor, 3, "wl_data_device_manager", 3, 5)
    client.send("wl_data_device_manager.get_data_device", 5, 6, 4)
    compositor.receive("wl_data_device_manager.get_data_device")
    compositor.send("wl_data_device.data_offer", 6, 0xFF000000)
    client.receive("wl_data_device.data_offer")
    return client, compositor


@pytest.mark.parametrize(("attack", "fds"), [case[1:] for case in HOSTILE], ids=[case[0] for case in HOSTILE])
def test_an_innocent_client_is_served_meanwhile(
    between: Between, attack: Callable[[Peer, int], None], fds: Fds
) -> None:
    innocent, its_compositor = opened(between)
    hostile, compositor = opened(between)
    with fds() as fd, contextlib.ExitStack() as stack:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            attack(hostile, fd)
        end = time.monotonic() + FOR_S
        number = 10
        while time.monotonic() < end:
            begun = time.monotonic()
            innocent.send("wl_display.sync", DISPLAY_ID, number)
            its_compositor.receive("wl_display.sync")
            its_compositor.send("wl_callback.done", number, 0)
            its_compositor.send("wl_display.delete_id", DISPLAY_ID, number)
            innocent.receive("wl_callback.done")
            innocent.receive("wl_display.delete_id")
            assert time.monotonic() - begun < MOST_S
            number = 10 + number % 50
        # Another is taken in, too; and the hostile one can go.
        begun = time.monotonic()
        another, _ = opened(between)
        stack.callback(another.close)
        hostile.close()
        compositor.close()
        assert time.monotonic() - begun < MOST_S
