"""InProcessDomain: what all domains share whose book is in this very process, whatever their mechanism.

The book and what is kept of each lease, lending, looking up, and what is said about it. How pages reach the borrower and leave
it, and so revoking, syncing and ending, is the mechanism's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from typing import Generic, TypedDict, TypeVar

from waylend.backing.base import Backing
from waylend.domain.base import DomainStats, LeaseStats, revoke_each
from waylend.domain.lease_book import LeaseBook
from waylend.domain.lent_range import LentRange
from waylend.errors import LeaseEnded
from waylend.lending.lease import BackingIndex, Lease, LeaseState, LossPolicy, Protection
from waylend.lending.p2m import EventLog, LendingEventKind
from waylend.lending.pages import PAGE_SHIFT, PageRange

R = TypeVar("R", bound=LentRange)


class BookOptions(TypedDict, total=False):
    """Options that every domain of this process takes."""

    #: How much the aperture has room for; 256 MiB by default.
    aperture_pages: int
    #: Refuses writable leases.
    read_only: bool
    #: The most leases at a time; 1024 by default.
    lease_limit: int
    #: The most pages of all leases; by default the whole aperture.
    page_limit: int | None
    #: An index to share with other domains of the same lender.
    by_backing: BackingIndex | None


class InProcessDomain(ABC, Generic[R]):
    """See ``Domain``. ``lock`` guards the book, and ``R`` is what the mechanism keeps of a lease. For the rest: BookOptions."""

    mechanism: str

    def __init__(
        self,
        name: str,
        *,
        events: EventLog,
        lock: AbstractContextManager[bool],
        aperture_pages: int = (256 << 20) >> PAGE_SHIFT,
        read_only: bool = False,
        lease_limit: int = 1024,
        page_limit: int | None = None,
        by_backing: BackingIndex | None = None,
    ) -> None:
        self.name = name
        self.events = events
        self._lock = lock
        self._book = LeaseBook(
            name,
            aperture_pages,
            read_only=read_only,
            lease_limit=lease_limit,
            page_limit=page_limit,
            by_backing=by_backing,
            invalidate=self.invalidate,
        )
        self._table = self._book.table
        #: By lease id; a lease that ends stays here until nothing of it is in use any more.
        self._lent: dict[int, R] = {}
        self._read_only = read_only
        self._closed = False

    # -- what the mechanism does

    @abstractmethod
    def _range_of(self, lease: Lease, backing: Backing) -> R:
        """The borrower may touch the lease from now on. Under the lock. Raises NoSpace: then there is no lease."""

    @abstractmethod
    def revoke(self, lease: Lease, pages: PageRange | None = None) -> int:
        """See ``Domain``."""

    @abstractmethod
    def invalidate(self, key: Hashable, pages: PageRange) -> None:
        """The owner of the backing ``key`` takes ``pages`` of it away: no borrower has them when this returns.

        The leases live on. Backings call this; see ``waylend.backing.base.Invalidate``.
        """

    # -- what is the same for all

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
        """See ``Domain``."""
        lease = self._enter(
            backing,
            lambda lease: self._range_of(lease, backing),
            offset_bytes=offset_bytes,
            size_bytes=size_bytes,
            protection=protection,
            loss=loss,
            name=name,
        )
        self.events.emit(LendingEventKind.LENT, lease, PageRange(0, lease.page_count))
        return lease

    def _enter(
        self,
        backing: Backing,
        make: Callable[[Lease], R],
        *,
        offset_bytes: int,
        size_bytes: int | None,
        protection: Protection,
        loss: LossPolicy,
        name: str,
    ) -> Lease:
        """A new lease in the book. ``make`` is called under the lock; what it raises leaves the caller its backing."""
        with self._lock:
            if self._closed:
                raise LeaseEnded(f"domain {self.name} is closed")
            lease = self._book.enter(
                backing, offset_bytes=offset_bytes, size_bytes=size_bytes, protection=protection, loss=loss, name=name
            )
            try:
                self._lent[lease.lease_id] = make(lease)
            except BaseException:
                self._book.withdraw(lease, backing)
                raise
        return lease

    def revoke_all(self) -> int:
        """See ``Domain``."""
        return revoke_each(self.revoke, self._leases())

    def lease(self, lease_id: int) -> Lease | None:
        """See ``Domain``."""
        with self._lock:
            return self._table.by_id(lease_id)

    def stats(self) -> DomainStats:
        """See ``Domain``."""
        with self._lock:
            leases = tuple(LeaseStats.of(lease) for lease in self._table)
        return DomainStats(self.name, self.mechanism, self._table.aperture_pages, leases)

    def _leases(self) -> list[Lease]:
        with self._lock:
            return list(self._table)

    def _lent_of(self, lease: Lease) -> R:
        """What is kept of a lease of this domain that isn't over. Under the lock. Raises LeaseEnded."""
        lent = self._lent.get(lease.lease_id)
        if lent is None or lent.lease is not lease or lease.state is LeaseState.ENDED:
            raise LeaseEnded(f"lease {lease.lease_id} of domain {self.name} is over")
        return lent
