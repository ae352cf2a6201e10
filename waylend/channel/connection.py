"""One client's connection as it crosses the channel: what a relay's session has where a socket is otherwise.

To its session it is an endpoint like another: bytes come and go, and descriptors with them. Here the descriptors become
attachments and come out of attachments: the writing end of a pipe is a stream, and what else a message may carry is what
the half says (``attachments``).
"""

from __future__ import annotations

import logging
import os
import select
import struct
from collections import deque
from collections.abc import Callable
from typing import Protocol

from waylend.channel.attachments import NOBODY, Attachment, Attachments
from waylend.channel.life import Life, Step, after
from waylend.channel.link import EPOLLIN, EPOLLOUT, EventLoop, Link
from waylend.channel.messages import CONNECTION_WINDOW_BYTES, MAX_CONTENT_BYTES, ChannelObject, Sender, message_of
from waylend.channel.streams import Stream, StreamSink, StreamSource
from waylend.errors import ChannelError, PeerError

logger = logging.getLogger(__name__)

_UINT = struct.Struct("=I")
_CREDIT_BYTES = CONNECTION_WINDOW_BYTES // 4
#: A session sends what one receive brought, and stops receiving when this much is left of its credit.
_RESERVE_BYTES = 1 << 18
#: Pieces of what arrives are put together up to this size, so that small ones cost no more memory than large ones.
_PIECE_BYTES = 1 << 16
#: A session sends no more while that much of it waits for the link. It is far below what would end the link.
_MAX_WAITING_BYTES = 1 << 16
_EPOLLHUP = select.EPOLLHUP
#: More than any limit that a session compares with.
_FULL = 1 << 62
#: While it is one of these, what the session has to say goes to the other half ...
_SPEAKS = (Life.OPEN, Life.FAILED)
#: ... and while it is one of these, the other half has nothing to say any more.
_HEARS_NOTHING = (Life.ENDED, Life.OVER)


class Room(Protocol):
    """Where a receive puts what has come."""

    octets: memoryview


