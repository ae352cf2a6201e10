"""wl_shm, files and pipes in a host half: what a guest half says of memory is checked anew, message by message.

A guest's pool is the whole aperture, whatever size it says; its buffers must lie in leases of that very connection. The
compositor maps the aperture once for each client (``AperturePools``). Files that the compositor hands out become leases, and
an attachment tells the guest half where they are.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterable
from typing import ClassVar, Protocol

from waylend.backing.file import FileBacking
from waylend.errors import LendingError, LimitExceeded, ProtocolError
from waylend.lending.lease import Lease, LeaseState
from waylend.lending.pages import PAGE_SHIFT, PAGE_SIZE
from waylend.relay.events import LeaseLent, LeaseReturned
from waylend.relay.interpose import Client, FdMessage, Interposer
from waylend.relay.interpose.lent_files import FileLender
from waylend.wire.formats import PIXEL_BYTES

_INVALID_FORMAT, _INVALID_STRIDE, _INVALID_FD = 0, 1, 2
_UINT = struct.Struct("=I")
_INT = struct.Struct("=i")


class Lender(Protocol):
    """The host half, as these interposers know it."""

    #: What a pool of the whole aperture has, in bytes; an int32.
    pool_bytes: int
    #: (st_dev, st_ino) of the aperture's file.
    bar_identity: tuple[int, int]
    #: A file of one page that is nobody's memory.
    stand_in_fd: int

    def leases_of(self, session_id: int) -> Iterable[Lease]:
        """What that client may write to."""

    def aperture_mapped(self, session_id: int) -> None:
        """That client's compositor connection has a mapping of the aperture from now on, to its end."""

    def file_passed(self, fd: int, lease: Lease | None, size_bytes: int) -> None:
        """When ``fd`` goes to the guest half, it is that lease that goes (None: an empty file)."""

    def file_ended(self, lease: Lease) -> None:
        """A lease of ``file_passed`` is over."""


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

    def __init__(self, client: Client, lender: Lender) -> None:
        self._client = client
        self._lender = lender
        self._first = 0

    def create_pool(self, message: FdMessage) -> bytes:
        fd = message.fds[0]
        status = os.fstat(fd)
        if (status.st_dev, status.st_ino) != self._lender.bar_identity:
            raise self._error(message, _INVALID_FD, "what came with it is not the aperture")
        size_bytes = self._lender.pool_bytes
        if self._first:
            os.dup2(self._lender.stand_in_fd, fd, inheritable=False)
            size_bytes = PAGE_SIZE
        else:
            object_id = message.args[0]
            assert isinstance(object_id, int)
            self._first = object_id
            self._lender.aperture_mapped(self._client.session_id)
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
        for lease in self._lender.leases_of(self._client.session_id):
            start = lease.gfns.start << PAGE_SHIFT
            if start <= offset and end <= start + lease.size_bytes:
                return None if message.object_id == self._first else _UINT.pack(self._first) + message.raw[4:]
        raise self._error(
            message, _INVALID_STRIDE, f"bytes {offset} to {end} of the aperture are not lent to this client"
        )

    def _error(self, message: FdMessage, code: int, what: str) -> ProtocolError:
        label = f"{self._client.objects.label(message.object_id)}.{message.spec.name}"
        return ProtocolError(message.object_id, code, f"{label}: {what}")


class OnlyPipes(Interposer):
    """What a guest wants to be written to is a pipe of ours: never the aperture, which it could attach in its place."""

    REQUESTS: ClassVar = (
        "wl_data_offer.receive",
        "zwp_primary_selection_offer_v1.receive",
        "gtk_primary_selection_offer.receive",
        "zwlr_data_control_offer_v1.receive",
        "ext_data_control_offer_v1.receive",
    )

    def __init__(self, client: Client) -> None:
        self._client = client

    def receive(self, message: FdMessage) -> None:
        if not stat.S_ISFIFO(os.fstat(message.fds[0]).st_mode):
            label = f"{self._client.objects.label(message.object_id)}.receive"
            raise ProtocolError(
                message.object_id, ProtocolError.IMPLEMENTATION, f"{label}: what came with it is not a pipe"
            )


class FilesAcross(Interposer):
    """Files that the compositor hands to clients for reading go to the guest half as leases."""

    EVENTS: ClassVar = (
        "wl_keyboard.keymap",
        "zwp_input_method_keyboard_grab_v2.keymap",
        "wp_image_description_info_v1.icc_file",
    )

    def __init__(self, client: Client, files: FileLender, lender: Lender) -> None:
        self._client = client
        self._files = files
        self._lender = lender
        self._lent: set[int] = set()

    def keymap(self, message: FdMessage) -> None:
        self._lend(message, "keymap")

    def icc_file(self, message: FdMessage) -> None:
        self._lend(message, "colour profile")

    def _lend(self, message: FdMessage, name: str) -> None:
        fd = message.fds[0]
        # In each of these events the size is the last argument.
        (size_bytes,) = _UINT.unpack(message.raw[-4:])
        try:
            backing = FileBacking(os.dup(fd), size_bytes=size_bytes)
        except ValueError:
            # A keymap of format no_keymap has no content, and its fd may be anything.
            self._lender.file_passed(fd, None, 0)
            return
        try:
            lease = self._files.lend(backing, name, self._client.session_id)
        except LendingError as error:
            label = f"{self._client.objects.label(message.object_id)}.{message.spec.name}"
            raise LimitExceeded(message.object_id, ProtocolError.IMPLEMENTATION, f"{label}: {error}") from error
        if lease.lease_id not in self._lent:
            self._lent.add(lease.lease_id)
            self._client.emit(LeaseLent(self._client.session_id, lease.lease_id, name, size_bytes))
        self._lender.file_passed(fd, lease, size_bytes)

    def close(self) -> None:
        if self._lent:
            for lease in self._files.give_back(self._client.session_id):
                self._client.emit(LeaseReturned(self._client.session_id, lease.lease_id))
                if lease.state is not LeaseState.ACTIVE:
                    self._lender.file_ended(lease)
