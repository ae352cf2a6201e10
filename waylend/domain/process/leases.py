"""What the lender's side of a ProcessDomain keeps: leases whose counters are over there, and backings that several stand on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from waylend.backing.file import FileBacking
from waylend.domain.process.messages import Message
from waylend.lending.lease import Lease, LossPolicy, Protection
from waylend.lending.pages import PAGE_SHIFT, PageRange, page_count_of


class _Live:
    """A counter that the serving process keeps: reading it asks that process, while the lease isn't over."""

    def __init__(self, kept: Any) -> None:
        self._kept = kept

    def __get__(self, lease: ProcessLease, _owner: type | None = None) -> int:
        lease.refresh()
        found: int = self._kept.__get__(lease)
        return found

    def __set__(self, lease: ProcessLease, value: int) -> None:
        self._kept.__set__(lease, value)


class ProcessLease(Lease):
    """A lease as the lender has it. The state of its pages is in the serving process; here ``pages`` is empty."""

    __slots__ = ("_present", "refresh")

    #: Brings the counters up to date. Doesn't raise.
    refresh: Callable[[], None]
    _present: int

    faults_served = _Live(Lease.faults_served)  # type: ignore[misc]
    revocations = _Live(Lease.revocations)  # type: ignore[misc]

    def __init__(self, *terms: Any) -> None:
        """``terms`` are the first fields of Lease, to ``loss``."""
        self.refresh = lambda: None
        self._present = 0
        super().__init__(*terms)

    @property
    def pages_present(self) -> int:
        """See Lease. Asks the serving process."""
        self.refresh()
        return self._present

    def count(self, faults_served: int, revocations: int, pages_present: int = 0) -> None:
        """What the serving process says."""
        self.faults_served = faults_served
        self.revocations = revocations
        self._present = pages_present


@dataclass(frozen=True)
class Wish:
    """A lease that is to be, and who waits for it."""

    backing: FileBacking
    offset_bytes: int
    size_bytes: int
    protection: Protection
    loss: LossPolicy
    name: str
    redrawn: bool
    lent: Future[Lease]

    def message(self) -> Message:
        return {
            "backing_bytes": self.backing.size_bytes,
            "writable": self.backing.writable,
            "offset_bytes": self.offset_bytes,
            "size_bytes": self.size_bytes,
            "protection": self.protection.value,
            "loss": self.loss.value,
            "name": self.name,
            "redrawn": self.redrawn,
        }

    def granted(self, domain_name: str, lease_id: int, gfn: int) -> ProcessLease:
        return ProcessLease(
            lease_id,
            self.name,
            domain_name,
            PageRange(gfn, gfn + page_count_of(self.size_bytes)),
            self.size_bytes,
            self.backing.key,
            self.offset_bytes >> PAGE_SHIFT,
            self.protection,
            self.loss,
        )


class SharedBacking:
    """A backing, which the domain owns, and how many leases stand on it. ``number`` is what the serving process knows it by."""

    def __init__(self, number: int, backing: FileBacking) -> None:
        self.number = number
        self.backing = backing
        self.lease_count = 0
        self.unsubscribe: Callable[[], None] = lambda: None