class ChannelConnection(ChannelObject):
    """``rest`` is the session's; ``queued_bytes`` is 0 while there is credit to spare.

    Its life is a ``Life``; bytes that arrived before the other half's end are still received after it.
    """

    interface = "waylend_connection_v1"
    #: Who is there is a process of another machine, which no kernel here knows.
    credentials = None
    #: What comes out of it are descriptors of our own.
    foreign = False

    def __init__(self, link: Link, object_id: int, attachments_of: Callable[[ChannelConnection], Attachments]) -> None:
        super().__init__(link, object_id)
        self.rest = b""
        self.queued_bytes = 0
        self.end_reason = ""
        self.channel = link
        self.attachments: Attachments = attachments_of(self)
        self._handler: Callable[[int], None] | None = None
        self._feed: Callable[[memoryview, memoryview, int], None] | None = None
        self._mask = EPOLLIN
        self._inbox: deque[tuple[bytearray, list[int]]] = deque()
        self._arrived_fds: list[int] = []
        #: What has arrived and the session hasn't taken: bytes and descriptors.
        self.inbox_bytes = 0
        self.inbox_fds = 0
        #: Its open pipes. They live on when it is closed.
        self.streams: set[Stream] = set()
        self._taken_bytes = 0  # of what came: no longer in the inbox, credit not given yet
        self._on_way_bytes = 0
        self._held = False
        self._life = Life.OPEN
        self._failure = PeerError("")
        self.outbox.on_empty = self._look_for_room
        link.add(self)

    # The session's side: what an endpoint has

    def join(
        self, _loop: EventLoop, handler: Callable[[int], None], feed: Callable[[memoryview, memoryview, int], None]
    ) -> None:
        """``handler(events)`` is called when there is something to receive, and when it can send again.

        What comes alone and whole goes to ``feed(words, octets, count)`` without detours.
        """
        self._handler = handler
        self._feed = feed
        if self._to_receive:
            self.channel.loop.call_later(0.0, self._deliver)

    def leave(self) -> None:
        self._handler = self._feed = None

    def watch(self, mask: int) -> None:
        resumed = mask & EPOLLIN and not self._mask & EPOLLIN
        self._mask = mask
        if resumed and self._to_receive:
            self.channel.loop.call_later(0.0, self._deliver)

    @property
    def _to_receive(self) -> bool:
        """Whether a receive finds anything: bytes, a failure or the end."""
        return bool(self._inbox) or self._life is not Life.OPEN

    def _deliver(self) -> None:
        while self._handler is not None and self._mask & EPOLLIN and self._to_receive:
            self._handler(EPOLLIN)

    def receive(self, buffer: Room) -> tuple[int, list[int] | None]:
        """See ``Endpoint.receive``. Raises BlockingIOError, PeerError."""
        if not self._inbox:
            if self._life is Life.FAILED:
                raise self._failure
            if self._life is Life.OPEN and not self.channel.closed:
                raise BlockingIOError
            return 0, None
        content, fds = self._inbox.popleft()
        start, count = len(self.rest), len(content)
        buffer.octets[:start] = self.rest
        buffer.octets[start : start + count] = content
        self.inbox_bytes -= count
        self.inbox_fds -= len(fds)
        self._take(count)
        return start + count, fds or None

    def _take(self, count: int) -> None:
        self._taken_bytes += count
        if self._taken_bytes >= _CREDIT_BYTES:
            self.tell("credit", self._taken_bytes)
            self._taken_bytes = 0

    def send(self, octets: memoryview, fds: list[int] | None = None) -> None:
        """Owns ``fds`` from now on. To whom one can't be written, that transfer is over at once."""
        if fds:
            self._attach_all(fds)
        length = len(octets)
        if not length or self._life not in _SPEAKS:
            return  # hooks may have dropped all of it: nothing is no end
        self._on_way_bytes += length
        while length > MAX_CONTENT_BYTES:
            self.link.send_array(self.outbox, self.object_id, octets[:MAX_CONTENT_BYTES])
            octets = octets[MAX_CONTENT_BYTES:]
            length -= MAX_CONTENT_BYTES
        self.link.send_array(self.outbox, self.object_id, octets)
        if not self._has_room:
            self.queued_bytes = _FULL

    @property
    def _has_room(self) -> bool:
        """There is credit to spare, and the link takes what is sent: what waits for it is memory of ours."""
        waiting_bytes = self.outbox.waiting_bytes
        return (
            not self._held
            and self._on_way_bytes <= CONNECTION_WINDOW_BYTES - _RESERVE_BYTES
            and (not waiting_bytes or (waiting_bytes <= _MAX_WAITING_BYTES and not self.channel.crowded))
        )

    def hold(self, held: bool) -> None:
        """While it is held its session brings nothing more for the other half."""
        self._held = held
        if held:
            self.queued_bytes = _FULL
        else:
            self._look_for_room()

    def _look_for_room(self) -> None:
        if self.queued_bytes and self._has_room:
            self.queued_bytes = 0
            if self._handler is not None:
                self._handler(EPOLLOUT)

    def _attach_all(self, fds: list[int]) -> None:
        left = deque(fds)
        try:
            while left:
                if self._life not in _SPEAKS:
                    return
                if isinstance(left[0], Attachment):
                    left[0].tell(self)
                    os.close(left.popleft())
                else:
                    self._attach_stream(left.popleft())
        finally:
            for fd in left:
                os.close(fd)

    def _attach_stream(self, fd: int) -> None:
        """Owns ``fd``."""
        object_id = self.channel.new_id()
        try:
            self._check_room(fd)
            stream = StreamSink(self.channel, object_id, fd, self._stream_over)
        except (OSError, PeerError) as error:
            # Nobody reads that pipe any more, or it is nothing that can be written to without waiting. The message goes on, and
            # whoever writes learns it at once: it is neither client's fault.
            logger.info("%s: a transfer that can't be: %s", self, error)
            self.tell("attach_stream", object_id)
            self.link.send(self.outbox, _reset(self.link, object_id))
            return
        self._stream_begins(stream)
        self.tell("attach_stream", object_id)

    def _check_room(self, fd: int) -> None:
        """For a pipe that goes to the other half. Raises PeerError, and then closes ``fd``."""
        try:
            self.attachments.room_for_sink()
        except PeerError:
            os.close(fd)
            raise

    def _stream_begins(self, stream: Stream) -> None:
        self.streams.add(stream)
        self.channel.streams.add(stream)

    def _stream_over(self, stream: Stream) -> None:
        self.streams.discard(stream)
        self.channel.streams.discard(stream)
        self.channel.orphans.pop(stream, None)

    def flush(self) -> bool:
        """What is queued is the link's business, which sends it in its turn."""
        return True

    def drop_queue(self) -> None:
        """The other half is to get no more of it; what is on its way can't be called back."""

    def close(self) -> None:
        """The session is over. Idempotent."""
        if self.is_closed:
            return
        self._life = after(self._life, Step.CLOSE)
        self._handler = self._feed = None
        self._drop_inbox()
        self.channel.orphans.update(dict.fromkeys(self.streams))
        if not self.channel.closed:
            self.tell("end", self.end_reason.encode(errors="replace")[:1024].replace(b"\0", b"?"))
            if self._life is Life.OVER:
                self.channel.remove(self.object_id)
        # What is left until the other half has ended it, too, holds nothing and is part of no circle.
        self.outbox.on_empty = None
        attachments, self.attachments = self.attachments, NOBODY
        attachments.connection_over()

    def abandon(self) -> None:
        """Closes it for whoever has it, who finds that it has hung up."""
        if self._handler is not None:
            self._handler(_EPOLLHUP)
        self.close()

    def _drop_inbox(self) -> None:
        for _, fds in self._inbox:
            _close_all(fds)
        _close_all(self._arrived_fds)
        self._inbox.clear()
        self._arrived_fds.clear()
        self.inbox_bytes = self.inbox_fds = 0

    # The other half's side

    def feed(self, words: memoryview, octets: memoryview, count: int) -> bool:
        """``bytes`` that came alone: ``count`` bytes at the start of ``octets``. False: it has to be ``handle``d."""
        feed = self._feed
        if feed is None or self._inbox or self._arrived_fds or self.rest or not self._mask & EPOLLIN or count & 3:
            return False
        if self._life is not Life.OPEN:
            return False
        self._take(count)
        feed(words, octets, count)
        return True

    def handle(self, opcode: int, body: memoryview) -> None:
        if self._life in _HEARS_NOTHING:
            raise ChannelError(f"{self}: message {opcode} after the end")
        if opcode:
            super().handle(opcode, body)
            return
        length = len(body)
        (size,) = _UINT.unpack_from(body) if length >= 8 else (0,)
        if size != length - 4 or size & 3:  # whole words always, so there is no padding
            raise ChannelError(f"{self}.bytes: {size} bytes in a message of {length}")
        if self._life is not Life.OPEN or not size:
            return  # nothing is no end, and attachments wait for bytes
        if self.inbox_bytes + self._taken_bytes + size > CONNECTION_WINDOW_BYTES:
            raise ChannelError(f"{self}: more bytes than it has credit for")
        self.inbox_bytes += size
        if self._inbox and not self._arrived_fds and len(self._inbox[-1][0]) + size <= _PIECE_BYTES:
            self._inbox[-1][0].extend(body[4:])
        else:
            fds, self._arrived_fds = self._arrived_fds, []
            self._inbox.append((bytearray(body[4:]), fds))
            if len(self._inbox) > 1:
                self.attachments.piling_up()
        handler = self._handler
        if handler is not None and self._mask & EPOLLIN:
            handler(EPOLLIN)

    def on_credit(self, byte_count: int) -> None:
        self._on_way_bytes -= byte_count
        if self._on_way_bytes < 0:
            raise ChannelError(f"{self}: more credit than can be due")
        self._look_for_room()

    def on_attach_stream(self, object_id: int) -> None:
        self.channel.check_new_id(object_id)
        if self._life is not Life.OPEN:
            self.link.send(self.outbox, _reset(self.link, object_id))
            return
        try:
            self.attachments.room_for_stream()
            stream = StreamSource(self.channel, object_id, self._stream_over)
        except PeerError as error:
            self._refuse_stream(object_id, error)
            return
        except OSError as error:
            self._refuse_stream(object_id, PeerError(f"can't make a pipe: {error.strerror}"))
            return
        self._stream_begins(stream)
        self._arrived(stream.take_writing_end())

    def _refuse_stream(self, object_id: int, error: PeerError) -> None:
        self.link.send(self.outbox, _reset(self.link, object_id))
        self._fail(error)

    def on_attach_aperture(self) -> None:
        self._arrive(self.attachments.open_aperture)

    def on_attach_file(self, lease: int, gfn: int, size_bytes: int) -> None:
        self._arrive(lambda: self.attachments.open_file(lease, gfn, size_bytes))

    def _arrive(self, open_fd: Callable[[], int]) -> None:
        if self._life is not Life.OPEN:
            return
        try:
            self.attachments.room_for_descriptor()
            fd = open_fd()
        except OSError as error:
            self._fail(PeerError(f"an attachment can't be opened: {error.strerror}"))
        except PeerError as error:
            self._fail(error)
        else:
            self._arrived(fd)

    def _arrived(self, fd: int) -> None:
        self._arrived_fds.append(fd)
        self.inbox_fds += 1

    def _fail(self, error: PeerError) -> None:
        """Ends this client's connection, and none else: its session finds ``error`` when it receives."""
        if self._life is Life.OPEN:
            self._life = after(self._life, Step.FAIL)
            self._failure = error
            self.channel.loop.call_later(0.0, self._deliver)

    @property
    def is_closed(self) -> bool:
        """The session has closed it."""
        return self._life in (Life.CLOSED, Life.OVER)

    def on_lease(self, object_id: int, page_count: int) -> None:
        self.channel.check_new_id(object_id)
        if self.is_closed:
            refusal = message_of(self.link, "waylend_lease_v1", "refused", object_id, b"the connection is closed")
            self.link.send(self.outbox, refusal)
        else:
            self.attachments.lease_asked(object_id, page_count)

    def on_end(self, reason: bytes) -> None:
        self._life = after(self._life, Step.END)
        self.end_reason = reason.decode(errors="replace")
        if self._life is Life.OVER:
            self.channel.remove(self.object_id)
            return
        self._deliver()
        if self._handler is not None and not self._inbox:
            self._handler(_EPOLLHUP)  # told always, as epoll does

    def link_closed(self) -> None:
        """The channel is over: the session finds an end of file, behind what has arrived and can be passed on now."""
        if self._life not in _HEARS_NOTHING:
            self._life = after(self._life, Step.END)
        self._mask |= EPOLLIN
        self._deliver()
        if self._handler is not None:
            self._drop_inbox()
            self._handler(EPOLLIN)


def _reset(link: Sender, object_id: int) -> bytes:
    """The end of a stream that this side never had."""
    return message_of(link, "waylend_stream_v1", "reset", object_id)


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
