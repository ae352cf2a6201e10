"""MemfdDomain: lent memory without FUSE, as far as that goes. Each lease is a memfd of ours, filled when it is first
opened.

What it can't do, and FuseDomain can:

- Serve faults. All pages are copied from the backing at once, on the first ``open_lease``; what the backing is later
  shows only in a lease that was not open before, or was revoked since.
- Serve a page again after it was taken away. Revoking cuts the memfd off, so every mapping of it is lost for good: an
  access is SIGBUS (loss ``fault``) or reads zeros (loss ``zero``). The next ``open_lease`` gets a new memfd with
  fresh pages.
- Know who still uses a lease: ``end_when_unused`` ends it at once for new openers, but leaves the pages to those who
  have them.
- Tell stores of the borrower from its own: a writable lease is written back whole, at revocation, end and ``sync``.

What it does keep: the borrower never has the backing's own descriptor; it can't write or grow a read-only lease (the
memfd is sealed), neither through a descriptor opened anew. A borrower with our own user id could change the memfd's
mode and cut it short, for itself and others who were lent the same lease, but never change what is in it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Hashable
from typing import Unpack

from waylend import linux
from waylend.backing.base import Backing
from waylend.domain.base import pages_of
from waylend.domain.in_process import BookOptions, InProcessDomain
from waylend.domain.lent_range import LentRange
from waylend.errors import BackingLost
from waylend.lending.lease import (
    ABSENT,
    LOST,
    PRESENT,
    Lease,
    LossPolicy,
)
from waylend.lending.p2m import EventLog, LendingEventKind
from waylend.lending.pages import PAGE_SHIFT, PageRange

#: How much is copied at a time while a lease is filled or written back.
_STRIDE_PAGES = 256


class _Copy(LentRange):
    """A lease, and the memfd that its pages were copied into: -1 when it isn't filled yet, or was revoked."""

    __slots__ = ("memfd",)

    def __init__(self, lease: Lease, backing: Backing) -> None:
        super().__init__(lease, backing)
        self.memfd = -1


class MemfdDomain(InProcessDomain[_Copy]):
    """See ``Domain``, and the module's docstring for what this one can't do."""

    mechanism = "memfd"

    def __init__(
        self,
        name: str,
        **book: Unpack[BookOptions],
    ) -> None:
        super().__init__(
            name,
            events=EventLog(),
            lock=threading.RLock(),  # a backing may take pages away while we read it
            **book,
        )

    def _range_of(self, lease: Lease, backing: Backing) -> _Copy:
        return _Copy(lease, backing)

    def open_lease(self, lease: Lease) -> int:
        with self._lock:
            lent = self._lent_of(lease)
            if lent.memfd < 0:
                self._fill(lent)
            flags = os.O_RDWR if lease.writable else os.O_RDONLY
            # A new open file: offsets aren't shared, and a read-only one can't be written through.
            return os.open(f"/proc/self/fd/{lent.memfd}", flags | os.O_CLOEXEC)

    def revoke(self, lease: Lease, pages: PageRange | None = None) -> int:
        """See ``Domain``. Takes all of the lease: a part of a memfd can't be made a fault."""
        pages_of(lease, pages)
        with self._lock:
            taken = self._cut_off(self._lent_of(lease))
            lease.revocations += 1
        self.events.emit(LendingEventKind.REVOKED, lease, PageRange(0, lease.page_count))
        return taken

    def sync(self, lease: Lease) -> None:
        """See ``Domain``."""
        with self._lock:
            lent = self._lent_of(lease)
            if lease.writable:
                self._write_back(lent)
                lent.check_stored()
                lent.backing.sync()

    def end(self, lease: Lease) -> None:
        self._end(lease, take_pages=True)

    def end_when_unused(self, lease: Lease) -> None:
        self._end(lease, take_pages=lease.writable)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for lent in list(self._lent.values()):
                self.end(lent.lease)

    def _end(self, lease: Lease, *, take_pages: bool) -> None:
        with self._lock:
            lent = self._lent.get(lease.lease_id)
            if lent is None or lent.lease is not lease:
                return
            del self._lent[lease.lease_id]
            if take_pages:
                self._cut_off(lent)
            elif lent.memfd >= 0:
                os.close(lent.memfd)
            let_go = self._book.leave(lease, lent.backing)
        let_go()
        self.events.emit(LendingEventKind.ENDED, lease, PageRange(0, lease.page_count))

    def invalidate(self, key: Hashable, pages: PageRange) -> None:
        """See InProcessDomain. Each of its leases loses all of its pages."""
        with self._lock:
            for lease in self._table.on_backing(key, pages):
                self._cut_off(self._lent_of(lease))
                self.events.emit(LendingEventKind.REVOKED, lease, PageRange(0, lease.page_count))

    def _fill(self, lent: _Copy) -> None:
        """Copies the whole lease into a new memfd. Raises BackingLost under the policy ``fault``."""
        lease = lent.lease
        memfd = os.memfd_create(f"waylend-{lease.lease_id}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.fchmod(memfd, 0o600 if lease.writable else 0o400)
            os.ftruncate(memfd, lease.size_bytes)
            for start in range(0, lease.page_count, _STRIDE_PAGES):
                pages = PageRange(start, min(start + _STRIDE_PAGES, lease.page_count))
                state = PRESENT
                try:
                    content = lent.fetch(lease.to_backing(pages))
                except BackingLost:
                    self.events.emit(LendingEventKind.LOST, lease, pages)
                    if lease.loss is LossPolicy.FAULT:
                        raise
                    content, state = bytes(pages.page_count << PAGE_SHIFT), LOST
                os.pwrite(memfd, content[: lease.size_bytes - (start << PAGE_SHIFT)], start << PAGE_SHIFT)
                lease.pages[pages.start : pages.end] = bytes((state,)) * pages.page_count
            if not lease.writable:
                # Not F_SEAL_SHRINK: cutting it short is how we take the pages away.
                linux.add_seals(memfd, linux.F_SEAL_WRITE | linux.F_SEAL_SEAL)
        except BaseException:
            lease.pages[:] = bytes(lease.page_count)
            os.close(memfd)
            raise
        lease.faults_served += 1
        lent.memfd = memfd

    def _cut_off(self, lent: _Copy) -> int:
        """Takes all pages from everyone who has them; what the borrower wrote goes to the backing first."""
        lease = lent.lease
        taken = lease.pages_present
        if lent.memfd >= 0:
            if lease.writable:
                self._write_back(lent)
            os.ftruncate(lent.memfd, 0)
            if lease.loss is LossPolicy.ZERO:
                os.ftruncate(lent.memfd, lease.size_bytes)
            os.close(lent.memfd)
            lent.memfd = -1
        lease.pages[:] = bytes((ABSENT,)) * lease.page_count
        lease.sequence += 1
        return taken

    def _write_back(self, lent: _Copy) -> None:
        if lent.memfd < 0:
            return
        lease = lent.lease
        for start in range(0, lease.page_count, _STRIDE_PAGES):
            pages = PageRange(start, min(start + _STRIDE_PAGES, lease.page_count))
            content = os.pread(lent.memfd, pages.page_count << PAGE_SHIFT, start << PAGE_SHIFT)
            lent.hand_over(self.events, start << PAGE_SHIFT, content)
