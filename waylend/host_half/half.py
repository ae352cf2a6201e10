"""The host half: the compositor's side of a guest in a VM. One process, one domain, one guest.

It owns the aperture and its leases, and takes nothing that the guest half says on trust. The domain serves faults from a
process of its own; this one touches lent memory never.
"""

from __future__ import annotations

import functools
import gc
import logging
import os
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence

from waylend.channel.connection import ChannelConnection
from waylend.channel.halves import HostEnd
from waylend.channel.link import GONE
from waylend.channel.transport import check_identity
from waylend.domain.process.caller import ProcessDomain
from waylend.errors import ChannelError, LimitExceeded, ProtocolError
from waylend.host_half.aperture import LentAperture
from waylend.host_half.client import GuestClient
from waylend.host_half.closing import CompositorEnd
from waylend.host_half.files import FilesAcross, OnlyPipes
from waylend.host_half.pools import AperturePools
from waylend.host_half.shares import Shares
from waylend.lending.p2m import LendingEvent, LendingEventKind
from waylend.policy import NOT_ACROSS_MACHINES, Limits, Policy
from waylend.relay.events import RelayEvent
from waylend.relay.interpose import Interposer, MakesInterposer
from waylend.relay.interpose.registry import GlobalFilter, Registry
from waylend.relay.interpose.toplevel import Toplevels
from waylend.relay.loop import EPOLLIN, Loop
from waylend.relay.relay import MakeInterposers, Relay
from waylend.relay.session import Session, Trace
from waylend.wire.objects import DISPLAY_ID
from waylend.wire.spec import InterfaceSpec

logger = logging.getLogger(__name__)


def _most_objects(limits: Limits) -> int:
    """On the channel. Connections that were closed here are there until the guest half has heard of it and ends them, too."""
    return 2 * limits.clients + limits.leases + limits.fds


