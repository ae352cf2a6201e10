"""The contract of lent memory (docs/lending.md), the same for every domain."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.domain.borrowers import Faulted, Kind, file_backing_fd, opened
from tests.domain.contract import PAGES, Borrowers, faulting, faulting_with_any_backing, lend_file, of
from tests.processes import wait_until
from waylend.backing.file import FileBacking
from waylend.domain.base import Domain
from waylend.errors import LeaseEnded, NoSpace, QuotaExceeded
from waylend.lending.lease import LossPolicy, Protection
from waylend.lending.pages import PAGE_SIZE, PageRange
from waylend.models.vram import VramBuffer, VramHeap


@pytest.fixture
def card() -> Iterator[VramHeap]:
    card = VramHeap(vram_pages=PAGES, visible_pages=PAGES // 2, system_pages=PAGES)
    yield card
    card.close()


@pytest.fixture
def vram(card: VramHeap, domain: Domain) -> Iterator[VramBuffer]:
    """A buffer whose page N is full of the byte N + 1. Half of it is where the CPU doesn't see it."""
    buffer = card.allocate(PAGES)
    for page in range(PAGES):
        buffer.write(PageRange(page, page + 1), bytes((page + 1,)) * PAGE_SIZE)
    yield buffer
    domain.close()
    buffer.close()


def test_lending_touches_no_page(domain: Domain) -> None:
    lease, owner_fd = lend_file(domain)
    os.close(owner_fd)
    (stats,) = domain.stats().leases
    assert (stats.lease_id, stats.name, stats.page_count, stats.pages_present) == (lease.lease_id, "test", PAGES, 0)


def test_a_borrower_reads_what_the_backing_holds(domain: Domain, borrowers: Borrowers) -> None:
    lease, owner_fd = lend_file(domain)
    os.close(owner_fd)
    borrower = borrowers.of(domain, lease)
    for page in (0, 7, PAGES - 1):
        assert borrower.read(page * PAGE_SIZE + 5, 3) == bytes((page + 1,)) * 3
    (stats,) = domain.stats().leases
    assert stats.pages_present >= 3
    assert stats.faults_served >= 1


def test_a_part_of_a_backing(domain: Domain, borrowers: Borrowers) -> None:
    backing = FileBacking(file_backing_fd(PAGES))
    lease = domain.lend(backing, offset_bytes=3 * PAGE_SIZE, size_bytes=PAGE_SIZE + 10)
    borrower = borrowers.of(domain, lease)
    assert borrower.read(0, 1) == b"\4"
    assert borrower.read(PAGE_SIZE, 10) == b"\5" * 10


@pytest.mark.parametrize(("offset_bytes", "size_bytes"), [(1, 4096), (-4096, 4096), (0, 0), (0, PAGES * 4096 + 1)])
def test_only_what_is_there_is_lent(domain: Domain, offset_bytes: int, size_bytes: int) -> None:
    backing = FileBacking(file_backing_fd(PAGES))
    with pytest.raises(ValueError, match=r"can't lend|is not a page's"):
        domain.lend(backing, offset_bytes=offset_bytes, size_bytes=size_bytes)
    backing.close()


@faulting
def test_a_revoked_page_is_gone_and_comes_back_different(kind: Kind, domain: Domain, borrowers: Borrowers) -> None:
    lease, owner_fd = lend_file(domain)
    borrower = borrowers.of(domain, lease)
    assert borrower.read(0, 1) == b"\1"
    os.pwrite(owner_fd, b"\x99" * PAGE_SIZE, 0)
    assert domain.revoke(lease) >= 1
    assert domain.stats().leases[0].pages_present == 0
    assert borrower.read(0, 1) == b"\x99"
    assert domain.stats().leases[0].revocations == 1
    os.close(owner_fd)


def test_after_a_revocation_a_new_opening_sees_new_content(domain: Domain, borrowers: Borrowers) -> None:
    lease, owner_fd = lend_file(domain)
    assert borrowers.of(domain, lease).read(0, 1) == b"\1"
    os.pwrite(owner_fd, b"\x77", 0)
    domain.revoke(lease)
    assert borrowers.of(domain, lease).read(0, 1) == b"\x77"
    os.close(owner_fd)


