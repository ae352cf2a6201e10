"""Takes clients in, connects each to the compositor, and keeps the sessions. One relay is one guest, under one policy."""

from __future__ import annotations

import errno
import itertools
import logging
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence

from waylend.errors import LimitExceeded, Malformed, ProtocolError
from waylend.foreign.closing import overloaded
from waylend.policy import Policy
from waylend.relay.endpoint import End, Endpoint, ReceiveBuffer
from waylend.relay.events import RelayEvent
from waylend.relay.interpose import Interposer, MakesInterposer, check_interposers
from waylend.relay.loop import EPOLLIN, EPOLLOUT, Loop
from waylend.relay.session import Session, Trace, error_event
from waylend.relay.waiting import WaitingRoom
from waylend.wire.objects import DISPLAY_ID, Catalogue
from waylend.wire.scan import Message
from waylend.wire.spec import InterfaceSpec

logger = logging.getLogger(__name__)

# When this process has no fds left for a new client, others have to go first.
_ACCEPT_PAUSE_S = 0.1
# How long a peer may take to read its last words before its connection is closed.
_LINGER_S = 1.0

#: Makes a session's interposers. Their types are what ``Relay`` is told beside it.
MakeInterposers = Callable[[Session], Iterable[Interposer]]


class Relay:
    """Runs in the thread of its loop. From other threads: only ``loop.call`` and ``loop.stop``.

    ``connect`` makes a new connection to the compositor, without waiting, and may raise OSError. ``interposers`` are the types,
    and what makes them for a session. ``embedded`` are an embedder's own, which see each message before them. ``observer`` is
    called in the loop's thread with each RelayEvent.
    """

    def __init__(
        self,
        loop: Loop,
        *,
        tables: Mapping[str, InterfaceSpec],
        policy: Policy,
        connect: Callable[[], End],
        interposers: tuple[tuple[type[Interposer], ...], MakeInterposers],
        embedded: Sequence[MakesInterposer] = (),
        observer: Callable[[RelayEvent], None] | None = None,
        trace: Trace | None = None,
    ) -> None:
        self.loop = loop
        self.policy = policy
        self._trace = trace
        self.trace: Trace | None = None if trace is None else self._traced
        self.buffer = ReceiveBuffer()
        check_interposers(embedded, tables)
        self._embedded = tuple(embedded)
        types, self._interposers_for = interposers
        wants: tuple[MakesInterposer, ...] = (*types, *embedded)
        self.catalogue = Catalogue(
            tables,
            interposed_requests={name for interposer in wants for name in interposer.REQUESTS},
            interposed_events={name for interposer in wants for name in interposer.EVENTS},
            closer_look_at_all=trace is not None,
        )
        self.sessions: dict[int, Session] = {}
        #: Those that the compositor isn't there for.
        self.waiting = WaitingRoom(
            loop,
            connect=connect,
            begin=self._begin,
            turn_away=lambda client, why: self.turn_away(
                client, ProtocolError(DISPLAY_ID, ProtocolError.IMPLEMENTATION, f"wl_display#1: {why}")
            ),
        )
        self._observer = observer
        self._leaving: set[End] = set()
        self._session_ids = itertools.count(1)
        self._listening: list[socket.socket] = []
        self._closed = False

    def listen(self, sock: socket.socket) -> None:
        """Takes clients from a listening socket, which stays its maker's to close (after ``close``)."""
        sock.setblocking(False)
        self._listening.append(sock)
        self.loop.add(sock.fileno(), EPOLLIN, lambda _events: self._accept(sock))

    def _accept(self, listening: socket.socket) -> None:
        try:
            client, _ = listening.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                logger.warning("no room for another client: %s", error.strerror)
                self.loop.modify(listening.fileno(), 0)
                self.loop.call_later(_ACCEPT_PAUSE_S, lambda: self._accept_again(listening))
            return  # otherwise the client is gone already
        self.take_in(Endpoint(client))

    def _accept_again(self, listening: socket.socket) -> None:
        if listening in self._listening:
            self.loop.modify(listening.fileno(), EPOLLIN)

    def take_in(self, client: End) -> None:
        """Begins a session for a connected client, and owns it."""
        limit = self.policy.limits.clients
        if self._closed:
            client.close()
        elif len(self.sessions) + len(self.waiting) >= limit:
            why = f"{limit} clients are here already (limit clients = {limit})"
            self.turn_away(client, LimitExceeded(DISPLAY_ID, ProtocolError.NO_MEMORY, f"wl_display#1: {why}"))
        elif overloaded():
            why = "too many descriptors of clients do not let themselves be closed"
            self.turn_away(client, ProtocolError(DISPLAY_ID, ProtocolError.NO_MEMORY, f"wl_display#1: {why}"))
        else:
            self.waiting.take_in(client)

    def _begin(self, client: End, compositor: End) -> None:
        session_id = next(self._session_ids)
        try:
            self.sessions[session_id] = Session(self, session_id, client, compositor)
        except Exception as error:
            logger.error("client %d: ended by waylend: its session could not begin: %r", session_id, error)
            for end in (client, compositor):
                end.leave()
                end.close()

    def turn_away(self, endpoint: End, error: ProtocolError) -> None:
        """Tells a client why it can't be taken in, and closes its connection."""
        logger.info("a client was turned away: %s", error)
        endpoint.send(memoryview(error_event(self.catalogue.display, error)))
        self.send_last_words(endpoint)

    def interposers_for(self, session: Session) -> Iterable[Interposer]:
        """Made for that session: an embedder's own first."""
        return (*(make(session) for make in self._embedded), *self._interposers_for(session))

    def emit(self, event: RelayEvent) -> None:
        if self._observer is not None:
            try:
                self._observer(event)
            except Exception:
                logger.exception("the observer failed for %r", event)

    def _traced(self, session_id: int, is_request: bool, message: Message[int]) -> None:
        if self._trace is not None:
            try:
                self._trace(session_id, is_request, message)
            except Malformed as error:
                logger.debug("client %d: not traced: %s", session_id, error)
            except Exception as error:
                logger.warning("the trace is switched off: %s", error)
                self._trace = None

    def share_queued_fds(self) -> None:
        """Descriptors that wait for their messages are this process's: when there are too many, who holds most goes."""
        limit = self.policy.limits.queued_fds_of_guest
        while sum(session.queued_fds for session in self.sessions.values()) > limit:
            most = max(self.sessions.values(), key=lambda session: session.queued_fds)
            why = f"{most.queued_fds} file descriptors wait for their messages (limit queued_fds_of_guest = {limit})"
            most.refuse(LimitExceeded(DISPLAY_ID, ProtocolError.IMPLEMENTATION, f"wl_display#1: {why}"))

    def session_ended(self, session: Session) -> None:
        del self.sessions[session.session_id]

    def send_last_words(self, endpoint: End) -> None:
        """Closes an endpoint that is out of the loop, after it has taken what is queued, or the time for that is over."""
        try:
            done = endpoint.flush()
        except OSError:
            done = True
        if done:
            endpoint.close()
            return

        def close() -> None:
            deadline.cancel()
            self._let_go(endpoint)

        def on_event(_events: int) -> None:
            try:
                if endpoint.flush():
                    close()
            except OSError:
                close()

        deadline = self.loop.call_later(_LINGER_S, close)
        self._leaving.add(endpoint)
        endpoint.join(self.loop, on_event, _nothing_to_feed)
        endpoint.watch(EPOLLOUT)

    def _let_go(self, endpoint: End) -> None:
        self._leaving.discard(endpoint)
        endpoint.leave()
        endpoint.close()

    def close(self, reason: str = "waylend stops") -> None:
        """Takes no more clients and ends all sessions. In the loop's thread, or after it has ended."""
        for sock in self._listening:
            self.loop.remove(sock.fileno())
        self._listening.clear()
        self._closed = True
        self.waiting.close()
        for session in list(self.sessions.values()):
            session.end(reason)
        for endpoint in list(self._leaving):
            self._let_go(endpoint)


def _nothing_to_feed(_words: memoryview, _octets: memoryview, _count: int) -> None:
    """An end that is left to take its last words says nothing more."""
