"""Surfaces in a guest half: before a commit goes on, what has changed in its buffer is in lent memory.

That is what has changed since *that* buffer was last copied, which is all of it on first use.
"""

from __future__ import annotations

import struct
from typing import ClassVar

from waylend.guest_half.buffers import Buffers, PoolBuffer
from waylend.guest_half.surfaces import Surfaces
from waylend.relay.interpose import Client, FdMessage, Interposer
from waylend.wire.spec import HEADER_BYTES

#: The arguments of wl_surface.damage and damage_buffer.
_BOX = struct.Struct("=4i")


class Commits(Interposer):
    """A buffer that is not of wl_shm is none of ours, and needs no copying."""

    REQUESTS: ClassVar = (
        "wl_compositor.create_surface",
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

    def __init__(self, client: Client, buffers: Buffers) -> None:
        super().__init__(client)
        self._buffers = buffers
        self._surfaces: Surfaces[PoolBuffer] = Surfaces(buffers.hidden)

    def create_surface(self, message: FdMessage) -> None:
        self._surfaces.create(*_ints(message))

    def attach(self, message: FdMessage) -> None:
        self._surfaces.attach(message.object_id, self._buffers.get(_ints(message)[0]))

    def damage(self, message: FdMessage) -> None:
        if self._surfaces.takes_damage(message.object_id):
            self._surfaces.damage(message.object_id, _BOX.unpack_from(message.raw, HEADER_BYTES))

    def damage_buffer(self, message: FdMessage) -> None:
        if self._surfaces.takes_damage(message.object_id):
            self._surfaces.damage_buffer(message.object_id, _BOX.unpack_from(message.raw, HEADER_BYTES))

    def set_buffer_scale(self, message: FdMessage) -> None:
        self._surfaces.set_scale(message.object_id, *_ints(message))

    def set_buffer_transform(self, message: FdMessage) -> None:
        self._surfaces.set_transform(message.object_id, *_ints(message))

    def commit(self, message: FdMessage) -> None:
        buffer = self._surfaces.commit(message.object_id)
        if buffer is not None and buffer.stale and not buffer.destroyed:
            self._buffers.copy(buffer)

    def destroy(self, message: FdMessage) -> None:
        if message.spec.interface == "wl_surface":
            self._surfaces.destroy(message.object_id)
        else:
            self._surfaces.destroy_viewport(message.object_id)

    def get_viewport(self, message: FdMessage) -> None:
        self._surfaces.create_viewport(*_ints(message))

    def set_source(self, message: FdMessage) -> None:
        x, y, width, height = (float(value) for value in message.args)  # type: ignore[arg-type]
        self._surfaces.set_source(message.object_id, None if width == -1.0 else (x, y, width, height))

    def set_destination(self, message: FdMessage) -> None:
        width, height = _ints(message)
        self._surfaces.set_destination(message.object_id, None if width == -1 else (width, height))

    def add_buffer(self, message: FdMessage) -> None:
        """An icon's buffer, which is looked at whenever the compositor likes."""
        buffer = self._buffers.get(_ints(message)[0])
        if buffer is not None:
            buffer.stale.add_all()
            self._buffers.copy(buffer)

    def close(self) -> None:
        self._surfaces.clear()


def _ints(message: FdMessage) -> list[int]:
    return message.args  # type: ignore[return-value]
