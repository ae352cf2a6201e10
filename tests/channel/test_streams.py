"""Pipes across a channel: complete in any piece size and length, and a stuck reader stops only its own writer."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable

import pytest

from tests.channel.joined import Joined
from waylend.channel.messages import STREAM_WINDOW_BYTES

CONTENT = bytes(range(251)) * 8000  # 2 MB


def pipe_to(joined: Joined, sender: str) -> tuple[int, int]:
    """The reading end of a pipe whose writing end one side gave away, and the writing end that the other side got."""
    guest, host = joined.connect()
    one, other = (guest, host) if sender == "guest" else (host, guest)
    reading, writing = os.pipe()
    count = len(other.octets)
    one.send(b"pipe", [writing])
    joined.loop.until(lambda: len(other.octets) > count, "the attachment")
    return reading, other.take_fd()


def copied(joined: Joined, reading: int, write: Callable[[], None], pause: int = 0) -> bytes:
    """What comes out of ``reading`` while ``write`` runs in a thread of its own, and the loop turns here."""
    found = bytearray()
    done = threading.Event()

    def read() -> None:
        while octets := os.read(reading, pause or 1 << 16):
            found.extend(octets)
        done.set()

    threads = [threading.Thread(target=write), threading.Thread(target=read)]
    for thread in threads:
        thread.start()
    try:
        joined.loop.until(done.is_set, "end of file")
    finally:
        if not done.is_set():
            joined.close()
        for thread in threads:
            thread.join()
    os.close(reading)
    return bytes(found)


@pytest.mark.parametrize("sender", ["guest", "host"])
@pytest.mark.parametrize("piece", [1000, 4097, 1 << 20])
def test_all_arrives_whatever_the_pieces(joined: Joined, sender: str, piece: int) -> None:
    reading, writing = pipe_to(joined, sender)

    def write() -> None:
        with open(writing, "wb", buffering=0) as stream:
            for at in range(0, len(CONTENT), piece):
                left = memoryview(CONTENT)[at : at + piece]
                while left:
                    left = left[stream.write(left) or 0 :]

    assert copied(joined, reading, write) == CONTENT
    joined.loop.settle()
    assert not joined.guest.channel.streams
    assert not joined.host.channel.streams


def test_nothing_written_is_an_empty_file(joined: Joined) -> None:
    reading, writing = pipe_to(joined, "guest")
    assert copied(joined, reading, lambda: os.close(writing)) == b""


def test_small_readers_get_all(joined: Joined) -> None:
    reading, writing = pipe_to(joined, "guest")
    content = CONTENT[:300_001]

    def write() -> None:
        with open(writing, "wb") as stream:
            stream.write(content)

    assert copied(joined, reading, write, pause=777) == content


def test_the_client_may_be_gone_before_its_data(joined: Joined) -> None:
    guest, host = joined.connect()
    reading, writing = os.pipe()
    guest.send(b"pipe", [writing])
    joined.loop.until(lambda: host.octets == b"pipe", "the attachment")
    fd = host.take_fd()
    guest.connection.close()
    joined.loop.until(lambda: host.ended, "the end")

    def write() -> None:
        with open(fd, "wb") as stream:
            stream.write(CONTENT)

    assert copied(joined, reading, write) == CONTENT


def test_a_stuck_reader_stops_only_its_writer(joined: Joined) -> None:
    reading, writing = pipe_to(joined, "guest")
    os.set_blocking(writing, False)
    taken = 0
    for _ in range(1000):
        try:
            taken += os.write(writing, bytes(1 << 16))
        except BlockingIOError:
            joined.loop.settle()
            try:
                taken += os.write(writing, bytes(1 << 16))
            except BlockingIOError:
                break
    # What pipes and the window hold, and no more.
    assert taken < STREAM_WINDOW_BYTES + (1 << 20)
    guest, host = joined.connect()
    guest.send(b"fine")
    joined.loop.until(lambda: host.octets == b"fine", "another's bytes")
    other_reading, other_writing = pipe_to(joined, "guest")

    def write() -> None:
        with open(other_writing, "wb") as stream:
            stream.write(CONTENT)

    assert copied(joined, other_reading, write) == CONTENT
    os.close(writing)
    assert len(copied(joined, reading, lambda: None)) == taken


@pytest.mark.parametrize("sender", ["guest", "host"])
def test_a_reader_that_goes_is_seen_by_the_writer(joined: Joined, sender: str) -> None:
    reading, writing = pipe_to(joined, sender)
    os.close(reading)
    joined.loop.until(lambda: not joined.guest.channel.streams and not joined.host.channel.streams, "the stream's end")
    with pytest.raises(BrokenPipeError):
        os.write(writing, b"anybody?")
    os.close(writing)


def test_a_pipe_that_nobody_reads_any_more_goes_through(joined: Joined) -> None:
    guest, host = joined.connect()
    reading, writing = os.pipe()
    os.close(reading)
    guest.send(b"pipe", [writing])
    joined.loop.until(lambda: host.octets == b"pipe", "the message")
    fd = host.take_fd()
    joined.loop.settle()
    with pytest.raises(BrokenPipeError):
        os.write(fd, b"anybody?")
    os.close(fd)
    assert not joined.guest_over


def test_the_links_end_ends_the_data(joined: Joined) -> None:
    reading, writing = pipe_to(joined, "guest")
    joined.host.close()
    joined.loop.until(lambda: bool(joined.guest_over), "the guest half to notice")
    assert os.read(reading, 1) == b""
    with pytest.raises(BrokenPipeError):
        os.write(writing, b"anybody?")
    os.close(reading)
    os.close(writing)


def raw_data(joined: Joined, sender: str) -> tuple[int, int, Callable[..., None], list[str]]:
    """A pipe's ends, how to say something in the place of the half that sends its data, and why the other's channel is over."""
    reading, writing = pipe_to(joined, sender)
    fcntl.fcntl(reading, fcntl.F_SETPIPE_SZ, 4096)  # so little is written that no credit comes back
    one, other = (joined.guest, joined.host) if sender == "guest" else (joined.host, joined.guest)
    (sink,) = one.channel.streams
    over = joined.guest_over if sender == "guest" else joined.host_over
    (source,) = other.channel.streams
    assert source.object_id == sink.object_id
    return reading, writing, source.tell, over


@pytest.mark.parametrize("sender", ["guest", "host"])
def test_data_without_credit_end_the_channel(joined: Joined, sender: str) -> None:
    reading, writing, tell, over = raw_data(joined, sender)
    for _ in range(STREAM_WINDOW_BYTES // (1 << 15)):
        tell("data", bytes(1 << 15))
        joined.loop.settle()
    assert over == []  # nobody has read, but it had credit for that
    tell("data", bytes(4))
    joined.loop.until(lambda: bool(over), "the channel's end")
    assert "without credit" in over[0]
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("sender", ["guest", "host"])
@pytest.mark.parametrize("message", ["data", "end"])
def test_a_message_after_the_end_of_the_data_ends_the_channel(joined: Joined, sender: str, message: str) -> None:
    """While it is not all written: afterwards the stream is gone, and what comes means nothing."""
    reading, writing, tell, over = raw_data(joined, sender)
    tell("data", bytes(1 << 15))
    for _ in range(6):
        tell("data", bytes(1 << 15))
    joined.loop.settle()
    tell("end")
    tell(message, *((b"more",) if message == "data" else ()))
    joined.loop.until(lambda: bool(over), "the channel's end")
    assert ("after the end" if message == "data" else "a second end") in over[0]
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("sender", ["guest", "host"])
def test_credit_that_is_not_due_ends_the_channel(joined: Joined, sender: str) -> None:
    reading, writing = pipe_to(joined, sender)
    one = joined.guest if sender == "guest" else joined.host
    (sink,) = one.channel.streams
    over = joined.host_over if sender == "guest" else joined.guest_over
    sink.tell("credit", 1)
    joined.loop.until(lambda: bool(over), "the channel's end")
    assert "more credit than can be due" in over[0]
    os.close(reading)
    os.close(writing)
