"""What a guest's clients may hold, each and together: who holds most is refused or ended, never the next who asks."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from tests.host_half.hosting import GuestByHand, Hosting, request
from tests.host_half.playing import (
    BUFFER,
    CONNECTION,
    LEASE,
    POOL,
    SHM,
    ChannelClient,
    connected,
    granted,
    refused,
    with_pool,
)
from tests.processes import wait_until
from tests.relay.between import Peer, begin, bind, open_fds
from waylend.host_half.closing import ClosingThread
from waylend.lending.pages import PAGE_SIZE
from waylend.policy import Limits, Policy

OTHER = 40
LIMITS = Limits(
    clients=4,
    leases=8,
    leases_per_client=8,
    aperture_bytes=1 << 24,
    lent_bytes_per_client=1 << 24,
    pools_per_client=5,
    streams_per_client=6,
    fds=40,
    fds_per_client=30,
    buffered_bytes=4096,
    waiting_bytes=1 << 19,
)


@pytest.fixture
def hosting() -> Iterator[Hosting]:
    before = open_fds()
    running = Hosting(Policy(limits=LIMITS))
    yield running
    running.close()
    assert open_fds() == before


def lives(client: Peer, compositor: Peer, object_id: int = 30) -> None:
    client.send("wl_display.sync", 1, object_id)
    compositor.receive("wl_display.sync")


def sessions(hosting: Hosting) -> int:
    return len(hosting.half.relay.sessions)


# Descriptors


@pytest.mark.parametrize("between", [b"", request("waylend_connection_v1.bytes", CONNECTION, b"")])
def test_attachments_without_their_message_are_bounded(hosting: Hosting, between: bytes) -> None:
    """Empty bytes are nothing: no attachment goes with them."""
    guest = hosting.guest()
    client, compositor = connected(hosting, guest)
    other, other_compositor = connected(hosting, guest, OTHER)
    before = len(open_fds())
    guest.raw((request("waylend_connection_v1.attach_aperture", CONNECTION) + between) * 29)
    lives(other, other_compositor)
    assert len(open_fds()) == before + 29
    guest.raw((request("waylend_connection_v1.attach_aperture", CONNECTION) + between) * 1000)
    assert "limit fds_per_client = 30" in refused(client)
    assert compositor.is_at_end()
    lives(other, other_compositor, 31)
    assert len(open_fds()) < before


def test_who_waits_for_the_compositor_is_bounded_too(hosting: Hosting, caplog: pytest.LogCaptureFixture) -> None:
    hosting.away = True
    guest = hosting.guest()
    guest.tell("waylend_channel_v1.connect", 1, CONNECTION)
    guest.raw(request("waylend_connection_v1.attach_aperture", CONNECTION) * 31)
    (reason,) = guest.expect("waylend_connection_v1.end")
    assert b"limit fds_per_client = 30" in reason  # type: ignore[operator]
    hosting.away = False
    lives(*connected(hosting, guest, OTHER))
    assert hosting.in_loop(lambda: len(hosting.half.relay.waiting)) == 0
    assert sessions(hosting) == 1
    assert "failed" not in caplog.text


def test_many_more_than_one_message_carries_may_come_before_theirs() -> None:
    """A client whose socket is full flushes descriptors ahead of their messages (libwayland since 1.23)."""
    policy = Policy(limits=Limits(aperture_bytes=1 << 24))
    with_room = Hosting(policy)
    try:
        guest = with_room.guest()
        client, compositor = with_pool(with_room, guest)
        compositor.receive("wl_shm.create_pool")
        guest.raw(request("waylend_connection_v1.attach_aperture", CONNECTION) * 400)
        client.send_raw(b"".join(request("wl_shm.create_pool", SHM, 100 + number, "fd", 4096) for number in range(400)))
        for _ in range(400):
            compositor.receive("wl_shm.create_pool")
        assert len(compositor.fds) == 401
    finally:
        with_room.close()


def test_pipes_are_bounded(hosting: Hosting) -> None:
    guest = hosting.guest()
    client, _ = connected(hosting, guest)
    other, other_compositor = connected(hosting, guest, OTHER)
    for number in range(7):
        guest.tell("waylend_connection_v1.attach_stream", CONNECTION, 50 + number)
    assert "limit streams_per_client = 6" in refused(client)
    lives(other, other_compositor)
    wait_until(lambda: sessions(hosting) == 1, "the client to be ended")


def test_who_holds_most_descriptors_is_ended_for_who_asks_for_one(hosting: Hosting) -> None:
    guest = hosting.guest()
    greedy, _ = connected(hosting, guest)
    other, other_compositor = with_pool(hosting, guest, OTHER)
    other_compositor.receive("wl_shm.create_pool")
    guest.raw(request("waylend_connection_v1.attach_aperture", CONNECTION) * 29)
    for number in range(4):  # together they have 30 and 1 now; each of these goes on to its compositor at once
        guest.tell("waylend_connection_v1.attach_aperture", OTHER)
        other.send("wl_shm.create_pool", SHM, 60 + number, "fd", 4096)
        other_compositor.receive("wl_shm.create_pool")
    assert sessions(hosting) == 2
    guest.raw(request("waylend_connection_v1.attach_aperture", OTHER) * 12)
    assert "limit fds = 40" in refused(greedy)
    lives(other, other_compositor)


# Leases and pages


def test_a_client_may_not_have_all_leases_where_the_policy_says_so() -> None:
    hosting = Hosting(Policy(limits=Limits(leases=8, leases_per_client=3, aperture_bytes=1 << 24)))
    try:
        guest = hosting.guest()
        connected(hosting, guest)
        for number in range(3):
            granted(guest, LEASE + number, 1)
        guest.tell("waylend_connection_v1.lease", CONNECTION, 50, 1)
        (reason,) = guest.expect("waylend_lease_v1.refused")
        assert b"limit leases_per_client = 3" in reason  # type: ignore[operator]
    finally:
        hosting.close()


def test_who_has_most_leases_is_ended_for_who_asks_for_one(hosting: Hosting) -> None:
    guest = hosting.guest()
    greedy, greedy_compositor = connected(hosting, guest)
    other, other_compositor = connected(hosting, guest, OTHER)
    for number in range(8):
        granted(guest, 50 + number, 1)
    guest.tell("waylend_connection_v1.lease", OTHER, 70, 1)
    assert "limit leases = 8" in refused(greedy)
    guest.expect("waylend_lease_v1.granted")
    assert greedy_compositor.is_at_end()
    lives(other, other_compositor)


def test_who_has_most_of_the_aperture_is_ended_for_who_asks_for_some(hosting: Hosting) -> None:
    guest = hosting.guest()
    greedy, _ = connected(hosting, guest)
    other, other_compositor = connected(hosting, guest, OTHER)
    granted(guest, 50, 2048)
    granted(guest, 51, 2048)
    guest.tell("waylend_connection_v1.lease", OTHER, 70, 100)
    assert "limit aperture_bytes" in refused(greedy)
    guest.expect("waylend_lease_v1.granted")  # as soon as what the other had has ended
    lives(other, other_compositor)


def test_who_has_most_and_asks_for_more_is_refused_and_nobody_is_ended(hosting: Hosting) -> None:
    guest = hosting.guest()
    greedy, greedy_compositor = connected(hosting, guest)
    other, other_compositor = connected(hosting, guest, OTHER)
    granted(guest, 50, 4000)
    granted(guest, 70, 90, connection=OTHER)
    guest.tell("waylend_connection_v1.lease", CONNECTION, 80, 90)
    guest.expect("waylend_lease_v1.refused")
    lives(greedy, greedy_compositor)
    lives(other, other_compositor)


def test_lent_bytes_of_a_client_are_bounded() -> None:
    limits = Limits(lent_bytes_per_client=10 * PAGE_SIZE, aperture_bytes=1 << 24)
    hosting = Hosting(Policy(limits=limits))
    try:
        guest = hosting.guest()
        connected(hosting, guest)
        granted(guest, 50, 10)
        guest.tell("waylend_connection_v1.lease", CONNECTION, 51, 1)
        assert b"limit lent_bytes_per_client" in guest.expect("waylend_lease_v1.refused")[0]  # type: ignore[operator]
    finally:
        hosting.close()


def test_a_lease_that_was_given_back_while_it_was_waited_for_is_nobodys(hosting: Hosting) -> None:
    guest = hosting.guest()
    greedy, _ = connected(hosting, guest)
    connected(hosting, guest, OTHER)
    granted(guest, 50, 4096)
    guest.tell("waylend_connection_v1.lease", OTHER, 70, 100)
    guest.tell("waylend_lease_v1.give_back", 70)
    refused(greedy)
    granted(guest, 71, 200, connection=OTHER)
    wait_until(lambda: [lease.page_count for lease in hosting.domain.stats().leases] == [200], "one lease to be left")


def test_a_lease_in_which_a_buffer_lives_is_not_lent_again(hosting: Hosting) -> None:
    guest = hosting.guest()
    client, compositor = with_pool(hosting, guest)
    compositor.receive("wl_shm.create_pool")
    gfn = granted(guest, 50, 4)
    client.send("wl_shm_pool.create_buffer", POOL, BUFFER, gfn * PAGE_SIZE, 16, 16, 64, 0)
    compositor.receive("wl_shm_pool.create_buffer")
    guest.tell("waylend_lease_v1.give_back", 50)
    threading.Event().wait(0.5)  # longer than what was given back is kept from others
    others = [granted(guest, 60 + number, 4) for number in range(3)]
    assert gfn not in others
    client.send("wl_buffer.destroy", BUFFER)
    compositor.receive("wl_buffer.destroy")
    again = -1
    for number in range(3):  # not at once: the compositor may still look at it
        threading.Event().wait(0.3)
        again = granted(guest, 70 + number, 4)
        if again == gfn:
            break
    assert again == gfn


def test_pools_are_bounded(hosting: Hosting) -> None:
    guest = hosting.guest()
    client, compositor = with_pool(hosting, guest)
    compositor.receive("wl_shm.create_pool")
    for number in range(5):
        guest.tell("waylend_connection_v1.attach_aperture", CONNECTION)
        client.send("wl_shm.create_pool", SHM, 50 + number, "fd", 4096)
    assert "limit pools_per_client = 5" in refused(client)


# Connections


def test_a_connection_that_waits_to_be_closed_is_a_client(hosting: Hosting, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compositor still has it: it waits for what is dirty."""
    closes = threading.Event()
    monkeypatch.setattr(ClosingThread, "_settle", lambda _self: closes.wait(10))
    guest = hosting.guest()
    for number in range(4):
        with_pool(hosting, guest, 50 + number)[1].receive("wl_shm.create_pool")
    for number in range(4):
        guest.tell("waylend_connection_v1.end", 50 + number, b"")
    wait_until(lambda: sessions(hosting) == 0, "the sessions to end")
    guest.tell("waylend_channel_v1.connect", 1, 60)
    assert "limit clients = 4" in refused(ChannelClient(guest, 60))
    closes.set()
    wait_until(lambda: hosting.half._aperture.closing_count == 0, "them to be closed")
    lives(*connected(hosting, guest, 61))


