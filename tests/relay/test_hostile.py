"""Hostile clients: each ends itself alone, with an error that names the object and the message, and leaves nothing behind.

The fixture compares this process's fds before and after; leases are compared here.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import resource
import socket
import struct
import termios
from collections.abc import Callable

import pytest

from tests.processes import wait_until
from tests.relay.between import REGISTRY, Between, Peer, begin, bind, spec_of
from waylend.policy import Limits, Policy
from waylend.relay.events import SessionEnded
from waylend.wire.codec import encode, header
from waylend.wire.objects import DISPLAY_ID


@pytest.fixture
def policy() -> Policy:
    """With a limit of descriptors that is soon reached."""
    return Policy(limits=Limits(queued_fds=28))


def raw(name: str, object_id: int, *args: object) -> bytes:
    return encode(spec_of(name), object_id, args)[0]


def pipe_as_a_pool(client: Peer) -> None:
    reading, writing = os.pipe()
    client.send("wl_shm.create_pool", 4, 20, "", 4096, fds=(reading,))
    os.close(reading)
    os.close(writing)


def directory_as_a_pool(client: Peer) -> None:
    folder = os.open("/", os.O_RDONLY)
    client.send("wl_shm.create_pool", 4, 20, "", 4096, fds=(folder,))
    os.close(folder)


def fds_nobody_asked_for(client: Peer) -> None:
    with open(os.devnull, "rb") as null:
        client.send("wl_display.sync", DISPLAY_ID, 20, fds=(null.fileno(),) * 29)


def fds_for_every_message(client: Peer) -> None:
    # It may be told before it has sent them all.
    with open(os.devnull, "rb") as null, contextlib.suppress(BrokenPipeError):
        for number in range(40):
            client.send("wl_display.sync", DISPLAY_ID, 20 + number, fds=(null.fileno(),))


# What it does, and what it is told: the object, the code, the message.
ATTACKS: list[tuple[str, bytes | Callable[[Peer], None], tuple[int, int, str]]] = [
    ("wrong size", header(3, 6, 12) + bytes(4), (3, 1, "wl_surface#3.commit: size is 12 bytes, should be 8")),
    ("size below a header", header(3, 6, 4), (3, 1, "wl_surface#3.commit: size is 4 bytes, should be 8")),
    ("unaligned size", header(3, 1, 19) + bytes(12), (3, 1, "wl_surface#3.attach: size is 19 bytes, should be 20")),
    ("unknown object", header(99, 0, 8), (1, 0, "unknown#99: message 0 to an unknown object")),
    ("a server's object", header(0xFF000000, 0, 8), (1, 0, "unknown#4278190080: message 0 to an unknown object")),
    ("unknown opcode", header(3, 500, 8), (3, 1, "wl_surface#3: unknown opcode 500")),
    (
        "a later version's message",
        raw("wl_surface.offset", 3, 0, 0),
        (3, 1, "wl_surface#3.offset: needs version 5, but version 4 was bound"),
    ),
    ("id taken", raw("wl_display.sync", 1, 3), (1, 0, "new id 3 for wl_callback is still taken by wl_surface#3")),
    ("id zero", raw("wl_display.sync", 1, 0), (1, 0, "new id 0 for wl_callback is not in the client's range")),
    (
        "id of the server's",
        raw("wl_display.sync", 1, 0xFF000001),
        (1, 0, "new id 4278190081 for wl_callback is not in the client's range"),
    ),
    (
        "bind of a hidden global",
        raw("wl_registry.bind", REGISTRY, 3, b"zwlr_screencopy_manager_v1", 1, 20),
        (2, 0, "wl_registry#2.bind: no global 3 ('zwlr_screencopy_manager_v1')"),
    ),
    (
        "bind under another name",
        raw("wl_registry.bind", REGISTRY, 1, b"zwlr_screencopy_manager_v1", 1, 20),
        (2, 0, "wl_registry#2.bind: global 1 is wl_compositor, not 'zwlr_screencopy_manager_v1'"),
    ),
    (
        "bind of a version too new",
        raw("wl_registry.bind", REGISTRY, 1, b"wl_compositor", 5, 20),
        (2, 0, "wl_registry#2.bind: wl_compositor version 5, announced was 4"),
    ),
    (
        "bind of version 0",
        raw("wl_registry.bind", REGISTRY, 1, b"wl_compositor", 0, 20),
        (2, 0, "wl_registry#2.bind: wl_compositor version 0, announced was 4"),
    ),
    (
        "a string beyond its message",
        header(REGISTRY, 0, 16) + struct.pack("=II", 1, 4000),
        (2, 1, "wl_registry#2.bind: a string of 4000 bytes reaches beyond the message"),
    ),
    (
        "missing fd",
        raw("wl_shm.create_pool", 4, 20, "", 4096),
        (4, 1, "wl_shm#4.create_pool: 1 of 1 file descriptors did not come with it"),
    ),
    (
        "a pipe as a pool",
        pipe_as_a_pool,
        (4, 2, "wl_shm#4.create_pool: the file descriptor is a pipe, not a file on disk or shared memory"),
    ),
    (
        "a folder as a pool",
        directory_as_a_pool,
        (4, 2, "wl_shm#4.create_pool: the file descriptor is a folder, not a file on disk or shared memory"),
    ),
    ("too many fds", fds_nobody_asked_for, (1, 3, "wl_display#1: 29 file descriptors came with no message for them")),
    ("fds that pile up", fds_for_every_message, (1, 3, "wl_display#1: 29 file descriptors came with no message")),
    (
        "a title without end",
        raw("xdg_toplevel.set_title", 8, b"x" * 5000),
        (8, 3, "xdg_toplevel#8.set_title: 5000 bytes are too many (limit title_bytes = 4096)"),
    ),
]


def connected(between: Between) -> tuple[Peer, Peer]:
    """With a registry 2, a surface 3, a wl_shm 4, a toplevel 8."""
    client, compositor = between.open()
    begin(client, compositor, (1, "wl_compositor", 4), (2, "wl_shm", 1), (4, "xdg_wm_base", 3))
    bind(client, compositor, 1, "wl_compositor", 4, 5)
    bind(client, compositor, 2, "wl_shm", 1, 4)
    bind(client, compositor, 4, "xdg_wm_base", 3, 6)
    for name, object_id, args in (
        ("wl_compositor.create_surface", 5, (3,)),
        ("xdg_wm_base.get_xdg_surface", 6, (7, 3)),
        ("xdg_surface.get_toplevel", 7, (8,)),
    ):
        client.send(name, object_id, *args)
        compositor.receive(name)
    return client, compositor


@pytest.mark.parametrize(("attack", "told"), [case[1:] for case in ATTACKS], ids=[case[0] for case in ATTACKS])
def test_it_ends_itself_alone(
    between: Between, attack: bytes | Callable[[Peer], None], told: tuple[int, int, str]
) -> None:
    bystander, its_compositor = connected(between)
    client, compositor = connected(between)
    if isinstance(attack, bytes):
        client.send_raw(attack)
    else:
        attack(client)
    _, (object_id, code, text) = client.receive("wl_display.error")
    assert isinstance(text, bytes)
    assert (object_id, code) == told[:2]
    assert text.decode().startswith(told[2])
    assert client.is_at_end()
    assert not compositor.arrived or attack is fds_for_every_message
    ended = between.wait_for(SessionEnded)
    assert ended == SessionEnded(2, text.decode())
    bystander.send("wl_display.sync", DISPLAY_ID, 50)
    assert its_compositor.receive("wl_display.sync") == (DISPLAY_ID, [50])
    assert between.domain.stats().leases == ()


def test_nothing_of_a_bad_chunk_reaches_the_compositor(between: Between) -> None:
    client, compositor = connected(between)
    client.send_raw(raw("wl_surface.commit", 3) + header(99, 0, 8))
    client.receive("wl_display.error")
    assert compositor.is_at_end()


@pytest.mark.parametrize("policy", [Policy(limits=Limits(objects_per_client=100))])
def test_one_object_too_many(between: Between) -> None:
    client, _ = between.open()
    for object_id in range(2, 110):
        try:
            client.send("wl_display.sync", DISPLAY_ID, object_id)
        except (BrokenPipeError, ConnectionResetError):
            break
    _, (_, code, text) = client.receive("wl_display.error")
    assert code == 2
    assert isinstance(text, bytes)
    assert b"limit objects_per_client = 100" in text


def test_64_ki_objects_are_the_most_by_default(between: Between) -> None:
    client, compositor = between.open()
    compositor.sock.settimeout(None)
    limit = Limits().objects_per_client
    step = 1000
    sent = 1
    while sent < limit:
        first = sent + 1
        last = min(first + step, limit + 1)
        client.send_raw(b"".join(raw("wl_display.sync", DISPLAY_ID, one) for one in range(first, last)))
        compositor.read(12 * (last - first))
        sent = last - 1
    client.send("wl_display.sync", DISPLAY_ID, limit + 1)
    _, (_, _, text) = client.receive("wl_display.error")
    assert text == b"wl_display#1: 65537 objects are too many (limit objects_per_client = 65536)"


@pytest.mark.parametrize("policy", [Policy(limits=Limits(buffered_bytes=1 << 16))])
def test_a_client_that_never_reads_cannot_make_us_grow(between: Between) -> None:
    client, compositor = between.open()
    bystander, its_compositor = between.open()
    client.send("wl_display.sync", DISPLAY_ID, 2)
    compositor.receive("wl_display.sync")
    compositor.sock.settimeout(0.5)
    flood = raw("wl_callback.done", 2, 1) * 5000
    sent = 0
    while sent < 64 << 20:
        try:
            sent += compositor.sock.send(flood)
        except TimeoutError:
            break
    # What the sockets hold, and what we may hold: far from what was on offer.
    assert sent < 4 << 20
    session = between.relay.sessions[1]
    assert session.client.queued_bytes <= (1 << 16) + (1 << 17)
    bystander.send("wl_display.sync", DISPLAY_ID, 2)
    its_compositor.receive("wl_display.sync")
    client.close()
    between.wait_for(SessionEnded)


@pytest.mark.parametrize("policy", [Policy(limits=Limits(buffered_bytes=1 << 16))])
def test_a_compositor_that_never_reads_cannot_make_us_grow(between: Between) -> None:
    client, compositor = connected(between)
    bystander, its_compositor = between.open()
    client.sock.settimeout(0.5)
    flood = raw("wl_surface.commit", 3) * 5000
    sent = 0
    while sent < 64 << 20:
        try:
            sent += client.sock.send(flood)
        except TimeoutError:
            break
    assert sent < 4 << 20
    session = between.relay.sessions[1]
    assert session.compositor.queued_bytes <= (1 << 16) + (1 << 17)
    bystander.send("wl_display.sync", DISPLAY_ID, 2)
    its_compositor.receive("wl_display.sync")
    assert compositor.read(len(flood)) == flood  # and it goes on where it was


def test_half_a_message_and_silence(between: Between) -> None:
    client, compositor = connected(between)
    client.send_raw(raw("wl_surface.attach", 3, 0, 1, 2)[:14])
    bystander, its_compositor = between.open()
    bystander.send("wl_display.sync", DISPLAY_ID, 2)
    its_compositor.receive("wl_display.sync")
    client.close()
    assert compositor.is_at_end()
    assert between.wait_for(SessionEnded) == SessionEnded(1, "")


@pytest.mark.parametrize("seed", range(8))
def test_garbage_by_the_megabyte(between: Between, seed: int) -> None:
    client, compositor = between.open()
    garbage = random.Random(seed).randbytes(1 << 20)
    try:
        client.send_raw(garbage)
    except (BrokenPipeError, ConnectionResetError):
        pass
    _, (_, _, text) = client.receive("wl_display.error")
    assert text
    assert compositor.is_at_end()


def unread_bytes(peer: Peer) -> int:
    """What waits in the socket for this peer (SIOCINQ, unix(7))."""
    count = bytearray(4)
    fcntl.ioctl(peer.sock, termios.FIONREAD, count)
    return int.from_bytes(count, "little")


def test_what_a_refused_client_said_before_is_dropped(between: Between) -> None:
    """The compositor may be slow, and gets no more of one who broke the protocol than it has already."""
    client, compositor = connected(between)
    flood = raw("wl_surface.commit", 3) * 10_000
    client.sock.settimeout(0.5)
    sent = 0
    with contextlib.suppress(TimeoutError):
        while sent < 400_000:
            sent += client.sock.send(flood)
    session = between.relay.sessions[1]
    wait_until(lambda: session.compositor.queued_bytes > 0, "the compositor's socket to be full")
    wait_until(lambda: between.in_loop(lambda: unread_bytes(compositor)) == unread_bytes(compositor), "nothing to move")
    has = unread_bytes(compositor)
    client.sock.settimeout(10)
    client.send_raw(raw("wl_surface.commit", 99))
    between.wait_for(SessionEnded)
    got = 0
    while octets := compositor.sock.recv(1 << 16):
        got += len(octets)
    assert got == has


def test_descriptors_that_were_lost_on_the_way_end_their_client(between: Between) -> None:
    """When this process has no room for more, nobody knows which messages those were for (MSG_CTRUNC, recvmsg(2))."""
    client, compositor = connected(between)
    bystander, its_compositor = connected(between)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open(os.devnull, "rb") as null:
        free = os.dup(null.fileno())
        os.close(free)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (free + 5, hard))
            client.send("wl_display.sync", DISPLAY_ID, 20, fds=(null.fileno(),) * 20)
            between.wait_for(SessionEnded)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    _, (object_id, code, text) = client.receive("wl_display.error")
    assert isinstance(text, bytes)
    assert (object_id, code) == (1, 3)
    assert text.startswith(b"wl_display#1: file descriptors were lost on the way")
    assert compositor.is_at_end()
    bystander.send("wl_display.sync", DISPLAY_ID, 20)
    its_compositor.receive("wl_display.sync")


def test_a_client_that_hangs_up_while_it_is_told_off(between: Between) -> None:
    client, compositor = connected(between)
    client.sock.shutdown(socket.SHUT_RD)
    client.send_raw(header(99, 0, 8))
    assert compositor.is_at_end()
    between.wait_for(SessionEnded)
