"""A link: one channel over one byte stream. Bytes to messages and back, which objects there are, whose turn it is.

It lives in one epoll loop, with everything on it. What the messages mean is their objects' business (``connection``,
``streams``, and the two halves); here is the beginning (hello), the end, and the pulse (ping).
"""

from __future__ import annotations

import logging
import os
import select
import struct
from collections import deque
from collections.abc import Callable
from typing import Protocol

from waylend.channel.messages import CHANNEL_ID, HOST_IDS_START, ChannelObject, Outbox
from waylend.errors import ChannelError

logger = logging.getLogger(__name__)

EPOLLIN = select.EPOLLIN
EPOLLOUT = select.EPOLLOUT

_HEAD = struct.Struct("=II")
#: The head of a message whose only argument is an array: object, size and opcode, the array's length.
_ARRAY_HEAD = struct.Struct("=III")
_RECEIVE_BYTES = 1 << 18
_HEADER_BYTES = 8
_MAX_GREETING_BYTES = 2048
_LAST_ID = 0xFFFFFFFF
#: What may wait to be sent, in one outbox and in all. What has credit stops long before that (``crowded``): only answers that
#: nobody reads get there.
_MAX_OUTBOX_BYTES = 1 << 19
_MAX_WAITING_BYTES = 56 << 20
_CROWDED_BYTES = 16 << 20
#: How many objects there may be where nobody says otherwise: a guest half trusts its host half with that.
_MANY_OBJECTS = 1 << 16
#: Silence of that length is worth a line in the log.
_LONG_S = 15.0
#: Why a link is over that its other end has closed in good order.
GONE = "the other half has gone"
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")


class Cancellable(Protocol):
    def cancel(self) -> None: ...


class Resettable(Protocol):
    """An open pipe."""

    def reset(self) -> None:
        """Over, before its end: the other half hears of it."""


class EventLoop(Protocol):
    """What a link needs of the epoll loop that it lives in."""

    def add(self, fd: int, mask: int, handler: Callable[[int], None]) -> None: ...
    def modify(self, fd: int, mask: int) -> None: ...
    def remove(self, fd: int) -> None: ...
    def call_later(self, delay_s: float, call: Callable[[], None]) -> Cancellable: ...


