"""One client's wl_shm buffers in a guest half: each has its bytes in the client's pool and a region of lent memory for them.

Client pools are untrusted files, read with preadv only: one that is cut short is an error, not a signal. So are lent pages
that can't be had. The host may take lent memory away, and what was drawn there with it: then buffers
that may be on the screen are copied again.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import NoReturn, Protocol

from waylend.errors import ProtocolError
from waylend.guest_half.arena import Arena, AskedLease, LentRegion
from waylend.guest_half.damage import spans
from waylend.guest_half.surfaces import SurfaceContent
from waylend.lending.pages import PAGE_SHIFT
from waylend.relay.interpose import Client, NotYet
from waylend.wire.formats import PIXEL_FORMATS, size_bytes_of

#: wl_shm.error.invalid_fd
_INVALID_FD = 2
#: A destroyed buffer that the compositor may still be showing keeps its region for so long after it was replaced.
_LINGER_S = 1.0


class ApertureAccess(Protocol):
    """The guest half, as one client's buffers know it."""

    def ask(self, page_count: int, on_change: Callable[[], None], on_loss: Callable[[AskedLease], None]) -> AskedLease:
        """Asks for a lease. ``on_change``: there is an answer; ``on_loss``: what was stored there is gone."""

    def copy_in(self, fd: int, file_offset: int, aperture_offset: int, spans: Iterable[tuple[int, int]]) -> str:
        """Copies from a file into the aperture; returns what went wrong, or an empty string.

        ``spans``: (offset, size) of each piece, in bytes from ``file_offset`` there and from ``aperture_offset`` here.
        """

    def copy_out(self, fd: int, file_offset: int, aperture_offset: int, size_bytes: int) -> str:
        """Copies from the aperture into a file; returns what went wrong, or an empty string."""

    def call_later(self, delay_s: float, call: Callable[[], None]) -> object: ...


class ClientPool:
    """A client's pool: its file, open while the pool or a buffer of it is there. Owns ``fd``."""

    __slots__ = ("_users", "fd", "size_bytes")

    def __init__(self, fd: int, size_bytes: int) -> None:
        self.fd = fd
        self.size_bytes = size_bytes
        self._users = 1

    def use(self) -> ClientPool:
        self._users += 1
        return self

    def drop(self) -> None:
        self._users -= 1
        if not self._users:
            os.close(self.fd)


class PoolBuffer(SurfaceContent):
    """A buffer of wl_shm. ``captures``: the compositor draws into it, so it is not copied anew meanwhile.

    ``pixel_bytes`` is 0 where pixels share bytes; then whole rows are copied. Of several planes, all is.
    """

    __slots__ = ("captures", "file", "object_id", "offset", "pixel_bytes", "planar", "region", "size_bytes", "stride")

    def __init__(
        self,
        object_id: int,
        file: ClientPool,
        region: LentRegion,
        offset: int,
        width: int,
        height: int,
        stride: int,
        pixel_format: int,
    ) -> None:
        super().__init__(width, height)
        self.object_id = object_id
        self.file = file
        self.region = region
        self.offset = offset
        self.stride = stride
        known = PIXEL_FORMATS.get(pixel_format)
        self.pixel_bytes = known.pixel_bytes if known else 0
        self.planar = known is not None and len(known.planes) > 1
        self.size_bytes = size_bytes_of(pixel_format, stride, height)
        self.captures = False

    @property
    def pool_bytes(self) -> int:
        """How much of it is in the pool, which is not more than ``size_bytes``: libwayland counts its first plane only."""
        return min(self.size_bytes, self.file.size_bytes - self.offset)

    def pieces(self) -> list[tuple[int, int]]:
        """What is stale: (offset, size) in bytes, each."""
        return [(0, self.pool_bytes)] if self.planar else spans(self.stale, self.stride, self.pixel_bytes)


