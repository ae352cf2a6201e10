"""wl_shm in a guest half: what clients draw is copied into the aperture, whose pages the compositor has, too.

A client's pool is a file of its own, which no other machine can map. Each buffer gets a region of lent memory, and the
host half is told of a pool that is the whole aperture, with the region's offset. Before a commit goes on, what has
changed in its buffer since *that* buffer was last copied goes into the region, all of it on first use.

The host may take lent memory away, and what was drawn there with it: then buffers that may be on the screen are copied again.

Client pools are untrusted files, read with preadv only: one that is cut short ends its client. So do lent pages that
can't be had: an error, not a signal.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import ClassVar, Protocol

from waylend.errors import LimitExceeded, ProtocolError
from waylend.guest_half.arena import Arena, AskedLease, LentRegion
from waylend.guest_half.damage import Damage, ViewportState, spans
from waylend.guest_half.leases import WholeAperture
from waylend.lending.pages import PAGE_SHIFT, page_count_of
from waylend.relay.interpose import Client, FdMessage, Interposer, NotYet
from waylend.relay.interpose.shm import unfit_for_a_pool
from waylend.wire.codec import encode
from waylend.wire.formats import PIXEL_BYTES

# wl_shm.error
_INVALID_STRIDE = 1
_INVALID_FD = 2
_MAX_POOLS = 1024
#: Buffers of one surface whose damage is followed; one more, and the oldest is copied whole on its next use.
_MAX_FOLLOWED = 8
_MAX_DAMAGE = 64
#: A destroyed buffer that the compositor may still be showing keeps its region for so long after it was replaced.
_LINGER_S = 1.0


class ApertureAccess(Protocol):
    """The guest half, as this interposer knows it."""

    def ask(
        self, session_id: int, page_count: int, on_change: Callable[[], None], on_loss: Callable[[AskedLease], None]
    ) -> AskedLease:
        """Asks for a lease for a client. ``on_change``: there is an answer; ``on_loss``: what was stored there is gone."""

    def copy_in(self, fd: int, file_offset: int, aperture_offset: int, spans: Iterable[tuple[int, int]]) -> str:
        """Copies from a file into the aperture; returns what went wrong, or an empty string.

        ``spans``: (offset, size) of each piece, in bytes from ``file_offset`` there and from ``aperture_offset`` here.
        """

    def copy_out(self, fd: int, file_offset: int, aperture_offset: int, size_bytes: int) -> str:
        """Copies from the aperture into a file; returns what went wrong, or an empty string."""

    def call_later(self, delay_s: float, call: Callable[[], None]) -> object: ...


class _PoolFile:
    """A pool's file: open while the pool or a buffer of it is there."""

    __slots__ = ("_users", "fd", "size_bytes")

    def __init__(self, fd: int, size_bytes: int) -> None:
        self.fd = fd
        self.size_bytes = size_bytes
        self._users = 1

    def use(self) -> _PoolFile:
        self._users += 1
        return self

    def drop(self) -> None:
        self._users -= 1
        if not self._users:
            os.close(self.fd)


class PoolBuffer:
    """``stale`` is what was drawn since it was last copied; ``busy`` from its commit to the compositor's release.

    ``captures``: the compositor draws into it, so it is not copied anew meanwhile.
    """

    __slots__ = (
        "busy",
        "captures",
        "destroyed",
        "file",
        "height",
        "offset",
        "pixel_bytes",
        "region",
        "stale",
        "stride",
        "width",
    )

    def __init__(
        self, file: _PoolFile, region: LentRegion, offset: int, width: int, height: int, stride: int, pixel_format: int
    ) -> None:
        self.file = file
        self.region = region
        self.offset = offset
        self.width = width
        self.height = height
        self.stride = stride
        self.pixel_bytes = PIXEL_BYTES.get(pixel_format, 0)
        self.stale = Damage(width, height, whole=True)
        self.busy = False
        self.captures = False
        self.destroyed = False


class _Surface:
    """A surface's pending and current state, as far as it says what has changed."""

    __slots__ = (
        "attached",
        "buffer_damage",
        "current",
        "damage_everywhere",
        "followed",
        "geometry",
        "pending",
        "scale",
        "surface_damage",
        "transform",
        "viewport",
    )

    def __init__(self) -> None:
        self.pending: PoolBuffer | None = None
        self.attached = False
        self.current: PoolBuffer | None = None
        self.followed: list[PoolBuffer] = []
        self.surface_damage: list[tuple[int, int, int, int]] = []
        self.buffer_damage: list[tuple[int, int, int, int]] = []
        self.damage_everywhere = False
        self.scale = 1
        self.transform = 0
        self.viewport = ViewportState()
        self.geometry: tuple[object, ...] = ()


