"""wl_shm in a host half: what a guest half says of memory is checked anew, message by message.

A guest's pool is the whole aperture, whatever size it says; its buffers must lie in leases of that very connection. The
compositor maps the aperture once for each client.
"""

from __future__ import annotations

import os
import struct
from typing import ClassVar

from waylend.errors import LimitExceeded, ProtocolError
from waylend.host_half.aperture import ApertureDescriptor
from waylend.host_half.client import GuestClient
from waylend.host_half.leases import LeaseGiven
from waylend.lending.pages import PAGE_SIZE
from waylend.relay.interpose import Client, FdMessage, Interposer
from waylend.wire.formats import PIXEL_FORMATS

_INVALID_FORMAT, _INVALID_STRIDE, _INVALID_FD = 0, 1, 2
_UINT = struct.Struct("=I")
_INT = struct.Struct("=i")


class AperturePools(Interposer):
    """A client's first pool is the compositor's mapping of the aperture, and stays it for as long as the client is there.

    When a FUSE file is unmapped the kernel writes back all of it that is dirty (``fuse_vma_close``), whoever drew it, and the
    compositor would stand still meanwhile. So the first pool's ``destroy`` is not passed on (its id just isn't given back),
    all buffers are made of it, and the pools that follow are stand-ins of one page, which come and go.
    """

    REQUESTS: ClassVar = (
        "wl_shm.create_pool",
        "wl_shm_pool.create_buffer",
        "wl_shm_pool.resize",
        "wl_shm_pool.destroy",
        "wl_buffer.destroy",
    )
    EVENTS: ClassVar = ("wl_shm.format",)

    def __init__(self, client: Client, guest_client: GuestClient) -> None:
        super().__init__(client)
        self._guest_client = guest_client
        self._aperture = guest_client.aperture
        self._first = 0
        self._pool_count = 0
        #: The leases that its buffers are in.
        self._buffers: dict[int, LeaseGiven] = {}
        self._destroyed = {"wl_shm_pool": self._destroy_pool, "wl_buffer": self._destroy_buffer}

    def format(self, message: FdMessage) -> bytes | None:
        """A format whose sizes nobody knows can't be checked: it is announced to none."""
        return None if message.args[0] in PIXEL_FORMATS else b""

    def create_pool(self, message: FdMessage) -> bytes:
        fd = message.fds[0]
        if not isinstance(fd, ApertureDescriptor):
            self.refuse(message, _INVALID_FD, "what came with it is not the aperture")
        limit = self.client.policy.limits.pools_per_client
        if self._pool_count >= limit:
            why = f"{limit} pools are the most (limit pools_per_client = {limit})"
            self.refuse(message, ProtocolError.NO_MEMORY, why, LimitExceeded)
        self._pool_count += 1
        size_bytes = self._aperture.pool_bytes
        if self._first:
            os.dup2(self._aperture.stand_in_fd, fd, inheritable=False)
            size_bytes = PAGE_SIZE
        else:
            object_id = message.args[0]
            assert isinstance(object_id, int)
            self._first = object_id
            self._guest_client.aperture_mapped()
        return message.raw[:-4] + _INT.pack(size_bytes)

    def resize(self, _message: FdMessage) -> bytes:
        return b""

    def destroy(self, message: FdMessage) -> bytes | None:
        return self._destroyed[message.spec.interface](message.object_id)

    def _destroy_pool(self, object_id: int) -> bytes | None:
        self._pool_count -= 1
        return b"" if object_id == self._first else None

    def _destroy_buffer(self, object_id: int) -> None:
        given = self._buffers.pop(object_id, None)
        if given is not None:
            self._guest_client.buffer_gone(given)

    def create_buffer(self, message: FdMessage) -> bytes | None:
        numbers = message.args
        assert all(isinstance(number, int) for number in numbers)
        object_id, offset, width, height, stride, pixel_format = numbers
        assert (
            isinstance(object_id, int)
            and isinstance(offset, int)
            and isinstance(width, int)
            and isinstance(height, int)
        )
        assert isinstance(stride, int) and isinstance(pixel_format, int)
        known = PIXEL_FORMATS.get(pixel_format)
        if known is None:
            self.refuse(message, _INVALID_FORMAT, f"format {pixel_format:#x} is not one that can be checked")
        if width <= 0 or height <= 0 or stride < known.least_stride_bytes(width):
            self.refuse(message, _INVALID_STRIDE, f"{width}x{height} pixels do not fit a stride of {stride}")
        end = offset + known.size_bytes(stride, height)
        given = self._guest_client.lease_of(offset, end)
        if given is None:
            self.refuse(
                message, _INVALID_STRIDE, f"bytes {offset} to {end} of the aperture are not lent to this client"
            )
        given.buffer_count += 1
        self._buffers[object_id] = given
        return None if message.object_id == self._first else _UINT.pack(self._first) + message.raw[4:]
