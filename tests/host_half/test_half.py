"""The host half against a guest that plays foul: it hurts its own clients only, and nothing of it stays."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.domain.borrowers import FdBorrower
from tests.host_half.hosting import GuestByHand, Hosting, bar_fd, buffer_backing, request
from tests.host_half.playing import (
    BUFFER,
    CONNECTION,
    LEASE,
    OTHER_POOL,
    POOL,
    SHM,
    connected,
    granted,
    refused,
    with_pool,
)
from tests.processes import wait_until
from tests.relay.between import begin, open_fds
from waylend.channel.clocks import FEATURE
from waylend.channel.messages import CHANNEL_ID
from waylend.host_half import closing
from waylend.lending.pages import PAGE_SIZE, PageRange
from waylend.policy import NOT_ACROSS_MACHINES, Limits, Policy


@pytest.fixture
def hosting() -> Iterator[Hosting]:
    before = open_fds()
    running = Hosting(Policy(limits=Limits(leases=8, aperture_bytes=1 << 24)))
    yield running
    running.close()
    assert open_fds() == before


def test_the_pool_is_the_whole_aperture_whatever_the_guest_says(hosting: Hosting) -> None:
    _, compositor = with_pool(hosting, hosting.guest())
    _, (new_id, _, size) = compositor.receive("wl_shm.create_pool")
    assert (new_id, size) == (POOL, 1 << 24)
    assert os.fstat(compositor.fds[0]).st_size == 1 << 24


def test_the_compositor_maps_the_aperture_once_for_each_client(hosting: Hosting) -> None:
    """Whenever it unmapped it, the kernel would have it wait until all that is dirty is written back."""
    guest = hosting.guest()
    client, compositor = with_pool(hosting, guest)
    compositor.receive("wl_shm.create_pool")
    guest.tell("waylend_connection_v1.attach_aperture", CONNECTION)
    client.send("wl_shm.create_pool", SHM, OTHER_POOL, "fd", 4096)
    _, (new_id, _, size) = compositor.receive("wl_shm.create_pool")
    assert (new_id, size) == (OTHER_POOL, PAGE_SIZE)
    assert os.fstat(compositor.fds[1]).st_size == PAGE_SIZE
    assert os.fstat(compositor.fds[1]).st_dev != os.fstat(compositor.fds[0]).st_dev
    client.send("wl_shm_pool.destroy", POOL)
    gfn = granted(guest, LEASE, 4)
    client.send("wl_shm_pool.create_buffer", OTHER_POOL, BUFFER, gfn * PAGE_SIZE, 16, 16, 64, 0)
    pool, (new_id, *_) = compositor.receive("wl_shm_pool.create_buffer")
    assert (pool, new_id) == (POOL, BUFFER)
    client.send("wl_shm_pool.destroy", OTHER_POOL)
    pool, _ = compositor.receive("wl_shm_pool.destroy")
    assert pool == OTHER_POOL


def test_a_pool_that_was_destroyed_is_gone_for_its_client(hosting: Hosting) -> None:
    guest = hosting.guest()
    client, compositor = with_pool(hosting, guest)
    compositor.receive("wl_shm.create_pool")
    gfn = granted(guest, LEASE, 4)
    client.send("wl_shm_pool.destroy", POOL)
    client.send("wl_shm_pool.create_buffer", POOL, BUFFER, gfn * PAGE_SIZE, 16, 16, 64, 0)
    assert "destroyed object" in refused(client)


def test_what_the_guest_stores_is_what_the_compositor_reads(hosting: Hosting) -> None:
    guest = hosting.guest()
    client, compositor = with_pool(hosting, guest)
    compositor.receive("wl_shm.create_pool")
    gfn = granted(guest, LEASE, 4)
    client.send("wl_shm_pool.create_buffer", POOL, BUFFER, gfn * PAGE_SIZE, 16, 16, 64, 0)
    compositor.receive("wl_shm_pool.create_buffer")
    with open(hosting.domain.bar_path, "r+b", buffering=0) as bar:
        os.pwrite(bar.fileno(), b"pixels", gfn * PAGE_SIZE)
    assert os.pread(compositor.fds[0], 6, gfn * PAGE_SIZE) == b"pixels"


def test_what_was_drawn_is_written_back_before_the_compositor_unmaps_it(hosting: Hosting) -> None:
    """Else the kernel would have the compositor wait for that."""
    guest = hosting.guest()
    _, compositor = with_pool(hosting, guest)
    compositor.receive("wl_shm.create_pool")
    gfn = granted(guest, LEASE, 4)
    with FdBorrower(bar_fd(hosting), writable=True) as drawing, contextlib.closing(buffer_backing(hosting)) as backing:
        drawing.write(gfn * PAGE_SIZE, b"drawn")
        assert backing.read(PageRange(0, 1)) == bytes(PAGE_SIZE)
        guest.tell("waylend_connection_v1.end", CONNECTION, b"")
        assert compositor.is_at_end()
        assert backing.read(PageRange(0, 1)).startswith(b"drawn")


def test_a_guest_that_never_stops_storing_does_not_hold_the_compositor_up(
    hosting: Hosting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is dirty when the compositor unmaps the aperture, it waits for; so the pages are taken first."""
    monkeypatch.setattr(closing, "_CALM_S", 0.0)
    guest = hosting.guest()
    _, compositor = with_pool(hosting, guest)
    compositor.receive("wl_shm.create_pool")
    granted(guest, LEASE, 100)
    (lent,) = hosting.domain._borrowed
    with FdBorrower(bar_fd(hosting), writable=True) as storing:
        storing.spin(0, 4096)
        guest.tell("waylend_connection_v1.end", CONNECTION, b"")
        assert compositor.is_at_end()
        (lease,) = (lease for lease in hosting.domain.stats().leases if lease.lease_id == lent)
        assert lease.revocations == 1


