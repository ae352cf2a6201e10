"""ServedFiles: what the kernel asks of a FuseDomain's files: names, attributes, opens, pages to read, bytes to write back.

All of it on serving threads, so nothing here waits for a borrower, nor for an invalidation: a fault that an invalidation holds
back is parked (``p2m``), and its thread goes on. How pages are taken away is in ``unmap``.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Mapping

from waylend.domain.fuse import wire
from waylend.domain.fuse.files import BAR, FIRST_LEASE, LEASES, ROOT, CachedFile, LeaseFile, node_of
from waylend.domain.fuse.server import FuseServer
from waylend.errors import BackingLost, LeaseEnded
from waylend.lending.lease import ABSENT, LOST, PRESENT, Lease, LeaseState, LeaseTable, LossPolicy
from waylend.lending.p2m import P2M, LendingEventKind, Verdict
from waylend.lending.pages import PAGE_SHIFT, PAGE_SIZE, PageRange, page_count_of

logger = logging.getLogger(__name__)


class ServedFiles:
    """The files of the domain ``name``: see ``server.Files``. ``p2m``'s lock guards them, as it does ``table`` and ``lent``.

    ``lent`` has a file for each lease, by the lease's id. ``unused`` is called with a lease that is to end when nobody has it
    open any more, and nobody has.
    """

    def __init__(
        self,
        name: str,
        server: FuseServer,
        p2m: P2M,
        table: LeaseTable,
        lent: Mapping[int, LeaseFile],
        *,
        read_only: bool,
        gap_zeros: bool,
        unused: Callable[[Lease], None],
    ) -> None:
        self._name = name
        self._server = server
        self._p2m = p2m
        self._lock = p2m.lock
        self._events = p2m.events
        self._table = table
        self._lent = lent
        self._read_only = read_only
        self._gap_zeros = gap_zeros
        self._unused = unused
        self.bar = CachedFile()
        #: ``bar`` may have pages of zeros where no lease was.
        self.gaps_cached = False
        #: Threads of ours that are opening a file to have it written back: no borrowers.
        self.own_openers: set[int] = set()
        self._own_opens: set[int] = set()
        self._next_fh = 1
        self._uid, self._gid = os.geteuid(), os.getegid()

    def lookup(self, parent: int, name: bytes) -> wire.Attributes | None:
        if parent == ROOT:
            node = {b"bar": BAR, b"lease": LEASES}.get(name)
            if node == BAR:
                self.bar.known = True
            return None if node is None else self.attributes(node)
        if parent != LEASES or not name.isdigit() or len(name) > 18:
            return None
        file = self._lent.get(int(name))
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
        file = self._lent.get(node - FIRST_LEASE)
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
            file = self._lent.get(node - FIRST_LEASE)
            if file is None or file.lease.state is LeaseState.ENDED:
                if file is not None and thread_id in self.own_openers:
                    self._own_opens.add(fh)  # writing back at the lease's end
                    return fh
                raise OSError(errno.ENOENT, "the lease is over")
            if writes and not file.lease.writable:
                raise OSError(errno.EACCES, "the lease is read-only")
            if thread_id in self.own_openers:
                self._own_opens.add(fh)
            else:
                file.opens += 1
            return fh

    def release(self, node: int, fh: int) -> None:
        with self._lock:
            if fh in self._own_opens:
                self._own_opens.remove(fh)
                return
            file = self._lent.get(node - FIRST_LEASE)
            if file is None:
                return
            file.opens -= 1
            unused = not file.opens and file.lease.state is LeaseState.ENDING
        if unused:
            self._unused(file.lease)

    def read(self, unique: int, node: int, offset_bytes: int, size_bytes: int) -> None:
        if node == BAR:
            self._read_bar(unique, offset_bytes, size_bytes)
            return
        file = self._lent.get(node - FIRST_LEASE)
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
                self.gaps_cached = True
        if len(leases) == 1 and covered == gfns.page_count and (only := self._lent.get(leases[0].lease_id)):
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
            file = self._lent.get(lease.lease_id)
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
        if self._events.watched:
            self._events.emit(LendingEventKind.FAULTED, lease, pages)
        while True:
            try:
                begun = p2m.begin(lease)
            except LeaseEnded:
                return None
            page_state = PRESENT
            lost_pages: list[int] = []
            content: bytes | None
            try:
                content = file.fetch(lease.to_backing(pages))
            except BackingLost as lost:
                logger.info("domain %s, lease %d: %s", self._name, lease.lease_id, lost)
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
            self._events.emit(LendingEventKind.LOST, lease, PageRange(page, page + 1))
        if self._events.watched and not lost_pages:
            self._events.emit(LendingEventKind.SERVED, lease, pages)
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
                content += file.fetch(file.lease.to_backing(PageRange(page, page + 1)))
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
                file = self._lent.get(lease.lease_id)
                if file is not None and lease.writable:
                    at = lease.gfns.start << PAGE_SHIFT
                    first = max(at, offset_bytes)
                    # To the lease's last byte (LentRange): what lies behind is of others, or of nobody.
                    self._write_lease(file, first - at, content[first - offset_bytes :])
            return
        file = self._lent.get(node - FIRST_LEASE)
        if file is None or not file.lease.writable:
            raise OSError(errno.EIO, "nothing is lent for writing there")
        if offset_bytes + len(content) > file.lease.size_bytes:
            raise OSError(errno.ENOSPC, "a lease doesn't grow")
        self._write_lease(file, offset_bytes, content)

    def _write_lease(self, file: LeaseFile, offset_bytes: int, content: memoryview) -> None:
        """Hands bytes that a borrower wrote to the backing."""
        if file.forgets:
            return
        lost = file.hand_over(self._events, offset_bytes, content)
        if lost:
            with self._lock:
                for pages in lost:
                    file.lease.pages[pages.start : pages.end] = bytes((LOST,)) * pages.page_count
            raise OSError(errno.EIO, "what was written is lost")

    def sync_file(self, node: int) -> None:
        file = self._lent.get(node - FIRST_LEASE)
        if file is not None and file.lease.writable:
            file.backing.sync()