# What waits


def test_who_has_most_that_waits_is_ended(hosting: Hosting) -> None:
    guest = hosting.guest()
    greedy, _ = connected(hosting, guest)
    connected(hosting, guest, OTHER)
    ids = itertools.count(2)
    for _ in range(100):  # their compositors read nothing; for none it is more than it has credit for
        guest.client(CONNECTION, *(request("wl_display.sync", 1, next(ids)) for _ in range(600)))
        guest.client(OTHER, *(request("wl_display.sync", 1, next(ids)) for _ in range(300)))
    assert "limit waiting_bytes = 524288" in refused(greedy)
    assert [client.connection.object_id for client in hosting.half.clients] == [OTHER]


# Keymaps


def keyboard(client: Peer, compositor: Peer) -> None:
    begin(client, compositor, (1, "wl_seat", 7))
    bind(client, compositor, 1, "wl_seat", 7, 3)
    client.send("wl_seat.get_keyboard", 3, 4)
    compositor.receive("wl_seat.get_keyboard")


def keymap(compositor: Peer, content: bytes) -> None:
    fd = os.memfd_create("keymap", os.MFD_CLOEXEC)
    os.write(fd, content)
    socket.send_fds(compositor.sock, [_keymap_event(len(content))], [fd])
    os.close(fd)


