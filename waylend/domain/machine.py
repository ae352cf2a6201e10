"""MachineDomain: a borrower that has addresses, not descriptors, and that can be left waiting at a fault (kvm, xen_model).

The lender's side of it: the book, who may take pages when, and when a backing can go. How a page reaches the borrower and leaves
it is the subclass's.
"""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import ClassVar

from waylend.backing.base import Backing
from waylend.domain.base import DomainStats, LeaseStats, revoke_each
from waylend.domain.lease_book import LeaseBook
from waylend.errors import BackingLost, LeaseEnded, Unavailable
from waylend.lending.lease import BackingIndex, Lease, LeaseState, LossPolicy, Protection
from waylend.lending.p2m import P2M, EventLog, LendingEventKind
from waylend.lending.pages import PAGE_SHIFT, PAGE_SIZE, PageRange

logger = logging.getLogger(__name__)


class Lent:
    """One lease and where its pages come from. ``takers`` is guarded by the P2M's lock."""

    __slots__ = ("_whole", "backing", "end_gfn", "first_gfn", "lease", "takers", "taking_back")

    def __init__(self, lease: Lease, backing: Backing) -> None:
        self.lease = lease
        self.first_gfn, self.end_gfn = lease.gfns
        self.backing = backing
        self._whole = lease.size_bytes % PAGE_SIZE == 0
        #: Who is about to take pages of it, or doing so: its gfns aren't free before they are through.
        self.takers = 0
        #: Held while pages are dropped, and until dirty ones are in the backing: nobody else may say before that they have gone.
        #: Reentrant, for a backing that takes these very pages away when it is written to.
        self.taking_back = threading.RLock()

    def fetch(self, pages: PageRange) -> bytes:
        """The content of ``pages`` of the backing, and nothing beyond the lease's last byte. Raises BackingLost."""
        try:
            content = self.backing.read(pages)
        except BackingLost:
            raise
        except Exception as error:  # a bug of the backing; the guest must not stand still for it
            logger.exception("lease %d: reading its backing", self.lease.lease_id)
            raise BackingLost(f"reading the backing: {error}") from error
        if self._whole:
            return content
        lent_bytes = self.lease.size_bytes - ((pages.start - self.lease.backing_start) << PAGE_SHIFT)
        return content if lent_bytes >= len(content) else content[:lent_bytes].ljust(len(content), b"\0")

    def write_back(self, pages: PageRange, content: bytes) -> None:
        """Hands ``pages`` (from 0) to the backing; of the last one only what is lent. Raises BackingLost."""
        backing_pages = self.lease.to_backing(pages)
        lent_bytes = self.lease.size_bytes - (pages.start << PAGE_SHIFT)
        if lent_bytes < len(content):
            behind = self.backing.read(PageRange(backing_pages.end - 1, backing_pages.end))[lent_bytes % PAGE_SIZE :]
            content = content[:lent_bytes] + behind
        self.backing.write(backing_pages, content)


def hand_over(p2m: P2M, lent: Lent, pages: PageRange, content: bytes) -> None:
    """What the borrower wrote to ``pages`` goes to the backing; page by page where that doesn't take it as a whole.

    What can't be written is lost, and said to be.
    """
    try:
        lent.write_back(pages, content)
    except BackingLost as lost:
        if pages.page_count == 1:
            lease = lent.lease
            logger.error("domain %s, lease %d: what was written is lost: %s", lease.domain_name, lease.lease_id, lost)
            p2m.events.emit(LendingEventKind.LOST, lease, pages)
            return
        for page in range(*pages):
            at = (page - pages.start) << PAGE_SHIFT
            hand_over(p2m, lent, PageRange(page, page + 1), content[at : at + PAGE_SIZE])


