"""A guest half between clients, and host halves: what is drawn arrives, what ends leaves nothing, and what is wrong is said."""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.guest_half.between_halves import (
    APERTURE_PAGES,
    BUFFER,
    KEYBOARD,
    SEAT,
    SIZE_BYTES,
    SURFACE,
    WIDTH,
    BothHalves,
    HandPlayed,
    HostByHand,
)
from tests.processes import wait_until
from tests.relay.between import REGISTRY, Peer, open_fds, spec_of
from waylend import linux
from waylend.channel.clocks import FEATURE, Timespec
from waylend.channel.messages import CHANNEL_ID
from waylend.policy import Policy
from waylend.wire.codec import encode

FIRST_CONNECTION = 2


@pytest.fixture
def halves(tmp_path: Path) -> Iterator[BothHalves]:
    before = open_fds()
    halves = BothHalves(tmp_path)
    yield halves
    halves.close()
    assert open_fds() == before


@pytest.fixture
def played(tmp_path: Path) -> Iterator[HandPlayed]:
    before = open_fds()
    played = HandPlayed(tmp_path)
    yield played
    played.close()
    assert open_fds() == before


@pytest.fixture
def pool_fd() -> Iterator[int]:
    fd = os.memfd_create("pool", os.MFD_CLOEXEC)
    os.ftruncate(fd, SIZE_BYTES)
    yield fd
    os.close(fd)


def event(name: str, object_id: int, *args: object) -> bytes:
    return encode(spec_of(name), object_id, args)[0]


def hosts_ns() -> int:
    return time.monotonic_ns() + 1_000_000 * 10**9


