"""A borrower, as its lender controls it. A domain object is a capability: it controls that one domain and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from waylend.backing.base import Backing
from waylend.lending.lease import Lease, LossPolicy, Protection


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


@dataclass(frozen=True)
class DomainStats:
    name: str
    mechanism: str
    aperture_pages: int
    leases: tuple[LeaseStats, ...]


class Domain(Protocol):
    """One borrower. Methods may be called from any thread, and no step of any of them waits for the borrower."""

    name: str
    #: The mechanism's name: "fuse", "memfd", "kvm", "xen_model".
    mechanism: str

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
        Raises NoSpace, QuotaExceeded, ValueError.
        """

    def open_lease(self, lease: Lease) -> int:
        """A new fd of the lease for a local borrower: from offset 0, ``size_bytes`` long, close-on-exec.

        It can be mapped as the protection allows. Raises LeaseEnded.
        """

    def revoke(self, lease: Lease) -> int:
        """Takes the lease's pages away; the next access faults and is served again. Returns the pages taken."""

    def end(self, lease: Lease) -> None:
        """Ends the lease now: pages are gone, its gfns are free. Idempotent."""

    def end_when_unused(self, lease: Lease) -> None:
        """Ends the lease as soon as no borrower has it open or mapped (at once where the mechanism can't know)."""

    def stats(self) -> DomainStats: ...

    def close(self) -> None:
        """Ends all leases and the mechanism: no mount, thread, process or fd stays. Idempotent."""
