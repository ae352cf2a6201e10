"""FuseDomain: a borrower whose p2m is the page cache of FUSE files that we serve.

Any local process borrows by mapping a descriptor from ``open_lease``; a VMM by mapping the file ``bar``, the whole
aperture. A fault is a READ that we answer; invalidating is INVAL_INODE, by which the kernel writes dirty pages back
to us and unmaps them everywhere, a VMM's second-stage tables included. How the kernel's requests look is in
``wire``, the threads that take them are in ``server``, mounting is in ``mounts``.

What the borrower can't do (docs/lending.md, "Restrictions") follows from what it has, a descriptor of our file: it can neither
write, truncate nor grow a read-only lease (OPEN for writing is refused, for root too; SETATTR is refused); it can pass the
descriptor on, but what it passes on is revoked with it; pages that it pins (O_DIRECT, vmsplice) are copies in the
page cache of the file, which an invalidation detaches, never pages of the backing.

``bar`` and ``lease/<id>`` are files of their own, with page caches of their own: whoever must see the other's stores
uses the same one (a VMM and the compositor's pool: ``bar``; local clients: the lease's file). Every invalidation
reaches both.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import queue
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Unpack

from waylend import linux
from waylend.backing.base import Backing
from waylend.backing.file import FileBacking
from waylend.domain.base import pages_of
from waylend.domain.fuse import mounts
from waylend.domain.fuse.files import BAR, FIRST_LEASE, LEASES, LeaseFile
from waylend.domain.fuse.served_files import ServedFiles
from waylend.domain.fuse.server import FuseServer, InEachThread
from waylend.domain.fuse.unmap import Unmapping
from waylend.domain.fuse.watchdog import Watchdog
from waylend.domain.in_process import BookOptions, InProcessDomain
from waylend.errors import BackingLost, LeaseEnded, RevokeTimeout
from waylend.lending.lease import Lease, LeaseState, LossPolicy, Protection
from waylend.lending.p2m import P2M, LendingEventKind
from waylend.lending.pages import PAGE_SHIFT, PageRange

logger = logging.getLogger(__name__)


class FuseDomain(InProcessDomain[LeaseFile]):
    """See ``Domain``. Raises Unavailable, with reason and remedy, where FUSE is not to be had.

    ``deadline_s`` is how long a revocation may take before the whole aperture is cut off. ``mount_path`` also puts the mount on a
    directory, for a VMM that needs a path (``/proc/<pid>/fd/<root_fd>/bar`` needs none); it is unmounted by ``close``.
    ``gap_zeros``: pages of ``bar`` that nobody lent read as zeros, and what is stored there is dropped, where it is a fault
    otherwise: for a ``bar`` that others than the borrower have mapped, too. ``on_lost`` is called, on a thread of the domain,
    with the reason why the aperture has been cut off: the domain lends nothing any more, and is to be closed. For the rest see
    BookOptions; ``read_only`` makes the whole mount so.
    """

    mechanism = "fuse"

    def __init__(
        self,
        name: str,
        *,
        deadline_s: float = 1.0,
        read_ahead_pages: int = 32,
        thread_count: int = 2,
        mount_path: str | None = None,
        gap_zeros: bool = False,
        on_lost: Callable[[str], None] | None = None,
        in_each_thread: InEachThread | None = None,
        **book: Unpack[BookOptions],
    ) -> None:
        self._p2m = P2M()
        super().__init__(
            name,
            events=self._p2m.events,
            lock=self._p2m.lock,
            **book,
        )
        self._deadline_s = deadline_s
        self._on_lost = on_lost
        self._retiring: queue.SimpleQueue[Lease | threading.Event | None] = queue.SimpleQueue()
        self._server = FuseServer(
            mounts.mount_fuse(name, read_only=self._read_only),
            name=name,
            thread_count=thread_count,
            read_ahead_pages=read_ahead_pages,
        )
        self._served = ServedFiles(
            name,
            self._server,
            self._p2m,
            self._table,
            self._lent,
            read_only=self._read_only,
            gap_zeros=gap_zeros,
            unused=self._retiring.put,
        )
        self._unmapping = Unmapping(name, self._server, self._p2m.lock, self._served)
        self._server.start(self._served, in_each_thread)
        if not self._read_only:
            self._lift_dirty_limit()
        in_thread = None if in_each_thread is None else functools.partial(in_each_thread, self._server.root_fd)
        self._watchdog = Watchdog(name, self._cut_off, connection=self._server.connection, in_thread=in_thread)
        self._retirer = threading.Thread(target=self._retire, args=(in_thread,), name=f"{name}-retirer", daemon=True)
        self._retirer.start()
        self._mount_path: str | None = None
        if mount_path is not None:
            self._attach(mount_path)

    def _attach(self, mount_path: str) -> None:
        try:
            mounts.attach(self._server.mount, mount_path)
        except OSError:
            self.close()
            raise
        self._mount_path = mount_path

    def _lift_dirty_limit(self) -> None:
        try:
            mounts.lift_dirty_limit(self._server.connection)
        except OSError as refused:
            logger.info("domain %s: the limit of dirty pages is not ours to lift: %s", self.name, refused)

    # -- the lender's side

    @property
    def root_fd(self) -> int:
        """An O_PATH descriptor of the mount: ``bar`` and ``lease/<id>`` below it. Owned by the domain."""
        return self._server.root_fd

    @property
    def other_users(self) -> bool:
        """Whether borrowers of another user can use lent descriptors."""
        return self._server.mount.other_users

    @property
    def slows_writers(self) -> bool:
        """Whether the kernel slows down borrowers that write much, which it does where nobody has lifted its limit."""
        return not self._read_only and mounts.limits_dirty(self._server.connection)

    def lend(
        self,
        backing: Backing,
        *,
        offset_bytes: int = 0,
        size_bytes: int | None = None,
        protection: Protection = Protection.READ,
        loss: LossPolicy = LossPolicy.FAULT,
        name: str = "",
        redrawn: bool = False,
    ) -> Lease:
        """See ``Domain``. ``redrawn``: the borrower can make the content again when it is told to, and the lender will tell.

        Revoking such a lease as a whole gives up what is in it, in the backing too, which must be a FileBacking that no
        other lease has: it takes no memory then, and the next touch finds zeros.
        """
        if redrawn and not isinstance(backing, FileBacking):
            raise ValueError("only the content of files can be given up")
        if self._server.cut_off:
            raise LeaseEnded(f"domain {self.name} has been cut off")
        lease = self._enter(
            backing,
            lambda lease: LeaseFile(lease, backing, redrawn=redrawn),
            offset_bytes=offset_bytes,
            size_bytes=size_bytes,
            protection=protection,
            loss=loss,
            name=name,
        )
        if self._served.gaps_cached:
            self._server.invalidate(BAR, lease.gfns.start << PAGE_SHIFT, lease.page_count << PAGE_SHIFT)
        self.events.emit(LendingEventKind.LENT, lease, PageRange(0, lease.page_count))
        return lease

    def _range_of(self, lease: Lease, backing: Backing) -> LeaseFile:
        return LeaseFile(lease, backing, redrawn=False)

    def open_lease(self, lease: Lease) -> int:
        flags = os.O_RDWR if lease.writable else os.O_RDONLY
        try:
            return os.open(f"lease/{lease.lease_id}", flags | os.O_CLOEXEC, dir_fd=self._server.root_fd)
        except OSError as error:
            if lease.state is LeaseState.ENDED or self._closed or self._server.cut_off:
                raise LeaseEnded(f"lease {lease.lease_id} of domain {self.name} is over") from error
            raise

    def open_bar(self, *, writable: bool = False) -> int:
        """A new fd of the whole aperture, page ``gfn`` at offset ``gfn * PAGE_SIZE``. Pages that nobody lent are faults."""
        flags = os.O_RDWR if writable else os.O_RDONLY
        return os.open("bar", flags | os.O_CLOEXEC, dir_fd=self._server.root_fd)

    def revoke(self, lease: Lease, pages: PageRange | None = None) -> int:
        """See ``Domain``."""
        pages = pages_of(lease, pages)
        with self._lock:
            file = self._lent_of(lease)
        if file.redrawn and pages.page_count == lease.page_count:
            with self._forgetting(file):
                taken = self._take(file, pages)
                self._discard(file)
        else:
            taken = self._take(file, pages)
        with self._lock:
            lease.revocations += 1
        return taken

    @contextmanager
    def _forgetting(self, file: LeaseFile) -> Iterator[None]:
        """What is written back meanwhile is dropped."""
        with self._lock:
            file.forgets += 1
        try:
            yield
        finally:
            with self._lock:
                file.forgets -= 1

    def _discard(self, file: LeaseFile) -> None:
        assert isinstance(file.backing, FileBacking)
        try:
            file.backing.discard()
        except BackingLost as lost:  # it is closed, as the lease has ended meanwhile; or its file system has no holes
            logger.info("domain %s, lease %d: %s", self.name, file.lease.lease_id, lost)

    def revoke_all(self) -> int:
        """See ``Domain``."""
        taken = super().revoke_all()
        self.drop_gaps()
        return taken

    def drop_gaps(self) -> None:
        """Drops what is cached of ``bar`` where nothing is lent: a guest that touches all of it would keep that for good.

        Nobody relies on it, so it has no deadline: a guest that goes on touching it all the while can slow it down.
        """
        with self._lock:
            if not self._served.gaps_cached:
                return
            gaps = self._table.gaps()
        self._unmapping.drop_gaps(gaps)

    def sync(self, lease: Lease) -> None:
        """See ``Domain``."""
        with self._lock:
            file = self._lent_of(lease)
        if lease.writable:
            self._unmapping.write_back(file)
            file.check_stored()
            file.backing.sync()

    def end(self, lease: Lease) -> None:
        """See ``Domain``."""
        with self._lock:
            file = self._lent.get(lease.lease_id)
            if file is None or file.lease is not lease or lease.state is LeaseState.ENDED:
                return
            lease.state = LeaseState.ENDED
        try:
            with self._forgetting(file) if file.redrawn else contextlib.nullcontext():
                self._take(file, PageRange(0, lease.page_count))
        finally:
            self._forget(file)

    def end_when_unused(self, lease: Lease) -> None:
        with self._lock:
            if lease.state is LeaseState.ENDED:
                return
            lease.state = LeaseState.ENDING
            unused = not self._lent_of(lease).opens
        if unused:
            self._retiring.put(lease)

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
        for lease in self._leases():
            try:
                self.end(lease)
            except RevokeTimeout:
                pass  # said so already; the connection is cut off
        self._retiring.put(None)
        self._retirer.join()
        self._watchdog.close()
        if self._mount_path is not None:
            try:
                linux.unmount_lazily(self._mount_path)
            except OSError as error:
                logger.warning("domain %s: %s stays mounted: %s", self.name, self._mount_path, error)
        self._server.close()

    # -- taking pages away

    def invalidate(self, key: Hashable, pages: PageRange) -> None:
        """See InProcessDomain."""
        with self._lock:
            files = [self._lent[lease.lease_id] for lease in self._table.on_backing(key, pages)]
        for file in files:
            self._take(file, file.lease.from_backing(pages))

    def _take(self, file: LeaseFile, pages: PageRange) -> int:
        """Takes ``pages`` (from 0) away; how many the borrower may have had. Raises RevokeTimeout."""
        assert not self._server.serves_here(), "an invalidation waits for the serving threads"
        lease = file.lease
        with self._watchdog.armed(self._deadline_s) as armed:
            taken = self._p2m.invalidate(lease, pages, functools.partial(self._unmapping.unmap, file))
        if armed.missed:
            raise RevokeTimeout(f"taking pages of lease {lease.lease_id} took longer than {self._deadline_s} s")
        self.events.emit(LendingEventKind.REVOKED, lease, pages)
        return taken

    def _cut_off(self) -> None:
        """The last resort, called by the watchdog: every access of the borrower fails from now on."""
        logger.critical("domain %s: pages could not be taken away in time; its whole aperture is cut off", self.name)
        self._server.abort()
        if self._on_lost is not None:
            self._on_lost(f"pages could not be taken away within {self._deadline_s:g} s")
        for node in (*(FIRST_LEASE + lease_id for lease_id in list(self._lent)), BAR):  # what is mapped would stay so
            self._server.invalidate(node, 0, 0)

    def _forget(self, file: LeaseFile) -> None:
        """Takes an ended lease out of the book, and lets its backing go when no fault uses it any more."""
        lease = file.lease
        with self._lock:
            del self._lent[lease.lease_id]
            let_go = self._book.leave(lease, file.backing)
        let_go()
        if file.known:
            self._server.forget(LEASES, str(lease.lease_id))
        self.events.emit(LendingEventKind.ENDED, lease, PageRange(0, lease.page_count))

    def wait_for_unused(self) -> None:
        """Returns when those leases have ended that were to end and that nobody had any more."""
        ended = threading.Event()
        self._retiring.put(ended)
        ended.wait(self._deadline_s)

    def _retire(self, in_thread: Callable[[], None] | None) -> None:
        """The retirer's loop: ends leases that their last borrower has let go of."""
        if in_thread is not None:
            in_thread()
        while (lease := self._retiring.get()) is not None:
            if isinstance(lease, threading.Event):
                lease.set()
                continue
            try:
                with self._lock:
                    file = self._lent.get(lease.lease_id)
                    if file is None or file.opens or lease.state is not LeaseState.ENDING:
                        continue
                self.end(lease)
            except Exception:
                logger.exception("domain %s: ending lease %d", self.name, lease.lease_id)
