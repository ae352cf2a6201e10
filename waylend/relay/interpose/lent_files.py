"""Files that the compositor hands to clients for reading: the client gets lent memory instead, never the compositor's own fd."""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Hashable
from typing import ClassVar

from waylend.backing.base import Backing
from waylend.backing.file import FileBacking
from waylend.domain.base import Domain
from waylend.errors import LimitExceeded, ProtocolError, QuotaExceeded
from waylend.lending.lease import Lease, LeaseState
from waylend.relay.endpoint import close_all
from waylend.relay.events import LeaseLent, LeaseReturned
from waylend.relay.interpose import Client, FdMessage, Interposer

logger = logging.getLogger(__name__)

_UINT = struct.Struct("=I")


class FileLender:
    """The leases of one relay's domain, by the file behind them: the same file handed out again is the same lease.

    Used by the relay's thread only.
    """

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self._leases: dict[Hashable, Lease] = {}
        self._borrowers: dict[Hashable, set[int]] = {}

    def lend(self, backing: Backing, name: str, session_id: int) -> Lease:
        """The lease of those pages, until the session gives it back. Owns ``backing``. Raises LendingError."""
        key = backing.key
        lease = self._leases.get(key)
        # One that ended by itself went with the process that served it.
        if lease is None or lease.state is LeaseState.ENDED:
            lease = self._leases[key] = self.domain.lend(backing, name=name)
            self._borrowers.setdefault(key, set())
        else:
            backing.close()
        self._borrowers[key].add(session_id)
        return lease

    def give_back(self, session_id: int, only: Lease | None = None) -> list[Lease]:
        """The session has no use for its leases any more, or for that one.

        Those that no other session has end as soon as no process has them open.
        """
        returned = []
        for key, borrowers in list(self._borrowers.items()):
            if session_id in borrowers and only in (None, self._leases[key]):
                borrowers.remove(session_id)
                returned.append(self._leases[key])
                if not borrowers:
                    del self._borrowers[key]
                    self.domain.end_when_unused(self._leases.pop(key))
        return returned


class LentFiles(Interposer):
    """Exchanges the fd of every event that carries a file for reading.

    Events whose fd is the client's to write to or to wait on (``wl_data_source.send``, fences) are none of these.
    """

    EVENTS: ClassVar = (
        "wl_keyboard.keymap",
        "zwp_input_method_keyboard_grab_v2.keymap",
        "zwp_linux_dmabuf_feedback_v1.format_table",
        "wp_image_description_info_v1.icc_file",
    )

    def __init__(self, client: Client, lender: FileLender) -> None:
        super().__init__(client)
        self._lender = lender
        #: What this client got already: an fd of ours for each file, whose copies it gets when the file comes again.
        self._given: dict[Hashable, int] = {}

    def keymap(self, message: FdMessage) -> None:
        self._exchange(message, "keymap")

    def format_table(self, message: FdMessage) -> None:
        self._exchange(message, "dmabuf formats")

    def icc_file(self, message: FdMessage) -> None:
        self._exchange(message, "colour profile")

    def _exchange(self, message: FdMessage, name: str) -> None:
        fd = message.fds[0]
        status = os.fstat(fd)
        # In each of these events the size is the last argument.
        key = (status.st_ino, status.st_ctime_ns, status.st_size, status.st_dev, message.raw[-4:])
        given = self._given.get(key)
        if given is None:
            given = self._lend(message, name)
            self._given[key] = given
        # Closes theirs, and puts a copy of ours in its place.
        os.dup2(given, fd, inheritable=False)

    def _lend(self, message: FdMessage, name: str) -> int:
        """A new fd of lent memory, for what the message's fd is; an empty file if there is nothing in that to lend."""
        client = self.client
        (size_bytes,) = _UINT.unpack(message.raw[-4:])
        try:
            backing = FileBacking(os.dup(message.fds[0]), size_bytes=size_bytes)
        except ValueError as error:
            # A keymap of format no_keymap has no content, and its fd may be anything.
            logger.info("client %d gets an empty file for its %s: %s", client.session_id, name, error)
            return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        try:
            lease = self._lender.lend(backing, name, client.session_id)
        except QuotaExceeded as error:
            self.refuse(message, ProtocolError.IMPLEMENTATION, f"{error}", LimitExceeded)
        client.emit(LeaseLent(client.session_id, lease.lease_id, name, size_bytes))
        return self._lender.domain.open_lease(lease)

    def close(self) -> None:
        if self._given:
            close_all(self._given.values())
            self._given.clear()
            for lease in self._lender.give_back(self.client.session_id):
                self.client.emit(LeaseReturned(self.client.session_id, lease.lease_id))
