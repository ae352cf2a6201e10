"""One client of the guest, as the host half keeps it: its connection through the channel, its session, its leases."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections import deque
from collections.abc import Callable

from waylend.channel.connection import ChannelConnection
from waylend.channel.messages import CHANNEL_ID
from waylend.errors import LendingError, LimitExceeded, NoSpace, PeerError, ProtocolError, QuotaExceeded
from waylend.host_half.aperture import LentAperture
from waylend.host_half.closing import CompositorEnd
from waylend.host_half.leases import LeaseGiven, LeaseWanted, refuse
from waylend.host_half.shares import Shares
from waylend.lending.lease import Lease
from waylend.lending.pages import PAGE_SHIFT
from waylend.relay.events import LeaseLent, LeaseReturned, RelayEvent
from waylend.relay.session import Session
from waylend.wire.objects import DISPLAY_ID

logger = logging.getLogger(__name__)

#: How long a client waits for memory that others have given back or lost, and how often it is tried.
_PATIENCE_S = 1.0
_RETRY_S = 0.05


class GuestClient:
    """``Attachments`` of its connection. Lives in the loop's thread, from the connection's beginning to its end."""

    def __init__(
        self,
        connection: ChannelConnection,
        aperture: LentAperture,
        shares: Shares,
        *,
        emit: Callable[[RelayEvent], None],
        on_over: Callable[[GuestClient], None],
    ) -> None:
        self.connection = connection
        self.aperture = aperture
        self.shares = shares
        #: Once the compositor has taken the connection.
        self.session: Session | None = None
        #: Files of the compositor that are lent to it.
        self.file_count = 0
        self._emit = emit
        self._on_over = on_over
        #: What it may write to, and what was given back and still has buffers, by the lease's number.
        self._given: dict[int, LeaseGiven] = {}
        self._wanted: deque[LeaseWanted] = deque()

    @property
    def session_id(self) -> int:
        """0 while there is no session."""
        return 0 if self.session is None else self.session.session_id

    @property
    def _compositor(self) -> CompositorEnd | None:
        if self.session is None:
            return None
        assert isinstance(self.session.compositor, CompositorEnd)
        return self.session.compositor

    # What it holds (``Holder``)

    @property
    def fd_count(self) -> int:
        compositor = self._compositor
        queued = compositor.queued_fds if compositor is not None else 0
        return 1 + queued + self.connection.inbox_fds + len(self.connection.streams) + self.file_count

    @property
    def lease_count(self) -> int:
        return len(self._given)

    @property
    def page_count(self) -> int:
        return sum(given.lease.page_count for given in self._given.values())

    @property
    def waiting_bytes(self) -> int:
        compositor = self._compositor
        return self.connection.inbox_bytes + (compositor.queued_bytes if compositor is not None else 0)

    def evict(self, error: ProtocolError) -> None:
        """See ``Holder``."""
        if self.session is not None:
            self.session.refuse(error)
        else:
            self.connection.end_reason = f"{error}"
            self.connection.abandon()

    # What the interposers ask for

    def lease_of(self, start_bytes: int, end_bytes: int) -> LeaseGiven | None:
        """The lease that it may write to in which that range of the aperture lies."""
        for given in self._given.values():
            start = given.lease.gfns.start << PAGE_SHIFT
            if not given.given_back and start <= start_bytes and end_bytes <= start + given.lease.size_bytes:
                return given
        return None

    def buffer_gone(self, given: LeaseGiven) -> None:
        """A buffer in that lease was destroyed."""
        given.buffer_count -= 1
        self._look_over(given)

    def aperture_mapped(self) -> None:
        """Its connection to the compositor has a mapping of the aperture from now on, to its end."""
        assert self._compositor is not None
        self._compositor.maps_aperture = True

    def file_ended(self, lease: Lease) -> None:
        """A lease that went as an attachment is over."""
        self.connection.channel.objects[CHANNEL_ID].tell("file_ended", lease.lease_id)

    def tell_revoked(self, lease_id: int) -> None:
        """The host took the pages of that lease away, if it is one of these."""
        given = self._given.get(lease_id)
        if given is not None and not given.given_back:
            given.tell_revoked()

    # Attachments

    def room_for_descriptor(self, count: int = 1) -> None:
        self.shares.descriptor(self, count)

    def room_for_stream(self) -> None:
        self.shares.stream(self, len(self.connection.streams))
        self.shares.descriptor(self, 2)

    def room_for_sink(self) -> None:
        self.shares.sink(self, len(self.connection.streams))

    def piling_up(self) -> None:
        with contextlib.suppress(LimitExceeded):  # it is ended then
            self.shares.waiting(self)

    def open_aperture(self) -> int:
        return self.aperture.open()

    def open_file(self, _lease: int, _gfn: int, _size_bytes: int) -> int:
        raise PeerError("a guest half attaches no files")

    def lease_asked(self, object_id: int, page_count: int) -> None:
        if not 0 < page_count <= self.aperture.page_count:
            refuse(self.connection, object_id, f"{page_count} pages are more than the aperture has")
        else:
            self._wanted.append(LeaseWanted(self.connection, object_id, page_count))
            if len(self._wanted) == 1:
                self._lend_next()

    def _lend_next(self, patience_s: float = _PATIENCE_S) -> None:
        """What is wanted, one after the other. For the first, memory is waited for so long."""
        while self._wanted:
            wanted = self._wanted[0]
            if not wanted.given_back:
                try:
                    self.shares.lease(self, wanted.page_count)
                except LimitExceeded as error:
                    self._refuse(wanted, error)
                else:
                    self.aperture.lend(wanted.page_count, functools.partial(self._lent, wanted, patience_s))
                    return
            self._wanted.popleft()
            patience_s = _PATIENCE_S

    def _lent(self, wanted: LeaseWanted, patience_s: float, lent: Lease | Exception) -> None:
        """What became of the first that is wanted."""
        if not self._wanted:  # the connection is over
            if isinstance(lent, Lease):
                self.aperture.give_back(lent)
            return
        if isinstance(lent, Lease):
            self._grant(wanted, lent)
        elif isinstance(lent, NoSpace | QuotaExceeded) and patience_s > 0 and self._may_wait(lent):
            again = functools.partial(self._lend_next, patience_s - _RETRY_S)
            self.connection.channel.loop.call_later(_RETRY_S, again)
            return
        else:
            self._refuse(wanted, lent)
        self._wanted.popleft()
        self._lend_next()

    def _grant(self, wanted: LeaseWanted, lease: Lease) -> None:
        if wanted.given_back:
            self.aperture.give_back(lease)
            return
        self._given[lease.lease_id] = LeaseGiven(self.connection, wanted.object_id, lease, self._look_over)
        self._emit(LeaseLent(self.session_id, lease.lease_id, lease.name, lease.size_bytes))

    def _refuse(self, wanted: LeaseWanted, error: Exception) -> None:
        if not wanted.given_back:
            logger.info("a guest asked for %d pages: %s", wanted.page_count, error)
            wanted.refuse(f"{error}")

    def _may_wait(self, error: LendingError) -> bool:
        """Whether memory may come free soon; ends the one who has most where nothing is on its way and that isn't this client."""
        if self.aperture.make_room():
            return True
        why = LimitExceeded(DISPLAY_ID, ProtocolError.NO_MEMORY, f"wl_display#1: {error} (limit aperture_bytes)")
        try:
            self.shares.make_room(self, lambda holder: holder.page_count, why)
        except LimitExceeded:
            return self.aperture.closing_count > 0
        return True

    def _look_over(self, given: LeaseGiven) -> None:
        if given.given_back and not given.buffer_count:
            del self._given[given.lease.lease_id]
            self.aperture.give_back(given.lease)
            self._emit(LeaseReturned(self.session_id, given.lease.lease_id))

    def connection_over(self) -> None:
        for wanted in self._wanted:
            self.connection.channel.remove(wanted.object_id)
        self._wanted.clear()
        compositor = self._compositor
        for given in self._given.values():
            self.connection.channel.remove(given.object_id)
            self._emit(LeaseReturned(self.session_id, given.lease.lease_id))
            if given.buffer_count and compositor is not None:
                # Its buffers go with its connection to the compositor.
                compositor.after_close(functools.partial(self.aperture.give_back, given.lease))
            else:
                self.aperture.give_back(given.lease)
        self._given.clear()
        self._on_over(self)
