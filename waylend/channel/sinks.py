"""Where a stream's data goes: whatever a client or a compositor gave to be written to, written without waiting for anybody.

Mostly that is the writing end of a pipe. But who pastes into a file gives that, and some programs a memfd, a terminal, a
socket or /dev/null. What is shared with others stays as they know it: its flags and its offset are theirs, too.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from typing import Protocol

from waylend.foreign.closing import close_all
from waylend.foreign.kinds import Descriptor, DescriptorKind, look_at

_REOPENED = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
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

    def close(self) -> None: ...


class Plain:
    """What write(2) doesn't wait for: a file, memory, a device that takes all; a pipe or terminal that was opened anew."""

    def __init__(self, fd: int, *, pollable: bool) -> None:
        self.fd = fd
        self.pollable = pollable

    def write(self, piece: memoryview) -> int:
        return os.write(self.fd, piece)

    def close(self) -> None:
        os.close(self.fd)


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

    def close(self) -> None:
        os.close(self.fd)


class SocketSink:
    """A socket, stream or not. To close it may wait for its peer."""

    pollable = True

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def write(self, piece: memoryview) -> int:
        sock = socket.socket(fileno=self.fd)
        try:
            return sock.send(piece, _NO_WAIT)
        finally:
            sock.detach()

    def close(self) -> None:
        close_all((self.fd,))


def sink_for(fd: int) -> Sink:
    """Owns ``fd``, also when it raises OSError: ENXIO when nobody reads that pipe, EINVAL for what can't be written so."""
    try:
        sink = _sink_for(fd)
    except BaseException:
        close_all((fd,))
        raise
    if sink.fd != fd:
        os.close(fd)
    return sink


def _sink_for(fd: int) -> Sink:
    descriptor = fd if isinstance(fd, Descriptor) else look_at(fd)
    if fd < 0 or fcntl.fcntl(fd, fcntl.F_GETFL) & (os.O_ACCMODE | os.O_PATH) not in (os.O_WRONLY, os.O_RDWR):
        raise OSError(errno.EBADF, "it is not open for writing")
    if descriptor.kind is DescriptorKind.PIPE:
        return _pipe(fd)
    if descriptor.kind in (DescriptorKind.SHARED_MEMORY, DescriptorKind.LOCAL_FILE):
        return Plain(fd, pollable=False)
    if descriptor.kind is DescriptorKind.LOCAL_DEVICE:
        return _device(fd)
    if os.readlink(f"/proc/self/fd/{fd}").startswith("socket:"):
        return SocketSink(fd)
    raise OSError(errno.EINVAL, f"{descriptor.what} takes no data without waiting")


def _pipe(fd: int) -> Sink:
    # One with a path is opened by asking its file system, which may be a stranger's.
    if os.readlink(f"/proc/self/fd/{fd}").startswith("/"):
        return SplicedPipe(fd)
    try:
        return Plain(_opened_anew(fd), pollable=True)
    except PermissionError:
        return SplicedPipe(fd)


def _device(fd: int) -> Sink:
    if not os.isatty(fd):
        return Plain(fd, pollable=False)
    if os.major(os.fstat(fd).st_rdev) not in _TERMINAL_MAJORS:
        raise OSError(errno.EINVAL, "a terminal that is another one when it is opened anew")
    return Plain(_opened_anew(fd), pollable=True)


def _opened_anew(fd: int) -> int:
    """The same with flags of our own."""
    return os.open(f"/proc/self/fd/{fd}", _REOPENED)
