"""One client: two endpoints, its object map, its interposers. Moves messages both ways until either side ends it."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterable
from typing import ClassVar, Protocol

from waylend.errors import LimitExceeded, PeerError, ProtocolError, WaylendError
from waylend.foreign.closing import close_all, looked_at
from waylend.policy import Policy
from waylend.relay.endpoint import End, ReceiveBuffer
from waylend.relay.events import RelayEvent, SessionEnded, SessionOpened
from waylend.relay.interpose import Client, FdMessage, Interposer, hooks_of
from waylend.relay.loop import EPOLLIN, EPOLLOUT, Loop
from waylend.wire.codec import encode
from waylend.wire.dump import quote
from waylend.wire.objects import DISPLAY_ID, Catalogue, Kind, ObjectMap
from waylend.wire.scan import EventScanner, Message, RequestScanner, Scanner

logger = logging.getLogger(__name__)

#: So many descriptors before their messages that the share of other clients is looked at: what one sendmsg of libwayland has.
_FEW_FDS = 28
#: How long closer looks at one client's requests may take before the others have their turn.
_TURN_S = 0.002

Trace = Callable[[int, bool, Message[int]], None]


class RelayContext(Protocol):
    """What a session needs of the relay that it lives in."""

    loop: Loop
    policy: Policy
    catalogue: Catalogue
    buffer: ReceiveBuffer
    trace: Trace | None

    def interposers_for(self, session: Session) -> Iterable[Interposer]: ...
    def share_queued_fds(self) -> None: ...
    def emit(self, event: RelayEvent) -> None: ...
    def send_last_words(self, endpoint: End) -> None: ...
    def session_ended(self, session: Session) -> None: ...


class Session:
    """Owns both ends and every fd in transit. After ``end`` nothing of it is left but last words on their way out.

    While a message of one side waits for what an interposer doesn't have yet, that side is *held*: it isn't read.
    """

    def __init__(
        self,
        relay: RelayContext,
        session_id: int,
        client: End,
        compositor: End,
    ) -> None:
        self.session_id = session_id
        self.policy = relay.policy
        self.objects = ObjectMap(relay.catalogue)
        self._relay = relay
        self._loop = relay.loop
        self._buffer = relay.buffer
        self._limit_bytes = relay.policy.limits.buffered_bytes
        self._limit_objects = relay.policy.limits.objects_per_client
        self._ended = False
        self.emit = relay.emit
        self._turn_ends = 0.0
        self.client = client
        self.compositor = compositor
        self._last_words = LastWords(self)
        self._interposers = (self._last_words, *relay.interposers_for(self))
        request_hooks, event_hooks = hooks_of(self._interposers)
        trace = relay.trace
        self._requests: RequestScanner[int] = RequestScanner(
            self.objects,
            request_hooks,
            trace=None if trace is None else lambda message: trace(session_id, True, message),
            max_unclaimed_fds=relay.policy.limits.queued_fds,
            enough=lambda: time.monotonic() > self._turn_ends,
        )
        self._events: EventScanner[int] = EventScanner(
            self.objects,
            event_hooks,
            trace=None if trace is None else lambda message: trace(session_id, False, message),
            max_unclaimed_fds=relay.policy.limits.queued_fds,
        )
        self.client.join(
            self._loop,
            self._on_client,
            functools.partial(self._feed, self.client, self.compositor, self._requests),
        )
        self.compositor.join(
            self._loop,
            self._on_compositor,
            functools.partial(self._feed, self.compositor, self.client, self._events),
        )
        pid, uid = client.credentials or (None, None)
        self.emit(SessionOpened(session_id, pid, uid))

    # The data path

    def _on_client(self, events: int) -> None:
        if events != EPOLLIN and not self._flushed(self.client, events):
            return
        self._pump(self.client, self.compositor, self._requests)

    def _on_compositor(self, events: int) -> None:
        if events != EPOLLIN and not self._flushed(self.compositor, events):
            return
        self._pump(self.compositor, self.client, self._events)

    def _flushed(self, end: End, events: int) -> bool:
        """Sends more where that is what there is to do; returns whether there is something to receive, too."""
        if events & EPOLLOUT:
            try:
                end.flush()
                self._watch()
            except OSError as error:
                self._hung_up(end, error.strerror or f"{error}")
                return False
        return bool(events & ~EPOLLOUT)

    def _pump(self, source: End, target: End, scanner: Scanner[int]) -> None:
        """One receive, one scan, one send."""
        if self._ended:
            return
        buffer = self._buffer
        try:
            count, fds = source.receive(buffer)
        except BlockingIOError:
            return
        except PeerError as error:
            self._broken(source, error)
            return
        except OSError as error:
            self._hung_up(source, error.strerror or f"{error}")
            return
        if fds:
            scanner.unclaimed.extend(looked_at(fds) if source.foreign and source is self.client else fds)
            if len(scanner.unclaimed) > _FEW_FDS and self._check_refused(scanner):
                return
        if not count:
            self._hung_up(source, "")
            return
        self._feed(source, target, scanner, buffer.words, buffer.octets, count)

    def _feed(
        self, source: End, target: End, scanner: Scanner[int], words: memoryview, octets: memoryview, count: int
    ) -> None:
        """One scan, one send of what has come: ``count`` bytes at the start of ``octets`` (``words`` are the same memory).

        Whatever goes wrong ends this session, and nothing of the chunk goes on.
        """
        self._turn_ends = time.monotonic() + _TURN_S
        try:
            whole = scanner.scan(words, octets, count >> 2) << 2
            if len(self.objects.kinds) > self._limit_objects:
                self._too_many_objects()
            if whole < count:
                source.rest = bytes(octets[whole:count])
            elif source.rest:
                source.rest = b""
            if whole:
                chunk = octets[:whole]
                if scanner.edits:
                    chunk = _edited(scanner, chunk)
                if scanner.claimed:
                    claimed, scanner.claimed = scanner.claimed, []
                    self._send_with_fds(target, chunk, claimed)
                elif chunk:
                    target.send(chunk)
            if scanner.stopped:
                scanner.stopped = False
                self._loop.call_later(0.0, self.resume)
            if scanner.waits or target.queued_bytes:
                self._watch()
            if len(scanner.unclaimed) > _FEW_FDS:
                self._relay.share_queued_fds()
        except PeerError as error:
            self._broken(source, error)
        except Exception as error:
            self._failed(error)

    def _check_refused(self, scanner: Scanner[int]) -> bool:
        """Ends a client that sends many descriptors which no message may carry: each took a process to be closed."""
        refused = sum(fd < 0 for fd in scanner.unclaimed)
        if refused > _FEW_FDS:
            why = f"wl_display#1: {refused} file descriptors came that no message may carry"
            self.refuse(LimitExceeded(DISPLAY_ID, ProtocolError.IMPLEMENTATION, why))
        return refused > _FEW_FDS

    def _send_with_fds(self, target: End, chunk: memoryview, fds: list[int]) -> None:
        if chunk:
            target.send(chunk, fds)
        else:  # their messages were dropped
            close_all(fds)

    def resume(self) -> None:
        """What a message was held for may be there. Nothing happens if none is held."""
        for source, target, scanner in (
            (self.client, self.compositor, self._requests),
            (self.compositor, self.client, self._events),
        ):
            if scanner.waits and not self._ended:
                scanner.waits = False
                rest, buffer = source.rest, self._buffer
                buffer.octets[: len(rest)] = rest
                self._feed(source, target, scanner, buffer.words, buffer.octets, len(rest))
                if not self._ended:
                    self._watch()

    def resume_later(self) -> None:
        """``resume`` in the relay's thread, from any."""
        self._loop.call(self.resume)

    def _watch(self) -> None:
        """Reads a side only while the other takes what it says, so that one who doesn't read can't make us grow."""
        client, compositor = self.client, self.compositor
        limit = self._limit_bytes
        reads_client = compositor.queued_bytes <= limit and not self._requests.waits
        reads_compositor = client.queued_bytes <= limit and not self._events.waits
        client.watch((EPOLLIN if reads_client else 0) | (EPOLLOUT if client.queued_bytes else 0))
        compositor.watch((EPOLLIN if reads_compositor else 0) | (EPOLLOUT if compositor.queued_bytes else 0))

    # The end

    def _too_many_objects(self) -> None:
        raise LimitExceeded(
            DISPLAY_ID,
            ProtocolError.NO_MEMORY,
            f"wl_display#1: {len(self.objects)} objects are too many (limit objects_per_client = {self._limit_objects})",
        )

    def _broken(self, source: End, error: PeerError) -> None:
        if isinstance(error, ProtocolError):
            self.refuse(error)
        elif source is self.client:
            self.refuse(ProtocolError(DISPLAY_ID, ProtocolError.IMPLEMENTATION, f"wl_display#1: {error}"))
        else:
            self.end(f"compositor: {error}", side="the compositor", level=logging.WARNING)

    def _hung_up(self, source: End, why: str) -> None:
        said = self._last_words.text
        if source is self.client:
            self.end(why and f"client connection: {why}", side="the client")
        elif why:
            self.end(f"compositor connection: {why}", side="the compositor", level=logging.WARNING)
        elif said:
            self.end(f"the compositor closed the connection: {said}", side="the compositor", level=logging.WARNING)
        else:
            self.end("the compositor closed the connection", side="the compositor")

    def _failed(self, error: Exception) -> None:
        """What nobody foresaw: a mistake of ours, or of an embedder's, or this machine lacks something."""
        logger.debug("client %d", self.session_id, exc_info=error)
        what = f"{error}" if isinstance(error, OSError | WaylendError) else f"{type(error).__name__}: {error}"
        self.refuse(
            ProtocolError(DISPLAY_ID, ProtocolError.IMPLEMENTATION, f"wl_display#1: waylend failed: {what}"),
            side="waylend",
            level=logging.ERROR,
        )

    def refuse(self, error: ProtocolError, *, side: str = "the client", level: int = logging.INFO) -> None:
        """Ends the session, and tells the client why. The compositor just sees it go."""
        self.compositor.drop_queue()
        if not self._ended:
            self._guarded(self.client.send, memoryview(error_event(self._relay.catalogue.display, error)))
        self.end(f"{error}", side=side, level=level)

    def end(self, reason: str = "", *, side: str = "waylend", level: int = logging.INFO) -> None:
        """Closes both sides, once they have been sent what is queued for them. Idempotent.

        Said once in the log, with the side whose doing it is. Whatever goes wrong here, nothing of the session stays.
        """
        if self._ended:
            return
        self._ended = True
        logger.log(level, "client %d: ended by %s: %s", self.session_id, side, reason or "it closed the connection")
        for interposer in self._interposers:
            self._guarded(interposer.close)
        for scanner in (self._requests, self._events):
            close_all(scanner.unclaimed)
            close_all(scanner.claimed)
            scanner.unclaimed.clear()
            scanner.claimed.clear()
        for endpoint in (self.client, self.compositor):
            self._guarded(endpoint.leave)
            self._guarded(self._relay.send_last_words, endpoint)
        self.emit(SessionEnded(self.session_id, reason))
        self._relay.session_ended(self)

    def _guarded(self, call: Callable[..., None], *arguments: object) -> None:
        try:
            call(*arguments)
        except Exception as error:
            logger.error(
                "client %d: at its end %s failed: %r", self.session_id, getattr(call, "__qualname__", call), error
            )

    @property
    def queued_fds(self) -> int:
        """Descriptors that have come before their messages."""
        return len(self._requests.unclaimed)


class LastWords(Interposer):
    """Remembers the error that a compositor says before it closes the connection."""

    EVENTS: ClassVar = ("wl_display.error",)

    def __init__(self, client: Client) -> None:
        super().__init__(client)
        self.text = ""

    def error(self, message: FdMessage) -> None:
        object_id, code, text = message.args
        assert isinstance(object_id, int) and isinstance(text, bytes)
        self.text = f"error {code} of {self.client.objects.label(object_id)}: {quote(text)}"


def error_event(display: Kind, error: ProtocolError) -> bytes:
    """``wl_display.error``: the last thing that a client hears."""
    text = error.message.encode(errors="replace")[:1024]
    return encode(display.spec.events[0], DISPLAY_ID, (error.object_id, error.code, text))[0]


def _edited(scanner: Scanner[int], octets: memoryview) -> memoryview:
    """The chunk with the scan's edits, which are done then."""
    parts: list[bytes | memoryview] = []
    at = 0
    for edit in scanner.edits:
        parts += (octets[at : edit.start * 4], edit.replacement)
        at = edit.end * 4
    parts.append(octets[at:])
    scanner.edits.clear()
    return memoryview(b"".join(parts))
