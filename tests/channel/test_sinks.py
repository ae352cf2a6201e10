"""Pastes into what isn't a pipe of our own user: what takes bytes without waiting gets them, all else ends its transfer only."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.channel.joined import Joined, Party
from waylend import linux
from waylend.channel.sinks import SplicedPipe, sink_for

CONTENT = bytes(range(251)) * 2000  # 502 kB: more than any window or pipe holds


def transfer(joined: Joined, fd: int, sender: str) -> tuple[Party, Party, int]:
    """``fd`` goes to the other side with a message; what is written to what comes of it there is to arrive in ``fd``."""
    guest, host = joined.connect()
    one, other = (guest, host) if sender == "guest" else (host, guest)
    one.send(b"into", [fd])
    joined.loop.until(lambda: other.octets == b"into", "the message")
    return one, other, other.take_fd()


def write_all(joined: Joined, fd: int, content: bytes) -> None:
    os.set_blocking(fd, False)
    while content:
        try:
            content = content[os.write(fd, content) :]
        except BlockingIOError:
            joined.loop.turn(0.01)
    os.close(fd)
    joined.loop.until(lambda: not joined.guest.channel.streams and not joined.host.channel.streams, "the end")


@pytest.fixture
def into_file(tmp_path: Path) -> tuple[int, Callable[[], bytes]]:
    path = tmp_path / "pasted"
    path.write_bytes(b"what was there, ")
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC), path.read_bytes


@pytest.mark.parametrize("sender", ["guest", "host"])
def test_a_file_is_written_where_its_owner_stands(
    joined: Joined, sender: str, into_file: tuple[int, Callable[[], bytes]]
) -> None:
    fd, found = into_file
    write_all(joined, transfer(joined, fd, sender)[2], CONTENT)
    assert found() == b"what was there, " + CONTENT


@pytest.mark.parametrize("sender", ["guest", "host"])
def test_memory_is_written_where_its_owner_stands(joined: Joined, sender: str) -> None:
    fd = os.memfd_create("pasted", os.MFD_CLOEXEC)
    os.write(fd, b"first, ")
    kept = os.dup(fd)
    write_all(joined, transfer(joined, fd, sender)[2], CONTENT)
    assert os.pread(kept, len(CONTENT) + 100, 0) == b"first, " + CONTENT
    os.close(kept)


def test_what_is_written_into_dev_null_is_taken(joined: Joined) -> None:
    write_all(joined, transfer(joined, os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), "guest")[2], CONTENT)


def test_a_terminal_shows_it(joined: Joined) -> None:
    ours, terminal = pty.openpty()
    fd = transfer(joined, terminal, "guest")[2]
    os.write(fd, b"shown\n")
    shown = b""
    os.set_blocking(ours, False)
    while b"shown" not in shown:
        joined.loop.turn(0.01)
        with contextlib.suppress(BlockingIOError):
            shown += os.read(ours, 100)
    os.close(fd)
    joined.loop.until(lambda: not joined.guest.channel.streams, "the end")
    os.close(ours)


@pytest.mark.parametrize("sender", ["guest", "host"])
def test_a_socket_gets_it_and_blocks_for_its_owner_as_before(joined: Joined, sender: str) -> None:
    ours, theirs = socket.socketpair()
    kept = theirs.dup()
    fd = transfer(joined, theirs.detach(), sender)[2]
    found = bytearray()
    ours.setblocking(False)
    os.set_blocking(fd, False)
    content = CONTENT
    while len(found) < len(CONTENT):
        with contextlib.suppress(BlockingIOError):
            content = content[os.write(fd, content) :] if content else b""
        joined.loop.turn(0.001)
        with contextlib.suppress(BlockingIOError):
            found += ours.recv(1 << 16)
    assert found == CONTENT
    assert os.get_blocking(kept.fileno())
    os.close(fd)
    joined.loop.until(lambda: not joined.guest.channel.streams, "the end")
    ours.close()
    kept.close()


def test_a_pipe_that_can_not_be_opened_anew_is_written_without_waiting() -> None:
    reading, writing = os.pipe()
    sink = SplicedPipe(writing)
    assert os.get_blocking(writing)
    content, written = memoryview(CONTENT), 0
    with contextlib.suppress(BlockingIOError):
        while True:
            written += sink.write(content[written:])
    assert 0 < written <= fcntl.fcntl(writing, fcntl.F_GETPIPE_SZ)
    assert os.get_blocking(writing)
    assert os.read(reading, 1 << 20) == CONTENT[:written]
    assert sink.write(content[written : written + 10]) == 10
    assert os.read(reading, 100) == CONTENT[written : written + 10]
    os.close(reading)
    with pytest.raises(BrokenPipeError):
        sink.write(content)
    os.close(writing)


AS_NOBODY = """
import os, sys
sys.path[:0] = sys.argv[1:]
from waylend.channel.sinks import sink_for
os.setgid(65534); os.setuid(65534)
sink = sink_for(os.dup(1))
while True:
    try:
        sink.write(memoryview(b"x" * 1000))
    except BlockingIOError:
        break