class TestWithTheRealHostHalf:
    def test_what_is_drawn_is_in_lent_memory_when_the_compositor_hears_of_it(
        self, halves: BothHalves, pool_fd: int
    ) -> None:
        client, compositor = halves.begin()
        os.pwrite(pool_fd, bytes(range(256)) * (SIZE_BYTES // 256), 0)
        at = halves.shows(client, compositor, pool_fd)
        assert halves.lent(at) == os.pread(pool_fd, SIZE_BYTES, 0)

    def test_of_what_is_drawn_later_the_damage_is_copied(self, halves: BothHalves, pool_fd: int) -> None:
        client, compositor = halves.begin()
        at = halves.shows(client, compositor, pool_fd)
        os.pwrite(pool_fd, b"\7" * SIZE_BYTES, 0)
        client.send("wl_surface.attach", SURFACE, BUFFER, 0, 0)
        client.send("wl_surface.damage", SURFACE, 0, 2, WIDTH, 1)
        client.send("wl_surface.commit", SURFACE)
        for name in ("attach", "damage", "commit"):
            compositor.receive(f"wl_surface.{name}")
        row = WIDTH * 4
        assert halves.lent(at) == bytes(2 * row) + b"\7" * row + bytes(SIZE_BYTES - 3 * row)

    def test_what_the_host_takes_away_is_drawn_again(self, halves: BothHalves, pool_fd: int) -> None:
        client, compositor = halves.begin()
        os.pwrite(pool_fd, b"\5" * SIZE_BYTES, 0)
        at = halves.shows(client, compositor, pool_fd)
        halves.hosting.domain.revoke_all()
        wait_until(lambda: halves.lent(at) == b"\5" * SIZE_BYTES, "the buffer to be copied again", 5.0)

    def test_a_file_of_the_compositor_comes_as_a_sealed_copy(self, halves: BothHalves) -> None:
        client, compositor = halves.begin()
        client.send("wl_seat.get_keyboard", SEAT, KEYBOARD)
        compositor.receive("wl_seat.get_keyboard")
        keymap = os.memfd_create("keymap", os.MFD_CLOEXEC)
        os.write(keymap, b"xkb_keymap\0")
        compositor.send("wl_keyboard.keymap", KEYBOARD, 1, keymap, 11, fds=(keymap,))
        os.close(keymap)
        client.receive("wl_keyboard.keymap")
        (fd,) = client.fds
        assert os.pread(fd, 100, 0) == b"xkb_keymap\0"
        assert fcntl.fcntl(fd, linux.F_GET_SEALS) & linux.F_SEAL_WRITE
        assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY

    @pytest.mark.parametrize("who", ["client", "compositor"])
    def test_nothing_is_kept_of_a_client_that_is_gone(self, halves: BothHalves, pool_fd: int, who: str) -> None:
        """13 KB for each that had a buffer, once."""
        client, compositor = halves.begin()
        halves.shows(client, compositor, pool_fd)
        assert halves.objects() > {CHANNEL_ID}
        (client if who == "client" else compositor).sock.close()
        wait_until(lambda: halves.objects() == {CHANNEL_ID}, "all objects of the client to go", 5.0)
        wait_until(lambda: not halves.in_loop(lambda: halves.half.relay.sessions), "the session to end", 5.0)

    def test_the_other_clients_do_not_notice_one_that_breaks_the_protocol(
        self, halves: BothHalves, pool_fd: int
    ) -> None:
        (bad, its), (good, compositor) = halves.begin(), halves.begin()
        bad.send("wl_shm.create_pool", 4, 20, pool_fd, 0, fds=(pool_fd,))
        bad.receive("wl_display.error")
        assert bad.is_at_end()
        assert its.is_at_end()
        halves.shows(good, compositor, pool_fd)


def test_four_4k_windows_with_three_buffers_each_have_room_by_default(tmp_path: Path) -> None:
    halves = BothHalves(tmp_path, Policy())
    try:
        for _ in range(4):
            halves.shows_large(*halves.begin(), 3840, 2160, buffer_count=3)
    finally:
        halves.close()


class TestHostHalvesThatComeAndGo:
    def test_a_client_that_came_before_the_host_half_is_let_in(self, played: HandPlayed) -> None:
        client = played.client()
        host = played.host()
        host.expect("waylend_channel_v1.connect")
        host.expect("waylend_connection_v1.bytes")  # get_registry
        registry = event("wl_registry.global", REGISTRY, 1, b"wl_compositor", 4)
        host.tell("waylend_connection_v1.bytes", FIRST_CONNECTION, registry)
        client.receive("wl_registry.global")

    def test_its_end_is_the_end_of_its_clients_and_the_next_one_is_found(self, played: HandPlayed) -> None:
        host, client = played.host(), played.client()
        host.expect("waylend_channel_v1.connect")
        host.close()
        assert client.is_at_end()
        later = played.client()
        played.host().expect("waylend_channel_v1.connect")
        assert not played.in_loop(lambda: len(played.half.relay.waiting))
        later.sock.close()

    def test_its_times_are_told_as_the_guests(self, played: HandPlayed) -> None:
        """The host's CLOCK_MONOTONIC began 1,000,000 s before the guest's."""
        host, client = played.host(features=FEATURE), played.client()
        assert host.expect("waylend_channel_v1.get_clock") == [time.CLOCK_MONOTONIC]
        host.tell("waylend_channel_v1.clock", CHANNEL_ID, time.CLOCK_MONOTONIC, *Timespec.of(hosts_ns()))
        host.expect("waylend_channel_v1.connect")
        host.expect("waylend_connection_v1.bytes")  # get_registry
        for name, interface in ((1, b"wl_compositor"), (2, b"wp_presentation")):
            seen = event("wl_registry.global", REGISTRY, name, interface, 1)
            host.tell("waylend_connection_v1.bytes", FIRST_CONNECTION, seen)
            client.receive("wl_registry.global")
            client.send("wl_registry.bind", REGISTRY, name, interface, 1, 2 + name)
        client.send("wl_compositor.create_surface", 3, 5)
        client.send("wp_presentation.feedback", 4, 5, 6)
        wait_until(lambda: played.knows(6), "the feedback to be known", 5.0)
        presented = event("wp_presentation_feedback.presented", 6, *Timespec.of(hosts_ns()), 0, 0, 0, 0)
        host.tell("waylend_connection_v1.bytes", FIRST_CONNECTION, presented)
        _, (hi, lo, nanoseconds, *_rest) = client.receive("wp_presentation_feedback.presented")
        assert isinstance(hi, int) and isinstance(lo, int) and isinstance(nanoseconds, int)
        at_s = Timespec(hi, lo, nanoseconds).nanoseconds / 1e9
        assert at_s == pytest.approx(time.monotonic(), abs=10.0)

    def test_a_client_that_it_ends_is_told_and_forgotten(self, played: HandPlayed) -> None:
        host, client = played.host(), played.client()
        host.expect("waylend_channel_v1.connect")
        host.tell("waylend_connection_v1.end", FIRST_CONNECTION, b"enough")
        assert client.is_at_end()
        assert host.expect("waylend_connection_v1.end") == [b"enough"]
        wait_until(lambda: played.objects() == {CHANNEL_ID}, "the connection to go", 5.0)


class TestHostHalvesThatAreWrong:
    """They may see what their clients say, and no more; the guest half looks for another."""

    @pytest.mark.parametrize(
        ("gfn", "size_bytes"), [(APERTURE_PAGES, 1), (0xFFFFFFFF, 8), (0, APERTURE_PAGES * 4096 + 1)]
    )
    def test_a_file_that_is_not_in_the_aperture_ends_its_client(
        self, played: HandPlayed, gfn: int, size_bytes: int
    ) -> None:
        host, client = played.host(), played.client()
        host.expect("waylend_channel_v1.connect")
        host.tell("waylend_connection_v1.attach_file", FIRST_CONNECTION, 1, gfn, size_bytes)
        assert client.is_at_end()
        other = played.client()
        host.expect("waylend_channel_v1.connect")
        other.close()

    @pytest.mark.parametrize("gfn", [APERTURE_PAGES - 63, 0xFFFFFFFF])
    def test_a_lease_that_is_not_in_the_aperture_ends_the_channel(
        self, played: HandPlayed, pool_fd: int, gfn: int
    ) -> None:
        host, client = played.host(), played.client()
        lease = asked(host, client, pool_fd)
        host.tell("waylend_lease_v1.granted", lease, gfn)
        assert client.is_at_end()
        played.host()

    def test_a_second_grant_ends_the_channel(self, played: HandPlayed, pool_fd: int) -> None:
        host, client = played.host(), played.client()
        lease = asked(host, client, pool_fd)
        host.tell("waylend_lease_v1.granted", lease, 0)
        host.tell("waylend_lease_v1.granted", lease, 64)
        assert client.is_at_end()
        played.host()

    def test_what_it_refuses_is_the_clients_end_with_its_reason(self, played: HandPlayed, pool_fd: int) -> None:
        host, client = played.host(), played.client()
        lease = asked(host, client, pool_fd)
        host.tell("waylend_lease_v1.refused", lease, b"not for you")
        _, (_, _, why) = client.receive("wl_display.error")
        assert b"not for you" in bytes(why)  # type: ignore[call-overload]
        assert client.is_at_end()

    @pytest.mark.parametrize(
        ("wrong", "said"),
        [
            (lambda played: played.host(page_count=APERTURE_PAGES + 1), "can't map the aperture"),
            (lambda played: played.host(version=77), "speaks version 77"),
        ],
    )
    def test_what_is_wrong_with_its_greeting_is_said(
        self,
        played: HandPlayed,
        caplog: pytest.LogCaptureFixture,
        wrong: Callable[[HandPlayed], HostByHand],
        said: str,
    ) -> None:
        with caplog.at_level(logging.WARNING):
            wrong(played).rest()
            wait_until(lambda: said in caplog.text, f"{said!r} in the log", 5.0)
        played.host()


def asked(host: HostByHand, client: Peer, pool_fd: int) -> int:
    """The client has made a buffer, and waits for the lease that is returned."""
    host.expect("waylend_channel_v1.connect")
    host.expect("waylend_connection_v1.bytes")  # get_registry
    host.tell("waylend_connection_v1.bytes", FIRST_CONNECTION, event("wl_registry.global", REGISTRY, 2, b"wl_shm", 1))
    client.receive("wl_registry.global")
    client.send("wl_registry.bind", REGISTRY, 2, b"wl_shm", 1, 4)
    client.send("wl_shm.create_pool", 4, 7, pool_fd, SIZE_BYTES, fds=(pool_fd,))
    client.send("wl_shm_pool.create_buffer", 7, BUFFER, 0, 4, 4, 16, 0)
    lease, page_count = host.expect("waylend_connection_v1.lease")
    assert page_count == 64
    assert isinstance(lease, int)
    return lease