@pytest.mark.parametrize(
    ("offset", "width", "height", "stride", "pixel_format", "why"),
    [
        (-4096, 16, 16, 64, 0, "not lent"),
        (PAGE_SIZE * 4 - 64 * 15, 16, 16, 64, 0, "not lent"),
        (PAGE_SIZE * 4, 16, 16, 64, 0, "not lent"),
        (0, 16, 0x7FFFFFFF, 64, 0, "not lent"),
        (0, 17, 16, 64, 0, "stride"),
        (0, 0, 16, 64, 0, "stride"),
        (0, 16, -1, 64, 0, "stride"),
        (0, 16, 16, -64, 0, "stride"),
        (0, 1, 1, 0x7FFFFFFF, 0, "not lent"),
        (0, 16, 16, 64, 0x304C3058, "format"),  # X0L0: tiles
        (0, 64, 172, 64, 0x3231564E, "not lent"),  # NV12: its second plane ends beyond the lease
        (0, 16, 16, 64, 0x48344258, "stride"),  # 8 bytes a pixel
    ],
)
def test_a_buffer_outside_its_lease_ends_its_client_only(
    hosting: Hosting, offset: int, width: int, height: int, stride: int, pixel_format: int, why: str
) -> None:
    guest = hosting.guest()
    client, compositor = with_pool(hosting, guest)
    compositor.receive("wl_shm.create_pool")
    gfn = granted(guest, LEASE, 4)
    other, other_compositor = connected(hosting, guest, 9)
    at = max(-(2**31), gfn * PAGE_SIZE + offset)
    client.send("wl_shm_pool.create_buffer", POOL, BUFFER, at, width, height, stride, pixel_format)
    assert why in refused(client)
    assert compositor.is_at_end()
    other.send("wl_display.sync", 1, 2)
    other_compositor.receive("wl_display.sync")


def test_another_clients_lease_is_not_ones_own(hosting: Hosting) -> None:
    guest = hosting.guest()
    client, compositor = with_pool(hosting, guest)
    compositor.receive("wl_shm.create_pool")
    connected(hosting, guest, 9)
    gfn = granted(guest, 10, 4, connection=9)
    client.send("wl_shm_pool.create_buffer", POOL, BUFFER, gfn * PAGE_SIZE, 16, 16, 64, 0)
    assert "not lent to this client" in refused(client)


def test_a_pool_without_the_aperture_is_refused(hosting: Hosting) -> None:
    guest = hosting.guest()
    client, compositor = connected(hosting, guest)
    begin(client, compositor, (1, "wl_shm", 1))
    client.send("wl_registry.bind", 2, 1, b"wl_shm", 1, SHM)
    guest.tell("waylend_connection_v1.attach_stream", CONNECTION, 3)
    client.send("wl_shm.create_pool", SHM, POOL, "fd", 4096)
    assert "not the aperture" in refused(client)


