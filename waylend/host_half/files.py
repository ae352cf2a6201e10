"""Files and pipes in a host half: what the compositor hands out goes to the guest half as leases, and what a guest half
wants to be written to is a pipe.
"""

from __future__ import annotations

import os
import stat
import struct
from typing import ClassVar

from waylend.backing.file import FileBacking
from waylend.channel.attachments import Attachment
from waylend.channel.connection import ChannelConnection
from waylend.errors import LendingError, LimitExceeded, ProtocolError
from waylend.host_half.client import GuestClient
from waylend.lending.lease import Lease, LeaseState
from waylend.relay.events import LeaseLent, LeaseReturned
from waylend.relay.interpose import Client, FdMessage, Interposer

_UINT = struct.Struct("=I")


class FileInAperture(Attachment):
    """A descriptor of the compositor's that goes as a lease; without one, as an empty file."""

    lease: Lease | None
    size_bytes: int

    def __new__(cls, fd: int, lease: Lease | None = None, size_bytes: int = 0) -> FileInAperture:
        self = super().__new__(cls, fd)
        self.lease = lease
        self.size_bytes = size_bytes
        return self

    def tell(self, connection: ChannelConnection) -> None:
        if self.lease is None:
            connection.tell("attach_file", 0, 0, 0)
        else:
            connection.tell("attach_file", self.lease.lease_id, self.lease.gfns.start, self.size_bytes)


class FilesAcross(Interposer):
    """Files that the compositor hands to clients for reading go to the guest half as leases."""

    EVENTS: ClassVar = (
        "wl_keyboard.keymap",
        "zwp_input_method_keyboard_grab_v2.keymap",
        "wp_image_description_info_v1.icc_file",
    )

    def __init__(self, client: Client, guest_client: GuestClient) -> None:
        self._client = client
        self._guest_client = guest_client
        self._files = guest_client.aperture.files
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
            message.fds[0] = FileInAperture(fd)
            return
        try:
            lease = self._files.lend(backing, name, self._client.session_id)
        except LendingError as error:
            label = f"{self._client.objects.label(message.object_id)}.{message.spec.name}"
            raise LimitExceeded(message.object_id, ProtocolError.IMPLEMENTATION, f"{label}: {error}") from error
        if lease.lease_id not in self._lent:
            self._lent.add(lease.lease_id)
            self._client.emit(LeaseLent(self._client.session_id, lease.lease_id, name, size_bytes))
        message.fds[0] = FileInAperture(fd, lease, size_bytes)

    def close(self) -> None:
        if self._lent:
            for lease in self._files.give_back(self._client.session_id):
                self._client.emit(LeaseReturned(self._client.session_id, lease.lease_id))
                if lease.state is not LeaseState.ACTIVE:
                    self._guest_client.file_ended(lease)


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
