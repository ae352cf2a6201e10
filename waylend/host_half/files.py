"""Files and pipes in a host half: what the compositor hands out goes to the guest half as leases, and what a guest half
wants to be written to is a pipe.
"""

from __future__ import annotations

import logging
import os
import struct
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from typing import ClassVar

from waylend.backing.file import FileBacking
from waylend.channel.attachments import Attachment
from waylend.channel.connection import ChannelConnection
from waylend.errors import LendingError, LimitExceeded, ProtocolError
from waylend.host_half.aperture import ApertureDescriptor
from waylend.host_half.client import GuestClient
from waylend.lending.lease import Lease, LeaseState
from waylend.relay.events import LeaseLent, LeaseReturned
from waylend.relay.interpose import Client, FdMessage, Interposer, NotYet
from waylend.wire.objects import DISPLAY_ID

logger = logging.getLogger(__name__)

_UINT = struct.Struct("=I")
#: Files that a client keeps: the guest half has copied them, but the next client may get the same.
_KEPT_FILES = 4
#: Files that the guest half may not have copied yet. Above it, the compositor isn't read for that client until it has.
_MAX_UNSEEN = 64


class FileInAperture(Attachment):
    """A descriptor of the compositor's that goes as a lease; without one, as an empty file."""

    _told: Callable[[Lease], None]
    _lease: Lease | None
    _size_bytes: int

    def __new__(cls, fd: int, lease: Lease | None, size_bytes: int, told: Callable[[Lease], None]) -> FileInAperture:
        self = super().__new__(cls, fd)
        self._lease = lease
        self._size_bytes = size_bytes
        self._told = told
        return self

    def tell(self, connection: ChannelConnection) -> None:
        if self._lease is None:
            connection.tell("attach_file", 0, 0, 0)
        else:
            connection.tell("attach_file", self._lease.lease_id, self._lease.gfns.start, self._size_bytes)
            self._told(self._lease)


class FilesAcross(Interposer):
    """Files that the compositor hands to clients for reading go to the guest half as leases.

    The guest half copies each when it comes. When it has, the older ones are given back: a client may get as many keymaps as
    the compositor likes. What can't be lent goes as an empty file: it is no fault of the client's.
    """

    EVENTS: ClassVar = (
        "wl_keyboard.keymap",
        "zwp_input_method_keyboard_grab_v2.keymap",
        "wp_image_description_info_v1.icc_file",
    )

    def __init__(self, client: Client, guest_client: GuestClient) -> None:
        super().__init__(client)
        self._guest_client = guest_client
        self._files = guest_client.aperture.files
        #: What is lent, by the lease's number, the one that came last at the end.
        self._lent: OrderedDict[int, Lease] = OrderedDict()
        #: Those that the guest half may not have seen yet, in order; how often each is among them.
        self._unseen: deque[int] = deque()
        self._unseen_count: Counter[int] = Counter()
        self._asking = False

    def keymap(self, message: FdMessage) -> None:
        self._lend(message, "keymap")

    def icc_file(self, message: FdMessage) -> None:
        self._lend(message, "colour profile")

    def _lend(self, message: FdMessage, name: str) -> None:
        fd = message.fds[0]
        # In each of these events the size is the last argument.
        (size_bytes,) = _UINT.unpack(message.raw[-4:])
        lease = self._lease(fd, size_bytes, name)
        message.fds[0] = FileInAperture(fd, lease, size_bytes, self._told)
        if lease is None:
            return
        if lease.lease_id not in self._lent:
            self.client.emit(LeaseLent(self.client.session_id, lease.lease_id, name, size_bytes))
        self._lent[lease.lease_id] = lease
        self._lent.move_to_end(lease.lease_id)
        self._unseen.append(lease.lease_id)
        self._unseen_count[lease.lease_id] += 1
        self._guest_client.file_count = len(self._lent)

    def _lease(self, fd: int, size_bytes: int, name: str) -> Lease | None:
        session_id = self.client.session_id
        try:
            backing = FileBacking(os.dup(fd), size_bytes=size_bytes)
            lease = self._files.lend(backing, name, session_id, self.client.resume_later)
            if lease is None:
                raise NotYet
            return lease
        except ValueError:
            return None  # a keymap of format no_keymap has no content, and its fd may be anything
        except (LendingError, OSError) as error:
            logger.warning("client %d gets an empty %s: %s", session_id, name, error)
            why = LimitExceeded(DISPLAY_ID, ProtocolError.NO_MEMORY, f"wl_display#1: {error} (limit leases)")
            try:
                # For the next who needs one.
                self._guest_client.shares.make_room(self._guest_client, lambda holder: holder.lease_count, why)
            except LimitExceeded:
                pass
            return None

    def _told(self, _lease: Lease) -> None:
        """One of them is on its way."""
        if not self._asking:
            self._ask()
        elif len(self._unseen) > _MAX_UNSEEN:
            self._guest_client.connection.hold(True)

    def _ask(self) -> None:
        """Whether the guest half has all that was told: it has copied it then."""
        self._asking = True
        count = len(self._unseen)
        connection = self._guest_client.connection
        connection.channel.ask(connection.outbox, lambda: self._seen(count))

    def _seen(self, count: int) -> None:
        self._asking = False
        for _ in range(min(count, len(self._unseen))):
            lease_id = self._unseen.popleft()
            self._unseen_count[lease_id] -= 1
        for lease_id in [*self._lent][:-_KEPT_FILES]:
            if not self._unseen_count[lease_id]:
                del self._unseen_count[lease_id]
                self._give_back(self._lent.pop(lease_id))
        self._guest_client.file_count = len(self._lent)
        if self._unseen:
            self._ask()
        if len(self._unseen) <= _MAX_UNSEEN:
            self._guest_client.connection.hold(False)

    def _give_back(self, only: Lease | None = None) -> None:
        for lease in self._files.give_back(self.client.session_id, only):
            self.client.emit(LeaseReturned(self.client.session_id, lease.lease_id))
            if lease.state is not LeaseState.ACTIVE:
                self._guest_client.file_ended(lease)

    def close(self) -> None:
        self._files.forget(self.client.session_id)
        self._unseen.clear()
        if self._lent:
            self._lent.clear()
            self._give_back()


class OnlyPipes(Interposer):
    """What a guest wants to be written to is a pipe of ours: never the aperture, which it could attach in its place."""

    REQUESTS: ClassVar = (
        "wl_data_offer.receive",
        "zwp_primary_selection_offer_v1.receive",
        "gtk_primary_selection_offer.receive",
        "zwlr_data_control_offer_v1.receive",
        "ext_data_control_offer_v1.receive",
    )

    def receive(self, message: FdMessage) -> None:
        if isinstance(message.fds[0], ApertureDescriptor):
            self.refuse(message, ProtocolError.IMPLEMENTATION, "what came with it is not a pipe")
