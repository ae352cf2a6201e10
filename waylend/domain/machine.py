"""MachineDomain: a borrower that has addresses, not descriptors, and that can be left waiting at a fault (kvm, xen_model).

The lender's side of it: the book, who may take pages when, and when a backing can go. How a page reaches the borrower and leaves
it is the subclass's.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Unpack

from waylend.backing.base import Backing
from waylend.domain.base import pages_of
from waylend.domain.in_process import BookOptions, InProcessDomain
from waylend.domain.lent_range import LentRange
from waylend.errors import Unavailable
from waylend.lending.lease import Lease, LeaseState
from waylend.lending.p2m import P2M, LendingEventKind
from waylend.lending.pages import PageRange


class MachineRange(LentRange):
    """What is kept of a lease. ``takers`` is guarded by the P2M's lock."""

    __slots__ = ("end_gfn", "first_gfn", "takers", "taking_back")

    def __init__(self, lease: Lease, backing: Backing) -> None:
        super().__init__(lease, backing)
        self.first_gfn, self.end_gfn = lease.gfns
        #: Who is about to take pages of it, or doing so: its gfns aren't free before they are through.
        self.takers = 0
        #: Held while pages are dropped, and until dirty ones are in the backing: nobody else may say before that they have gone.
        #: Reentrant, for a backing that takes these very pages away when it is written to.
        self.taking_back = threading.RLock()


class MachineDomain(InProcessDomain[MachineRange]):
    """See ``Domain``. The options are the book's: BookOptions."""

    def __init__(
        self,
        name: str,
        **book: Unpack[BookOptions],
    ) -> None:
        self._p2m = P2M()
        super().__init__(
            name,
            events=self._p2m.events,
            lock=self._p2m.lock,
            **book,
        )
        #: Told when a taker of pages is through, or a lease has gone.
        self._settled = threading.Condition(self._p2m.lock)

    # -- what the mechanism does

    @abstractmethod
    def _open_range(self, lease: Lease) -> None:
        """The borrower may touch the lease's gfns from now on, and faults. Under the lock. Raises NoSpace."""

    @abstractmethod
    def _close_range(self, lease: Lease) -> None:
        """The borrower may not touch them any more; its pages are taken next. Doesn't raise."""

    @abstractmethod
    def _take(self, lent: MachineRange, pages: PageRange) -> int:
        """Takes ``pages`` (from 0) away, what is dirty to the backing first; how many the borrower may have had."""

    @abstractmethod
    def _write_back(self, lent: MachineRange) -> None:
        """Hands all that is dirty to the backing; the borrower keeps it. Raises BackingLost, or says what is lost (LentRange)."""

    @abstractmethod
    def _wake(self, lease: Lease) -> None:
        """Whoever waits for a page of a lease that is over finds out."""

    @abstractmethod
    def _in_use(self) -> bool:
        """Whether any borrower is there. Under the lock."""

    # -- the lender's side

    def _range_of(self, lease: Lease, backing: Backing) -> MachineRange:
        self._open_range(lease)
        return MachineRange(lease, backing)

    def open_lease(self, lease: Lease) -> int:
        """There are no descriptors, only addresses. Raises LeaseEnded, else Unavailable."""
        with self._taking(lease):
            raise Unavailable(
                f"what is lent by {self.mechanism} has an address in the guest, no descriptor",
                "lend to processes by fuse",
            )

    def revoke(self, lease: Lease, pages: PageRange | None = None) -> int:
        """See ``Domain``."""
        pages = pages_of(lease, pages)
        with self._taking(lease) as lent:
            taken = self._take(lent, pages)
            with self._lock:
                lease.revocations += 1
        self.events.emit(LendingEventKind.REVOKED, lease, pages)
        return taken

    def sync(self, lease: Lease) -> None:
        """See ``Domain``."""
        with self._taking(lease) as lent:
            if lease.writable:
                self._write_back(lent)
                lent.check_stored()
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

    def _lent_at(self, gfn: int) -> MachineRange | None:
        lease = self._table.at(gfn)
        return None if lease is None else self._lent[lease.lease_id]

    @contextmanager
    def _taking(self, lease: Lease) -> Iterator[MachineRange]:
        """Keeps the lease from going while its pages are taken. Raises LeaseEnded."""
        with self._lock:
            lent = self._lent_of(lease)
            lent.takers += 1
        try:
            yield lent
        finally:
            with self._lock:
                lent.takers -= 1
                self._settled.notify_all()

    def invalidate(self, key: Hashable, pages: PageRange) -> None:
        """See InProcessDomain. Leases that are ending are taken too: nobody may have the pages when this returns."""
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

    def _forget(self, lent: MachineRange) -> None:
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