print(type(sink).__name__, file=sys.stderr)
"""


def test_a_pipe_of_another_users_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can be another user")
    reading, writing = os.pipe()
    os.fchmod(writing, 0o600)
    # Modules are imported before the user is changed: a checkout may be readable to root alone.
    argv = [sys.executable, "-c", AS_NOBODY, *sys.path]
    done = subprocess.run(argv, stdout=writing, stderr=subprocess.PIPE, text=True, check=False, timeout=30)
    os.close(writing)
    assert done.stderr == "SplicedPipe\n"
    assert len(os.read(reading, 1 << 20)) > 4096
    os.close(reading)


def refused() -> Iterator[tuple[str, Callable[[], int]]]:
    yield "an eventfd", lambda: os.eventfd(0, os.EFD_CLOEXEC)
    yield "a folder", lambda: os.open("/", os.O_RDONLY | os.O_CLOEXEC)
    yield "memory for reading only", lambda: os.open("/proc/self/exe", os.O_RDONLY | os.O_CLOEXEC)
    yield "a path", lambda: os.open("/dev/null", os.O_PATH | os.O_CLOEXEC)
    yield "the other side of terminals", lambda: os.open("/dev/ptmx", os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY)
    yield "sealed memory", _sealed


def _sealed() -> int:
    fd = os.memfd_create("sealed", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    fcntl.fcntl(fd, linux.F_ADD_SEALS, linux.F_SEAL_WRITE)
    return fd


@pytest.mark.parametrize("sender", ["guest", "host"])
@pytest.mark.parametrize(("what", "make"), [*refused()])
def test_what_can_not_be_written_ends_that_transfer_only(
    joined: Joined, sender: str, what: str, make: Callable[[], int]
) -> None:
    one, other, fd = transfer(joined, make(), sender)

    def is_broken() -> bool:
        try:
            os.write(fd, b"anybody?")
        except BrokenPipeError:
            return True
        return False

    joined.loop.until(is_broken, "the writer to learn it")
    os.close(fd)
    one.send(b"fine")
    other.send(b"too!")
    joined.loop.until(lambda: (other.octets, one.octets) == (b"intofine", b"too!"), "both sides to go on")
    assert (one.failure, other.failure) == ("", "")
    assert not joined.guest.channel.streams
    assert not joined.host.channel.streams


def test_too_many_transfers_end_the_next_of_them_only(joined: Joined) -> None:
    """The other side asked for them: it is no fault of who was to give."""
    joined.files.max_sinks = 2
    guest, host = joined.connect()
    readings = []
    for number in range(4):
        reading, writing = os.pipe()
        readings.append(reading)
        host.send(b"send", [writing])
        joined.loop.until(lambda n=number: len(guest.octets) == 4 * (n + 1), "the message")  # type: ignore[misc]
    joined.loop.settle()
    assert len(guest.fds) == 4
    fds = [guest.take_fd() for _ in range(4)]
    for fd in fds[2:]:
        with pytest.raises(BrokenPipeError):
            os.write(fd, b"anybody?")
    os.write(fds[0], b"data")
    os.close(fds[0])
    joined.loop.settle()
    assert os.read(readings[0], 10) == b"data"
    assert (guest.failure, host.failure) == ("", "")
    for fd in (*fds[1:], *readings):
        os.close(fd)


def test_sinks_own_what_they_are_given() -> None:
    reading, writing = os.pipe()
    sink = sink_for(writing)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(writing)
    os.close(sink.fd)
    os.close(reading)
