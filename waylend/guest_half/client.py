"""The aperture, as one client of a guest half has it: leases for its buffers, copies to and from them, files that came."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from waylend.channel.connection import ChannelConnection
from waylend.errors import PeerError
from waylend.guest_half.arena import AskedLease
from waylend.guest_half.bar import Bar
from waylend.guest_half.files import SealedCopies
from waylend.guest_half.leases import LeaseAsked
from waylend.relay.loop import Loop

#: Pipes that a host half may have open in this guest.
_MAX_STREAMS = 1024


class ClientAperture:
    """``Attachments`` of its connection, and ``buffers.ApertureAccess``. Its leases end with the connection."""

    def __init__(self, loop: Loop, bar: Bar, files: SealedCopies, connection: ChannelConnection) -> None:
        self.call_later = loop.call_later
        self._bar = bar
        self._files = files
        self._connection = connection
        #: Those that are not over.
        self._leases: set[LeaseAsked] = set()

    # Memory

    def ask(self, page_count: int, on_change: Callable[[], None], on_loss: Callable[[AskedLease], None]) -> AskedLease:
        lease = LeaseAsked(
            self._connection,
            page_count,
            aperture_pages=self._bar.page_count,
            on_change=on_change,
            on_loss=on_loss,
            on_over=self._leases.discard,
        )
        self._leases.add(lease)
        return lease

    def copy_in(self, fd: int, file_offset: int, aperture_offset: int, spans: Iterable[tuple[int, int]]) -> str:
        return self._bar.copy_in(fd, file_offset, aperture_offset, spans)

    def copy_out(self, fd: int, file_offset: int, aperture_offset: int, size_bytes: int) -> str:
        return self._bar.copy_out(fd, file_offset, aperture_offset, size_bytes)

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
        if len(self._connection.channel.streams) >= _MAX_STREAMS:
            raise PeerError(f"{_MAX_STREAMS} pipes are open already")

    def room_for_sink(self) -> None:
        self.room_for_stream()

    def piling_up(self) -> None:
        """A host half sends no more than it has credit for."""

    def connection_over(self) -> None:
        """The host half ends the leases by itself: nothing is said of them, and nothing kept."""
        while self._leases:
            self._leases.pop().forget()
