"""Leases and the book of them: which guest pages of a domain stand for which pages of a backing.

No page content and no system call lives here, and nothing that waits: the protocol by which pages come and go is in
``p2m``. A LeaseTable is one domain's book (by gfn, by id); a BackingIndex finds leases in reverse, by backing range,
and may be shared by all domains of a lender.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field

from sortedcontainers import SortedKeyList

from waylend.errors import LeaseEnded, NoSpace, QuotaExceeded
from waylend.lending.gaps import Gaps
from waylend.lending.intervals import IntervalMap
from waylend.lending.pages import PAGE_SHIFT, PAGE_SIZE, PageRange, page_count_of


class Protection(enum.Enum):
    """What the borrower may do with the pages."""

    READ = "read"
    READ_WRITE = "read-write"


class LossPolicy(enum.Enum):
    """What the borrower gets when the backing can't deliver a page (docs/lending.md, "Loss")."""

    ZERO = "zero"
    FAULT = "fault"


class LeaseState(enum.Enum):
    ACTIVE = "active"
    #: Ends as soon as no borrower has it open any more.
    ENDING = "ending"
    ENDED = "ended"


# What the lender knows of one page: a byte in ``Lease.pages``, so that whole ranges change with one slice assignment.
ABSENT = 0
#: A fault is fetching it from the backing.
RESOLVING = 1
#: The borrower may have it. The borrower's kernel may also have dropped it again without telling: an upper bound.
PRESENT = 2
#: Present, and the borrower has written to it since it last went back to the backing.
DIRTY = 3
#: The backing couldn't deliver; the borrower has what the loss policy says.
LOST = 4


@dataclass(eq=False, slots=True)
class Lease:
    """[gfns) of one aperture <-> ``size_bytes`` of one backing from page ``backing_start`` on.

    Made by ``LeaseTable.add`` and changed only by the table and by the P2M of its domain; everybody else reads.
    """

    lease_id: int
    name: str
    domain_name: str
    gfns: PageRange
    size_bytes: int
    backing_key: Hashable
    backing_start: int
    protection: Protection
    loss: LossPolicy
    state: LeaseState = LeaseState.ACTIVE
    #: One state byte for each page; index 0 is ``gfns.start``. len(pages) == gfns.page_count.
    pages: bytearray = field(default_factory=bytearray, repr=False)
    #: Counts finished invalidations; a fault that saw another value starts again.
    sequence: int = 0
    #: Invalidations under way, as page ranges of this lease (from 0).
    in_progress: list[PageRange] = field(default_factory=list, repr=False)
    #: Faults that use the backing right now. When the lease is over, the last of them calls ``on_idle``.
    faults_in_flight: int = 0
    on_idle: Callable[[], None] | None = field(default=None, repr=False)
    faults_begun: int = 0
    faults_served: int = 0
    revocations: int = 0

    @property
    def page_count(self) -> int:
        return self.gfns.end - self.gfns.start

    @property
    def writable(self) -> bool:
        return self.protection is Protection.READ_WRITE

    @property
    def backing_pages(self) -> PageRange:
        return PageRange(self.backing_start, self.backing_start + self.page_count)

    @property
    def pages_present(self) -> int:
        """Pages that the borrower may have right now, lost ones that became zeros included. O(pages), at memchr's speed."""
        return len(self.pages) - self.pages.count(ABSENT) - self.pages.count(RESOLVING)

    def to_backing(self, pages: PageRange) -> PageRange:
        """Pages of this lease (from 0) as pages of its backing."""
        return PageRange(self.backing_start + pages.start, self.backing_start + pages.end)

    def from_backing(self, pages: PageRange) -> PageRange:
        """The part of this lease (pages from 0) that stands for ``pages`` of its backing; maybe empty."""
        common = self.backing_pages.intersection(pages)
        return PageRange(common.start - self.backing_start, common.end - self.backing_start)


class BackingIndex:
    """Leases by backing range, over all domains that share the index: what an invalidation must find."""

    def __init__(self) -> None:
        #: For each backing, by first page; what is equal in both is of different domains.
        self._leases: dict[Hashable, SortedKeyList] = {}
        #: For each backing, the longest lease so far, in pages.
        self._longest: dict[Hashable, int] = {}

    def add(self, lease: Lease) -> None:
        """O(log n) for n leases of that backing."""
        leases = self._leases.get(lease.backing_key)
        if leases is None:
            leases = self._leases[lease.backing_key] = SortedKeyList(key=_place_of)
        leases.add(lease)
        self._longest[lease.backing_key] = max(self._longest.get(lease.backing_key, 0), lease.page_count)

    def remove(self, lease: Lease) -> None:
        """O(log n) for n leases of that backing. Raises KeyError."""
        leases = self._leases[lease.backing_key]
        try:
            leases.remove(lease)
        except ValueError:
            raise KeyError(lease.lease_id) from None
        if not leases:
            del self._leases[lease.backing_key], self._longest[lease.backing_key]

    def overlapping(self, key: Hashable, pages: PageRange) -> list[Lease]:
        """Every lease of the backing ``key`` with a page in ``pages``. O(log n + leases that begin near it)."""
        leases = self._leases.get(key)
        if leases is None:
            return []
        nearest = pages.start - self._longest[key]
        near = leases.irange_key((nearest, 0), (pages.end, 0), inclusive=(True, False))
        return [lease for lease in near if lease.backing_pages.overlaps(pages)]

    def __len__(self) -> int:
        return sum(len(leases) for leases in self._leases.values())