@faulting
def test_the_backings_owner_takes_pages_away(kind: Kind, domain: Domain, borrowers: Borrowers) -> None:
    backing = FileBacking(file_backing_fd(PAGES))
    first, second = domain.lend(backing), domain.lend(backing, offset_bytes=PAGE_SIZE)
    readers = borrowers.of(domain, first), borrowers.of(domain, second)
    assert [reader.read(0, 1) for reader in readers] == [b"\1", b"\2"]
    backing.invalidate()
    assert [stats.pages_present for stats in domain.stats().leases] == [0, 0]
    assert [reader.read(0, 1) for reader in readers] == [b"\1", b"\2"]


def test_revoking_while_the_borrower_spins_on_the_page(domain: Domain, borrowers: Borrowers) -> None:
    lease, owner_fd = lend_file(domain)
    borrowers.of(domain, lease).spin(0)
    wait_until(lambda: domain.stats().leases[0].pages_present, "a page is present")
    for _ in range(5):
        domain.revoke(lease)
    domain.end(lease)
    os.close(owner_fd)


def test_an_ended_lease_is_a_fault_and_its_gfns_are_free(domain: Domain, borrowers: Borrowers) -> None:
    lease, owner_fd = lend_file(domain)
    borrower = borrowers.of(domain, lease)
    assert borrower.read(0, 1) == b"\1"
    domain.end(lease)
    domain.end(lease)
    with pytest.raises(Faulted):
        borrower.read(0, 1)
    with pytest.raises(LeaseEnded):
        domain.open_lease(lease)
    with pytest.raises(LeaseEnded):
        domain.revoke(lease)
    assert domain.stats().leases == ()
    again = domain.lend(FileBacking(owner_fd))
    assert again.gfns.start == lease.gfns.start
    assert again.lease_id != lease.lease_id


@faulting
def test_loss_as_a_fault(kind: Kind, domain: Domain, borrowers: Borrowers) -> None:
    lease, owner_fd = lend_file(domain)
    borrower = borrowers.of(domain, lease)
    os.ftruncate(owner_fd, 10 * PAGE_SIZE)
    assert borrower.read(9 * PAGE_SIZE, 1) == b"\x0a", "what is left is still served"
    with pytest.raises(Faulted):
        borrower.read(10 * PAGE_SIZE, 1)
    os.close(owner_fd)


def test_loss_as_zeros(domain: Domain, borrowers: Borrowers) -> None:
    lease, owner_fd = lend_file(domain, loss=LossPolicy.ZERO)
    os.ftruncate(owner_fd, 0)
    assert borrowers.of(domain, lease).read(9 * PAGE_SIZE, 2) == b"\0\0"
    os.close(owner_fd)


@faulting_with_any_backing
def test_a_gpu_buffer_moves_and_what_was_written_goes_along(
    kind: Kind, domain: Domain, borrowers: Borrowers, card: VramHeap, vram: VramBuffer
) -> None:
    lease = domain.lend(vram, protection=Protection.READ_WRITE)
    borrower = borrowers.of(domain, lease)
    assert borrower.read((PAGES - 1) * PAGE_SIZE, 1) == bytes((PAGES,))
    borrower.write(PAGE_SIZE, b"one")
    card.evict(vram)
    assert lease.pages_present == 0
    assert borrower.read(PAGE_SIZE, 4) == b"one\2"
    borrower.write(PAGE_SIZE, b"two")
    card.bring_back(vram)
    assert lease.pages_present == 0
    assert borrower.read(PAGE_SIZE, 4) == b"two\2"
    vram.draw(PageRange(1, 2), b"\x99" * PAGE_SIZE)
    assert borrower.read(PAGE_SIZE, 4) == b"\x99" * 4


@faulting_with_any_backing
def test_a_gpu_buffer_is_out_of_reach_for_a_while(
    kind: Kind, domain: Domain, borrowers: Borrowers, card: VramHeap, vram: VramBuffer
) -> None:
    lease = domain.lend(vram, protection=Protection.READ_WRITE, loss=LossPolicy.ZERO)
    borrower = borrowers.of(domain, lease)
    borrower.write(0, b"mine")
    card.suspend()
    assert borrower.read(0, 5) == bytes(5)
    card.resume()
    assert borrower.read(0, 5) == b"mine\1"