class MachineDomain(ABC):
    """See ``Domain``. ``read_only`` refuses writable leases; ``by_backing`` is an index to share with other domains."""

    mechanism: ClassVar[str]

    def __init__(
        self,
        name: str,
        *,
        aperture_pages: int,
        read_only: bool,
        lease_limit: int,
        page_limit: int | None,
        by_backing: BackingIndex | None,
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
        #: By lease id; a lease that ends stays here until nothing of it is in use any more.
        self._lent: dict[int, Lent] = {}
        self._closed = False
        #: Told when a taker of pages is through, or a lease has gone.
        self._settled = threading.Condition(self._lock)

    # -- what the mechanism does

    @abstractmethod
    def _open_range(self, lease: Lease) -> None:
        """The borrower may touch the lease's gfns from now on, and faults. Under the lock. Raises NoSpace."""

    @abstractmethod
    def _close_range(self, lease: Lease) -> None:
        """The borrower may not touch them any more; its pages are taken next. Doesn't raise."""

    @abstractmethod
    def _take(self, lent: Lent, pages: PageRange) -> int:
        """Takes ``pages`` (from 0) away, what is dirty to the backing first; how many the borrower may have had."""

    @abstractmethod
    def _write_back(self, lent: Lent) -> None:
        """Hands all that is dirty to the backing; the borrower keeps it. Raises BackingLost: then it is still dirty."""

    @abstractmethod
    def _wake(self, lease: Lease) -> None:
        """Whoever waits for a page of a lease that is over finds out."""

    @abstractmethod
    def _in_use(self) -> bool:
        """Whether any borrower is there. Under the lock."""

    # -- the lender's side

    def lend(
        self,
        backing: Backing,
        *,
        offset_bytes: int = 0,
        size_bytes: int | None = None,
        protection: Protection = Protection.READ,
        loss: LossPolicy = LossPolicy.FAULT,
        name: str = "",
    ) -> Lease:
        with self._lock:
            if self._closed:
                raise LeaseEnded(f"domain {self.name} is closed")
            lease = self._book.enter(
                backing, offset_bytes=offset_bytes, size_bytes=size_bytes, protection=protection, loss=loss, name=name
            )
            try:
                self._open_range(lease)
            except BaseException:
                # The caller keeps its backing.
                self._book.withdraw(lease, backing)
                raise
            self._lent[lease.lease_id] = Lent(lease, backing)
        self.events.emit(LendingEventKind.LENT, lease, PageRange(0, lease.page_count))
        return lease

    def open_lease(self, lease: Lease) -> int:
        """There are no descriptors, only addresses. Raises LeaseEnded, else Unavailable."""
        with self._taking(lease):
            raise Unavailable(
                f"what is lent by {self.mechanism} has an address in the guest, no descriptor",
                "lend to processes by fuse",
            )

    def revoke(self, lease: Lease, pages: PageRange | None = None) -> int:
        """See ``Domain``. ``pages`` (from 0) takes only a part. Raises LeaseEnded."""
        if pages is None:
            pages = PageRange(0, lease.page_count)
        elif not PageRange(0, lease.page_count).contains(pages):
            raise ValueError(f"lease {lease.lease_id} has no pages {pages.start} to {pages.end}")
        with self._taking(lease) as lent:
            taken = self._take(lent, pages)
            with self._lock:
                lease.revocations += 1
        self.events.emit(LendingEventKind.REVOKED, lease, pages)
        return taken

    def revoke_all(self) -> int:
        """See ``Domain``."""
        return revoke_each(self.revoke, self._leases())

    def sync(self, lease: Lease) -> None:
        """What the borrower has written so far is in the backing, and durable there where the backing has such a thing.

        The borrower keeps its pages. Raises LeaseEnded; BackingLost, and then they are still dirty.
        """
        with self._taking(lease) as lent:
            if lease.writable:
                self._write_back(lent)
                lent.backing.sync()

    def end(self, lease: Lease) -> None:
        with self._lock:
            lent = self._lent.get(lease.lease_id)
            if lent is None or lent.lease is not lease or lease.state is LeaseState.ENDED:
                return
            lease.state = LeaseState.ENDED
        self._close_range(lease)
        try:
            self._take(lent, PageRange(0, lease.page_count))
        finally:
            self._forget(lent)
        self.events.emit(LendingEventKind.ENDED, lease, PageRange(0, lease.page_count))

    def end_when_unused(self, lease: Lease) -> None:
        """See ``Domain``. A borrower uses all leases for as long as it is there."""
        with self._lock:
            if lease.state is LeaseState.ENDED:
                return
            lease.state = LeaseState.ENDING
            used = self._in_use()
        if not used:
            self.end(lease)

    def lease(self, lease_id: int) -> Lease | None:
        """The lease with that id, while it isn't over."""
        with self._lock:
            return self._table.by_id(lease_id)

    def stats(self) -> DomainStats:
        with self._lock:
            leases = tuple(LeaseStats.of(lease) for lease in self._table)
        return DomainStats(self.name, self.mechanism, self._table.aperture_pages, leases)

    def _end_all(self) -> bool:
        """Ends all leases, for good: the beginning of ``close``. False if that has been called before."""
        with self._lock:
            if self._closed:
                return False
            self._closed = True
        for lease in self._leases():
            self.end(lease)
        with self._lock:
            while self._lent:  # being ended by others
                self._settled.wait()
        return True

    def _unused(self) -> list[Lease]:
        """Leases that end when unused. Under the lock."""
        return [lease for lease in self._table if lease.state is LeaseState.ENDING]

    # -- the book

    def _leases(self) -> list[Lease]:
        with self._lock:
            return list(self._table)

    def _lent_at(self, gfn: int) -> Lent | None:
        lease = self._table.at(gfn)
        return None if lease is None else self._lent[lease.lease_id]

    @contextmanager
    def _taking(self, lease: Lease) -> Iterator[Lent]:
        """Keeps the lease from going while its pages are taken. Raises LeaseEnded."""
        with self._lock:
            lent = self._lent.get(lease.lease_id)
            if lent is None or lent.lease is not lease or lease.state is LeaseState.ENDED:
                raise LeaseEnded(f"lease {lease.lease_id} of domain {self.name} is over")
            lent.takers += 1
        try:
            yield lent
        finally:
            with self._lock:
                lent.takers -= 1
                self._settled.notify_all()

    def _on_invalidate(self, key: Hashable, pages: PageRange) -> None:
        """Leases that are ending are taken too: nobody may have the pages when this returns."""
        with self._lock:
            all_lent = [self._lent[lease.lease_id] for lease in self._table.on_backing(key, pages)]
            for lent in all_lent:
                lent.takers += 1
        try:
            for lent in all_lent:
                self._take(lent, lent.lease.from_backing(pages))
        finally:
            with self._lock:
                for lent in all_lent:
                    lent.takers -= 1
                self._settled.notify_all()
        for lent in all_lent:
            self.events.emit(LendingEventKind.REVOKED, lent.lease, lent.lease.from_backing(pages))

    def _forget(self, lent: Lent) -> None:
        """Takes an ended lease out of the book, and lets its backing go when no fault uses it any more."""
        lease, backing = lent.lease, lent.backing
        with self._lock:
            while lent.takers:
                self._settled.wait()
            let_go = self._book.leave(lease, backing)
        let_go()
        self._wake(lease)
        with self._lock:
            del self._lent[lease.lease_id]
            self._settled.notify_all()
