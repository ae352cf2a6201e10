"""Connections across a channel: bytes in order, attachments before theirs, ends, and nobody held up by another."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable

import pytest

from tests.channel.joined import FileOfHost, Files, HandLoop, Joined, Party
from waylend.channel.halves import PADDING, GuestEnd
from waylend.channel.messages import CONNECTION_WINDOW_BYTES
from waylend.guest_half.leases import LeaseAsked, WholeAperture
from waylend.wire.codec import encode
from waylend.wire.tables import load_tables


def test_the_guest_learns_the_apertures_size(joined: Joined) -> None:
    assert joined.pages == [65536]


@pytest.mark.parametrize("size", [4, 8, 65520, 65524, 200_000])
def test_bytes_arrive_as_they_were_sent(joined: Joined, size: int) -> None:
    guest, host = joined.connect()
    content = (bytes(range(256)) * (size // 256 + 1))[:size]
    guest.send(content)
    host.send(content[::-1])
    joined.loop.until(lambda: len(host.octets) == len(guest.octets) == size, "all bytes")
    assert (host.octets, guest.octets) == (content, content[::-1])


def test_many_messages_at_once_arrive_in_order(joined: Joined) -> None:
    guest, host = joined.connect()
    for number in range(5000):
        guest.send(number.to_bytes(4, "little"))
    joined.loop.until(lambda: len(host.octets) == 20000, "all messages")
    assert host.octets == b"".join(number.to_bytes(4, "little") for number in range(5000))


def test_the_aperture_goes_where_it_was_attached(joined: Joined) -> None:
    guest, host = joined.connect()
    guest.send(b"with", [WholeAperture(os.dup(joined.files.aperture))])
    joined.loop.until(lambda: host.octets == b"with", "the bytes")
    fd = host.take_fd()
    assert os.path.sameopenfile(fd, joined.files.aperture)
    os.close(fd)


def test_a_file_of_the_host_is_named_by_its_lease(joined: Joined) -> None:
    guest, host = joined.connect()
    host.send(b"with", [FileOfHost(os.dup(joined.files.aperture))])
    joined.loop.until(lambda: guest.octets == b"with", "the bytes")
    assert joined.files.opened == [(7, 3, 100)]
    os.close(guest.take_fd())
    joined.host.tell("file_ended", 7)
    joined.loop.settle()
    assert joined.ended_files == [7]


def leased(guest: Party, on_change: Callable[[], None], on_loss: Callable[[LeaseAsked], None]) -> LeaseAsked:
    """Ten pages, asked for."""
    return LeaseAsked(
        guest.connection, 10, aperture_pages=65536, on_change=on_change, on_loss=on_loss, on_over=lambda _: None
    )


def test_leases_are_asked_for_granted_and_given_back(joined: Joined) -> None:
    guest, host = joined.connect()
    changes: list[int] = []
    losses: list[LeaseAsked] = []
    lease = leased(guest, lambda: changes.append(lease.gfn), losses.append)
    joined.loop.settle()
    ((connection, object_id, page_count),) = joined.files.leases
    assert (connection, object_id, page_count) == (host.connection, lease.object_id, 10)
    given = joined.files.grant(42)
    joined.loop.settle()
    assert (lease.gfn, changes, losses, lease.failure) == (42, [42], [], "")
    given.tell("revoked")
    joined.loop.settle()
    assert (lease.gfn, changes, losses, lease.failure) == (42, [42], [lease], "")
    lease.give_back()
    given.tell("revoked")  # on its way when the lease ended: nobody is to hear of it
    joined.loop.settle()
    assert losses == [lease]
    assert joined.files.given_back == [given]


def test_a_refused_lease_says_why(joined: Joined) -> None:
    guest, _ = joined.connect()
    lease = leased(guest, lambda: None, lambda _: None)
    joined.loop.settle()
    joined.files.wanted[0].refuse("no room")
    joined.loop.settle()
    assert (lease.gfn, lease.failure) == (-1, "no room")
    lease.give_back()
    joined.loop.settle()
    assert joined.guest_over == joined.host_over == []


@pytest.mark.parametrize("who", ["guest", "host"])
def test_an_end_comes_after_the_last_bytes(joined: Joined, who: str) -> None:
    guest, host = joined.connect()
    one, other = (guest, host) if who == "guest" else (host, guest)
    one.send(b"last")
    one.connection.end_reason = "over"
    one.connection.close()
    joined.loop.until(lambda: other.ended, "the end")
    assert (other.octets, other.connection.end_reason) == (b"last", "over")
    joined.loop.settle()
    # Only the channel's own object is left on both sides.
    assert list(joined.guest.channel.objects) == list(joined.host.channel.objects) == [1]


def test_ends_that_cross_leave_nothing(joined: Joined) -> None:
    guest, host = joined.connect()
    guest.connection.close()
    host.connection.close()
    joined.loop.settle()
    assert list(joined.guest.channel.objects) == list(joined.host.channel.objects) == [1]
    assert joined.guest_over == joined.host_over == []


def test_a_connection_that_is_not_read_holds_up_no_other() -> None:
    joined = Joined(buffer_bytes=4096)
    try:
        joined.reads = False
        stuck, stuck_host = joined.connect()
        joined.reads = True
        lively, lively_host = joined.connect()
        piece = bytes(60_000)
        sent = 0
        while not stuck.connection.queued_bytes:
            stuck.send(piece)
            sent += len(piece)
            joined.loop.settle()  # what waits for the stream holds it back, too, but no longer than that
        # Less than the window, and more than nothing.
        assert CONNECTION_WINDOW_BYTES // 2 < sent <= CONNECTION_WINDOW_BYTES
        for number in range(100):
            lively.send(b"ping")
            joined.loop.until(lambda n=number: len(lively_host.octets) == 4 * (n + 1), "the other's bytes")  # type: ignore[misc]
        joined.loop.settle()
        assert stuck_host.octets == b""
        assert stuck.connection.queued_bytes
        # When it is read again, it goes on.
        stuck_host.read(True)
        joined.loop.until(lambda: len(stuck_host.octets) == sent, "what was held back")
        joined.loop.until(lambda: not stuck.connection.queued_bytes, "credit")
    finally:
        joined.close()


def test_turns_are_taken_while_the_stream_is_full() -> None:
    joined = Joined(buffer_bytes=4096)
    try:
        parties = [joined.connect() for _ in range(5)]
        for guest, _ in parties:
            for _ in range(10):
                guest.send(bytes(20_000))
        # The last one's last byte is there before anybody's has been there for long: nobody waits for all of another's.
        order: list[int] = []

        def note() -> bool:
            for at, (_, host) in enumerate(parties):
                if len(host.octets) >= 40_000 and at not in order:
                    order.append(at)
            return all(len(host.octets) == 200_000 for _, host in parties)

        while len(order) < 5:
            joined.loop.turn(0.01)
            note()
            assert max(len(host.octets) for _, host in parties) <= 120_000
        joined.loop.until(note, "all bytes")
    finally:
        joined.close()


def test_the_links_end_ends_all(joined: Joined) -> None:
    parties = [joined.connect() for _ in range(3)]
    parties[0][0].send(b"last")
    joined.loop.settle()
    joined.guest.close()
    joined.loop.until(lambda: bool(joined.host_over), "the host half to notice")
    assert all(host.ended for _, host in parties)
    assert all(guest.ended for guest, _ in parties)
    assert parties[0][1].octets == b"last"


def test_nobody_connects_before_hello_is_answered() -> None:
    joined = Joined(token="right", host_token="right")
    try:
        joined.connect()
    finally:
        joined.close()
    joined = Joined(token="wrong", host_token="right")
    try:
        joined.loop.until(lambda: bool(joined.guest_over and joined.host_over), "both ends to be over")
        assert "token" in joined.guest_over[0]
        assert "token" in joined.host_over[0]
        with pytest.raises(ConnectionRefusedError):
            joined.guest.connect()
    finally:
        joined.close()


def test_a_new_guest_half_on_a_port_begins_anew(joined: Joined) -> None:
    """A port stays open when the guest half dies: its last message may be half there."""
    _, host = joined.connect()
    fd = joined.guest.channel._fd
    os.write(fd, struct.pack("=III", 2, 60_000 << 16, 60_000 - 12) + b"half of it..")
    joined.loop.settle()
    hello = load_tables()["waylend_channel_v1"].requests[0]
    beginning = PADDING + encode(hello, 1, (1, 0, 77, b""))[0]
    while beginning:
        try:
            beginning = beginning[os.write(fd, beginning) :]
        except BlockingIOError:
            joined.loop.turn()
    joined.loop.until(lambda: host.ended, "the old client's end")
    assert not joined.host_over
    assert list(joined.host.channel.objects) == [1]


def test_old_bytes_before_the_answer_are_skipped_on_a_port() -> None:
    """What the host half sent to a predecessor, cut anywhere; with a piece that looks like an answer, to another hello."""
    loop = HandLoop()
    files = Files()
    ours, port = socket.socketpair()
    pages: list[int] = []
    over: list[str] = []
    guest = GuestEnd(
        loop, port.detach(), attachments_of=files.of, on_ready=pages.append, on_file_ended=pages.append, on_over=over.append,
        is_port=True,
    )  # fmt: skip
    try:
        loop.settle()
        arrived = b""
        while len(arrived) < len(PADDING) + 24:
            arrived += ours.recv(1 << 20)
        assert arrived.startswith(PADDING)
        nonce = struct.unpack_from("=I", arrived, len(PADDING) + 16)[0]
        answer = load_tables()["waylend_channel_v1"].events[0]
        old = b"\1\2\3" * 1001 + encode(answer, 1, (nonce ^ 1, 1, 0, 99))[0]
        new = encode(answer, 1, (nonce, 1, 0, 4096))[0]
        for octet in old[:-1] + new:
            ours.send(bytes([octet]))
            loop.turn()
        loop.settle()
        assert (pages, over) == ([4096], [])
    finally:
        guest.close()
        ours.close()
        files.close()
        loop.close()
