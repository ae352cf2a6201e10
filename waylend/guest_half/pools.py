"""wl_shm in a guest half: what a client says of its pools, said again of the aperture, whose pages the compositor has, too.

A client's pool is a file of its own, which no other machine can map. Each buffer gets a region of lent memory, and the
host half is told of a pool that is the whole aperture, with the region's offset.
"""

from __future__ import annotations

import os
from typing import ClassVar

from waylend.errors import LimitExceeded, ProtocolError
from waylend.guest_half.buffers import Buffers, ClientPool, PoolBuffer
from waylend.guest_half.leases import WholeAperture
from waylend.lending.pages import PAGE_SHIFT, page_count_of
from waylend.relay.interpose import Client, FdMessage, Interposer
from waylend.wire.codec import encode
from waylend.wire.formats import size_bytes_of

# wl_shm.error
_INVALID_STRIDE = 1
_INVALID_FD = 2
_MAX_POOLS = 1024


class Pools(Interposer):
    REQUESTS: ClassVar = (
        "wl_shm.create_pool",
        "wl_shm_pool.create_buffer",
        "wl_shm_pool.resize",
        "wl_shm_pool.destroy",
        "wl_buffer.destroy",
    )
    EVENTS: ClassVar = ("wl_buffer.release",)

    def __init__(self, client: Client, buffers: Buffers) -> None:
        super().__init__(client)
        self._buffers = buffers
        self._pools: dict[int, ClientPool] = {}

    def create_pool(self, message: FdMessage) -> None:
        object_id, _fd, size_bytes = message.args
        assert isinstance(object_id, int) and isinstance(size_bytes, int)
        fd = message.fds[0]
        if size_bytes <= 0:
            self.refuse(message, _INVALID_STRIDE, f"a size of {size_bytes} bytes")
        if len(self._pools) >= _MAX_POOLS:
            why = f"{_MAX_POOLS} pools are the most (limit pools)"
            self.refuse(message, ProtocolError.NO_MEMORY, why, LimitExceeded)
        self._drop_pool(object_id)  # the scan refuses an id that is taken, after this
        self._pools[object_id] = ClientPool(os.dup(fd), size_bytes)
        message.fds[0] = WholeAperture(fd)

    def resize(self, message: FdMessage) -> bytes:
        (size_bytes,) = message.args
        assert isinstance(size_bytes, int)
        pool = self._pools[message.object_id]
        if size_bytes < pool.size_bytes:
            self.refuse(message, _INVALID_FD, f"a pool of {pool.size_bytes} bytes can't shrink to {size_bytes}")
        pool.size_bytes = size_bytes
        return b""  # there it is the whole aperture always

    def create_buffer(self, message: FdMessage) -> bytes:
        object_id, offset, width, height, stride, pixel_format = _ints(message)
        pool = self._pools[message.object_id]
        # As libwayland checks it.
        if offset < 0 or width <= 0 or height <= 0 or stride < width or offset + stride * height > pool.size_bytes:
            self.refuse(
                message,
                _INVALID_STRIDE,
                f"{width}x{height} with stride {stride} at {offset} isn't in a pool of {pool.size_bytes} bytes",
            )
        size_bytes = size_bytes_of(pixel_format, stride, height)
        region = self._buffers.take_region(object_id, page_count_of(size_bytes))
        if region.failure:
            why = f"the host lends no memory for a buffer: {region.failure}"
            self.refuse(message, ProtocolError.NO_MEMORY, why, LimitExceeded)
        self._buffers.add(PoolBuffer(object_id, pool.use(), region, offset, width, height, stride, pixel_format))
        offset = region.gfn << PAGE_SHIFT
        return encode(message.spec, message.object_id, (object_id, offset, width, height, stride, pixel_format))[0]

    def destroy(self, message: FdMessage) -> None:
        if message.spec.interface == "wl_buffer":
            self._buffers.destroy(message.object_id)
        else:
            self._drop_pool(message.object_id)

    def _drop_pool(self, object_id: int) -> None:
        pool = self._pools.pop(object_id, None)
        if pool is not None:
            pool.drop()

    def release(self, message: FdMessage) -> None:
        buffer = self._buffers.get(message.object_id)
        if buffer is not None:
            buffer.busy = False

    def close(self) -> None:
        for pool in self._pools.values():
            pool.drop()
        self._pools.clear()
        self._buffers.close()


def _ints(message: FdMessage) -> list[int]:
    return message.args  # type: ignore[return-value]
