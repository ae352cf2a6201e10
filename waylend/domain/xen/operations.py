"""What a lender asks of a hypervisor for one borrower, and what it hears: the interface between XenDomain and whoever lends."""

from __future__ import annotations

import errno
from typing import NamedTuple, Protocol

from waylend.errors import LendingError
from waylend.lending.pages import PageRange


class HypercallError(LendingError):
    """A hypercall was refused. ``errno`` says why, as Linux and Xen number it."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(f"{errno.errorcode[number]}: {text}")
        self.errno = number


class FaultRecord(NamedTuple):
    """A vCPU that waits at a lent page (as struct kvm_run's memory_fault has it)."""

    vcpu_id: int
    gfn: int
    write: bool


class Dirtied(NamedTuple):
    """A page that was revoked, and that the borrower had written to."""

    gfn: int
    content: bytes


class LendingOperations(Protocol):
    """What a lender asks of a hypervisor for one borrower. None waits for the borrower; each raises HypercallError.

    ``models.xen_hypervisor.LendingFd`` says what each means. gfns are the borrower's.
    """

    def lend(self, gfns: PageRange, *, writable: bool) -> None: ...
    def resolve(self, gfn: int, content: bytes, *, dirty: bool = False) -> None: ...
    def fail(self, gfn: int) -> None: ...
    def retry(self, gfn: int) -> None: ...
    def revoke(self, gfns: PageRange) -> list[Dirtied]: ...
    def clean(self, gfns: PageRange) -> list[Dirtied]: ...
    def end(self, gfns: PageRange) -> None: ...
    def next_fault(self, timeout_s: float | None = None) -> FaultRecord | None: ...
    def close(self) -> None: ...
