"""Files that the compositor hands to clients for reading: the client gets lent memory instead, never the compositor's own fd."""

from __future__ import annotations

import os
from collections.abc import Hashable
from typing import ClassVar

from waylend.backing.base import Backing
from waylend.backing.file import FileBacking
from waylend.domain.base import Domain
from waylend.errors import LimitExceeded, ProtocolError, QuotaExceeded
from waylend.lending.lease import Lease
from waylend.relay.events import LeaseLent, LeaseReturned
from waylend.relay.interpose import Client, FdMessage, Interposer


class FileLender:
    """The leases of one relay's domain, by the file behind them: the same file handed out again is the same lease.

    Used by the relay's thread only.
    """

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self._leases: dict[Hashable, Lease] = {}
        self._borrowers: dict[Hashable, set[int]] = {}

    def lend(self, backing: Backing, name: str, session_id: int) -> tuple[Lease, bool]:
        """The lease of those pages, and whether it is the session's first sight of it. Owns ``backing``.

        Raises LendingError.
        """
        key = backing.key
        lease = self._leases.get(key)
        if lease is None:
            lease = self._leases[key] = self.domain.lend(backing, name=name)
            self._borrowers[key] = set()
        else:
            backing.close()
        borrowers = self._borrowers[key]
        is_new = session_id not in borrowers
        borrowers.add(session_id)
        return lease, is_new

    def give_back(self, session_id: int) -> list[Lease]:
        """The session is over. Leases that nobody else has end as soon as no process has them open."""
        returned = []
        for key, borrowers in list(self._borrowers.items()):
            if session_id in borrowers:
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
        self._client = client
        self._lender = lender
        self._has_leases = False

    def keymap(self, message: FdMessage) -> None:
        self._exchange(message, "keymap")

    def format_table(self, message: FdMessage) -> None:
        self._exchange(message, "dmabuf formats")

    def icc_file(self, message: FdMessage) -> None:
        self._exchange(message, "colour profile")

    def _exchange(self, message: FdMessage, name: str) -> None:
        size_bytes = message.args[-1]  # in each of these events, the last argument
        assert isinstance(size_bytes, int)
        try:
            backing = FileBacking(message.fds.pop(), size_bytes=size_bytes)
        except ValueError:
            # A keymap of format no_keymap has no content, and its fd may be anything.
            message.fds.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
            return
        client = self._client
        try:
            lease, is_new = self._lender.lend(backing, name, client.session_id)
        except QuotaExceeded as error:
            label = f"{client.objects.label(message.object_id)}.{message.spec.name}"
            raise LimitExceeded(message.object_id, ProtocolError.IMPLEMENTATION, f"{label}: {error}") from error
        self._has_leases = True
        message.fds.append(self._lender.domain.open_lease(lease))
        if is_new:
            client.emit(LeaseLent(client.session_id, lease.lease_id, name, size_bytes))

    def close(self) -> None:
        if self._has_leases:
            for lease in self._lender.give_back(self._client.session_id):
                self._client.emit(LeaseReturned(self._client.session_id, lease.lease_id))
