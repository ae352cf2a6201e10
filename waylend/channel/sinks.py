"""Where a stream's data goes: whatever a client or a compositor gave to be written to, written without waiting for anybody.

Mostly that is the writing end of a pipe. But who pastes into a file gives that, and some programs a memfd, a terminal, a
socket or /dev/null. What is shared with others stays as they know it: its flags and its offset are theirs, too.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from typing import Protocol

from waylend import linux

_REOPENED = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
#: Devices that take whatever is written: /dev/null, /dev/zero and /dev/full (Documentation/admin-guide/devices.txt).
_TAKE_ALL = (os.makedev(1, 3), os.makedev(1, 5), os.makedev(1, 7))
#: Terminals that can be opened anew: consoles and serial lines, and what stands behind a pseudo terminal.
_TERMINAL_MAJORS = (4, *range(136, 144))
_PIPE_BYTES = 1 << 16
_NO_WAIT = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class Sink(Protocol):
    """Owns ``fd``, whose end is the caller's to watch where ``pollable`` says that this can be done."""

    fd: int
    pollable: bool

    def write(self, piece: memoryview) -> int:
        """How many bytes it took. Raises BlockingIOError, OSError when it takes no more."""


class Plain:
    """What write(2) doesn't wait for: a file, memory, a device that takes all; a pipe or terminal that was opened anew."""

    def __init__(self, fd: int, *, pollable: bool) -> None:
        self.fd = fd
        self.pollable = pollable

    def write(self, piece: memoryview) -> int:
        return os.write(self.fd, piece)


class SplicedPipe:
    """A pipe that can't be opened anew, since it is another user's: splice(2) has a flag for not waiting of its own."""

    pollable = True

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def write(self, piece: memoryview) -> int:
        reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            count = os.write(writing, piece[:_PIPE_BYTES])
            return os.splice(reading, self.fd, count, flags=os.SPLICE_F_NONBLOCK)
        finally:
            os.close(reading)
            os.close(writing)


class SocketSink:
    """A socket, stream or not."""

    pollable = True

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def write(self, piece: memoryview) -> int:
        sock = socket.socket(fileno=self.fd)
        try:
            return sock.send(piece, _NO_WAIT)
        finally:
            sock.detach()


def sink_for(fd: int) -> Sink:
    """Owns ``fd``, also when it raises OSError: ENXIO when nobody reads that pipe, EINVAL for what can't be written so."""
    try:
        sink = _sink_for(fd)
    except BaseException:
        os.close(fd)
        raise
    if sink.fd != fd:
        os.close(fd)
    return sink


def _sink_for(fd: int) -> Sink:
    if fcntl.fcntl(fd, fcntl.F_GETFL) & (os.O_ACCMODE | os.O_PATH) not in (os.O_WRONLY, os.O_RDWR):
        raise OSError(errno.EBADF, "it is not open for writing")
    if _is_memory(fd):
        return Plain(fd, pollable=False)
    name = os.readlink(f"/proc/self/fd/{fd}")
    if _is_pipe(fd):
        # One with a path is opened by asking its file system, which may be a stranger's.
        return SplicedPipe(fd) if name.startswith("/") else _own_pipe(fd)
    if name.startswith("socket:"):
        return SocketSink(fd)
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode) or (stat.S_ISCHR(status.st_mode) and status.st_rdev in _TAKE_ALL):
        return Plain(fd, pollable=False)
    if stat.S_ISCHR(status.st_mode) and os.major(status.st_rdev) in _TERMINAL_MAJORS and os.isatty(fd):
        return Plain(_opened_anew(fd), pollable=True)
    raise OSError(errno.EINVAL, "not a pipe, a file, a socket or a terminal")


def _own_pipe(fd: int) -> Sink:
    try:
        return Plain(_opened_anew(fd), pollable=True)
    except PermissionError:
        return SplicedPipe(fd)


def _opened_anew(fd: int) -> int:
    """The same with flags of our own."""
    return os.open(f"/proc/self/fd/{fd}", _REOPENED)


def _is_memory(fd: int) -> bool:
    try:
        linux.seals_of(fd)
    except OSError:
        return False
    return True


def _is_pipe(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)
    except OSError:
        return False
    return True
