"""One end of a relayed connection: a non-blocking socket, bytes in order, each fd with the byte that it came with.

An endpoint owns its socket and the fds that it has yet to send. It knows nothing of messages.
"""

from __future__ import annotations

import array
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

from waylend.errors import PeerError
from waylend.foreign.closing import close_all, close_sent, close_socket
from waylend.relay.loop import EPOLLIN, Handler, Loop
from waylend.wire.codec import MAX_MESSAGE_BYTES

RECEIVE_BYTES = 1 << 16
# SCM_MAX_FD of Linux: what one sendmsg can carry. Room for all of them, so that MSG_CTRUNC means foul play or no fds left.
_ANCILLARY_BYTES = socket.CMSG_SPACE(253 * 4)
# MAX_FDS_OUT of libwayland: a receiver of its loses what one sendmsg carries above that.
_FDS_PER_SEND = 28
# As plain ints: an enum's `&` costs as much as the system call.
_SOL_SOCKET = int(socket.SOL_SOCKET)
_SCM_RIGHTS = int(socket.SCM_RIGHTS)
_CMSG_CLOEXEC = int(socket.MSG_CMSG_CLOEXEC)
_CTRUNC = int(socket.MSG_CTRUNC)


class ReceiveBuffer:
    """Room for what one receive brings, behind what the last one left over. One for each loop; nothing stays in it."""

    def __init__(self) -> None:
        memory = bytearray(MAX_MESSAGE_BYTES + 4 + RECEIVE_BYTES)
        self.octets = memoryview(memory)
        self.words = self.octets.cast("I")
        #: Where a receive goes when nothing was left over.
        self.whole = (self.octets[:RECEIVE_BYTES],)


#: Takes ``count`` bytes that have come: ``feed(words, octets, count)``, both views of the same memory.
Feed = Callable[[memoryview, memoryview, int], None]


class Credentials(NamedTuple):
    """The process at the other end of a socket when it connected (SO_PEERCRED, unix(7)), in our own namespaces."""

    pid: int
    uid: int


class End(Protocol):
    """What a session needs of each of its sides. ``Endpoint`` is one on a socket; a channel has others.

    ``rest`` is the beginning of a message whose end has not arrived, kept by the session; ``queued_bytes`` is what waits
    to be sent.
    """

    rest: bytes
    queued_bytes: int
    #: Descriptors that come from it are another process's; a client's are looked at before anything is done with them.
    foreign: bool

    @property
    def credentials(self) -> Credentials | None:
        """Who is there; None where no kernel can say, as behind a channel."""

    def join(self, loop: Loop, handler: Handler, feed: Feed) -> None:
        """From now on ``handler(events)`` is called when there is something to receive (EPOLLIN).

        An end that has it in memory, as words, with nothing left over before it and no fds, may ``feed`` it instead.
        """

    def watch(self, mask: int) -> None:
        """What to call the handler for: EPOLLIN, and EPOLLOUT when more can be sent."""

    def leave(self) -> None:
        """Calls the handler no more."""

    def receive(self, buffer: ReceiveBuffer) -> tuple[int, list[int] | None]: ...
    def send(self, octets: memoryview, fds: list[int] | None = None) -> None: ...
    def flush(self) -> bool: ...
    def drop_queue(self) -> None: ...
    def close(self) -> None: ...


