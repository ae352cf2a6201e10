"""Files that the compositor hands to clients for reading: the client gets lent memory instead, never the compositor's own fd."""

from __future__ import annotations

import logging
import os
import struct
from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import ClassVar, NamedTuple

from waylend import linux
from waylend.backing.base import Backing
from waylend.backing.file import FileBacking
from waylend.domain.base import Domain
from waylend.errors import LendingError, NoSpace, QuotaExceeded
from waylend.foreign.closing import close_sent
from waylend.foreign.kinds import Descriptor, DescriptorKind
from waylend.lending.lease import Lease, LeaseState
from waylend.relay.events import LeaseLent, LeaseReturned
from waylend.relay.interpose import Client, FdMessage, Interposer

logger = logging.getLogger(__name__)

_UINT = struct.Struct("=I")
#: How many files of a sort (keymaps, say) a client has for when they come again.
_KEPT_OF_A_SORT = 4
#: How many leases of a guest's may stay only because some process has them open still.
_MOST_UNUSED = 256
#: What is copied where no lease is to be had.
_MOST_COPIED_BYTES = 4 << 20


class FileLender:
    """The leases of one relay's domain, by the file behind them: the same file handed out again is the same lease.

    Used by the relay's thread only.
    """

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self._leases: dict[Hashable, Lease] = {}
        self._borrowers: dict[Hashable, set[int]] = {}
        #: Given back, but some process has them open still, whose business that is; the oldest first.
        self._unused: deque[Lease] = deque()

    def lend(self, backing: Backing, name: str, session_id: int) -> Lease:
        """The lease of those pages, until the session gives it back. Owns ``backing``. Raises LendingError."""
        key = backing.key
        lease = self._leases.get(key)
        # One that ended by itself went with the process that served it.
        if lease is None or lease.state is LeaseState.ENDED:
            lease = self._leases[key] = self._lend_anew(backing, name)
            self._borrowers.setdefault(key, set())
        else:
            backing.close()
        self._borrowers[key].add(session_id)
        return lease

    def _lend_anew(self, backing: Backing, name: str) -> Lease:
        while True:
            try:
                return self.domain.lend(backing, name=name)
            except (QuotaExceeded, NoSpace):
                # What nobody was told to use any more goes before anybody is refused.
                if not self._end_oldest_unused():
                    backing.close()
                    raise

    def _end_oldest_unused(self) -> bool:
        while self._unused:
            lease = self._unused.popleft()
            if lease.state is not LeaseState.ENDED:
                self.domain.end(lease)
                return True
        return False

    def give_back(self, session_id: int, only: Lease | None = None) -> list[Lease]:
        """What the session has, or that lease of it. Those that nobody else has end as soon as no process has them open."""
        returned = []
        for key, borrowers in list(self._borrowers.items()):
            if session_id in borrowers and only in (None, self._leases[key]):
                borrowers.remove(session_id)
                returned.append(self._leases[key])
                if not borrowers:
                    del self._borrowers[key]
                    self._end_when_unused(self._leases.pop(key))
        return returned

    def _end_when_unused(self, lease: Lease) -> None:
        self.domain.end_when_unused(lease)
        self._unused.append(lease)
        # A client that keeps all that it ever got can't use up what others need.
        while len(self._unused) > _MOST_UNUSED:
            self._end_oldest_unused()


class Given(NamedTuple):
    """What a client got: our own fd of it, whose copies it gets when the file comes again, and the lease, if it is one."""

    fd: int
    lease: Lease | None


class LentFiles(Interposer):
    """Exchanges the fd of every event that carries a file for reading.

    Events whose fd is the client's to write to or to wait on (``wl_data_source.send``, fences) are none of these. Of each
    sort a client keeps the last few: an older one is given back when the next comes, and ends when the client lets go of it.
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
        #: By sort, and then by the file.
        self._given: dict[str, OrderedDict[Hashable, Given]] = {}

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
        kept = self._given.setdefault(name, OrderedDict())
        given = kept.get(key)
        if given is None:
            given = kept[key] = self._give(message, name)
            if len(kept) > _KEPT_OF_A_SORT:
                self._give_back(kept.popitem(last=False)[1])
        else:
            kept.move_to_end(key)
        copy = os.dup(given.fd)
        close_sent((fd,))
        message.fds[0] = Descriptor(copy, DescriptorKind.LOCAL_FILE)

    def _give(self, message: FdMessage, name: str) -> Given:
        """A new fd of lent memory, for what the message's fd is; an empty file if there is nothing in that to lend."""
        client = self.client
        (size_bytes,) = _UINT.unpack(message.raw[-4:])
        try:
            backing = FileBacking(os.dup(message.fds[0]), size_bytes=size_bytes)
        except ValueError as error:
            # A keymap of format no_keymap has no content, and its fd may be anything.
            logger.info("client %d gets an empty file for its %s: %s", client.session_id, name, error)
            return Given(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), None)
        try:
            lease = self._lender.lend(backing, name, client.session_id)
            fd = self._lender.domain.open_lease(lease)
        except LendingError as error:
            # It is the compositor's event, and no client's fault.
            logger.warning("client %d gets a copy of its %s: %s", client.session_id, name, error)
            return Given(_copy_of(message.fds[0], size_bytes), None)
        client.emit(LeaseLent(client.session_id, lease.lease_id, name, size_bytes))
        return Given(fd, lease)

    def _give_back(self, given: Given) -> None:
        os.close(given.fd)
        if given.lease is not None:
            for lease in self._lender.give_back(self.client.session_id, given.lease):
                self.client.emit(LeaseReturned(self.client.session_id, lease.lease_id))

    def close(self) -> None:
        while self._given:
            for given in self._given.popitem()[1].values():
                self._give_back(given)


def _copy_of(fd: int, size_bytes: int) -> int:
    """A sealed file with the same content, or as much of it as there is. Raises ValueError for one that is too large."""
    if size_bytes > _MOST_COPIED_BYTES:
        raise ValueError(f"{size_bytes} bytes are too many to be copied")
    copy = os.memfd_create("waylend-copy", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        content = os.pread(fd, size_bytes, 0)
        os.write(copy, content)
        os.ftruncate(copy, size_bytes)
        linux.add_seals(copy, linux.F_SEAL_SEAL | linux.F_SEAL_SHRINK | linux.F_SEAL_GROW | linux.F_SEAL_WRITE)
        return os.open(f"/proc/self/fd/{copy}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(copy)
