"""A FUSE domain takes pages away: in parts, whatever borrowers and backings do, and what the deadline is for."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time

import pytest

from tests.domain.borrowers import DEADLINE_S, Faulted, FdBorrower, file_backing_fd, opened
from tests.domain.hanging import HangingBacking
from tests.processes import wait_until
from waylend.backing.file import FileBacking
from waylend.domain.fuse.domain import FuseDomain
from waylend.errors import BackingLost, LeaseEnded, RevokeTimeout
from waylend.lending.lease import Lease, Protection
from waylend.lending.pages import PAGE_SIZE, PageRange

PAGES = 40


def test_revoking_a_part(domain: FuseDomain) -> None:
    lease = domain.lend(FileBacking(file_backing_fd(PAGES)))
    with FdBorrower(domain.open_lease(lease)) as borrower:
        borrower.first_bytes(PAGES)
        assert domain.revoke(lease, PageRange(3, 5)) == 2
        assert domain.stats().leases[0].pages_present == PAGES - 2
        assert domain.revoke_all() == PAGES - 2


@pytest.mark.parametrize("writable", [False, True])
def test_borrowers_that_sweep_over_all_pages(domain: FuseDomain, writable: bool) -> None:
    backing = FileBacking(file_backing_fd(PAGES), writable=writable)
    lease = domain.lend(backing, protection=Protection.READ_WRITE if writable else Protection.READ)
    sweepers = [FdBorrower(domain.open_lease(lease), writable=writable) for _ in range(3)]
    for sweeper in sweepers:
        sweeper.spin(0, PAGES)
    for _ in range(100):
        domain.revoke(lease)
    domain.end(lease)
    for sweeper in sweepers:
        sweeper.kill()


def test_a_stopped_borrower(domain: FuseDomain) -> None:
    owner_fd = file_backing_fd(PAGES)
    lease = domain.lend(FileBacking(os.dup(owner_fd), writable=True), protection=Protection.READ_WRITE)
    with FdBorrower(domain.open_lease(lease), writable=True) as borrower:
        borrower.write(0, b"stopped")
        borrower.stop()
        domain.end(lease)
        assert os.pread(owner_fd, 7, 0) == b"stopped"
    os.close(owner_fd)


#: Reads what is acknowledged first, then a page: that must have been fetched later.
READER = """
import mmap, os, random, sys
fd, acknowledged_fd, pages, last = (int(x) for x in sys.argv[1:])
view = mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ)
while (least := int.from_bytes(os.pread(acknowledged_fd, 8, 0), "little")) < last:
    page = random.randrange(pages)
    seen = int.from_bytes(view[page * 4096 : page * 4096 + 8], "little")
    if seen < least:
        sys.exit(f"page {page} is of generation {seen}, but {least} was acknowledged")
"""


class SlowGenerations(FileBacking):
    """Every page says how many invalidations of the lease were over when it was fetched; and fetching takes its time."""

    lease: Lease

    def read(self, pages: PageRange) -> bytes:
        generation = self.lease.sequence
        time.sleep(random.random() * 0.0005)
        return generation.to_bytes(8, "little").ljust(PAGE_SIZE, b"\0") * pages.page_count


@pytest.mark.parametrize("pages", [1, PAGES])
def test_no_borrower_reads_a_page_that_was_fetched_before_the_last_acknowledged_invalidation(
    domain: FuseDomain, pages: int
) -> None:
    """The whole point. Borrowers read without a pause, and faults race with invalidations all the time."""
    invalidations = 600
    acknowledged_fd = os.memfd_create("acknowledged", os.MFD_CLOEXEC)
    os.ftruncate(acknowledged_fd, 8)
    backing = SlowGenerations(file_backing_fd(pages))
    lease = backing.lease = domain.lend(backing)
    readers = []
    for _ in range(3):
        fd = domain.open_lease(lease)
        readers.append(
            subprocess.Popen(
                [sys.executable, "-c", READER, str(fd), str(acknowledged_fd), str(pages), str(invalidations)],
                pass_fds=[fd, acknowledged_fd],
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        os.close(fd)
    wait_until(lambda: lease.faults_served >= 1, "the readers read")
    for _ in range(invalidations):
        backing.invalidate()
        os.pwrite(acknowledged_fd, lease.sequence.to_bytes(8, "little"), 0)
    for reader in readers:
        _, complaint = reader.communicate(timeout=DEADLINE_S)
        assert (reader.returncode, complaint) == (0, "")
    os.close(acknowledged_fd)


@pytest.mark.parametrize("hangs_in", ["read", "write"])
def test_when_the_deadline_passes_the_aperture_is_cut_off(hangs_in: str, caplog: pytest.LogCaptureFixture) -> None:
    with opened(FuseDomain, aperture_pages=64, deadline_s=0.2, thread_count=4) as domain:
        backing = HangingBacking()
        backing.hangs = hangs_in == "write"
        other = domain.lend(FileBacking(file_backing_fd(1)))
        backing.hangs = False
        lease = domain.lend(backing, protection=Protection.READ_WRITE)
        bystander = FdBorrower(domain.open_lease(other))
        assert bystander.read(0, 1) == b"\1"
        borrower = FdBorrower(domain.open_lease(lease), writable=True)
        if hangs_in == "write":
            borrower.write(0, b"dirty")
            backing.hangs = True
        else:
            backing.hangs = True
            borrower.spin(0)
            assert backing.asked.wait(DEADLINE_S)
        with pytest.raises(RevokeTimeout, match=r"longer than 0\.2 s"):
            domain.revoke(lease)
        assert "cut off" in caplog.text
        with pytest.raises(Faulted):
            bystander.read(0, 1)
        with pytest.raises(LeaseEnded):
            domain.open_lease(other)
        with pytest.raises(BackingLost):
            domain.sync(lease)
        with pytest.raises(LeaseEnded):
            domain.lend(backing)
        backing.go_on.set()
        borrower.kill()
        bystander.kill()


def test_a_backing_that_raises_what_it_should_not_ends_nothing(
    domain: FuseDomain, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(FileBacking):
        broken = True

        def read(self, pages: PageRange) -> bytes:
            if self.broken:
                raise ZeroDivisionError
            return super().read(pages)

    backing = Broken(file_backing_fd(1))
    lease = domain.lend(backing)
    with FdBorrower(domain.open_lease(lease)) as borrower, pytest.raises(Faulted):
        borrower.read(0, 1)
    backing.broken = False
    with FdBorrower(domain.open_lease(lease)) as borrower:
        assert borrower.read(0, 1) == b"\1"
    assert "ZeroDivisionError" in caplog.text
    domain.end(lease)
    with pytest.raises(BackingLost):
        backing.read(PageRange(0, 1))


def test_a_lease_that_ends_while_it_is_read_keeps_its_backing_until_then(domain: FuseDomain) -> None:
    backing = HangingBacking()
    lease: Lease = domain.lend(backing)
    with FdBorrower(domain.open_lease(lease)) as borrower:
        borrower.spin(0)
        assert backing.asked.wait(DEADLINE_S)
        ending = threading.Thread(target=domain.end, args=(lease,))
        ending.start()
        ending.join(0.1)
        assert ending.is_alive(), "the page that is being read is locked"
        backing.go_on.set()
        ending.join(DEADLINE_S)
        assert not ending.is_alive()
    with pytest.raises(BackingLost):
        backing.read(PageRange(0, 1))
