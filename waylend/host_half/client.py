"""One client of the guest, as the host half keeps it: its connection through the channel, its session, its leases."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from waylend.channel.connection import ChannelConnection
from waylend.channel.messages import CHANNEL_ID
from waylend.errors import LendingError, PeerError
from waylend.host_half.aperture import LentAperture
from waylend.host_half.closing import CompositorEnd
from waylend.host_half.leases import LeaseGiven, refuse
from waylend.lending.lease import Lease
from waylend.relay.events import LeaseLent, LeaseReturned, RelayEvent
from waylend.relay.session import Session

logger = logging.getLogger(__name__)


class GuestClient:
    """``Attachments`` of its connection. Lives in the loop's thread, from the connection's beginning to its end."""

    def __init__(
        self,
        connection: ChannelConnection,
        aperture: LentAperture,
        *,
        emit: Callable[[RelayEvent], None],
        on_over: Callable[[GuestClient], None],
    ) -> None:
        self.connection = connection
        self.aperture = aperture
        #: Once the compositor has taken the connection.
        self.session: Session | None = None
        self._emit = emit
        self._on_over = on_over
        #: What it may write to, by the lease's number.
        self._given: dict[int, LeaseGiven] = {}

    @property
    def session_id(self) -> int:
        """0 while there is no session."""
        return 0 if self.session is None else self.session.session_id

    @property
    def leases(self) -> Iterable[Lease]:
        """What it may write to."""
        return (given.lease for given in self._given.values())

    def aperture_mapped(self) -> None:
        """Its connection to the compositor has a mapping of the aperture from now on, to its end."""
        assert self.session is not None and isinstance(self.session.compositor, CompositorEnd)
        self.session.compositor.maps_aperture = True

    def file_ended(self, lease: Lease) -> None:
        """A lease that went as an attachment is over."""
        self.connection.channel.objects[CHANNEL_ID].tell("file_ended", lease.lease_id)

    def tell_revoked(self, lease_id: int) -> None:
        """The host took the pages of that lease away, if it is one of these."""
        given = self._given.get(lease_id)
        if given is not None:
            given.tell("revoked")

    # Attachments

    def open_aperture(self) -> int:
        return self.aperture.open()

    def open_file(self, _lease: int, _gfn: int, _size_bytes: int) -> int:
        raise PeerError("a guest half attaches no files")

    def lease_asked(self, object_id: int, page_count: int) -> None:
        if self.connection.is_closed:
            refuse(self.connection, object_id, "the connection is over")
            return
        try:
            lease = self.aperture.lend(page_count)
        except (LendingError, OSError) as error:
            logger.info("a guest asked for %d pages: %s", page_count, error)
            refuse(self.connection, object_id, f"{error}")
            return
        given = LeaseGiven(self.connection.channel, object_id, lease, self._give_back)
        self._given[lease.lease_id] = given
        self.connection.channel.send(self.connection.outbox, given.encode("granted", lease.gfns.start))
        self._emit(LeaseLent(self.session_id, lease.lease_id, lease.name, lease.size_bytes))

    def _give_back(self, given: LeaseGiven) -> None:
        del self._given[given.lease.lease_id]
        self._retire(given.lease)

    def _retire(self, lease: Lease) -> None:
        self.aperture.give_back(lease)
        self._emit(LeaseReturned(self.session_id, lease.lease_id))

    def connection_over(self) -> None:
        for given in self._given.values():
            self.connection.channel.remove(given.object_id)
            self._retire(given.lease)
        self._given.clear()
        self._on_over(self)
