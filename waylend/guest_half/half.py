"""The guest half: a Wayland socket in a guest, whose clients reach the host's compositor through a channel and lent memory.

It maps the aperture (in a VM: a PCI BAR) and copies into it what clients draw. It never reads or writes that mapping
itself: the kernel copies between it and files (preadv, pwrite), so that a page that can't be had is an error.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterable, Mapping

from waylend.channel.connection import ChannelConnection
from waylend.channel.halves import GuestEnd
from waylend.channel.transport import Address, open_to_host
from waylend.errors import PeerError
from waylend.guest_half.bar import Bar
from waylend.guest_half.buffers import Buffers
from waylend.guest_half.capture import Captures
from waylend.guest_half.client import ClientAperture
from waylend.guest_half.clocks import Clocks
from waylend.guest_half.commits import Commits
from waylend.guest_half.files import SealedCopies
from waylend.guest_half.pools import Pools
from waylend.policy import NOT_ACROSS_MACHINES, Policy
from waylend.relay.interpose import Interposer
from waylend.relay.interpose.descriptors import Descriptors
from waylend.relay.interpose.registry import GlobalFilter, Registry
from waylend.relay.loop import Loop
from waylend.relay.relay import MakeInterposers, Relay
from waylend.relay.session import Session, Trace
from waylend.wire.spec import InterfaceSpec

logger = logging.getLogger(__name__)

_RETRY_S = 0.2
_MAX_RETRY_S = 2.0


class GuestHalf:
    """Lives in the loop's thread, with the relay. Each connection to the host half is a ``ClientAperture``'s."""

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
        #: The channel, whose host half may not have answered yet.
        self.end: GuestEnd | None = None
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
            aperture = session.compositor.attachments
            assert isinstance(aperture, ClientAperture)
            assert self.end is not None
            buffers = Buffers(session, aperture)
            return (
                Registry(session, global_filter),
                Descriptors(session),
                Pools(session, buffers),
                Commits(session, buffers),
                Captures(session, buffers),
                Clocks(session, self.end),
            )

        return (Registry, Descriptors, Pools, Commits, Captures, Clocks), make

    # The host half

    def open(self) -> None:
        """Connects to the host half, and again whenever it is gone."""
        if self._closed or self.end is not None:
            return
        try:
            fd = open_to_host(self._address)
        except OSError as error:
            self._try_again(f"no host half at {self._address}: {error.strerror or error}")
            return
        self.end = GuestEnd(
            self._loop,
            fd,
            attachments_of=self._new_client,
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
            assert self.end is not None
            self.end.channel.fail(f"can't map the aperture: {error}")
            return
        self._retry_s = _RETRY_S
        if self._complaint:
            logger.warning("the host half is there")
            self._complaint = ""
        self.relay.waiting.let_in()

    def _on_over(self, why: str) -> None:
        self.end = None
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
        if self.end is not None and self.end.ready:
            self.end.beat(elapsed_s)

    def _connect(self) -> ChannelConnection:
        if self.end is None or self._bar is None:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "the host half is not there")
        return self.end.connect()

    def _new_client(self, connection: ChannelConnection) -> ClientAperture:
        assert self._bar is not None
        return ClientAperture(self._loop, self._bar, self._files, connection)

    def close(self) -> None:
        """In the loop's thread, or after it has ended."""
        self._closed = True
        self.relay.close()
        end, self.end = self.end, None
        if end is not None:
            end.close()
        self._let_go()