@faulting_with_any_backing
@pytest.mark.parametrize("loss", LossPolicy)
def test_a_gpu_is_unplugged(
    kind: Kind, domain: Domain, borrowers: Borrowers, card: VramHeap, vram: VramBuffer, loss: LossPolicy
) -> None:
    borrower = borrowers.of(domain, domain.lend(vram, loss=loss))
    assert borrower.read(0, 1) == b"\1"
    card.unplug()
    if loss is LossPolicy.ZERO:
        assert borrower.read(0, 1) == b"\0"
    else:
        with pytest.raises(Faulted):
            borrower.read(0, 1)


def test_what_a_borrower_writes_reaches_the_backing(domain: Domain, borrowers: Borrowers) -> None:
    lease, owner_fd = lend_file(domain, writable=True)
    borrower = borrowers.of(domain, lease)
    borrower.write(3 * PAGE_SIZE + 8, b"written")
    domain.revoke(lease)
    assert os.pread(owner_fd, 9, 3 * PAGE_SIZE + 7) == b"\4written\4"[:9]
    os.close(owner_fd)


def test_nothing_that_a_killed_borrower_wrote_is_lost(domain: Domain, borrowers: Borrowers) -> None:
    lease, owner_fd = lend_file(domain, writable=True)
    borrower = borrowers.of(domain, lease)
    for page in range(PAGES):
        borrower.write(page * PAGE_SIZE, b"!%d" % page)
    borrower.kill()
    domain.end(lease)
    for page in range(PAGES):
        assert os.pread(owner_fd, 4, page * PAGE_SIZE).startswith(b"!%d" % page)
    os.close(owner_fd)


@of(lambda kind: kind.keeps_unused)
def test_ending_when_unused(kind: Kind, domain: Domain, borrowers: Borrowers) -> None:
    lease, owner_fd = lend_file(domain)
    borrower = borrowers.of(domain, lease)
    domain.end_when_unused(lease)
    assert borrower.read(0, 1) == b"\1", "whoever has it keeps it"
    if kind.knows_unused:
        assert len(domain.stats().leases) == 1
    borrower.kill()
    wait_until(lambda: not domain.stats().leases, "the lease ends with its last borrower")
    os.close(owner_fd)


def test_ending_when_unused_what_nobody_has(domain: Domain) -> None:
    lease, owner_fd = lend_file(domain)
    domain.end_when_unused(lease)
    wait_until(lambda: domain.lease(lease.lease_id) is None, "the lease ends")
    assert domain.stats().leases == ()
    os.close(owner_fd)


def test_quotas_and_space(kind: Kind) -> None:
    with opened(kind.make, aperture_pages=100, lease_limit=3, page_limit=90) as domain:
        backing = FileBacking(file_backing_fd(PAGES))
        domain.lend(backing)
        domain.lend(backing)
        with pytest.raises(QuotaExceeded):
            domain.lend(backing)
        domain.lend(backing, size_bytes=PAGE_SIZE)
        with pytest.raises(QuotaExceeded):
            domain.lend(backing, size_bytes=PAGE_SIZE)
    with opened(kind.make, aperture_pages=10) as domain:
        backing = FileBacking(file_backing_fd(PAGES))
        with pytest.raises((NoSpace, QuotaExceeded)):
            domain.lend(backing)
        backing.close()


def test_a_backing_is_closed_with_its_last_lease(domain: Domain) -> None:
    backing = FileBacking(file_backing_fd(4))
    leases = [domain.lend(backing), domain.lend(backing)]
    domain.end(leases[0])
    assert backing.fileno() >= 0
    domain.end(leases[1])
    assert backing.fileno() < 0


def test_closing_ends_everything(kind: Kind, domain: Domain, borrowers: Borrowers) -> None:
    lease, owner_fd = lend_file(domain)
    borrower = borrowers.of(domain, lease)
    borrower.read(0, 1)
    domain.close()
    domain.close()
    with pytest.raises(Faulted):
        borrower.read(0, 1)
    with pytest.raises(LeaseEnded):
        domain.open_lease(lease)
    os.close(owner_fd)
