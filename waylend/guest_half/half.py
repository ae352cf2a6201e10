"""The guest half: a Wayland socket in a guest, whose clients reach the host's compositor through a channel and lent memory.

It maps the aperture (in a VM: a PCI BAR) and copies into it what clients draw. It never reads or writes that mapping
itself: the kernel copies between it and files (preadv, pwrite), so that a page that can't be had is an error.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterable, Mapping

from waylend.channel.connection import ChannelConnection
from waylend.channel.halves import GuestEnd
from waylend.channel.transport import Address, open_to_host
from waylend.errors import PeerError
from waylend.guest_half.arena import AskedLease
from waylend.guest_half.bar import Bar
from waylend.guest_half.buffers import Buffers
from waylend.guest_half.capture import Captures
from waylend.guest_half.commits import Commits
from waylend.guest_half.files import SealedCopies
from waylend.guest_half.leases import LeaseAsked
from waylend.guest_half.pools import Pools
from waylend.policy import NOT_ACROSS_MACHINES, Policy
from waylend.relay.interpose import Interposer
from waylend.relay.interpose.registry import GlobalFilter, Registry
from waylend.relay.loop import Loop
from waylend.relay.relay import MakeInterposers, Relay
from waylend.relay.session import Session, Trace
from waylend.wire.spec import InterfaceSpec

logger = logging.getLogger(__name__)

_RETRY_S = 0.2
#: Pipes that a host half may have open here.
_MAX_STREAMS = 1024
_MAX_RETRY_S = 2.0


class ClientAperture:
    """The aperture, as one client's buffers have it (``buffers.ApertureAccess``)."""

    def __init__(self, loop: Loop, bar: Bar, connection: ChannelConnection) -> None:
        self.call_later = loop.call_later
        self.copy_in = bar.copy_in
        self.copy_out = bar.copy_out
        self._connection = connection

    def ask(self, page_count: int, on_change: Callable[[], None], on_loss: Callable[[AskedLease], None]) -> AskedLease:
        return LeaseAsked(self._connection.channel, self._connection, page_count, on_change, on_loss)


class GuestHalf:
    """Lives in the loop's thread, with the relay. What attachments stand for is decided here (``Attachments``)."""

    def __init__(
        self,
        loop: Loop,
        *,
        tables: Mapping[str, InterfaceSpec],
        address: Address,
        bar_path: str,
        policy: Policy,
        token: str = "",
        trace: Trace | None = None,
        silence_s: float = 0.0,
    ) -> None:
        self._loop = loop
        self._address = address
        self._bar_path = bar_path
        self._token = token
        self._silence_s = silence_s
        self._end: GuestEnd | None = None
        self._bar: Bar | None = None
        self._retry_s = _RETRY_S
        self._complaint = ""
        self._closed = False
        self._files = SealedCopies()
        self._tables = tables
        # What a guest may see is the host half's business; what can't cross is announced by none.
        self._policy = policy.with_changes(allow=("*",), deny=NOT_ACROSS_MACHINES)
        self.relay = Relay(
            loop,
            tables=tables,
            policy=self._policy,
            connect=self._connect,
            interposers=self._interposers(),
            trace=trace,
        )

    def _interposers(self) -> tuple[tuple[type[Interposer], ...], MakeInterposers]:
        global_filter = GlobalFilter(self._tables, self._policy)

        def make(session: Session) -> Iterable[Interposer]:
            assert isinstance(session.compositor, ChannelConnection)
            assert self._bar is not None  # it is there as long as there are connections
            buffers = Buffers(session, ClientAperture(self._loop, self._bar, session.compositor))
            return (
                Registry(session, global_filter),
                Pools(session, buffers),
                Commits(session, buffers),
                Captures(session, buffers),
            )

        return (Registry, Pools, Commits, Captures), make

    # The host half

    def open(self) -> None:
        """Connects to the host half, and again whenever it is gone."""
        if self._closed or self._end is not None:
            return
        try:
            fd = open_to_host(self._address)
        except OSError as error:
            self._try_again(f"no host half at {self._address}: {error.strerror or error}")
            return
        self._end = GuestEnd(
            self._loop,
            fd,
            attachments_of=lambda _connection: self,
            on_ready=self._on_ready,
            on_file_ended=self._files.forget,
            on_over=self._on_over,
            token=self._token,
            is_port=self._address.kind == "port",
            silence_s=self._silence_s,
        )

    def _on_ready(self, page_count: int) -> None:
        try:
            self._bar = Bar(self._bar_path, page_count)
        except (OSError, PeerError) as error:
            assert self._end is not None
            self._end.channel.fail(f"can't map the aperture: {error}")
            return
        self._retry_s = _RETRY_S
        if self._complaint:
            logger.warning("the host half is there")
            self._complaint = ""
        self.relay.waiting.let_in()

    def _on_over(self, why: str) -> None:
        self._end = None
        self._let_go()
        self._try_again(why)

    def _try_again(self, why: str) -> None:
        if self._closed:
            return
        if why != self._complaint:
            logger.warning("%s: waiting for it", why)
            self._complaint = why
        self._loop.call_later(self._retry_s, self.open)
        self._retry_s = min(self._retry_s * 1.5, _MAX_RETRY_S)

    def _let_go(self) -> None:
        """Everything that was the old host half's: all connections have ended."""
        self._files.forget_all()
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.close()

    def beat(self, elapsed_s: float) -> None:
        """To be called every ``elapsed_s`` in the loop's thread."""
        if self._end is not None and self._end.ready:
            self._end.beat(elapsed_s)

    def _connect(self) -> ChannelConnection:
        if self._end is None or self._bar is None:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "the host half is not there")
        return self._end.connect()

    # Attachments

    def open_aperture(self) -> int:
        raise PeerError("a host half attaches no aperture")

    def open_file(self, lease: int, gfn: int, size_bytes: int) -> int:
        return self._files.open(self._bar, lease, gfn, size_bytes)

    def lease_asked(self, _object_id: int, _page_count: int) -> None:
        raise PeerError("a host half asks for no leases")

    def room_for_descriptor(self, _count: int = 1) -> None:
        """What a host half attaches is its business, but for pipes."""

    def room_for_stream(self) -> None:
        if self._end is not None and len(self._end.channel.streams) >= _MAX_STREAMS:
            raise PeerError(f"{_MAX_STREAMS} pipes are open already")

    def piling_up(self) -> None:
        """A host half sends no more than it has credit for."""

    def connection_over(self) -> None:
        """Its interposers have let go of all that was the client's."""

    def close(self) -> None:
        """In the loop's thread, or after it has ended."""
        self._closed = True
        self.relay.close()
        end, self._end = self._end, None
        if end is not None:
            end.close()
        self._let_go()
