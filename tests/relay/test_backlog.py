"""What libwayland and compositors really do, beside what is written down: descriptors far ahead, events of later versions."""

from __future__ import annotations

import os
import socket

import pytest

from tests.relay.between import Between, Peer, begin, bind, spec_of
from waylend.policy import Limits, Policy
from waylend.relay.events import SessionEnded
from waylend.wire.codec import encode

POOLS = 1000


def with_shm(between: Between) -> tuple[Peer, Peer]:
    client, compositor = between.open()
    begin(client, compositor, (1, "wl_shm", 1))
    bind(client, compositor, 1, "wl_shm", 1, 3)
    return client, compositor


def ahead(peer: Peer, octets: bytes, fds: list[int]) -> bytes:
    """As libwayland >= 1.23 sends a backlog: 28 descriptors with one byte, again and again. Returns the bytes that are left."""
    while fds:
        some, fds = fds[:28], fds[28:]
        socket.send_fds(peer.sock, [octets[:1]], some)
        octets = octets[1:]
    return octets


def pools(count: int) -> list[int]:
    fds = [os.memfd_create(f"pool {number}") for number in range(count)]
    for number, fd in enumerate(fds):
        os.ftruncate(fd, 4096 + number)
    return fds


class TestDescriptorsAhead:
    def test_of_requests_come_with_their_messages_in_order(self, between: Between) -> None:
        client, compositor = with_shm(between)
        fds = pools(POOLS)
        octets = b"".join(encode(spec_of("wl_shm.create_pool"), 3, (10 + one, "", 4096))[0] for one in range(POOLS))
        client.send_raw(ahead(client, octets, fds))
        for number in range(POOLS):
            assert compositor.receive("wl_shm.create_pool")[1][0] == 10 + number
        assert [os.fstat(fd).st_size - 4096 for fd in compositor.fds] == list(range(POOLS))
        for fd in fds:
            os.close(fd)

    def test_of_events_too(self, between: Between) -> None:
        client, compositor = between.open()
        begin(client, compositor, (1, "wl_seat", 7), (2, "wl_data_device_manager", 3))
        bind(client, compositor, 2, "wl_data_device_manager", 3, 4)
        client.send("wl_data_device_manager.create_data_source", 4, 5)
        compositor.receive("wl_data_device_manager.create_data_source")
        fds = pools(200)
        octets = b"".join(encode(spec_of("wl_data_source.send"), 5, (b"text/plain", ""))[0] for _ in fds)
        compositor.send_raw(ahead(compositor, octets, list(fds)))
        for _ in fds:
            client.receive("wl_data_source.send")
        assert [os.fstat(fd).st_size - 4096 for fd in client.fds] == list(range(200))
        for fd in fds:
            os.close(fd)

    def test_no_receiver_gets_more_than_28_in_one_go(self, between: Between) -> None:
        """MAX_FDS_OUT of libwayland before 1.23: what one sendmsg carries above that is lost."""
        client, compositor = with_shm(between)
        fds = pools(100)
        octets = b"".join(encode(spec_of("wl_shm.create_pool"), 3, (10 + one, "", 4096))[0] for one in range(100))
        client.send_raw(ahead(client, octets, fds))
        got: list[int] = []
        size_bytes = 0
        while size_bytes < len(octets):
            some, came, flags, _ = socket.recv_fds(compositor.sock, 1 << 16, 28)
            got += came
            assert not flags & socket.MSG_CTRUNC
            assert len(came) <= 28
            size_bytes += len(some)
        compositor.fds += got
        assert len(got) == 100
        for fd in fds:
            os.close(fd)

    @pytest.mark.parametrize("policy", [Policy(limits=Limits(queued_fds=100, queued_fds_of_guest=150))])
    def test_when_a_guest_has_too_many_the_one_who_holds_most_goes(self, between: Between) -> None:
        first, _ = with_shm(between)
        second, _ = with_shm(between)
        mine, theirs = pools(20), pools(20)
        for _ in range(2):
            socket.send_fds(second.sock, [b"\1"], mine)
        for _ in range(5):
            socket.send_fds(first.sock, [b"\1"], theirs)
        third, _ = between.open()
        for _ in range(4):
            socket.send_fds(third.sock, [b"\1"], mine)
        _, (_, _, text) = first.receive("wl_display.error")
        assert isinstance(text, bytes)
        assert text.endswith(b"file descriptors wait for their messages (limit queued_fds_of_guest = 150)")
        assert between.wait_for(SessionEnded) == SessionEnded(1, text.decode())
        assert between.in_loop(lambda: sorted(between.relay.sessions)) == [2, 3]
        for fd in mine + theirs:
            os.close(fd)


class TestVersions:
    def test_events_newer_than_the_bound_version_pass(self, between: Between) -> None:
        """sway sends wl_output.done (since 2) to version 1, for xdg-output, and libwayland takes it."""
        client, compositor = between.open()
        begin(client, compositor, (1, "wl_output", 4))
        bind(client, compositor, 1, "wl_output", 1, 3)
        compositor.send("wl_output.done", 3)
        compositor.send("wl_output.name", 3, b"HEADLESS-1")
        assert client.receive("wl_output.done") == (3, [])
        assert client.receive("wl_output.name") == (3, [b"HEADLESS-1"])

    def test_also_after_its_destructor(self, between: Between) -> None:
        client, compositor = between.open()
        begin(client, compositor, (1, "wl_seat", 7))
        bind(client, compositor, 1, "wl_seat", 7, 3)
        client.send("wl_seat.get_pointer", 3, 4)
        client.send("wl_pointer.release", 4)
        compositor.receive("wl_seat.get_pointer")
        compositor.receive("wl_pointer.release")
        compositor.send("wl_pointer.axis_value120", 4, 0, 120)  # since 8
        assert client.receive("wl_pointer.axis_value120") == (4, [0, 120])

    def test_one_that_nobody_knows_ends_that_session(self, between: Between) -> None:
        client, compositor = between.open()
        begin(client, compositor, (1, "wl_output", 4))
        bind(client, compositor, 1, "wl_output", 1, 3)
        compositor.send_raw(b"\3\0\0\0\x63\0\x08\0")
        assert client.is_at_end()
        assert between.wait_for(SessionEnded) == SessionEnded(1, "compositor: wl_output#3: unknown opcode 99")
