"""What the tests of the contract share: for which mechanisms a clause holds, and what is lent."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.domain.borrowers import DOMAINS, Borrower, Kind, file_backing_fd
from waylend.backing.file import FileBacking
from waylend.domain.base import Domain
from waylend.lending.lease import Lease, LossPolicy, Protection
from waylend.lending.p2m import LendingEvent, LendingEventKind

PAGES = 40


class Borrowers:
    """Ends every borrower of a test."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self._all: list[Borrower] = []

    def of(self, domain: Domain, lease: Lease) -> Borrower:
        self._all.append(self._kind.borrow(domain, lease))
        return self._all[-1]

    def kill(self) -> None:
        for borrower in self._all:
            borrower.kill()


def of(which: Callable[[Kind], bool]) -> pytest.MarkDecorator:
    """For the mechanisms that can do it at all, as their docstrings say."""
    return pytest.mark.parametrize("kind", [kind for kind in DOMAINS if which(kind)], ids=lambda kind: kind.name)


faulting = of(lambda kind: kind.serves_faults)
faulting_with_any_backing = of(lambda kind: kind.serves_faults and kind.lends_any_backing)


def lend_file(domain: Domain, *, writable: bool = False, loss: LossPolicy = LossPolicy.FAULT) -> tuple[Lease, int]:
    """A lease of PAGES pages, and a descriptor of the file for its owner."""
    owner_fd = file_backing_fd(PAGES)
    backing = FileBacking(os.dup(owner_fd), writable=writable)
    protection = Protection.READ_WRITE if writable else Protection.READ
    return domain.lend(backing, protection=protection, loss=loss, name="test"), owner_fd


def told(domain: Domain, lease: Lease, *kinds: LendingEventKind) -> list[LendingEvent]:
    """What the domain has told of the lease, of those kinds."""
    return [event for event in domain.events.recent() if event.lease_id == lease.lease_id and event.kind in kinds]