class Buffers:
    """By object id, and those that were destroyed while they may be on the screen. Each owns its region and its pool's file."""

    def __init__(self, client: Client, aperture: ApertureAccess) -> None:
        self._client = client
        self._aperture = aperture
        self._arena = Arena(lambda pages: aperture.ask(pages, client.resume, self._lost), aperture.call_later)
        self._by_id: dict[int, PoolBuffer] = {}
        #: All that have a region, by its lease.
        self._by_lease: defaultdict[AskedLease, set[PoolBuffer]] = defaultdict(set)
        #: What the last request for memory got, which the host hasn't granted yet, and for which buffer.
        self._asked: tuple[int, LentRegion] | None = None

    def take_region(self, object_id: int, page_count: int) -> LentRegion:
        """Memory for a new buffer, or why there is none (``failure``). Raises NotYet while the host hasn't answered."""
        if self._asked is not None and self._asked[0] == object_id:
            region = self._asked[1]
        else:
            region = self._arena.take(page_count)
        self._asked = None
        if region.gfn < 0 and not region.failure:
            self._asked = (object_id, region)
            raise NotYet
        return region

    def add(self, buffer: PoolBuffer) -> None:
        self._by_id[buffer.object_id] = buffer
        self._by_lease[buffer.region.lease].add(buffer)

    def get(self, object_id: int) -> PoolBuffer | None:
        """None: not of wl_shm, or destroyed."""
        return self._by_id.get(object_id)

    def destroy(self, object_id: int) -> None:
        """By the client. Nothing happens to a buffer that isn't of wl_shm."""
        buffer = self._by_id.pop(object_id, None)
        if buffer is None:
            return
        buffer.destroy()
        if not buffer.busy:
            self._free(buffer)
        elif not buffer.shown_by:
            self._retire(buffer)

    def hidden(self, buffer: PoolBuffer) -> None:
        """No surface shows it any more."""
        if buffer.destroyed and buffer.busy:
            buffer.busy = False
            self._retire(buffer)

    def _retire(self, buffer: PoolBuffer) -> None:
        """It is destroyed, and the compositor will know in a moment that nothing shows it any more."""
        self._aperture.call_later(_LINGER_S, lambda: self._free(buffer))

    def _free(self, buffer: PoolBuffer) -> None:
        lease = buffer.region.lease
        in_lease = self._by_lease.get(lease)
        if in_lease is None or buffer not in in_lease:
            return  # it is free already, or its client is gone
        in_lease.remove(buffer)
        if not in_lease:
            del self._by_lease[lease]
        buffer.region.free()
        buffer.file.drop()

    # Copying

    def copy(self, buffer: PoolBuffer) -> None:
        """What is stale is in lent memory then. Raises ProtocolError where it can't be had."""
        failure = self._copied(buffer)
        if failure:
            self._refuse(buffer, f"can't copy the buffer: {failure}")

    def _copied(self, buffer: PoolBuffer) -> str:
        """Copies what is stale; returns what went wrong, or an empty string."""
        failure = self._aperture.copy_in(
            buffer.file.fd, buffer.offset, buffer.region.gfn << PAGE_SHIFT, buffer.pieces()
        )
        if not failure:
            buffer.copied()
        return failure

    def copy_back(self, buffer: PoolBuffer) -> None:
        """What the compositor has written is in the client's pool then. Raises ProtocolError where that takes it not."""
        if buffer.destroyed:
            return
        failure = self._aperture.copy_out(
            buffer.file.fd, buffer.offset, buffer.region.gfn << PAGE_SHIFT, buffer.pool_bytes
        )
        if failure:
            self._refuse(buffer, f"can't copy what was captured: {failure}")

    def _refuse(self, buffer: PoolBuffer, why: str) -> NoReturn:
        """As a compositor says it that finds a pool cut short (wl_shm_buffer_end_access of libwayland): of the buffer."""
        label = self._client.objects.label(buffer.object_id)
        raise ProtocolError(buffer.object_id, _INVALID_FD, f"{label}: {why}")

    def _lost(self, lease: AskedLease) -> None:
        """What was in that lease is gone. A buffer that can't be copied any more ends its client at its next use."""
        for buffer in self._by_lease.get(lease, ()):
            buffer.stale.add_all()
            if buffer.busy and not buffer.captures:
                self._copied(buffer)

    def close(self) -> None:
        """The client is gone. The leases end with its connection."""
        for in_lease in self._by_lease.values():
            for buffer in in_lease:
                buffer.file.drop()
        self._by_lease.clear()
        self._by_id.clear()
