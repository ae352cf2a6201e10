"""Streams: pipes whose ends are on different sides of a channel.

A ``StreamSink`` stands where the pipe's writing end was given away as an attachment: it writes what arrives into that end.
A ``StreamSource`` stands on the other side: it made a pipe of its own, whose writing end went on to the other party, and sends
what comes out of it. The only end of the data is the end of file of that pipe; the pieces may have any size.
"""

from __future__ import annotations

import fcntl
import logging
import os
import select
from collections import deque
from collections.abc import Callable

from waylend.channel.link import Link
from waylend.channel.messages import MAX_CONTENT_BYTES, STREAM_WINDOW_BYTES, ChannelObject
from waylend.channel.sinks import sink_for
from waylend.errors import ChannelError

logger = logging.getLogger(__name__)

_EPOLLIN, _EPOLLOUT = select.EPOLLIN, select.EPOLLOUT
_CREDIT_BYTES = STREAM_WINDOW_BYTES // 4
_PIPE_BYTES = 1 << 18


class Stream(ChannelObject):
    """What both ends share. Owns ``fd``. Gone from the link as soon as it is over."""

    interface = "waylend_stream_v1"

    def __init__(self, link: Link, object_id: int, fd: int, over: Callable[[Stream], None]) -> None:
        super().__init__(link, object_id)
        self.fd = fd
        self._loop = link.loop
        self._over = over
        self._watching = False
        link.add(self)

    def _watch(self, mask: int) -> None:
        if mask and not self._watching:
            self._loop.add(self.fd, mask, self._on_events)
        elif self._watching and not mask:
            self._loop.remove(self.fd)
        self._watching = bool(mask)

    def _on_events(self, events: int) -> None:
        raise NotImplementedError

    def on_data(self, _content: bytes) -> None:
        raise ChannelError(f"{self}: data against the stream")

    def on_credit(self, _byte_count: int) -> None:
        raise ChannelError(f"{self}: credit against the stream")

    def on_end(self) -> None:
        raise ChannelError(f"{self}: an end against the stream")

    def on_reset(self) -> None:
        self.close()

    def _close_fd(self) -> None:
        os.close(self.fd)

    def reset(self) -> None:
        """Over, before its end: the other half hears of it."""
        if self.fd >= 0:
            self.tell("reset")
            self.close()

    def close(self) -> None:
        """Idempotent; tells nobody."""
        if self.fd >= 0:
            self._watch(0)
            self._close_fd()
            self.fd = -1
            self.link.remove(self.object_id)
            self._over(self)


class StreamSource(Stream):
    """Reads a pipe of ours and sends what comes, as far as there is credit, one piece at a time."""

    def __init__(self, link: Link, object_id: int, over: Callable[[Stream], None]) -> None:
        """Makes the pipe; ``take_writing_end`` is to be called once. Raises OSError."""
        reading, self._writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        # The writing end is the other party's, who may count on a pipe that blocks.
        os.set_blocking(self._writing, True)
        super().__init__(link, object_id, reading, over)
        try:
            fcntl.fcntl(reading, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        except OSError:
            pass  # the user has too many large pipes
        self._credit_bytes = STREAM_WINDOW_BYTES
        self._watch(_EPOLLIN)

    def take_writing_end(self) -> int:
        """The descriptor, which is the caller's from now on."""
        writing, self._writing = self._writing, -1
        return writing

    def on_credit(self, byte_count: int) -> None:
        self._credit_bytes += byte_count
        if self._credit_bytes > STREAM_WINDOW_BYTES:
            raise ChannelError(f"{self}: more credit than can be due")
        self._watch(_EPOLLIN)

    def _on_events(self, _events: int) -> None:
        if self.outbox.waiting:
            # Others come first; looked at again, level-triggered, when the last piece is on its way.
            self._watch(0)
            self._loop.call_later(0.001, self._again)
            return
        try:
            content = os.read(self.fd, min(MAX_CONTENT_BYTES, self._credit_bytes))
        except BlockingIOError:
            return
        if not content:
            self.tell("end")
            self.close()
            return
        self._credit_bytes -= len(content)
        self.link.send_array(self.outbox, self.object_id, memoryview(content))
        if not self._credit_bytes:
            self._watch(0)

    def _again(self) -> None:
        if self.fd >= 0 and self._credit_bytes:
            self._watch(_EPOLLIN)

    def close(self) -> None:
        if self._writing >= 0:
            os.close(self.take_writing_end())
        super().close()


class StreamSink(Stream):
    """Writes what arrives into a descriptor that a client or a compositor gave, never waiting for its reader."""

    def __init__(self, link: Link, object_id: int, fd: int, over: Callable[[Stream], None]) -> None:
        """Owns ``fd``, also when it raises OSError."""
        self._sink = sink_for(fd)
        super().__init__(link, object_id, self._sink.fd, over)
        self._pieces: deque[memoryview] = deque()
        self._waiting_bytes = 0
        self._due_bytes = 0
        self._ended = False
        if self._sink.pollable:
            # Nothing to write yet; but that the reader hangs up shows as an error (poll(2): POLLERR on a writing end).
            self._loop.add(self.fd, 0, self._on_events)
            self._watching = True
        self._wants_out = False

    def on_data(self, content: bytes) -> None:
        if self._ended or self._waiting_bytes + self._due_bytes + len(content) > STREAM_WINDOW_BYTES:
            raise ChannelError(f"{self}: data without credit, or after the end")
        self._pieces.append(memoryview(content))
        self._waiting_bytes += len(content)
        if len(self._pieces) == 1:
            self._write()

    def on_end(self) -> None:
        if self._ended:
            raise ChannelError(f"{self}: a second end")
        self._ended = True
        if not self._pieces:
            self.close()

    def _on_events(self, events: int) -> None:
        if events & _EPOLLOUT:
            self._write()
        else:
            self._gone()

    def _write(self) -> None:
        while self._pieces:
            piece = self._pieces[0]
            try:
                written = self._sink.write(piece)
            except BlockingIOError:
                break
            except OSError:  # EPIPE: nobody reads any more
                self._gone()
                return
            self._waiting_bytes -= written
            self._due_bytes += written
            if written < len(piece):
                self._pieces[0] = piece[written:]
            else:
                self._pieces.popleft()
        if self._due_bytes >= _CREDIT_BYTES and not self._ended:
            self.tell("credit", self._due_bytes)
            self._due_bytes = 0
        if self._ended and not self._pieces:
            self.close()
        elif self._watching and bool(self._pieces) != self._wants_out:
            self._wants_out = bool(self._pieces)
            self._loop.modify(self.fd, _EPOLLOUT if self._wants_out else 0)

    def _gone(self) -> None:
        if self._ended:
            self.close()  # the other half has forgotten it
        else:
            self.reset()

    def _close_fd(self) -> None:
        self._sink.close()

    def close(self) -> None:
        self._pieces.clear()
        super().close()
