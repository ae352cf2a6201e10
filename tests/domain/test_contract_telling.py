"""The contract of lent memory (docs/lending.md), the same for every domain: what is synced, revoked in part, told and counted."""

from __future__ import annotations

import contextlib
import os
import time

import pytest

from tests.domain.borrowers import Faulted, Kind, file_backing_fd
from tests.domain.contract import PAGES, Borrowers, faulting, lend_file, told
from tests.processes import wait_until
from waylend.backing.file import FileBacking
from waylend.domain.base import Domain
from waylend.errors import BackingLost, LeaseEnded
from waylend.lending.lease import LossPolicy
from waylend.lending.p2m import LendingEvent, LendingEventKind
from waylend.lending.pages import PAGE_SIZE, PageRange

# -- sync


def test_sync_hands_over_what_was_written_and_the_borrower_keeps_its_pages(
    domain: Domain, borrowers: Borrowers
) -> None:
    lease, owner_fd = lend_file(domain, writable=True)
    borrower = borrowers.of(domain, lease)
    borrower.write(5, b"once")
    domain.sync(lease)
    assert os.pread(owner_fd, 4, 5) == b"once"
    assert lease.pages_present > 0
    borrower.write(5, b"more")
    domain.sync(lease)
    assert os.pread(owner_fd, 4, 5) == b"more"
    os.close(owner_fd)


def test_sync_says_what_did_not_reach_the_backing(domain: Domain, borrowers: Borrowers) -> None:
    lease, owner_fd = lend_file(domain, writable=True)
    borrower = borrowers.of(domain, lease)
    borrower.write(0, b"kept")
    borrower.write(30 * PAGE_SIZE, b"lost")
    os.ftruncate(owner_fd, 10 * PAGE_SIZE)
    with pytest.raises(BackingLost):
        domain.sync(lease)
    domain.revoke(lease)
    assert os.pread(owner_fd, 4, 0) == b"kept", "what the file still has room for is in it"
    assert os.fstat(owner_fd).st_size == 10 * PAGE_SIZE
    wait_until(lambda: told(domain, lease, LendingEventKind.LOST), "it is said to be lost")
    os.close(owner_fd)


def test_sync_says_what_was_lost_before_it(domain: Domain, borrowers: Borrowers) -> None:
    lease, owner_fd = lend_file(domain, writable=True)
    borrowers.of(domain, lease).write(30 * PAGE_SIZE, b"lost")
    os.ftruncate(owner_fd, 10 * PAGE_SIZE)
    domain.revoke(lease)
    with pytest.raises(BackingLost):
        domain.sync(lease)
    domain.sync(lease)
    os.close(owner_fd)


@pytest.mark.parametrize("writable", [False, True])
def test_what_is_over_can_be_neither_synced_nor_revoked_nor_opened(domain: Domain, writable: bool) -> None:
    lease, owner_fd = lend_file(domain, writable=writable)
    domain.end(lease)
    for call in (domain.sync, domain.revoke, domain.open_lease):
        with pytest.raises(LeaseEnded):
            call(lease)
    domain.close()
    for call in (domain.sync, domain.revoke, domain.open_lease):
        with pytest.raises(LeaseEnded):
            call(lease)
    backing = FileBacking(owner_fd)
    with pytest.raises(LeaseEnded):
        domain.lend(backing)
    assert backing.fileno() == owner_fd, "it is still the caller's"
    backing.close()


# -- revoking a part


def test_revoking_a_part_of_a_lease(kind: Kind, domain: Domain, borrowers: Borrowers) -> None:
    lease, owner_fd = lend_file(domain)
    borrower = borrowers.of(domain, lease)
    for page in range(PAGES):
        borrower.read(page * PAGE_SIZE, 1)
    os.pwrite(owner_fd, b"\x99" * PAGES * PAGE_SIZE, 0)
    assert domain.revoke(lease, PageRange(3, 5)) == (2 if kind.takes_parts else PAGES)
    assert lease.pages_present == (PAGES - 2 if kind.takes_parts else 0)
    if kind.serves_faults:
        assert [borrower.read(page * PAGE_SIZE, 1) for page in range(2, 6)] == [b"\3", b"\x99", b"\x99", b"\6"]
    os.close(owner_fd)