class Pools(Interposer):
    REQUESTS: ClassVar = (
        "wl_shm.create_pool",
        "wl_shm_pool.create_buffer",
        "wl_shm_pool.resize",
        "wl_shm_pool.destroy",
        "wl_buffer.destroy",
        "wl_surface.attach",
        "wl_surface.damage",
        "wl_surface.damage_buffer",
        "wl_surface.set_buffer_scale",
        "wl_surface.set_buffer_transform",
        "wl_surface.commit",
        "wl_surface.destroy",
        "wp_viewporter.get_viewport",
        "wp_viewport.set_source",
        "wp_viewport.set_destination",
        "wp_viewport.destroy",
        "xdg_toplevel_icon_v1.add_buffer",
    )
    EVENTS: ClassVar = ("wl_buffer.release",)

    def __init__(self, client: Client, aperture: ApertureAccess) -> None:
        self._client = client
        self._aperture = aperture
        self._arena = Arena(lambda pages: aperture.ask(client.session_id, pages, client.resume, self._lost))
        self._pools: dict[int, _PoolFile] = {}
        self._buffers: dict[int, PoolBuffer] = {}
        #: Destroyed buffers that may be on the screen still.
        self._last_shown: set[PoolBuffer] = set()
        self._surfaces: dict[int, _Surface] = {}
        self._viewports: dict[int, int] = {}
        self._asked: tuple[int, LentRegion] | None = None
        self._by_interface = {
            "wl_shm_pool": self._destroy_pool,
            "wl_buffer": self._destroy_buffer,
            "wl_surface": self._destroy_surface,
            "wp_viewport": self._destroy_viewport,
        }

    # Pools and buffers

    def create_pool(self, message: FdMessage) -> None:
        object_id, _fd, size_bytes = _ints(message)
        fd = message.fds[0]
        what = unfit_for_a_pool(fd)
        if what:
            raise self._error(message, _INVALID_FD, f"the file descriptor is {what}")
        if size_bytes <= 0:
            raise self._error(message, _INVALID_STRIDE, f"a size of {size_bytes} bytes")
        if len(self._pools) >= _MAX_POOLS:
            raise LimitExceeded(
                message.object_id, ProtocolError.NO_MEMORY, f"wl_shm: {_MAX_POOLS} pools are the most (limit pools)"
            )
        self._drop_pool(object_id)  # the scan refuses an id that is taken, after this
        self._pools[object_id] = _PoolFile(os.dup(fd), size_bytes)
        message.fds[0] = WholeAperture(fd)

    def resize(self, message: FdMessage) -> bytes:
        (size_bytes,) = _ints(message)
        pool = self._pools[message.object_id]
        if size_bytes < pool.size_bytes:
            raise self._error(message, _INVALID_FD, f"a pool of {pool.size_bytes} bytes can't shrink to {size_bytes}")
        pool.size_bytes = size_bytes
        return b""  # there it is the whole aperture always

    def create_buffer(self, message: FdMessage) -> bytes:
        object_id, offset, width, height, stride, pixel_format = _ints(message)
        pool = self._pools[message.object_id]
        # As libwayland checks it.
        if offset < 0 or width <= 0 or height <= 0 or stride < width or offset + stride * height > pool.size_bytes:
            raise self._error(
                message,
                _INVALID_STRIDE,
                f"{width}x{height} with stride {stride} at {offset} isn't in a pool of {pool.size_bytes} bytes",
            )
        region = self._region(message, object_id, page_count_of(stride * height))
        self._buffers[object_id] = PoolBuffer(pool.use(), region, offset, width, height, stride, pixel_format)
        offset = region.gfn << PAGE_SHIFT
        return encode(message.spec, message.object_id, (object_id, offset, width, height, stride, pixel_format))[0]

    def _region(self, message: FdMessage, object_id: int, page_count: int) -> LentRegion:
        """Memory for a new buffer. Raises NotYet while the host hasn't answered."""
        if self._asked is not None and self._asked[0] == object_id:
            region = self._asked[1]
        else:
            region = self._arena.take(page_count)
        self._asked = None
        if region.failure:
            raise LimitExceeded(
                message.object_id, ProtocolError.NO_MEMORY, f"the host lends no memory for a buffer: {region.failure}"
            )
        if region.gfn < 0:
            self._asked = (object_id, region)
            raise NotYet
        return region

    def destroy(self, message: FdMessage) -> None:
        self._by_interface[message.spec.interface](message.object_id)

    def _destroy_pool(self, object_id: int) -> None:
        self._drop_pool(object_id)

    def _drop_pool(self, object_id: int) -> None:
        pool = self._pools.pop(object_id, None)
        if pool is not None:
            pool.drop()

    def _destroy_buffer(self, object_id: int) -> None:
        buffer = self._buffers.pop(object_id, None)
        if buffer is None:
            return  # not of wl_shm
        buffer.destroyed = True
        self._last_shown.add(buffer)
        shown = False
        for surface in self._surfaces.values():
            if buffer in surface.followed:
                surface.followed.remove(buffer)
            if surface.pending is buffer:
                surface.pending = None
            shown = shown or surface.current is buffer
        if not buffer.busy:
            self._free(buffer)
        elif not shown:
            self._retire(buffer)

    def _retire(self, buffer: PoolBuffer) -> None:
        """It is destroyed, and the compositor will know in a moment that nothing shows it any more."""
        self._aperture.call_later(_LINGER_S, lambda: self._free(buffer))

    def _free(self, buffer: PoolBuffer) -> None:
        if buffer in self._last_shown:
            self._last_shown.remove(buffer)
            buffer.region.free()
            buffer.file.drop()

    def release(self, message: FdMessage) -> None:
        buffer = self._buffers.get(message.object_id)
        if buffer is not None:
            buffer.busy = False

    # Surfaces

    def _surface(self, message: FdMessage) -> _Surface:
        surface = self._surfaces.get(message.object_id)
        if surface is None:
            surface = self._surfaces[message.object_id] = _Surface()
        return surface

    def attach(self, message: FdMessage) -> None:
        surface = self._surface(message)
        # A buffer that isn't of wl_shm is none of ours, and needs no copying.
        surface.pending = self._buffers.get(_ints(message)[0])
        surface.attached = True

    def damage(self, message: FdMessage) -> None:
        surface = self._surface(message)
        self._note(surface, surface.surface_damage, message)

    def damage_buffer(self, message: FdMessage) -> None:
        surface = self._surface(message)
        self._note(surface, surface.buffer_damage, message)

    def _note(self, surface: _Surface, damage: list[tuple[int, int, int, int]], message: FdMessage) -> None:
        if len(damage) < _MAX_DAMAGE:
            x, y, width, height = _ints(message)
            damage.append((x, y, width, height))
        else:
            surface.damage_everywhere = True

    def set_buffer_scale(self, message: FdMessage) -> None:
        (self._surface(message).scale,) = _ints(message)

    def set_buffer_transform(self, message: FdMessage) -> None:
        (self._surface(message).transform,) = _ints(message)

    def get_viewport(self, message: FdMessage) -> None:
        viewport, surface = _ints(message)
        self._viewports[viewport] = surface

    def set_source(self, message: FdMessage) -> None:
        x, y, width, height = (float(value) for value in message.args)  # type: ignore[arg-type]
        source = None if width == -1.0 else (x, y, width, height)
        self._change_viewport(message.object_id, lambda viewport: viewport._replace(source=source))

    def set_destination(self, message: FdMessage) -> None:
        width, height = _ints(message)
        destination = None if width == -1 else (width, height)
        self._change_viewport(message.object_id, lambda viewport: viewport._replace(destination=destination))

    def _destroy_viewport(self, object_id: int) -> None:
        self._change_viewport(object_id, lambda _viewport: ViewportState())
        self._viewports.pop(object_id, None)

    def _change_viewport(self, object_id: int, change: Callable[[ViewportState], ViewportState]) -> None:
        surface_id = self._viewports.get(object_id, 0)
        if surface_id in self._client.objects.kinds and not self._client.objects.kinds[surface_id].is_zombie:
            surface = self._surfaces.get(surface_id)
            if surface is None:
                surface = self._surfaces[surface_id] = _Surface()
            surface.viewport = change(surface.viewport)

    def _destroy_surface(self, object_id: int) -> None:
        surface = self._surfaces.pop(object_id, None)
        if surface is not None:
            for buffer in surface.followed:
                buffer.stale.add_all()
            self._replaced(surface.current)

    def _replaced(self, buffer: PoolBuffer | None) -> None:
        """A surface shows it no more."""
        if (
            buffer is not None
            and buffer.destroyed
            and buffer.busy
            and all(surface.current is not buffer for surface in self._surfaces.values())
        ):
            buffer.busy = False
            self._retire(buffer)

    def commit(self, message: FdMessage) -> None:
        surface = self._surfaces.get(message.object_id)
        if surface is None:
            return
        if surface.attached:
            previous, surface.current = surface.current, surface.pending
            surface.attached = False
            surface.pending = None
            if previous is not surface.current:
                self._replaced(previous)
            if surface.current is not None:
                surface.current.busy = True
                self._follow(surface, surface.current)
        buffer = surface.current
        self._spread_damage(surface, buffer)
        if buffer is not None and buffer.stale and not buffer.destroyed:
            self._copy(message, buffer)

    def _follow(self, surface: _Surface, buffer: PoolBuffer) -> None:
        if buffer in surface.followed:
            return
        for other in self._surfaces.values():
            if buffer in other.followed:
                other.followed.remove(buffer)
        buffer.stale.add_all()
        surface.followed.append(buffer)
        if len(surface.followed) > _MAX_FOLLOWED:
            surface.followed.pop(0).stale.add_all()

    def _spread_damage(self, surface: _Surface, buffer: PoolBuffer | None) -> None:
        """What this commit says has changed is stale in all buffers that the surface has had."""
        if buffer is None:
            geometry: tuple[object, ...] = ()
        else:
            geometry = (buffer.width, buffer.height, surface.scale, surface.transform, surface.viewport)
        if geometry != surface.geometry or surface.damage_everywhere or buffer is None:
            surface.geometry = geometry
            for followed in surface.followed:
                followed.stale.add_all()
        else:
            damage = Damage(buffer.width, buffer.height)
            for x, y, width, height in surface.buffer_damage:
                damage.add(x, y, x + width, y + height)
            for x, y, width, height in surface.surface_damage:
                damage.add_from_surface(
                    x, y, width, height, scale=surface.scale, transform=surface.transform, viewport=surface.viewport
                )
            if damage:
                for followed in surface.followed:
                    if (followed.width, followed.height) == (buffer.width, buffer.height):
                        followed.stale.add_damage(damage)
                    else:
                        followed.stale.add_all()
        surface.surface_damage.clear()
        surface.buffer_damage.clear()
        surface.damage_everywhere = False

    # What the compositor writes to (``capture``)

    def begin_capture(self, message: FdMessage, object_id: int, *, copy_in: bool) -> PoolBuffer | None:
        """The compositor is about to write to that buffer; None if it is not of wl_shm.

        ``copy_in``: it may write to parts of it only, and the others are to be what the client has there.
        """
        buffer = self._buffers.get(object_id)
        if buffer is not None:
            if copy_in:
                buffer.stale.add_all()
                self._copy(message, buffer)
            buffer.busy = buffer.captures = True
        return buffer

    def end_capture(self, buffer: PoolBuffer) -> None:
        """It writes to it no more."""
        buffer.busy = buffer.captures = False

    def copy_back(self, message: FdMessage, buffer: PoolBuffer) -> None:
        """What the compositor has written is in the client's pool then. Raises ProtocolError where that takes it not."""
        if not buffer.destroyed:
            failure = self._aperture.copy_out(
                buffer.file.fd, buffer.offset, buffer.region.gfn << PAGE_SHIFT, buffer.stride * buffer.height
            )
            if failure:
                raise self._error(message, _INVALID_FD, f"can't copy what was captured: {failure}")

    def add_buffer(self, message: FdMessage) -> None:
        buffer = self._buffers.get(_ints(message)[0])
        if buffer is not None:
            buffer.stale.add_all()
            self._copy(message, buffer)

    # What the host takes away

    def _lost(self, lease: AskedLease) -> None:
        """What was in that lease is gone. A buffer that can't be copied any more ends its client at its next use."""
        for buffer in (*self._buffers.values(), *self._last_shown):
            if buffer.region.lease is lease:
                buffer.stale.add_all()
                if buffer.busy and not buffer.captures:
                    self._copied(buffer)

    def _copy(self, message: FdMessage, buffer: PoolBuffer) -> None:
        failure = self._copied(buffer)
        if failure:
            raise self._error(message, _INVALID_FD, f"can't copy the buffer: {failure}")

    def _copied(self, buffer: PoolBuffer) -> str:
        """Copies what is stale; returns what went wrong, or an empty string."""
        pieces = spans(buffer.stale, buffer.stride, buffer.pixel_bytes)
        failure = self._aperture.copy_in(buffer.file.fd, buffer.offset, buffer.region.gfn << PAGE_SHIFT, pieces)
        if not failure:
            buffer.stale = Damage(buffer.width, buffer.height)
        return failure

    def _error(self, message: FdMessage, code: int, what: str) -> ProtocolError:
        label = f"{self._client.objects.label(message.object_id)}.{message.spec.name}"
        return ProtocolError(message.object_id, code, f"{label}: {what}")

    def close(self) -> None:
        """The leases end with the connection."""
        for buffer in (*self._buffers.values(), *self._last_shown):
            buffer.file.drop()
        for pool in self._pools.values():
            pool.drop()
        self._buffers.clear()
        self._last_shown.clear()
        self._pools.clear()
        self._surfaces.clear()


def _ints(message: FdMessage) -> list[int]:
    return message.args  # type: ignore[return-value]
