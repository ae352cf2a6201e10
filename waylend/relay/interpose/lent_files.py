"""Files that the compositor hands to clients for reading: the client gets lent memory instead, never the compositor's own fd."""

from __future__ import annotations

import logging
import os
import struct
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import ClassVar, NamedTuple

from waylend import linux
from waylend.backing.base import Backing
from waylend.backing.file import FileBacking
from waylend.domain.base import Domain
from waylend.domain.later import end_later, lend_later, open_lease_later
from waylend.errors import LendingError, NoSpace, QuotaExceeded
from waylend.foreign.closing import close_sent
from waylend.foreign.kinds import Descriptor, DescriptorKind
from waylend.lending.lease import Lease, LeaseState
from waylend.relay.events import LeaseLent, LeaseReturned
from waylend.relay.interpose import Client, FdMessage, Interposer, NotYet

logger = logging.getLogger(__name__)

_UINT = struct.Struct("=I")
#: How many files of a sort (keymaps, say) a client has for when they come again.
_KEPT_OF_A_SORT = 4
#: How many leases of a guest's may stay only because some process has them open still; then copies are given instead. None is
#: ended for it: a client that lags behind its events has what it is about to map there.
_MOST_UNUSED = 256
#: What is copied where no lease is to be had.
_MOST_COPIED_BYTES = 4 << 20


class FileLender:
    """The leases of one relay's domain, by the file behind them: the same file handed out again is the same lease.

    Used by the relay's thread only, which never waits for the domain.
    """

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self._leases: dict[Hashable, Lease] = {}
        self._borrowers: dict[Hashable, set[int]] = {}
        #: What has been asked for and isn't there yet.
        self._coming: dict[Hashable, _Coming] = {}
        #: Given back, but some process has them open still, whose business that is; the oldest first.
        self._unused: deque[Lease] = deque()

    def lend(self, backing: Backing, name: str, session_id: int, wake: Callable[[], None]) -> Lease | None:
        """The lease of those pages, until the session gives it back. Owns ``backing``. Raises LendingError.

        None while it isn't there: ``wake`` is called, from any thread, when it is time to ask again for the same.
        """
        key = backing.key
        lease = self._leases.get(key)
        # One that ended by itself went with the process that served it.
        if lease is not None and lease.state is not LeaseState.ENDED:
            backing.close()
            self._borrowers[key].add(session_id)
            return lease
        coming = self._coming.get(key)
        if coming is None:
            coming = self._coming[key] = _Coming(self, backing, name)
        else:
            backing.close()
        coming.wakes[session_id] = wake
        try:
            lease = coming.advance()
        except LendingError:
            del self._coming[key]
            coming.wake_all()  # the others try it themselves
            raise
        if lease is None:
            return None
        del self._coming[key]
        coming.wake_all()
        self._leases[key] = lease
        self._borrowers.setdefault(key, set()).add(session_id)
        return lease

    def forget(self, session_id: int) -> None:
        """The session is over, and waits for nothing any more."""
        for key, coming in list(self._coming.items()):
            if coming.wakes.pop(session_id, None) is not None and not coming.wakes:
                del self._coming[key]
                coming.abandon()

    def end_oldest_unused(self) -> Future[None] | None:
        """Makes room: what nobody was told to use any more goes before anybody is refused. None where there is nothing."""
        while self._unused:
            lease = self._unused.popleft()
            if lease.state is not LeaseState.ENDED:
                return end_later(self.domain, lease)
        return None

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

    @property
    def crowded(self) -> bool:
        """Somebody keeps so much of what was given back that nothing new is to be lent."""
        if len(self._unused) > _MOST_UNUSED:
            self._unused = deque(lease for lease in self._unused if lease.state is not LeaseState.ENDED)
        return len(self._unused) > _MOST_UNUSED


class _Coming:
    """A lease that has been asked for, and the sessions that wait for it."""

    def __init__(self, lender: FileLender, backing: Backing, name: str) -> None:
        self._lender = lender
        self._backing = backing
        self._name = name
        self._lent: Future[Lease] | None = None
        #: Room is made for it.
        self._ending: Future[None] | None = None
        #: How to tell each session that it goes on.
        self.wakes: dict[int, Callable[[], None]] = {}

    def advance(self) -> Lease | None:
        """The lease, if it is there. Raises LendingError: then the backing is closed."""
        while True:
            if self._ending is not None:
                if not self._ending.done():
                    return None
                self._ending = None
            if self._lent is None:
                self._lent = lend_later(self._lender.domain, self._backing, self._name)
                if not self._lent.done():
                    self._lent.add_done_callback(lambda _: self.wake_all())
            if not self._lent.done():
                return None
            try:
                return self._lent.result()
            except LendingError as error:
                self._lent = None
                room = self._lender.end_oldest_unused() if isinstance(error, QuotaExceeded | NoSpace) else None
                if room is None:
                    self._backing.close()
                    raise
                self._ending = room
                if not room.done():
                    room.add_done_callback(lambda _: self.wake_all())

    def wake_all(self) -> None:
        for wake in list(self.wakes.values()):
            wake()

    def abandon(self) -> None:
        """Nobody waits for it any more."""
        if self._lent is None:
            self._backing.close()
        else:
            self._lent.add_done_callback(self._end)

    def _end(self, lent: Future[Lease]) -> None:
        if lent.exception() is None:
            self._lender.domain.end_when_unused(lent.result())
        else:
            self._backing.close()


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
        #: The descriptor that the event waits for which holds up all others of this client.
        self._opening: Future[int] | None = None
        self._told = False

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
        lease = None
        try:
            if self._opening is None and self._lender.crowded:
                backing.close()
                raise QuotaExceeded("clients keep too many that were given back")
            lease = self._lender.lend(backing, name, client.session_id, client.resume_later)
            if lease is None:
                raise NotYet
            fd = self._opened(lease)
        except LendingError as error:
            if lease is not None:
                self._lender.give_back(client.session_id, lease)
            # It is the compositor's event, and no client's fault.
            level = logging.DEBUG if self._told else logging.WARNING
            logger.log(level, "client %d gets a copy of its %s: %s", client.session_id, name, error)
            self._told = True
            return Given(_copy_of(message.fds[0], size_bytes), None)
        client.emit(LeaseLent(client.session_id, lease.lease_id, name, size_bytes))
        return Given(fd, lease)

    def _opened(self, lease: Lease) -> int:
        if self._opening is None:
            self._opening = open_lease_later(self._lender.domain, lease)
            if not self._opening.done():
                self._opening.add_done_callback(lambda _: self.client.resume_later())
        if not self._opening.done():
            raise NotYet
        opening, self._opening = self._opening, None
        return opening.result()

    def _give_back(self, given: Given) -> None:
        os.close(given.fd)
        if given.lease is not None:
            for lease in self._lender.give_back(self.client.session_id, given.lease):
                self.client.emit(LeaseReturned(self.client.session_id, lease.lease_id))

    def close(self) -> None:
        self._lender.forget(self.client.session_id)
        if self._opening is not None:
            self._opening.add_done_callback(_close)
        while self._given:
            for given in self._given.popitem()[1].values():
                self._give_back(given)


def _close(opening: Future[int]) -> None:
    """Nobody wants the descriptor any more."""
    if opening.exception() is None:
        os.close(opening.result())


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