class Endpoint:
    """``rest`` is the beginning of a message whose end has not arrived; ``queued_bytes`` is what waits to be sent."""

    __slots__ = (
        "_closed",
        "_loop",
        "_queue",
        "fd",
        "queued_bytes",
        "queued_fds",
        "rest",
        "sock",
        "writable",
    )

    foreign = True

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.fd = sock.fileno()
        self.rest = b""
        self.queued_bytes = 0
        #: Descriptors that wait to be sent with them.
        self.queued_fds = 0
        self.writable = True
        self._queue: deque[tuple[memoryview, list[int]]] = deque()
        self._loop: Loop | None = None
        self._closed = False

    @property
    def credentials(self) -> Credentials:
        """See ``End``."""
        return credentials_of(self.sock)

    def join(self, loop: Loop, handler: Handler, _feed: Feed) -> None:
        """See ``End``."""
        self._loop = loop
        loop.add(self.fd, EPOLLIN, handler)

    def watch(self, mask: int) -> None:
        """See ``End``."""
        if self._loop is not None:
            self._loop.modify(self.fd, mask)

    def leave(self) -> None:
        """See ``End``."""
        if self._loop is not None:
            self._loop.remove(self.fd)
            self._loop = None

    def receive(self, buffer: ReceiveBuffer) -> tuple[int, list[int] | None]:
        """Reads once, behind ``rest``. Returns how many bytes are in the buffer now and the fds that came, or None.

        0 bytes: the peer has closed. Raises BlockingIOError when there is nothing, OSError, and PeerError when fds were lost
        on the way (MSG_CTRUNC): there is no telling which message they were for.
        """
        rest = self.rest
        start = len(rest)
        if start:
            buffer.octets[:start] = rest
            into = (buffer.octets[start : start + RECEIVE_BYTES],)
        else:
            into = buffer.whole
        count, ancillary, flags, _ = self.sock.recvmsg_into(into, _ANCILLARY_BYTES, _CMSG_CLOEXEC)
        fds = _fds_of(ancillary) if ancillary else None
        if flags & _CTRUNC:
            close_all(fds or ())
            raise PeerError("file descriptors were lost on the way: too many at once, or none left for this process")
        return (start + count if count else 0), fds

    def send(self, octets: memoryview, fds: list[int] | None = None) -> None:
        """Sends what it can and queues a copy of the rest. Owns ``fds`` from now on: they are closed once they are sent.

        Bytes for a peer that no longer reads (EPIPE) are dropped: what it had to say may still be read.
        """
        if not self.writable:
            close_all(fds or ())
            return
        if self._queue or (fds and len(fds) > _FDS_PER_SEND):
            self._enqueue(octets, fds or [])
            self.flush()
            return
        try:
            if fds:
                sent = self.sock.sendmsg((octets,), ((_SOL_SOCKET, _SCM_RIGHTS, array.array("i", fds)),))
                close_sent(fds)
                fds = None
            else:
                sent = self.sock.send(octets)
        except BlockingIOError:
            sent = 0
        except (BrokenPipeError, ConnectionResetError):
            close_all(fds or ())
            self.drop_queue()
            return
        except OSError:  # ETOOMANYREFS: nothing of it goes on
            close_all(fds or ())
            raise
        if sent < len(octets):
            self._enqueue(octets[sent:], fds or [])

    def _enqueue(self, octets: memoryview, fds: list[int]) -> None:
        content = memoryview(bytes(octets))
        self.queued_bytes += len(content)
        self.queued_fds += len(fds)
        # More fds than one sendmsg may carry go with the first words, a word each time: never after their message.
        while len(fds) > _FDS_PER_SEND:
            self._queue.append((content[:4], fds[:_FDS_PER_SEND]))
            content, fds = content[4:], fds[_FDS_PER_SEND:]
        self._queue.append((content, fds))

    def flush(self) -> bool:
        """Sends what is queued, as far as the peer takes it. Returns whether the queue is empty now."""
        while self._queue:
            octets, fds = self._queue[0]
            try:
                if fds:
                    sent = self.sock.sendmsg((octets,), ((_SOL_SOCKET, _SCM_RIGHTS, array.array("i", fds)),))
                else:
                    sent = self.sock.send(octets)
            except BlockingIOError:
                return False
            except (BrokenPipeError, ConnectionResetError):
                self.drop_queue()
                return True
            close_sent(fds)
            self.queued_fds -= len(fds)
            self.queued_bytes -= sent
            if sent < len(octets):
                self._queue[0] = (octets[sent:], [])
            else:
                self._queue.popleft()
        return True

    def drop_queue(self) -> None:
        """The peer takes no more: forget what it was to get."""
        self.writable = False
        while self._queue:
            close_all(self._queue.popleft()[1])
        self.queued_bytes = self.queued_fds = 0

    def close(self) -> None:
        """Closes the socket and all fds that wait; never waits for anybody. Idempotent."""
        if not self._closed:
            self._closed = True
            self.drop_queue()
            close_socket(self.sock)


def credentials_of(sock: socket.socket) -> Credentials:
    pid, uid, _gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return Credentials(pid, uid)


def _fds_of(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, content in ancillary:
        if kind == _SCM_RIGHTS and level == _SOL_SOCKET:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return list(fds)