def _keymap_event(size_bytes: int) -> bytes:
    return struct.pack("=IIII", 4, 16 << 16, 1, size_bytes)


def attach_files(guest: GuestByHand, count: int, *, answers: bool) -> list[int]:
    """Leases of so many files, as they come; each ping is answered if ``answers``."""
    leases: list[int] = []
    while len(leases) < count:
        object_id, opcode, body = guest.next()
        if object_id == CONNECTION and opcode == 3:
            leases.append(int.from_bytes(body[:4], "little"))
        elif (object_id, opcode) == (1, 2) and answers:
            guest.tell("waylend_channel_v1.pong", 1, int.from_bytes(body[:4], "little"))
    return leases


def test_keymaps_without_number_end_nobody(hosting: Hosting) -> None:
    """Each takes the place of one that the guest half has copied."""
    guest = hosting.guest()
    client, compositor = connected(hosting, guest)
    keyboard(client, compositor)
    leases: list[int] = []
    for number in range(200):
        keymap(compositor, b"%d" % number)
        leases += attach_files(guest, 1, answers=True)
    assert 0 not in leases
    assert len(set(leases)) == 200
    wait_until(lambda: len(hosting.domain.stats().leases) <= 8, "older ones to end")
    lives(client, compositor)


def test_a_guest_that_copies_no_keymap_gets_no_more_of_them() -> None:
    roomy = Hosting(Policy(limits=Limits(aperture_bytes=1 << 24)))
    try:
        guest = roomy.guest()
        client, compositor = connected(roomy, guest)
        other, other_compositor = connected(roomy, guest, OTHER)
        keyboard(client, compositor)
        compositor.sock.settimeout(0.5)
        sent = 0
        with contextlib.suppress(TimeoutError):
            for number in range(3000):
                keymap(compositor, b"%d" % number)
                sent += 1
        assert 64 < sent < 1000
        assert len(roomy.domain.stats().leases) < 100
        lives(other, other_compositor)
        attach_files(guest, sent, answers=True)  # it begins with the first, which it was asked for
        compositor.sock.settimeout(10)
        lives(client, compositor)
    finally:
        roomy.close()


def test_nothing_is_lent_beyond_what_a_pool_can_have() -> None:
    """The last page of 2 GiB: a pool's size is an int32."""
    largest = Hosting(Policy(limits=Limits(lent_bytes_per_client=1 << 32)))
    try:
        guest = largest.guest()
        connected(largest, guest)
        granted(guest, 50, (2 << 30) // PAGE_SIZE - 1)
        guest.tell("waylend_connection_v1.lease", CONNECTION, 51, 1)
        assert b"beyond what a wl_shm pool can have" in guest.expect("waylend_lease_v1.refused")[0]  # type: ignore[operator]
    finally:
        largest.close()