class Link:
    """Owns the stream's descriptor. ``on_end(why)`` is called once, when the link is over by the other's doing.

    Invariants: an object is in ``objects`` until both halves know that it is gone, or its id says that it was there; a
    message is sent whole before the next begins; an outbox with messages waiting takes turns.

    ``silence_s``: after so long without a word the other half counts as gone; 0: never. A stream's own end says that a peer
    died; one that is paused is as silent, and goes on.
    """

    def __init__(
        self,
        loop: EventLoop,
        fd: int,
        *,
        is_host: bool,
        on_end: Callable[[str], None],
        silence_s: float = 0.0,
        max_objects: int = _MANY_OBJECTS,
    ) -> None:
        os.set_blocking(fd, False)
        self.loop = loop
        self.is_host = is_host
        self.closed = False
        #: What is sent is dropped: the other half is not the one that it is for.
        self.mute = False
        #: hello has been; before it nothing else may come (but error), so that a stranger is known by the first words.
        self.greeted = False
        #: Padding came directly before the message that is being handled.
        self.padded = False
        #: How long nothing has been heard, in whole beats.
        self.silent_s = 0.0
        #: Everything before these bytes is dropped.
        self.sync_to = b""
        self.objects: dict[int, ChannelObject] = {}
        #: Open pipes: they outlive the connections that they came with.
        self.streams: set[ChannelObject] = set()
        #: Those of them whose connection is closed, the oldest first.
        self.orphans: dict[Resettable, None] = {}
        self._fd = fd
        self._on_end = on_end
        self._silence_s = silence_s
        self._max_objects = max_objects
        self._waiting_bytes = 0
        self._overfull = False
        self._memory = bytearray(_RECEIVE_BYTES)
        self._octets = memoryview(self._memory)
        self._whole = (self._octets,)
        # Behind the head of a message whose only argument is an array.
        self._array_octets = self._octets[_ARRAY_HEAD.size :]
        self._array_words = self._array_octets.cast("I")
        #: Nothing waits to be sent, and what is sent is meant for the other half.
        self.clear = True
        self._have_bytes = 0
        self._unsent = memoryview(b"")
        self._turns: deque[Outbox] = deque()
        self._last_id = HOST_IDS_START - 1 if is_host else CHANNEL_ID
        self._last_theirs = CHANNEL_ID  # of the guest half's ids, which only rise
        self._heard = False
        self._pings = 0
        self._pinged = False
        self._asked: dict[int, Callable[[], None]] = {}
        loop.add(fd, EPOLLIN, self._on_events)

    # Objects

    def new_id(self) -> int:
        """An id for an object that this half makes. Raises ChannelError when they are used up."""
        first, last = (HOST_IDS_START, _LAST_ID) if self.is_host else (CHANNEL_ID + 1, HOST_IDS_START - 1)
        if self.is_host:
            for _ in range(_LAST_ID - HOST_IDS_START):
                self._last_id = first if self._last_id == last else self._last_id + 1
                if self._last_id not in self.objects:
                    return self._last_id
        elif self._last_id < last:
            self._last_id += 1
            return self._last_id
        raise ChannelError("no object ids are left")

    def check_new_id(self, object_id: int) -> None:
        """The other half makes an object. Raises ChannelError for an id that it may not give now."""
        if self.is_host:
            if not self._last_theirs < object_id < HOST_IDS_START:
                raise ChannelError(f"new id {object_id} is not above {self._last_theirs}, the last")
            self._last_theirs = object_id
        elif object_id < HOST_IDS_START or object_id in self.objects:
            raise ChannelError(f"new id {object_id} is taken or not the host half's")

    def add(self, spoken: ChannelObject) -> None:
        """Raises ChannelError when there are too many."""
        if len(self.objects) >= self._max_objects:
            raise ChannelError(f"{self._max_objects} objects are on the channel already: too many never end")
        self.objects[spoken.object_id] = spoken

    def remove(self, object_id: int) -> None:
        """The object is gone; what it has in its outbox is still sent."""
        self.objects.pop(object_id, None)

    def forget_all(self) -> None:
        """The guest half began anew: nothing of the old one means anything, and nothing for it is sent any more.

        What has been sent in part is sent to its end, and skipped by the new one with all that came before its hello.
        """
        for outbox in self._turns:
            outbox.drop()
        self._waiting_bytes = 0
        self._turns.clear()
        self.objects = {CHANNEL_ID: self.objects[CHANNEL_ID]}
        self._asked.clear()
        self._last_theirs = CHANNEL_ID

    # Receiving

    def _on_events(self, events: int) -> None:
        if events & EPOLLOUT and not self.closed:
            self._send_more()
        if events & ~EPOLLOUT and not self.closed:
            self._receive()

    def _receive(self) -> None:
        have = self._have_bytes
        try:
            count = os.readv(self._fd, (self._octets[have:],) if have else self._whole)
        except BlockingIOError:
            return
        except OSError as error:
            self.fail(error.strerror or f"{error}")
            return
        if not count:
            self.fail(GONE)
            return
        self._heard = True
        if not have and count > _ARRAY_HEAD.size:
            # As a rule it is one message of one connection, and whole: the short way.
            object_id, word, length = _ARRAY_HEAD.unpack_from(self._octets)
            if word == count << 16 and length == count - _ARRAY_HEAD.size and not self.sync_to:
                fed = self.objects.get(object_id)
                if fed is not None and fed.feed(self._array_words, self._array_octets, length):
                    return
        try:
            have += count
            if self.sync_to:
                have = self._skipped(have)
            rest = self._handle(have)
        except ChannelError as error:
            self.fail(f"{error}", tell=True)
            return
        if rest:
            self._octets[:rest] = bytes(self._octets[have - rest : have])
        self._have_bytes = rest

    def _skipped(self, have: int) -> int:
        """Drops what comes before ``sync_to``, or may not belong to it; returns how many bytes are left."""
        at = self._memory.find(self.sync_to, 0, have)
        if at >= 0:
            self.sync_to = b""
        else:
            at = max(0, have - len(self.sync_to) + 1)
        self._octets[: have - at] = bytes(self._octets[at:have])
        return have - at

    def _handle(self, have: int) -> int:
        """Has all whole messages of the first ``have`` bytes handled; returns how many bytes are left over."""
        octets = self._octets
        at = 0
        if self.sync_to:
            return have
        objects = self.objects
        while have - at >= _HEADER_BYTES:
            object_id, word = _HEAD.unpack_from(octets, at)
            if not object_id:
                at += 4
                self.padded = True
                continue
            size_bytes = word >> 16
            if size_bytes < _HEADER_BYTES or size_bytes % 4:
                raise ChannelError(f"a message of {size_bytes} bytes: that is not waylend's channel")
            if not self.greeted and (object_id != CHANNEL_ID or word & 0xFFFF > 1 or size_bytes > _MAX_GREETING_BYTES):
                raise ChannelError("the other half does not begin with hello: that is not waylend's channel")
            if have - at < size_bytes:
                break
            spoken = objects.get(object_id)
            if spoken is not None:
                spoken.handle(word & 0xFFFF, octets[at + _HEADER_BYTES : at + size_bytes])
                if self.closed:
                    return 0
                objects = self.objects
            elif not self._was_there(object_id):
                raise ChannelError(f"a message to object {object_id}, which nobody made")
            self.padded = False
            at += size_bytes
        return have - at

    def _was_there(self, object_id: int) -> bool:
        if object_id >= HOST_IDS_START:
            return True  # they are used in turn
        return object_id <= (self._last_theirs if self.is_host else self._last_id)

    # Sending

    def send(self, source: Outbox, octets: bytes) -> None:
        """Sends a whole message, at once where nothing waits, else in its source's turn."""
        if not self.clear:
            if not (self.closed or self.mute):
                self._enqueue(source, octets)
            return
        try:
            sent = os.write(self._fd, octets)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # the end of the stream is read soon, and says why
        if sent < len(octets):
            self._keep(memoryview(octets)[sent:])

    def send_array(self, source: Outbox, object_id: int, content: memoryview) -> None:
        """Sends message 0 of an object, whose only argument is an array; at most MAX_CONTENT_BYTES. The hot path."""
        length = len(content)
        if length & 3 or not self.clear:
            padding = _PADDING[length & 3]
            head = _ARRAY_HEAD.pack(object_id, (12 + length + len(padding)) << 16, length)
            self.send(source, b"".join((head, content, padding)))
            return
        head = _ARRAY_HEAD.pack(object_id, (12 + length) << 16, length)
        try:
            sent = os.writev(self._fd, (head, content))
        except BlockingIOError:
            sent = 0
        except OSError:
            return
        if sent < 12 + length:
            self._keep(memoryview(b"".join((head, content)))[sent:])

    def hush(self, mute: bool) -> None:
        """While it is mute, what is sent is dropped."""
        self.mute = mute
        self._look_clear()

    def _look_clear(self) -> None:
        self.clear = not (self._unsent or self._turns or self.mute or self.closed)

    @property
    def crowded(self) -> bool:
        """So much waits already that whoever has anything waiting should bring no more."""
        return self._waiting_bytes > _CROWDED_BYTES

    def _enqueue(self, source: Outbox, octets: bytes) -> None:
        self._waiting_bytes += source.put(octets)
        if not source.taking_turns:
            source.taking_turns = True
            self._turns.append(source)
        full = source.waiting_bytes > _MAX_OUTBOX_BYTES or self._waiting_bytes > _MAX_WAITING_BYTES
        if full and not self._overfull:
            # Not from here: whoever sends may be in the middle of something.
            self._overfull = True
            self.loop.call_later(0.0, lambda: self.fail("the other half doesn't read what it asked for"))

    def _keep(self, rest: memoryview) -> None:
        self._unsent = rest
        self.clear = False
        self.loop.modify(self._fd, EPOLLIN | EPOLLOUT)

    def _send_more(self) -> None:
        """What waits, a message of each source in turn, as far as the stream takes it."""
        while True:
            try:
                while self._unsent:
                    self._unsent = self._unsent[os.write(self._fd, self._unsent) :]
            except BlockingIOError:
                return
            except OSError as error:
                self.fail(error.strerror or f"{error}")
                return
            if not self._turns:
                self._look_clear()
                self.loop.modify(self._fd, EPOLLIN)
                return
            source = self._turns.popleft()
            message, cost = source.take()
            self._waiting_bytes -= cost
            self._unsent = memoryview(message)
            if source.waiting:
                self._turns.append(source)
            else:
                source.taking_turns = False
                if source.on_empty is not None:
                    source.on_empty()

    # The pulse and the end

    def beat(self, ping: Callable[[int], None], elapsed_s: float) -> None:
        """Called every ``elapsed_s``: ``ping(serial)`` once when nothing was heard since, so that silence means something."""
        if self.closed or not self.greeted:
            return
        if self._heard:
            if self.silent_s > _LONG_S:
                logger.warning("the other half is heard again, after %.0f s of silence", self.silent_s)
            self.silent_s = 0.0
            self._heard = self._pinged = False
            return
        silent_s, self.silent_s = self.silent_s, self.silent_s + elapsed_s
        if self._silence_s and self.silent_s > self._silence_s:
            self.fail(f"nothing was heard for {self._silence_s:g} s")
            return
        if silent_s <= _LONG_S < self.silent_s:
            logger.warning("nothing was heard of the other half for %.0f s; it may be paused", self.silent_s)
        if not self._pinged:
            self._pinged = True
            ping(self._next_serial())

    def _next_serial(self) -> int:
        self._pings = (self._pings + 1) & 0xFFFFFFFF
        return self._pings

    def ask(self, source: Outbox, answered: Callable[[], None]) -> None:
        """``answered`` is called once the other half has seen all that ``source`` has sent until now.

        It answers a ping behind that. Who asks has to bound how often before the answer.
        """
        serial = self._next_serial()
        self._asked[serial] = answered
        self.send(source, self.objects[CHANNEL_ID].encode("ping", serial))

    def answer(self, serial: int) -> None:
        """A pong came."""
        answered = self._asked.pop(serial, None)
        if answered is not None:
            answered()

    def fail(self, why: str, *, tell: bool = False) -> None:
        """The link is over. With ``tell`` a host half says why first, if the stream takes it at once."""
        if self.closed:
            return
        logger.info("channel: %s", why)
        if tell and self.is_host and not self._unsent:
            self.objects[CHANNEL_ID].tell("error", why.encode(errors="replace")[:1024].replace(b"\0", b"?"))
        self.close()
        self._on_end(why)

    def close(self) -> None:
        """Idempotent. Says nothing to anybody."""
        if not self.closed:
            self.closed = True
            self.clear = False
            self.loop.remove(self._fd)
            os.close(self._fd)
            self._turns.clear()