@pytest.mark.parametrize("pages", [(0, PAGES + 1), (-1, 2), (PAGES, PAGES + 1), (5, 5), (7, 3)])
def test_only_pages_that_the_lease_has_are_revoked(domain: Domain, pages: tuple[int, int]) -> None:
    lease, owner_fd = lend_file(domain)
    with pytest.raises(ValueError, match="has no pages"):
        domain.revoke(lease, PageRange(*pages))
    assert lease.revocations == 0
    os.close(owner_fd)


# -- what is told


def test_what_happens_to_a_lease_is_told_in_order(domain: Domain) -> None:
    seen: list[LendingEvent] = []
    unwatch = domain.events.watch(seen.append, faults=False)
    lease, owner_fd = lend_file(domain)
    domain.revoke(lease)
    domain.end(lease)
    unwatch()
    domain.lend(FileBacking(owner_fd))
    about = [(event.kind, event.lease_id, event.page, event.page_count) for event in seen]
    assert about[:2] == [
        (LendingEventKind.LENT, lease.lease_id, 0, PAGES),
        (LendingEventKind.REVOKED, lease.lease_id, 0, PAGES),
    ]
    assert about[-1] == (LendingEventKind.ENDED, lease.lease_id, 0, PAGES)
    assert {kind for kind, *_ in about[2:-1]} <= {LendingEventKind.REVOKED}, "by the end, or not"
    assert [event.time_ns for event in seen] == sorted(event.time_ns for event in seen)
    assert {event.domain_name for event in seen} == {domain.name}


def test_pages_that_the_owner_takes_away_are_told(domain: Domain) -> None:
    backing = FileBacking(file_backing_fd(PAGES))
    first, second = domain.lend(backing), domain.lend(backing, offset_bytes=PAGE_SIZE)
    backing.invalidate()
    for lease in (first, second):
        wait_until(lambda lease=lease: told(domain, lease, LendingEventKind.REVOKED), "it is told")  # type: ignore[misc]
        assert lease.revocations == 0, "the lender has revoked nothing"


@faulting
def test_faults_are_told_to_those_who_watch_them(domain: Domain, borrowers: Borrowers) -> None:
    lease, owner_fd = lend_file(domain)
    borrower = borrowers.of(domain, lease)
    borrower.read(0, 1)
    faults = (LendingEventKind.FAULTED, LendingEventKind.SERVED)
    assert not told(domain, lease, *faults), "nobody watched"
    unwatch = domain.events.watch(lambda event: None)
    last = PAGES - 1
    borrower.read(last * PAGE_SIZE, 1)

    def of_last() -> list[LendingEventKind]:
        return [
            event.kind for event in told(domain, lease, *faults) if event.page <= last < event.page + event.page_count
        ]

    wait_until(lambda: LendingEventKind.SERVED in of_last(), "the fault is told")
    assert of_last()[:2] == list(faults)
    unwatch()
    domain.revoke(lease)
    unwatched_ns = time.monotonic_ns()
    borrower.read(0, 1)
    assert domain.revoke(lease) >= 1
    assert all(event.time_ns < unwatched_ns for event in told(domain, lease, *faults))
    os.close(owner_fd)


@faulting
@pytest.mark.parametrize("loss", LossPolicy)
def test_lost_pages_are_told(domain: Domain, borrowers: Borrowers, loss: LossPolicy) -> None:
    lease, owner_fd = lend_file(domain, loss=loss)
    borrower = borrowers.of(domain, lease)
    os.ftruncate(owner_fd, 0)
    with contextlib.suppress(Faulted):
        borrower.read(20 * PAGE_SIZE, 1)
    lost = wait_until(lambda: told(domain, lease, LendingEventKind.LOST), "it is told")
    assert 20 in {event.page for event in lost}
    os.close(owner_fd)


def test_the_counters_of_a_lease_are_live(domain: Domain, borrowers: Borrowers) -> None:
    lease, owner_fd = lend_file(domain)
    assert (lease.faults_served, lease.revocations, lease.pages_present) == (0, 0, 0)
    borrowers.of(domain, lease).read(0, 1)
    wait_until(
        lambda: lease.faults_served >= 1, "the fault is counted"
    )  # once the page is there, and the borrower goes on
    assert lease.pages_present >= 1
    domain.revoke(lease)
    assert (lease.revocations, lease.pages_present) == (1, 0)
    served = lease.faults_served
    domain.end(lease)
    assert (lease.faults_served, lease.revocations, lease.pages_present) == (served, 1, 0)
    os.close(owner_fd)
