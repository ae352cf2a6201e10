"""What bounds a channel, whatever the other half does: answers that nobody reads, objects that never end, hellos, silence."""

from __future__ import annotations

import logging
import os

import pytest

from tests.channel.joined import Joined
from waylend.channel.halves import PADDING
from waylend.channel.messages import CHANNEL_ID, CONNECTION_WINDOW_BYTES
from waylend.wire.codec import encode
from waylend.wire.tables import load_tables

CHANNEL = load_tables()["waylend_channel_v1"]


def hello(nonce: int, version: int = 1) -> bytes:
    return encode(CHANNEL.requests[0], CHANNEL_ID, (version, 0, nonce, b""))[0]


def pump(joined: Joined, octets: bytes, limit: int = 2000) -> None:
    """Sends as a guest half does, which reads nothing itself, until the host half hangs up or so many turns have been."""
    fd = joined.guest.channel._fd
    joined.loop.remove(fd)
    for _ in range(limit):
        if joined.host_over:
            return
        try:
            octets = octets[os.write(fd, octets) :]
        except BlockingIOError:
            pass
        except (BrokenPipeError, ConnectionResetError):
            return
        if not octets:
            return
        joined.loop.turn()


# Nothing is no end


@pytest.mark.parametrize("sender", ["guest", "host"])
def test_a_chunk_of_which_nothing_was_left_is_not_an_end(
    joined: Joined, sender: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hooks may drop all of it; its descriptors go with what comes next."""
    guest, host = joined.connect()
    one, other = (guest, host) if sender == "guest" else (host, guest)
    reading, writing = os.pipe()
    sent: list[object] = []
    with monkeypatch.context() as watched:
        watched.setattr(one.connection.channel, "send_array", lambda *message: sent.append(message))
        one.send(b"", [writing])
    assert sent == []
    joined.loop.settle()
    assert (other.ended, other.octets, other.fds) == (False, b"", [])
    one.send(b"more")
    joined.loop.until(lambda: other.octets == b"more", "what comes next")
    os.close(other.take_fd())
    assert other.fds == []
    assert not other.ended
    os.close(reading)


@pytest.mark.parametrize("to", ["guest", "host"])
def test_bytes_of_length_zero_are_nothing(joined: Joined, to: str) -> None:
    """A half that is older, or hostile, may send them."""
    guest, host = joined.connect()
    one, other = (guest, host) if to == "host" else (host, guest)
    for _ in range(3):
        one.connection.tell("bytes", b"")
    one.connection.tell("attach_stream", one.connection.channel.new_id())
    one.connection.tell("bytes", b"")
    one.send(b"more")
    joined.loop.until(lambda: other.octets == b"more", "what comes next")
    os.close(other.take_fd())
    assert other.fds == []
    assert not other.ended


# Answers that nobody reads


def test_a_guest_half_that_reads_no_answers_ends_its_channel() -> None:
    joined = Joined(buffer_bytes=4096)
    try:
        ping = encode(CHANNEL.requests[2], CHANNEL_ID, (7,))[0]
        pump(joined, ping * 200_000)
        joined.loop.settle()
        assert joined.host_over == ["the other half doesn't read what it asked for"]
    finally:
        joined.close()


def test_what_waits_for_the_stream_stops_its_source_and_goes_on_with_it() -> None:
    joined = Joined(buffer_bytes=4096)
    try:
        guest, host = joined.connect()
        sent = 0
        while not host.connection.queued_bytes:
            host.send(bytes(30_000))
            sent += 30_000
        assert sent < CONNECTION_WINDOW_BYTES // 2  # long before credit would stop it
        joined.loop.until(lambda: len(guest.octets) == sent, "all bytes")
        joined.loop.until(lambda: not host.connection.queued_bytes, "room")
    finally:
        joined.close()


# Objects that never end


def test_connections_that_their_half_never_ends_are_bounded() -> None:
    joined = Joined(max_objects=20)
    try:
        for _ in range(30):
            joined.guest.tell("connect", joined.guest.channel.new_id())
            joined.loop.settle()
            for party in joined.arrived:
                party.connection.close()
        assert len(joined.arrived) == 19  # and object 1
        assert "20 objects" in joined.host_over[0]
    finally:
        joined.close()


def test_a_closed_connection_goes_with_the_others_end() -> None:
    joined = Joined(max_objects=20)
    try:
        for _ in range(100):
            guest, host = joined.connect()
            host.connection.close()
            joined.loop.until(lambda party=guest: party.ended, "the end")  # type: ignore[misc]
        joined.loop.settle()
        assert joined.host_over == []
        assert list(joined.host.channel.objects) == [CHANNEL_ID]
    finally:
        joined.close()


# Hellos


@pytest.mark.parametrize("between", [b"", encode(CHANNEL.requests[2], CHANNEL_ID, (1,))[0]])
def test_a_second_hello_is_a_fault(joined: Joined, between: bytes) -> None:
    """Padding that came before another message is none of the hello's."""
    padding = bytes(8) if between else b""
    pump(joined, padding + between + hello(77))
    joined.loop.settle()
    assert "a second hello" in joined.host_over[0]


def test_a_hello_that_is_repeated_behind_padding_is_a_fault(joined: Joined) -> None:
    pump(joined, PADDING + hello(joined.guest._nonce))
    joined.loop.settle()
    assert "a second hello" in joined.host_over[0]


def test_guest_halves_do_not_begin_faster_than_programs_start(joined: Joined) -> None:
    _, host = joined.connect()
    pump(joined, b"".join(PADDING + hello(nonce) for nonce in range(1, 9)))
    joined.loop.settle()
    assert host.ended
    assert joined.host_over == []
    pump_again = PADDING + hello(9)
    fd = joined.guest.channel._fd
    while pump_again and not joined.host_over:
        try:
            pump_again = pump_again[os.write(fd, pump_again) :]
        except BlockingIOError:
            joined.loop.turn()
    joined.loop.settle()
    assert "8 guest halves began" in joined.host_over[0]


# Silence


def test_silence_is_said_and_ends_nothing(joined: Joined, caplog: pytest.LogCaptureFixture) -> None:
    guest, host = joined.connect()
    joined.loop.settle()
    joined.host.beat(5.0)  # what was heard before
    pings: list[int] = []
    joined.guest.on_ping = pings.append  # type: ignore[method-assign, assignment]
    with caplog.at_level(logging.WARNING):
        for _ in range(100):
            joined.host.beat(5.0)
            joined.loop.settle()
    assert joined.host.channel.silent_s == 500.0
    assert len(pings) == 1  # one question is enough
    assert [record.message for record in caplog.records] == [
        "nothing was heard of the other half for 20 s; it may be paused"
    ]
    guest.send(b"here")
    joined.loop.until(lambda: host.octets == b"here", "the bytes")
    with caplog.at_level(logging.WARNING):
        joined.host.beat(5.0)
    assert caplog.records[-1].message == "the other half is heard again, after 500 s of silence"
    assert joined.host.channel.silent_s == 0.0
    assert joined.host_over == joined.guest_over == []


def test_silence_ends_a_channel_where_that_is_asked_for() -> None:
    joined = Joined(silence_s=30.0)
    try:
        joined.host.beat(5.0)
        joined.guest.on_ping = lambda _serial: None  # type: ignore[method-assign, assignment]
        for _ in range(6):
            joined.host.beat(5.0)
        assert joined.host_over == []
        joined.host.beat(5.0)
        assert joined.host_over == ["nothing was heard for 30 s"]
    finally:
        joined.close()


def test_a_half_that_answers_is_not_silent() -> None:
    joined = Joined(silence_s=10.0)
    try:
        for _ in range(20):
            joined.host.beat(5.0)
            joined.loop.settle()
        assert joined.host_over == []
    finally:
        joined.close()