def _place_of(lease: Lease) -> tuple[int, int]:
    return lease.backing_start, lease.lease_id


class LeaseTable:
    """One domain's leases: by gfn, by id, and in reverse through a BackingIndex. Not locked: its domain does that."""

    def __init__(
        self,
        domain_name: str,
        aperture_pages: int,
        *,
        lease_limit: int = 1024,
        page_limit: int | None = None,
        by_backing: BackingIndex | None = None,
    ) -> None:
        self.domain_name = domain_name
        self.aperture_pages = aperture_pages
        self.lease_limit = lease_limit
        self.page_limit = aperture_pages if page_limit is None else page_limit
        self.by_backing = BackingIndex() if by_backing is None else by_backing
        self.pages_lent = 0
        self._by_gfn: IntervalMap[Lease] = IntervalMap()
        self._gaps = Gaps(aperture_pages)
        self._by_id: dict[int, Lease] = {}
        self._next_id = 1

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Lease]:
        """All leases by id, oldest first."""
        return iter(list(self._by_id.values()))

    def add(
        self,
        *,
        backing_key: Hashable,
        backing_start: int,
        size_bytes: int,
        protection: Protection,
        loss: LossPolicy,
        name: str = "",
        gfn: int | None = None,
        alignment_pages: int = 1,
    ) -> Lease:
        """Finds gfns (in the narrowest gap with room, or exactly at ``gfn``) and makes a lease of them.

        O(log n) to find them, O(c + n / c) to enter them, see IntervalMap.

        Raises ValueError, QuotaExceeded (the domain's leases or pages), NoSpace (no such gap).
        """
        if size_bytes < 1 or backing_start < 0:
            raise ValueError(f"can't lend {size_bytes} bytes from page {backing_start}")
        page_count = page_count_of(size_bytes)
        if len(self._by_id) >= self.lease_limit:
            raise QuotaExceeded(f"domain {self.domain_name} has its {self.lease_limit} leases")
        if self.pages_lent + page_count > self.page_limit:
            raise QuotaExceeded(f"domain {self.domain_name} may borrow {self.page_limit} pages")
        if gfn is None:
            gfn = self._gaps.take(page_count, alignment_pages)
        elif not self._gaps.take_at(gfn, page_count):
            gfn = None
        if gfn is None:
            raise NoSpace(f"the aperture of domain {self.domain_name} has no such gap of {page_count} pages")
        lease = Lease(
            self._next_id,
            name,
            self.domain_name,
            PageRange(gfn, gfn + page_count),
            size_bytes,
            backing_key,
            backing_start,
            protection,
            loss,
            pages=bytearray(page_count),
        )
        self._by_gfn.insert(gfn, gfn + page_count, lease)
        self._by_id[lease.lease_id] = lease
        self.by_backing.add(lease)
        self.pages_lent += page_count
        self._next_id += 1
        return lease

    def remove(self, lease: Lease) -> None:
        """Takes the lease out of the book; its gfns are free. Raises LeaseEnded if it isn't in it. O(c + n / c)."""
        if self._by_id.pop(lease.lease_id, None) is not lease:
            raise LeaseEnded(f"lease {lease.lease_id} of domain {lease.domain_name} is over")
        self._by_gfn.remove(lease.gfns.start)
        self._gaps.give_back(lease.gfns)
        self.by_backing.remove(lease)
        self.pages_lent -= lease.page_count
        lease.state = LeaseState.ENDED

    def by_id(self, lease_id: int) -> Lease | None:
        """O(1)."""
        return self._by_id.get(lease_id)

    def at(self, gfn: int) -> Lease | None:
        """The lease that holds ``gfn``. O(log n)."""
        return self._by_gfn.stab(gfn)

    def overlapping(self, gfns: PageRange) -> list[Lease]:
        """Every lease with a gfn in ``gfns``, in order. O(log n + found)."""
        return [lease for _, _, lease in self._by_gfn.overlapping(*gfns)]

    def gaps(self) -> list[PageRange]:
        """Where nothing is lent, in order. O(gaps)."""
        return list(self._gaps)

    def on_backing(self, key: Hashable, pages: PageRange) -> list[Lease]:
        """This domain's leases of ``pages`` of the backing ``key``."""
        found = self.by_backing.overlapping(key, pages)
        return [lease for lease in found if self._by_id.get(lease.lease_id) is lease]

    def check(self) -> None:
        """Walks the invariants; raises AssertionError. O(n log n)."""
        self._by_gfn.check()
        self._gaps.check()
        lent_and_free = sorted([*self._gaps, *(lease.gfns for lease in self)])
        assert [pages.start for pages in lent_and_free] == [0, *(pages.end for pages in lent_and_free)][:-1]
        assert not lent_and_free or lent_and_free[-1].end == self.aperture_pages
        assert len(self._by_gfn) == len(self._by_id) <= self.lease_limit
        assert self.pages_lent == sum(lease.page_count for lease in self) <= self.page_limit
        for lease in self:
            assert 0 <= lease.gfns.start < lease.gfns.end <= self.aperture_pages
            assert len(lease.pages) == lease.page_count == page_count_of(lease.size_bytes)
            assert (lease.page_count - 1) << PAGE_SHIFT < lease.size_bytes <= lease.page_count * PAGE_SIZE
            assert self._by_gfn.stab_range(lease.gfns.start) == (*lease.gfns, lease)
            assert lease in self.by_backing.overlapping(lease.backing_key, lease.backing_pages)
            assert lease.state is not LeaseState.ENDED
