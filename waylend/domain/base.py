"""A borrower, as its lender controls it. A domain object is a capability: it controls that one domain and nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from waylend.backing.base import Backing
from waylend.errors import LeaseEnded
from waylend.lending.lease import Lease, LossPolicy, Protection
from waylend.lending.p2m import EventLog
from waylend.lending.page_states import encoded
from waylend.lending.pages import PAGE_SIZE, PageRange


@dataclass(frozen=True)
class LeaseStats:
    """What ``waylend leases`` prints of one lease. Counts are in pages."""

    lease_id: int
    name: str
    gfn_start: int
    page_count: int
    size_bytes: int
    protection: str
    loss: str
    pages_present: int
    faults_served: int
    revocations: int
    #: Of each page, as ``page_states.encoded`` has it.
    page_states: str

    @classmethod
    def of(cls, lease: Lease) -> LeaseStats:
        """What the book knows of ``lease``. Called under the lock of the lease's domain."""
        return cls(
            lease_id=lease.lease_id,
            name=lease.name,
            gfn_start=lease.gfns.start,
            page_count=lease.page_count,
            size_bytes=lease.size_bytes,
            protection=lease.protection.value,
            loss=lease.loss.value,
            pages_present=lease.pages_present,
            faults_served=lease.faults_served,
            revocations=lease.revocations,
            page_states=encoded(lease.pages),
        )


@dataclass(frozen=True)
class DomainStats:
    name: str
    mechanism: str
    aperture_pages: int
    leases: tuple[LeaseStats, ...]


class Domain(Protocol):
    """One borrower. Methods may be called from any thread, and no step of any of them waits for the borrower.

    docs/lending.md is the contract, clause by clause. Whoever writes a domain of one's own implements this.
    """

    name: str
    #: The mechanism's name: "fuse", "memfd", "kvm", "xen_model".
    mechanism: str
    #: What happens to what is lent: lent, revoked, lost, ended, and while somebody watches them faults.
    events: EventLog

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
        """Lends pages of ``backing``. No page is touched, pinned or copied yet. The domain owns ``backing`` from now on.

        ``offset_bytes`` is page-aligned; ``size_bytes`` need not be: the lease's file has exactly that size.
        Raises NoSpace, QuotaExceeded, LeaseEnded (the domain is closed), ValueError: then ``backing`` is still the caller's.
        """

    def open_lease(self, lease: Lease) -> int:
        """A new fd of the lease for a local borrower: from offset 0, ``size_bytes`` long, close-on-exec.

        It can be mapped as the protection allows. Raises LeaseEnded; Unavailable where borrowers have addresses only.
        """

    def revoke(self, lease: Lease, pages: PageRange | None = None) -> int:
        """Takes pages of the lease (from 0; by default all) away; the next access faults and is served again.

        What the borrower wrote goes to the backing first. A mechanism that can't take a part takes all. Returns the pages taken,
        at least those that the borrower had. Raises LeaseEnded, RevokeTimeout, ValueError for pages that the lease hasn't.
        """

    def revoke_all(self) -> int:
        """Revokes every lease, and leaves nothing else of the aperture in memory. Returns the pages taken of leases."""

    def sync(self, lease: Lease) -> None:
        """What the borrower has written so far is in the backing, and durable there where the backing has such a thing.

        The borrower keeps its pages. Raises LeaseEnded, and BackingLost when something that the borrower wrote since the last
        call did not reach the backing.
        """

    def end(self, lease: Lease) -> None:
        """Ends the lease now: pages are gone, its gfns are free. Idempotent."""

    def end_when_unused(self, lease: Lease) -> None:
        """Ends the lease as soon as no borrower has it open or mapped (at once where the mechanism can't know)."""

    def lease(self, lease_id: int) -> Lease | None:
        """The lease with that id, while it isn't over."""

    def stats(self) -> DomainStats:
        """What is lent now, oldest first, with counters as they stand."""

    def close(self) -> None:
        """Ends all leases and the mechanism: no mount, thread, process or fd stays. Idempotent."""


def revoke_each(revoke: Callable[[Lease], int], leases: Iterable[Lease]) -> int:
    """Revokes ``leases``, but those that end in between. Returns the pages taken."""
    taken = 0
    for lease in leases:
        with contextlib.suppress(LeaseEnded):
            taken += revoke(lease)
    return taken


def check_range(backing: Backing, offset_bytes: int, size_bytes: int) -> None:
    """Raises ValueError for a range that isn't page-aligned at its start, or not in the backing."""
    if offset_bytes < 0 or offset_bytes % PAGE_SIZE:
        raise ValueError(f"the offset {offset_bytes} is not a page's")
    if size_bytes < 1 or offset_bytes + size_bytes > backing.size_bytes:
        raise ValueError(f"can't lend {size_bytes} bytes from {offset_bytes} of {backing.size_bytes}")


def pages_of(lease: Lease, pages: PageRange | None) -> PageRange:
    """``pages`` of the lease (from 0), by default all. Raises ValueError for what it hasn't, and for none at all."""
    whole = PageRange(0, lease.page_count)
    if pages is None:
        return whole
    if pages.start >= pages.end or not whole.contains(pages):
        raise ValueError(f"lease {lease.lease_id} has no pages {pages.start} to {pages.end}")
    return pages
