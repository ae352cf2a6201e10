"""FuseDomain: a borrower whose p2m is the page cache of FUSE files that we serve.

Any local process borrows by mapping a descriptor from ``open_lease``; a VMM by mapping the file ``bar``, the whole
aperture. A fault is a READ that we answer; invalidating is INVAL_INODE, by which the kernel writes dirty pages back
to us and unmaps them everywhere, a VMM's second-stage tables included. How the kernel's requests look is in
``wire``, the threads that take them are in ``server``, mounting is in ``mounts``.

What the borrower can't do (DESIGN 4.6) follows from what it has, a descriptor of our file: it can neither write,
truncate nor grow a read-only lease (OPEN for writing is refused, for root too; SETATTR is refused); it can pass the
descriptor on, but what it passes on is revoked with it; pages that it pins (O_DIRECT, vmsplice) are copies in the
page cache of the file, which an invalidation detaches, never pages of the backing.

``bar`` and ``lease/<id>`` are files of their own, with page caches of their own: whoever must see the other's stores
uses the same one (a VMM and the compositor's pool: ``bar``; local clients: the lease's file). Every invalidation
reaches both.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import queue
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

from waylend import linux
from waylend.backing.base import Backing
from waylend.backing.file import FileBacking
from waylend.domain.base import DomainStats, LeaseStats, revoke_each
from waylend.domain.fuse import mounts, wire
from waylend.domain.fuse.files import BAR, FIRST_LEASE, LEASES, ROOT, CachedFile, LeaseFile, node_of
from waylend.domain.fuse.server import FuseServer
from waylend.domain.fuse.unmap import Unmapping
from waylend.domain.fuse.watchdog import Watchdog
from waylend.domain.lease_book import LeaseBook
from waylend.errors import BackingLost, LeaseEnded, RevokeTimeout
from waylend.lending.lease import (
    ABSENT,
    LOST,
    PRESENT,
    BackingIndex,
    Lease,
    LeaseState,
    LossPolicy,
    Protection,
)
from waylend.lending.p2m import P2M, EventLog, LendingEventKind, Verdict
from waylend.lending.pages import PAGE_SHIFT, PAGE_SIZE, PageRange, page_count_of

logger = logging.getLogger(__name__)


class FuseDomain:
    """See ``Domain``. Raises Unavailable, with reason and remedy, where FUSE is not to be had.

    ``read_only`` makes the whole mount so, and refuses writable leases. ``deadline_s`` is how long a revocation may
    take before the whole aperture is cut off. ``mount_path`` also puts the mount on a directory, for a VMM that needs
    a path (``/proc/<pid>/fd/<root_fd>/bar`` needs none); it is unmounted by ``close``. ``gap_zeros``: pages of ``bar``
    that nobody lent read as zeros, and what is stored there is dropped, where it is a fault otherwise: for a ``bar``
    that others than the borrower have mapped, too. ``by_backing`` is an index to share with other domains of the same
    lender.
    """

    mechanism = "fuse"

    def __init__(
        self,
        name: str,
        *,
        aperture_pages: int = (256 << 20) >> PAGE_SHIFT,
        read_only: bool = False,
        lease_limit: int = 1024,
        page_limit: int | None = None,
        deadline_s: float = 1.0,
        read_ahead_pages: int = 32,
        thread_count: int = 2,
        mount_path: str | None = None,
        gap_zeros: bool = False,
        by_backing: BackingIndex | None = None,
    ) -> None:
        self.name = name
        self.events = EventLog()
        self._p2m = P2M(self.events)
        self._lock = self._p2m.lock
        self._book = LeaseBook(
            name,
            aperture_pages,
            read_only=read_only,
            lease_limit=lease_limit,
            page_limit=page_limit,
            by_backing=by_backing,
            invalidate=self._on_invalidate,
        )
        self._table = self._book.table
        self._read_only = read_only
        self._gap_zeros = gap_zeros
        self._deadline_s = deadline_s
        self._files: dict[int, LeaseFile] = {}  # by node
        self._next_fh = 1
        self._bar = CachedFile()
        self._gaps_cached = False  # ``bar`` may have pages of zeros where no lease was
        self._own_opens: set[int] = set()
        self._closed = False
        self._uid, self._gid = os.geteuid(), os.getegid()
        self._server = FuseServer(
            mounts.mount_fuse(name, read_only=read_only),
            self,
            name=name,
            thread_count=thread_count,
            read_ahead_pages=read_ahead_pages,
        )
        self._unmapping = Unmapping(name, self._server, self._lock, self._bar)
        if not read_only:
            self._lift_dirty_limit()
        self._watchdog = Watchdog(name, self._cut_off, connection=self._server.connection)
        self._retiring: queue.SimpleQueue[Lease | None] = queue.SimpleQueue()
        self._retirer = threading.Thread(target=self._retire, name=f"{name}-retirer", daemon=True)
        self._retirer.start()
        self._mount_path = mount_path
        if mount_path is not None:
            try:
                mounts.attach(self._server.mount, mount_path)
            except OSError:
                self._mount_path = None
                self.close()
                raise

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
        with self._lock:
            if self._closed:
                raise LeaseEnded(f"domain {self.name} is closed")
            lease = self._book.enter(
                backing, offset_bytes=offset_bytes, size_bytes=size_bytes, protection=protection, loss=loss, name=name
            )
            self._files[node_of(lease)] = LeaseFile(lease, backing, redrawn=redrawn)
            gaps_cached = self._gaps_cached
        if gaps_cached:
            self._server.invalidate(BAR, lease.gfns.start << PAGE_SHIFT, lease.page_count << PAGE_SHIFT)
        self.events.emit(LendingEventKind.LENT, lease, PageRange(0, lease.page_count))
        return lease

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
        """See ``Domain``. ``pages`` (from 0) takes only a part. Raises LeaseEnded, RevokeTimeout."""
        if lease.state is LeaseState.ENDED:
            raise LeaseEnded(f"lease {lease.lease_id} of domain {self.name} is over")
        whole = PageRange(0, lease.page_count)
        if pages in (None, whole):
            with self._forgetting(lease) as file:
                taken = self._invalidate(lease, whole)
                if file is not None:
                    self._discard(file)
        else:
            taken = self._invalidate(lease, pages)
        lease.revocations += 1
        return taken

    @contextmanager
    def _forgetting(self, lease: Lease) -> Iterator[LeaseFile | None]:
        """What is written back meanwhile is dropped where the borrower draws it again; None where it is not so."""
        with self._lock:
            file = self._files.get(node_of(lease))
            if file is not None and file.redrawn:
                file.forgets += 1
            else:
                file = None
        try:
            yield file
        finally:
            if file is not None:
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
        taken = revoke_each(self.revoke, self._table)
        self.drop_gaps()
        return taken

    def drop_gaps(self) -> None:
        """Drops what is cached of ``bar`` where nothing is lent: a guest that touches all of it would keep that for good.

        Nobody relies on it, so it has no deadline: a guest that goes on touching it all the while can slow it down.
        """
        with self._lock:
            if not self._gaps_cached:
                return
            gaps = self._table.gaps()
        self._unmapping.drop_gaps(gaps)

    def sync(self, lease: Lease) -> None:
        """What the borrower has written so far is in the backing, and durable there where the backing has such a thing."""
        if lease.writable:
            file = self._files[node_of(lease)]
            self._unmapping.write_back(file)
            file.backing.sync()

    def end(self, lease: Lease) -> None:
        with self._lock:
            if lease.state is LeaseState.ENDED:
                return
            lease.state = LeaseState.ENDED
        try:
            with self._forgetting(lease):
                self._invalidate(lease, PageRange(0, lease.page_count))
        finally:
            self._forget(lease)

    def end_when_unused(self, lease: Lease) -> None:
        with self._lock:
            if lease.state is LeaseState.ENDED:
                return
            lease.state = LeaseState.ENDING
            unused = not self._files[node_of(lease)].opens
        if unused:
            self._retiring.put(lease)

    def lease(self, lease_id: int) -> Lease | None:
        """The lease with that id, while it isn't over."""
        with self._lock:
            return self._table.by_id(lease_id)

    def stats(self) -> DomainStats:
        with self._lock:
            leases = tuple(LeaseStats.of(lease) for lease in self._table)
        return DomainStats(self.name, self.mechanism, self._table.aperture_pages, leases)

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
        for lease in self._table:
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

    def _on_invalidate(self, key: Hashable, pages: PageRange) -> None:
        with self._lock:
            leases = self._table.on_backing(key, pages)
        for lease in leases:
            with contextlib.suppress(LeaseEnded):  # in between: its pages went with it
                self._invalidate(lease, lease.from_backing(pages))

    def _invalidate(self, lease: Lease, pages: PageRange) -> int:
        assert not self._server.serves_here(), "an invalidation waits for the serving threads"
        file = self._files.get(node_of(lease))
        if file is None:
            raise LeaseEnded(f"lease {lease.lease_id} of domain {self.name} is over")
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
        for node in (*list(self._files), BAR):  # what is mapped would stay so
            self._server.invalidate(node, 0, 0)

    def _forget(self, lease: Lease) -> None:
        """Takes an ended lease out of the book, and lets its backing go when no fault uses it any more."""
        with self._lock:
            file = self._files.pop(node_of(lease))
            let_go = self._book.leave(lease, file.backing)
        let_go()
        if file.known:
            self._server.forget(LEASES, str(lease.lease_id))
        self.events.emit(LendingEventKind.ENDED, lease, PageRange(0, lease.page_count))

    def _retire(self) -> None:
        """The retirer's loop: ends leases that their last borrower has let go of."""
        while (lease := self._retiring.get()) is not None:
            try:
                with self._lock:
                    file = self._files.get(node_of(lease))
                    if file is None or file.opens or lease.state is not LeaseState.ENDING:
                        continue
                self.end(lease)
            except Exception:
                logger.exception("domain %s: ending lease %d", self.name, lease.lease_id)

    # -- what the server asks (Files); on serving threads

    def lookup(self, parent: int, name: bytes) -> wire.Attributes | None:
        if parent == ROOT:
            node = {b"bar": BAR, b"lease": LEASES}.get(name)
            if node == BAR:
                self._bar.known = True
            return None if node is None else self.attributes(node)
        if parent != LEASES or not name.isdigit() or len(name) > 18:
            return None
        file = self._files.get(FIRST_LEASE + int(name))
        if file is None or name != b"%d" % file.lease.lease_id:
            return None
        file.known = True
        return self.attributes(node_of(file.lease))

    def attributes(self, node: int) -> wire.Attributes | None:
        if node in (ROOT, LEASES):
            return wire.Attributes(node, 0, wire.S_IFDIR | 0o500, self._uid, self._gid)
        if node == BAR:
            mode = wire.S_IFREG | (0o400 if self._read_only else 0o600)
            return wire.Attributes(node, self._table.aperture_pages << PAGE_SHIFT, mode, self._uid, self._gid)
        file = self._files.get(node)
        if file is None:
            return None
        mode = wire.S_IFREG | (0o600 if file.lease.writable else 0o400)
        return wire.Attributes(node, file.lease.size_bytes, mode, self._uid, self._gid)

    def entries(self, node: int) -> list[tuple[int, str, int]]:
        if node == ROOT:
            return [(LEASES, "lease", wire.S_IFDIR), (BAR, "bar", wire.S_IFREG)]
        with self._lock:
            return [(node_of(lease), str(lease.lease_id), wire.S_IFREG) for lease in self._table]

    def open(self, node: int, flags: int, thread_id: int) -> int:
        writes = flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC
        with self._lock:
            fh = self._next_fh
            self._next_fh += 1
            if node == BAR:
                if writes and self._read_only:
                    raise OSError(errno.EROFS, "the domain is read-only")
                return fh
            file = self._files.get(node)
            if file is None or file.lease.state is LeaseState.ENDED:
                if file is not None and thread_id in self._unmapping.own_openers:
                    self._own_opens.add(fh)  # writing back at the lease's end
                    return fh
                raise OSError(errno.ENOENT, "the lease is over")
            if writes and not file.lease.writable:
                raise OSError(errno.EACCES, "the lease is read-only")
            if thread_id in self._unmapping.own_openers:
                self._own_opens.add(fh)
            else:
                file.opens += 1
            return fh

    def release(self, node: int, fh: int) -> None:
        with self._lock:
            if fh in self._own_opens:
                self._own_opens.remove(fh)
                return
            file = self._files.get(node)
            if file is None:
                return
            file.opens -= 1
            unused = not file.opens and file.lease.state is LeaseState.ENDING
        if unused:
            self._retiring.put(file.lease)

    def read(self, unique: int, node: int, offset_bytes: int, size_bytes: int) -> None:
        if node == BAR:
            self._read_bar(unique, offset_bytes, size_bytes)
            return
        file = self._files.get(node)
        start = offset_bytes >> PAGE_SHIFT
        if file is None or offset_bytes & (PAGE_SIZE - 1):
            self._server.fail(unique, errno.EIO)
            return
        end = min(start + ((size_bytes + PAGE_SIZE - 1) >> PAGE_SHIFT), file.lease.page_count)
        content = self._resolve(file, PageRange(start, end), lambda: self.read(unique, node, offset_bytes, size_bytes))
        if content is None:
            self._server.fail(unique, errno.EIO)
        elif content:
            self._server.answer(unique, content)

    def _read_bar(self, unique: int, offset_bytes: int, size_bytes: int) -> None:
        """A READ of the whole aperture's file may span leases, and gaps between them, which read as zeros then."""
        gfns = PageRange(offset_bytes >> PAGE_SHIFT, (offset_bytes + size_bytes + PAGE_SIZE - 1) >> PAGE_SHIFT)
        with self._lock:
            leases = self._table.overlapping(gfns)
            covered = sum(lease.gfns.intersection(gfns).page_count for lease in leases)
            if covered < gfns.page_count:
                self._gaps_cached = True
        if len(leases) == 1 and covered == gfns.page_count and (only := self._files.get(node_of(leases[0]))):
            # The common case, with no copy in between.
            first = gfns.start - leases[0].gfns.start
            whole = self._resolve(
                only,
                PageRange(first, first + gfns.page_count),
                lambda: self._read_bar(unique, offset_bytes, size_bytes),
            )
            if whole is None:
                self._server.fail(unique, errno.EIO)
            elif whole:
                self._server.answer(unique, whole)
            return
        answer = bytearray(gfns.page_count << PAGE_SHIFT)
        if not leases:
            if self._gap_zeros:
                self._server.answer(unique, answer)
            else:
                self._server.fail(unique, errno.EIO)
            return
        for lease in leases:
            common = lease.gfns.intersection(gfns)
            file = self._files.get(node_of(lease))
            pages = PageRange(common.start - lease.gfns.start, common.end - lease.gfns.start)
            content = (
                None
                if file is None
                else self._resolve(file, pages, lambda: self._read_bar(unique, offset_bytes, size_bytes))
            )
            if content is None:
                self._server.fail(unique, errno.EIO)
                return
            if not content:
                return  # parked: comes here again from the start
            at = (common.start - gfns.start) << PAGE_SHIFT
            answer[at : at + len(content)] = content
        self._server.answer(unique, answer)

    def _resolve(self, file: LeaseFile, pages: PageRange, again: Callable[[], None]) -> bytes | None:
        """The fault protocol: the content of ``pages``, None for a failure, b"" where ``again`` will be called later."""
        lease = file.lease
        p2m = self._p2m
        if pages.start >= pages.end:
            return None
        if self.events.watched:
            self.events.emit(LendingEventKind.FAULTED, lease, pages)
        while True:
            try:
                begun = p2m.begin(lease)
            except LeaseEnded:
                return None
            page_state = PRESENT
            lost_pages: list[int] = []
            content: bytes | None
            try:
                content = file.read(lease.to_backing(pages))
            except BackingLost as lost:
                logger.info("domain %s, lease %d: %s", self.name, lease.lease_id, lost)
                content, lost_pages = self._salvaged(file, pages)
                page_state = ABSENT if content is None else PRESENT
            except BaseException:
                p2m.settle(lease, PageRange(0, 0), begun, again)
                raise
            verdict = p2m.settle(lease, pages, begun, again, page_state)
            if verdict is Verdict.INSTALL:
                break
            if verdict is Verdict.PARKED:
                return b""
        for page in lost_pages:
            lease.pages[page] = LOST
            self.events.emit(LendingEventKind.LOST, lease, PageRange(page, page + 1))
        if self.events.watched and not lost_pages:
            self.events.emit(LendingEventKind.SERVED, lease, pages)
        if content is not None and pages.end == lease.page_count and lease.size_bytes & (PAGE_SIZE - 1):
            # Nothing of the backing beyond the lease's last byte.
            content = content[: lease.size_bytes - (pages.start << PAGE_SHIFT)].ljust(len(content), b"\0")
        return content

    def _salvaged(self, file: LeaseFile, pages: PageRange) -> tuple[bytes | None, list[int]]:
        """What to answer when not all pages can be delivered (None: an error), and which of them are lost.

        A policy of zeros fills them in. Otherwise a read-ahead fails as a whole, and loses nothing: the kernel asks again for
        the one page that was touched.
        """
        if file.lease.loss is LossPolicy.FAULT:
            return None, [pages.start] if pages.page_count == 1 else []
        content, lost_pages = bytearray(), []
        for page in range(*pages):
            try:
                content += file.read(file.lease.to_backing(PageRange(page, page + 1)))
            except BackingLost:
                content += bytes(PAGE_SIZE)
                lost_pages.append(page)
        return bytes(content), lost_pages

    def write(self, node: int, offset_bytes: int, content: memoryview) -> None:
        if node == BAR:
            gfns = PageRange(offset_bytes >> PAGE_SHIFT, page_count_of(offset_bytes + len(content)))
            with self._lock:
                leases = self._table.overlapping(gfns)
            for lease in leases:
                first = max(lease.gfns.start << PAGE_SHIFT, offset_bytes)
                last = min((lease.gfns.start << PAGE_SHIFT) + lease.size_bytes, offset_bytes + len(content))
                if lease.writable and first < last:
                    self._write_lease(
                        self._files[node_of(lease)],
                        first - (lease.gfns.start << PAGE_SHIFT),
                        content[first - offset_bytes : last - offset_bytes],
                    )
            return
        file = self._files.get(node)
        if file is None or not file.lease.writable:
            raise OSError(errno.EIO, "nothing is lent for writing there")
        if offset_bytes + len(content) > file.lease.size_bytes:
            raise OSError(errno.ENOSPC, "a lease doesn't grow")
        self._write_lease(file, offset_bytes, content)

    def _write_lease(self, file: LeaseFile, offset_bytes: int, content: memoryview) -> None:
        """Hands bytes that a borrower wrote to the backing, which takes pages: the edges are read first."""
        if file.forgets:
            return
        lease = file.lease
        pages = PageRange(offset_bytes >> PAGE_SHIFT, page_count_of(offset_bytes + len(content)))
        whole: memoryview | bytearray = content
        try:
            if len(content) != pages.page_count << PAGE_SHIFT:
                whole = bytearray(file.read(lease.to_backing(pages)))
                at = offset_bytes - (pages.start << PAGE_SHIFT)
                whole[at : at + len(content)] = content
            file.backing.write(lease.to_backing(pages), memoryview(whole))
        except BackingLost as lost:
            logger.error("domain %s, lease %d: what was written is lost: %s", self.name, lease.lease_id, lost)
            with self._lock:
                lease.pages[pages.start : pages.end] = bytes((LOST,)) * pages.page_count
            self.events.emit(LendingEventKind.LOST, lease, pages)
            raise OSError(errno.EIO, str(lost)) from lost

    def sync_file(self, node: int) -> None:
        file = self._files.get(node)
        if file is not None and file.lease.writable:
            file.backing.sync()