def test_the_aperture_is_no_pipe_to_paste_into(hosting: Hosting) -> None:
    guest = hosting.guest()
    client, compositor = connected(hosting, guest)
    begin(client, compositor, (1, "wl_data_device_manager", 3), (2, "wl_seat", 7))
    client.send("wl_registry.bind", 2, 1, b"wl_data_device_manager", 3, 3)
    client.send("wl_registry.bind", 2, 2, b"wl_seat", 7, 4)
    client.send("wl_data_device_manager.get_data_device", 3, 5, 4)
    for name in ("wl_registry.bind", "wl_registry.bind", "wl_data_device_manager.get_data_device"):
        compositor.receive(name)
    compositor.send("wl_data_device.data_offer", 5, 0xFF000000)
    client.receive("wl_data_device.data_offer")
    guest.tell("waylend_connection_v1.attach_aperture", CONNECTION)
    client.send("wl_data_offer.receive", 0xFF000000, b"text/plain", "fd")
    assert "not a pipe" in refused(client)


def test_leases_are_limited_and_refusals_say_so(hosting: Hosting) -> None:
    guest = hosting.guest()
    connected(hosting, guest)
    for number, page_count in enumerate((0, 0xFFFFFFFF, (1 << 24) // PAGE_SIZE + 1)):
        guest.tell("waylend_connection_v1.lease", CONNECTION, 100 + number, page_count)
        (reason,) = guest.expect("waylend_lease_v1.refused")
        assert isinstance(reason, bytes)
        assert b"more than the aperture" in reason
    for number in range(8):
        granted(guest, 200 + number, 1)
    guest.tell("waylend_connection_v1.lease", CONNECTION, 300, 1)
    assert b"8 leases" in guest.expect("waylend_lease_v1.refused")[0]  # type: ignore[operator]


def test_a_serving_process_that_stands_still_holds_up_nobody_who_asks_for_nothing(hosting: Hosting) -> None:
    guest = hosting.guest()
    connected(hosting, guest)
    other, other_compositor = connected(hosting, guest, 20)
    os.kill(hosting.domain.pid, signal.SIGSTOP)
    try:
        guest.tell("waylend_connection_v1.lease", CONNECTION, 25, 4)
        begun = time.monotonic()
        other.send("wl_display.sync", 1, 2)
        other_compositor.receive("wl_display.sync")
        assert time.monotonic() - begun < 5  # of the 10 that an answer may take
        guest.tell("waylend_connection_v1.lease", 20, 30, 4)
        guest.tell("waylend_connection_v1.end", CONNECTION, b"")
    finally:
        os.kill(hosting.domain.pid, signal.SIGCONT)
    guest.expect("waylend_lease_v1.granted")
    wait_until(lambda: len(hosting.domain.stats().leases) == 1, "the lease of who has left to end")


def test_the_guest_hears_of_lost_memory_when_it_is_gone(hosting: Hosting) -> None:
    guest = hosting.guest()
    connected(hosting, guest)
    gfn = granted(guest, LEASE, 4)
    with FdBorrower(bar_fd(hosting), writable=True) as drawing:
        drawing.write(gfn * PAGE_SIZE, b"drawn")
        assert hosting.domain.revoke_all() == 4
        guest.expect("waylend_lease_v1.revoked")
        assert drawing.read(gfn * PAGE_SIZE, 5) == bytes(5)
    guest.tell("waylend_lease_v1.give_back", LEASE)
    hosting.domain.revoke_all()
    guest.tell("waylend_channel_v1.connect", 1, 20)
    granted(guest, 21, 1, connection=20)


def test_leases_end_with_their_connection_and_with_the_guest(hosting: Hosting) -> None:
    guest = hosting.guest()
    connected(hosting, guest)
    granted(guest, LEASE, 10)
    connected(hosting, guest, 20)
    granted(guest, 21, 20, connection=20)
    guest.tell("waylend_connection_v1.end", CONNECTION, b"")
    wait_until(lambda: [lease.page_count for lease in hosting.domain.stats().leases] == [20], "the lease to end")
    guest.tell("waylend_lease_v1.give_back", 21)
    wait_until(lambda: not hosting.domain.stats().leases, "the lease to be given back")
    granted(guest, 22, 30, connection=20)
    begun = time.monotonic()
    guest.close()
    wait_until(lambda: not hosting.domain.stats().leases, "all leases to end")
    assert time.monotonic() - begun < 3
    assert hosting.in_loop(lambda: hosting.half.relay.sessions) == {}


def test_what_one_client_gave_back_is_lent_to_the_next_that_asks_for_as_much(hosting: Hosting) -> None:
    guest = hosting.guest()
    connected(hosting, guest)
    gfn = granted(guest, LEASE, 100)
    (lease,) = hosting.domain.stats().leases
    guest.tell("waylend_connection_v1.end", CONNECTION, b"")
    connected(hosting, guest, 20)
    again = -1
    for object_id in range(21, 24):  # not at once: the compositor may still look at it
        again = granted(guest, object_id, 90, connection=20)
        if again == gfn:
            break
        time.sleep(0.3)
    assert again == gfn
    assert lease.lease_id in [one.lease_id for one in hosting.domain.stats().leases]


def test_what_is_kept_makes_room_when_it_is_needed(hosting: Hosting) -> None:
    guest = hosting.guest()
    connected(hosting, guest)
    whole = (1 << 24) // PAGE_SIZE
    for object_id in range(LEASE, LEASE + 3):
        granted(guest, object_id, whole)
        guest.tell("waylend_lease_v1.give_back", object_id)


def test_a_guest_half_comes_back(hosting: Hosting) -> None:
    guest = hosting.guest()
    _, compositor = connected(hosting, guest)
    guest.close()
    assert compositor.is_at_end()
    wait_until(lambda: hosting.in_loop(lambda: hosting.half._end is None), "the host half to notice")
    client, compositor = connected(hosting, hosting.guest())
    client.send("wl_display.sync", 1, 2)
    compositor.receive("wl_display.sync")


def test_a_second_guest_half_is_turned_away(hosting: Hosting) -> None:
    first = hosting.guest()
    second = hosting.guest(greets=False)
    second.rest()
    client, compositor = connected(hosting, first)
    client.send("wl_display.sync", 1, 2)
    compositor.receive("wl_display.sync")


FOUL = {
    "no hello": [request("waylend_channel_v1.connect", 1, 2)],
    "http": [b"GET / HTTP/1.1\r\n\r\n"],
    "zeros, then nonsense": [bytes(70_000), b"\1\2\3\4" * 10],
    "version 0": [request("waylend_channel_v1.hello", 1, 0, 0, 1, b"")],
    "a token where none is": [request("waylend_channel_v1.hello", 1, 1, 0, 1, b"x")],
}
HELLO = request("waylend_channel_v1.hello", 1, 1, 0, 1, b"")
CONNECT = request("waylend_channel_v1.connect", 1, 2)
FOUL |= {
    name: [HELLO, CONNECT, *messages]
    for name, messages in {
        "an id twice": [CONNECT],
        "an id that falls": [request("waylend_channel_v1.connect", 1, 1)],
        "a host's id": [request("waylend_channel_v1.connect", 1, 0xFF000001)],
        "an object that nobody made": [request("waylend_connection_v1.end", 77, b"")],
        "an opcode that isn't there": [(2).to_bytes(4, "little") + (8 << 16 | 99).to_bytes(4, "little")],
        "a short message": [(2).to_bytes(4, "little") + (4 << 16).to_bytes(4, "little")],
        "an odd size": [(2).to_bytes(4, "little") + (11 << 16).to_bytes(4, "little") + bytes(8)],
        "odd bytes": [request("waylend_connection_v1.bytes", 2, b"abc")],
        "a lease twice": [request("waylend_connection_v1.lease", 2, 3, 1)] * 2,
        "credit that isn't due": [request("waylend_connection_v1.credit", 2, 0xFFFFFFFF)],
        "data against the stream": [
            request("waylend_connection_v1.attach_stream", 2, 3), request("waylend_stream_v1.data", 3, b"data"),
        ],
        "credit that a stream can't use": [
            request("waylend_connection_v1.attach_stream", 2, 3), request("waylend_stream_v1.credit", 3, 1 << 31),
        ],
    }.items()
}  # fmt: skip


@pytest.mark.parametrize("name", FOUL)
def test_foul_play_on_the_channel_ends_it(hosting: Hosting, name: str) -> None:
    guest = hosting.guest(greets=False)
    for message in FOUL[name]:
        guest.raw(message)
    guest.rest()
    wait_until(lambda: hosting.in_loop(lambda: hosting.half.relay.sessions) == {}, "sessions to end")
    hosting.guest()


def test_a_flood_of_pipes_ends_the_client_that_asked_for_them(hosting: Hosting) -> None:
    guest = hosting.guest()
    connected(hosting, guest)
    other, other_compositor = connected(hosting, guest, 3)
    guest.raw(b"".join(request("waylend_connection_v1.attach_stream", CONNECTION, 10 + n) for n in range(3000)))
    other.send("wl_display.sync", 1, 2)
    other_compositor.receive("wl_display.sync")
    wait_until(lambda: hosting.in_loop(lambda: len(hosting.half.relay.sessions)) == 1, "the client to be ended")
    assert len(open_fds()) < 200


@pytest.fixture
def narrow() -> Iterator[Hosting]:
    """A host half that buffers next to nothing for a compositor that doesn't read."""
    before = open_fds()
    running = Hosting(Policy(limits=Limits(buffered_bytes=4096, leases=8, aperture_bytes=1 << 24)))
    yield running
    running.close()
    assert open_fds() == before


def held_up(hosting: Hosting, guest: GuestByHand) -> None:
    """A client whose compositor doesn't read, so that its session doesn't either."""
    connected(hosting, guest)
    ids = itertools.count(2)
    for _ in range(10):
        guest.client(CONNECTION, *(request("wl_display.sync", 1, next(ids)) for _ in range(5000)))
    (session,) = hosting.half.relay.sessions.values()
    wait_until(lambda: session.compositor.queued_bytes > 4096, "the compositor's queue to be full")


def test_bytes_without_credit_end_the_channel(narrow: Hosting) -> None:
    guest = narrow.guest()
    held_up(narrow, guest)
    commit = request("wl_surface.commit", 2)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for _ in range(40):
            guest.client(CONNECTION, commit * 8000)
    assert b"more bytes than it has credit for" in guest.expect("waylend_channel_v1.error")[0]  # type: ignore[operator]
    guest.rest()
    wait_until(lambda: narrow.in_loop(lambda: narrow.half.relay.sessions) == {}, "sessions to end")
    narrow.guest()


@pytest.mark.parametrize(
    ("message", "arguments"),
    [("end", (b"",)), ("bytes", (bytes(8),)), ("attach_aperture", ()), ("attach_stream", (3,)), ("lease", (3, 1))],
)
def test_a_message_after_the_end_ends_the_channel(narrow: Hosting, message: str, arguments: tuple[object, ...]) -> None:
    """While its session hasn't come to the end, the connection is there; later, gone is gone."""
    guest = narrow.guest()
    held_up(narrow, guest)
    guest.tell("waylend_connection_v1.end", CONNECTION, b"")
    guest.tell(f"waylend_connection_v1.{message}", CONNECTION, *arguments)
    assert b"after the end" in guest.expect("waylend_channel_v1.error")[0]  # type: ignore[operator]
    guest.rest()


def test_a_version_that_is_newer_is_answered_with_ours(hosting: Hosting) -> None:
    guest = hosting.guest(greets=False)
    guest.tell("waylend_channel_v1.hello", CHANNEL_ID, 7, 0xFFFFFFFF, 1234, b"")
    nonce, version, features, page_count = guest.expect("waylend_channel_v1.hello")
    assert (nonce, version, features, page_count) == (1234, 1, FEATURE, (1 << 24) // PAGE_SIZE)


def test_a_version_that_is_none_is_answered_with_ours_and_hung_up_on(hosting: Hosting) -> None:
    guest = hosting.guest(greets=False)
    guest.tell("waylend_channel_v1.hello", CHANNEL_ID, 0, 0, 5, b"")
    assert b"speaks no version" in guest.expect("waylend_channel_v1.error")[0]  # type: ignore[operator]
    guest.rest()


@pytest.mark.parametrize("interface", sorted(NOT_ACROSS_MACHINES))
def test_what_means_nothing_on_another_machine_is_announced_by_no_policy(interface: str) -> None:
    hosting = Hosting(Policy(allow=("*",), limits=Limits(aperture_bytes=1 << 22)))
    try:
        client, compositor = connected(hosting, hosting.guest())
        client.send("wl_display.get_registry", 1, 2)
        compositor.receive("wl_display.get_registry")
        compositor.send("wl_registry.global", 2, 1, interface.encode(), 1)
        compositor.send("wl_registry.global", 2, 2, b"wl_compositor", 1)
        assert client.receive("wl_registry.global")[1][:2] == [2, b"wl_compositor"]
    finally:
        hosting.close()
