"""Unmapping: how pages of a FuseDomain leave the kernel's page cache, and with it every borrower's mappings.

Which faults are answered meanwhile, which wait, and which pages must be walked over again is ``p2m.Invalidation``'s
business; here is what the kernel is told, in which order, and what it may wait for. Never on a serving thread.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from waylend import linux
from waylend.domain.fuse.files import BAR, LeaseFile, node_of
from waylend.domain.fuse.served_files import ServedFiles
from waylend.domain.fuse.server import FuseServer
from waylend.errors import BackingLost
from waylend.lending.p2m import Invalidation, Parked
from waylend.lending.pages import PAGE_SHIFT, PageRange

logger = logging.getLogger(__name__)

#: How much is unmapped at a time. After that, faults on it wait until all is done, so a busy borrower soon stands still.
#: What can be written to is taken in smaller stretches: the less is dirtied again behind its write-back, the faster.
_STRIDE_PAGES = 4096
_WRITABLE_STRIDE_PAGES = 256
#: How long an unmapping may wait for a fault that is held back because of it, before that fault is let through.
_HOLD_S = 0.001


class _OwnFile(NamedTuple):
    """A file that we have opened for ourselves; the lease begins at its page ``first_page``."""

    fd: int
    first_page: int


class Unmapping:
    """Of the files ``served`` of one domain. ``lock`` guards its invalidations."""

    def __init__(self, name: str, server: FuseServer, lock: threading.Lock, served: ServedFiles) -> None:
        self._name = name
        self._server = server
        self._lock = lock
        self._own_openers = served.own_openers
        self._bar = served.bar

    def unmap(self, file: LeaseFile, invalidation: Invalidation) -> None:
        """Drops the pages from the kernel's page cache, until no fault can have slipped in behind (see Invalidation)."""
        lease = file.lease
        with self._own_files(file) as own_files:
            if lease.writable:
                # All at once, in large requests. INVAL_INODE alone would have pages written back one by one.
                self._write_back(own_files, invalidation.pages)
            stride_pages = _WRITABLE_STRIDE_PAGES if lease.writable else _STRIDE_PAGES
            stretches = list(_stretches(invalidation.pages, stride_pages))
            with self._lock:
                invalidation.plan(stretches)
            for stretch in stretches:
                with self._lock:
                    invalidation.enter(stretch, lease.faults_begun, holding=False)
                self._drop(file, own_files, invalidation, stretch)
            while True:
                with self._lock:
                    invalidation.leave()
                    late = invalidation.next_round()
                    stretches = [stretch for pages in late for stretch in _stretches(pages, stride_pages)]
                    invalidation.plan(stretches)
                if not stretches:
                    return
                for stretch in stretches:
                    self._drop_again(file, own_files, invalidation, stretch)

    def _drop_again(
        self, file: LeaseFile, own_files: list[_OwnFile], invalidation: Invalidation, pages: PageRange
    ) -> None:
        """Drops ``pages`` while faults on them are held back; lets those through for which the kernel waits."""
        with self._lock:
            waiting = invalidation.waiting_on(pages)
        _serve_all(waiting)
        with self._lock:
            invalidation.enter(pages, file.lease.faults_begun, holding=True)
        dropping = threading.Thread(
            target=self._drop, args=(file, own_files, invalidation, pages), name=f"{self._name}-drop", daemon=True
        )
        dropping.start()
        dropping.join(_HOLD_S)
        while dropping.is_alive():
            self._let_through(invalidation)
            dropping.join(_HOLD_S)

    def _drop(self, file: LeaseFile, own_files: list[_OwnFile], invalidation: Invalidation, pages: PageRange) -> None:
        lease = file.lease
        if lease.writable:
            self._write_back(own_files, pages)
        size_bytes = (pages.end - pages.start) << PAGE_SHIFT
        if file.known:
            with self._turn(file.dropping, invalidation):
                self._server.invalidate(node_of(lease), pages.start << PAGE_SHIFT, size_bytes)
        if self._bar.known:
            with self._turn(self._bar.dropping, invalidation):
                self._server.invalidate(BAR, (lease.gfns.start + pages.start) << PAGE_SHIFT, size_bytes)

    @contextmanager
    def _turn(self, dropping: threading.Lock, invalidation: Invalidation) -> Iterator[None]:
        """One INVAL_INODE of a file at a time.

        The kernel passes over a page that another INVAL_INODE has just unmapped, although that one has yet to flush the TLBs:
        it would return while a borrower still reaches the page. Whoever has its turn may wait for faults that are parked here.
        """
        while not dropping.acquire(timeout=_HOLD_S):
            self._let_through(invalidation)
        try:
            yield
        finally:
            dropping.release()

    def _let_through(self, invalidation: Invalidation) -> None:
        with self._lock:
            waiting = invalidation.let_through()
        _serve_all(waiting)

    @contextmanager
    def _own_files(self, file: LeaseFile) -> Iterator[list[_OwnFile]]:
        """Descriptors of ours through which the kernel can be told to write the lease's pages back; none of a read-only one."""
        lease = file.lease
        with contextlib.ExitStack() as stack:
            own_files: list[_OwnFile] = []
            if lease.writable and file.known:
                own_files += stack.enter_context(self._opened(f"lease/{lease.lease_id}", 0))
            if lease.writable and self._bar.known:
                own_files += stack.enter_context(self._opened("bar", lease.gfns.start))
            yield own_files

    @contextmanager
    def _opened(self, path: str, first_page: int) -> Iterator[list[_OwnFile]]:
        """One of them, or none where it can't be had."""
        thread_id = threading.get_native_id()
        self._own_openers.add(thread_id)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._server.root_fd)
        except OSError as error:  # cut off: nothing can be written back any more
            logger.warning("domain %s: can't write back %s: %s", self._name, path, error)
            fd = -1
        finally:
            self._own_openers.discard(thread_id)
        if fd < 0:
            yield []
            return
        try:
            yield [_OwnFile(fd, first_page)]
        finally:
            os.close(fd)

    def _write_back(self, own_files: list[_OwnFile], pages: PageRange) -> None:
        """Has the kernel write back what is dirty."""
        size_bytes = (pages.end - pages.start) << PAGE_SHIFT
        for own_file in own_files:
            offset_bytes = (own_file.first_page + pages.start) << PAGE_SHIFT
            try:
                linux.sync_file_range(own_file.fd, offset_bytes, size_bytes)
            except OSError as error:
                if error.errno != errno.EIO:  # for what a backing didn't take, which has been said
                    logger.warning("domain %s: %s", self._name, error)

    def write_back(self, file: LeaseFile) -> None:
        """Has the kernel hand us what the borrower wrote so far. Raises BackingLost where it can't."""
        with self._own_files(file) as own_files:
            if len(own_files) < file.known + self._bar.known:
                raise BackingLost("what the borrower wrote can't be had any more")
            for own_file in own_files:
                offset_bytes = own_file.first_page << PAGE_SHIFT
                try:
                    linux.sync_file_range(own_file.fd, offset_bytes, file.lease.page_count << PAGE_SHIFT)
                except OSError as error:
                    file.check_stored()
                    raise BackingLost(f"what the borrower wrote is lost: {error}") from error

    def drop_gaps(self, gaps: Sequence[PageRange]) -> None:
        """Drops what is cached of ``bar`` where nothing is lent, what is dirty there in large requests."""
        with self._opened("bar", 0) as own_files:
            for gap in gaps:
                for stretch in _stretches(gap, _WRITABLE_STRIDE_PAGES):
                    self._write_back(own_files, stretch)
                    self._server.invalidate(BAR, stretch.start << PAGE_SHIFT, stretch.page_count << PAGE_SHIFT)


def _stretches(pages: PageRange, stride_pages: int) -> Iterator[PageRange]:
    for start in range(pages.start, pages.end, stride_pages):
        yield PageRange(start, min(start + stride_pages, pages.end))


def _serve_all(faults: list[Parked]) -> None:
    for serve in faults:
        serve()
