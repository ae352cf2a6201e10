"""wl_shm in a host half: what a guest half says of memory is checked anew, message by message.

A guest's pool is the whole aperture, whatever size it says; its buffers must lie in leases of that very connection. The
compositor maps the aperture once for each client.
"""

from __future__ import annotations

import os
import struct
from typing import ClassVar

from waylend.errors import ProtocolError
from waylend.host_half.client import GuestClient
from waylend.lending.pages import PAGE_SHIFT, PAGE_SIZE
from waylend.relay.interpose import Client, FdMessage, Interposer
from waylend.wire.formats import PIXEL_BYTES

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
    )

    def __init__(self, client: Client, guest_client: GuestClient) -> None:
        self._client = client
        self._guest_client = guest_client
        self._aperture = guest_client.aperture
        self._first = 0

    def create_pool(self, message: FdMessage) -> bytes:
        fd = message.fds[0]
        if not self._aperture.is_at(fd):
            raise self._error(message, _INVALID_FD, "what came with it is not the aperture")
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
        return b"" if message.object_id == self._first else None

    def create_buffer(self, message: FdMessage) -> bytes | None:
        numbers = message.args
        assert all(isinstance(number, int) for number in numbers)
        _, offset, width, height, stride, pixel_format = numbers
        assert isinstance(offset, int) and isinstance(width, int) and isinstance(height, int)
        assert isinstance(stride, int) and isinstance(pixel_format, int)
        pixel_bytes = PIXEL_BYTES.get(pixel_format)
        if pixel_bytes is None:
            raise self._error(message, _INVALID_FORMAT, f"format {pixel_format:#x} is not one that can be checked")
        if width <= 0 or height <= 0 or stride < width * pixel_bytes:
            raise self._error(message, _INVALID_STRIDE, f"{width}x{height} pixels do not fit a stride of {stride}")
        end = offset + stride * height
        for lease in self._guest_client.leases:
            start = lease.gfns.start << PAGE_SHIFT
            if start <= offset and end <= start + lease.size_bytes:
                return None if message.object_id == self._first else _UINT.pack(self._first) + message.raw[4:]
        raise self._error(
            message, _INVALID_STRIDE, f"bytes {offset} to {end} of the aperture are not lent to this client"
        )

    def _error(self, message: FdMessage, code: int, what: str) -> ProtocolError:
        label = f"{self._client.objects.label(message.object_id)}.{message.spec.name}"
        return ProtocolError(message.object_id, code, f"{label}: {what}")