class HostHalf:
    """Lives in the loop's thread, with the relay. Each client of the guest is a ``GuestClient`` here."""

    def __init__(
        self,
        loop: Loop,
        *,
        tables: Mapping[str, InterfaceSpec],
        policy: Policy,
        domain: ProcessDomain,
        connect: Callable[[], socket.socket],
        interposers: Sequence[MakesInterposer] = (),
        observer: Callable[[RelayEvent], None] | None = None,
        trace: Trace | None = None,
        token: str = "",
        silence_s: float = 0.0,
    ) -> None:
        self._loop = loop
        self._policy = policy.with_changes(deny=NOT_ACROSS_MACHINES)
        self._tables = tables
        self._domain = domain
        self._token = token
        self._silence_s = silence_s
        self._aperture = LentAperture(loop, domain)
        self._unwatch = domain.events.watch(self._on_lending, faults=False)
        #: Those whose connection isn't over.
        self.clients: set[GuestClient] = set()
        self._shares = Shares(self._policy.limits, self.clients, self._other_fds, self._drop_orphan)
        self._end: HostEnd | None = None
        self.relay = Relay(
            loop,
            tables=tables,
            policy=self._policy,
            connect=lambda: CompositorEnd(connect(), self._aperture.close_later),
            interposers=self._interposers(),
            embedded=interposers,
            observer=observer,
            trace=trace,
        )

    def _interposers(self) -> tuple[tuple[type[Interposer], ...], MakeInterposers]:
        global_filter = GlobalFilter(self._tables, self._policy)

        def make(session: Session) -> Iterable[Interposer]:
            assert isinstance(session.client, ChannelConnection)
            guest_client = session.client.attachments
            assert isinstance(guest_client, GuestClient)
            guest_client.session = session
            return (
                Registry(session, global_filter),
                FilesAcross(session, guest_client),
                AperturePools(session, guest_client),
                OnlyPipes(session),
                Toplevels(session),
            )

        return (Registry, FilesAcross, AperturePools, OnlyPipes, Toplevels), make

    # The guest half

    def listen(self, sock: socket.socket, uids: frozenset[int], cids: frozenset[int]) -> None:
        """Takes the guest half from a listening socket, which stays its maker's to close (after the loop)."""
        sock.setblocking(False)

        def accept(_events: int) -> None:
            try:
                guest, _ = sock.accept()
            except OSError as error:
                logger.warning("can't take the guest half in: %s", error.strerror)
                return
            try:
                check_identity(guest, uids, cids)
                self.take_in(guest.detach())
            except ChannelError as error:
                logger.warning("%s", error)
                guest.close()

        self._loop.add(sock.fileno(), EPOLLIN, accept)

    def take_in(self, fd: int) -> None:
        """The guest half's byte stream, which is ours from now on."""
        if self._end is not None and self._end.channel.greeted:
            logger.warning("a guest half is here already: another is turned away")
            os.close(fd)
            return
        if self._end is not None:
            # A VMM connects its port long before anybody speaks through it; but who says nothing holds up nobody.
            self._end.close()
        logger.info("a guest half connected")
        self._aperture.keep(True)
        self._end = HostEnd(
            self._loop,
            fd,
            attachments_of=self._new_client,
            page_count=self._aperture.page_count,
            on_connection=self._on_connection,
            on_over=self._on_over,
            token=self._token,
            silence_s=self._silence_s,
            max_objects=_most_objects(self._policy.limits),
        )

    def _new_client(self, connection: ChannelConnection) -> GuestClient:
        client = GuestClient(
            connection, self._aperture, self._shares, emit=self.relay.emit, on_over=self.clients.discard
        )
        self.clients.add(client)
        return client

    def _on_connection(self, connection: ChannelConnection) -> None:
        # A connection to the compositor that waits to be closed is one: to it, that client is still there.
        count, limit = len(self.clients) + self._aperture.closing_count, self._policy.limits.clients
        if count > limit:
            why = f"wl_display#1: {limit} clients are here already (limit clients = {limit})"
            self.relay.turn_away(connection, LimitExceeded(DISPLAY_ID, ProtocolError.NO_MEMORY, why))
        else:
            self.relay.take_in(connection)

    def _drop_orphan(self) -> bool:
        """The pipe that is open the longest without its client."""
        orphan = next(iter(self._end.channel.orphans), None) if self._end is not None else None
        if orphan is not None:
            orphan.reset()
        return orphan is not None

    def _other_fds(self) -> int:
        """Descriptors that are held for clients that have left."""
        orphans = self._end.channel.orphans if self._end is not None else ()
        return len(orphans) + self._aperture.closing_count

    def _on_over(self, why: str) -> None:
        # A guest may come and go; what a guest half or its VMM does wrong is worth a word.
        logger.log(logging.INFO if why == GONE else logging.WARNING, "the channel to the guest half is over: %s", why)
        self._end = None
        self._aperture.keep(False)
        # Sessions are circles, and many may have ended at once.
        gc.collect()

    @property
    def guest_silent_s(self) -> float | None:
        """How long nothing has been heard of the guest half; None while there is none. From any thread."""
        end = self._end
        return end.channel.silent_s if end is not None and end.channel.greeted else None

    def beat(self, elapsed_s: float) -> None:
        """To be called every ``elapsed_s`` in the loop's thread."""
        if self._end is not None:
            self._end.beat(elapsed_s)

    def _on_lending(self, event: LendingEvent) -> None:
        """On any thread."""
        if event.kind is LendingEventKind.REVOKED:
            self._loop.call(functools.partial(self._tell_revoked, event.lease_id))

    def _tell_revoked(self, lease_id: int) -> None:
        for client in self.clients:
            client.tell_revoked(lease_id)

    def close(self) -> None:
        """In the loop's thread, or after it has ended: ends the channel, all sessions and all leases."""
        self._unwatch()
        end, self._end = self._end, None
        if end is not None:
            end.close()
        self.relay.close()
        self._aperture.close()
