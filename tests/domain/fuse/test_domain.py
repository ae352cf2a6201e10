"""What only the FUSE domain does: files for many purposes, restrictions, the deadline, and leaving nothing behind."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.domain.borrowers import DEADLINE_S, Faulted, FdBorrower, file_backing_fd, opened
from tests.processes import wait_until
from waylend.backing.file import FileBacking
from waylend.domain.base import Domain
from waylend.domain.fuse.domain import FuseDomain
from waylend.domain.process.caller import ProcessDomain
from waylend.lending.lease import LossPolicy, Protection
from waylend.lending.p2m import LendingEventKind
from waylend.lending.pages import PAGE_SIZE, PageRange
from waylend.models.vram import VramHeap

PAGES = 40


def mounts_of_ours() -> list[str]:
    return [
        line for line in Path("/proc/self/mountinfo").read_text().splitlines() if "fuse" in line and "waylend" in line
    ]


# -- the file of a lease


def test_the_file_has_the_leases_exact_size_and_nothing_of_the_backing_behind_it(domain: FuseDomain) -> None:
    lease = domain.lend(FileBacking(file_backing_fd(PAGES)), size_bytes=PAGE_SIZE + 100)
    fd = domain.open_lease(lease)
    assert os.fstat(fd).st_size == PAGE_SIZE + 100
    assert os.pread(fd, PAGE_SIZE, PAGE_SIZE) == b"\2" * 100
    os.close(fd)
    bar = domain.open_bar()
    assert os.pread(bar, PAGE_SIZE, PAGE_SIZE) == (b"\2" * 100).ljust(PAGE_SIZE, b"\0")
    os.close(bar)


def test_each_opening_has_an_offset_of_its_own(domain: FuseDomain) -> None:
    lease = domain.lend(FileBacking(file_backing_fd(PAGES)))
    first, second = domain.open_lease(lease), domain.open_lease(lease)
    assert os.read(first, 1) == os.read(second, 1) == b"\1"
    assert not os.get_inheritable(first)
    os.close(first)
    os.close(second)


@pytest.mark.parametrize("shared", [False, True])
def test_mapping_it_privately_or_shared(domain: FuseDomain, shared: bool) -> None:
    lease = domain.lend(FileBacking(file_backing_fd(2, tail=b"tail")))
    with FdBorrower(domain.open_lease(lease), shared=shared) as borrower:
        assert borrower.read(PAGE_SIZE, 2) == b"\2\2"
        assert borrower.read(2 * PAGE_SIZE, 4) == b"tail"
        assert borrower.pread(2 * PAGE_SIZE, 100) == b"tail"


@pytest.mark.parametrize("read_only", [False, True])
def test_a_read_only_lease_cannot_be_changed_even_by_root(read_only: bool) -> None:
    with opened(FuseDomain, aperture_pages=64, read_only=read_only) as domain:
        fd = domain.open_lease(domain.lend(FileBacking(file_backing_fd(1))))
        for flags in (os.O_RDWR, os.O_WRONLY, os.O_RDONLY | os.O_TRUNC):
            with pytest.raises(OSError, match="Errno") as refused:
                os.open(f"/proc/self/fd/{fd}", flags)
            assert refused.value.errno in (errno.EACCES, errno.EROFS, errno.EPERM)
        for change in (
            lambda: os.pwrite(fd, b"x", 0),
            lambda: os.ftruncate(fd, 0),
            lambda: os.truncate(f"/proc/self/fd/{fd}", 0),
            lambda: os.truncate(f"/proc/self/fd/{fd}", 1 << 30),
            lambda: os.fchmod(fd, 0o666),
            lambda: os.unlink("lease/1", dir_fd=domain.root_fd),
        ):
            with pytest.raises(OSError, match="Errno"):
                change()
        assert os.pread(fd, 1, 0) == b"\1"
        os.close(fd)


def test_a_writable_lease_does_not_grow_or_shrink(domain: FuseDomain) -> None:
    lease = domain.lend(FileBacking(file_backing_fd(2), writable=True), protection=Protection.READ_WRITE)
    fd = domain.open_lease(lease)
    for size_bytes in (0, PAGE_SIZE, 3 * PAGE_SIZE):
        with pytest.raises(OSError, match="Errno"):
            os.ftruncate(fd, size_bytes)
    with pytest.raises(OSError, match="Errno"):
        os.pwrite(fd, b"x", 2 * PAGE_SIZE)
    os.close(fd)


def test_a_write_beyond_the_end_of_a_lease_reaches_nothing(domain: FuseDomain) -> None:
    """The backing goes on there: it is what the host didn't lend."""
    owner_fd = file_backing_fd(4)
    backing = FileBacking(os.dup(owner_fd), writable=True)
    lease = domain.lend(backing, size_bytes=PAGE_SIZE + 100, protection=Protection.READ_WRITE)
    fd = domain.open_lease(lease)
    for offset_bytes in (PAGE_SIZE + 99, PAGE_SIZE + 100, 2 * PAGE_SIZE, 3 * PAGE_SIZE):
        with pytest.raises(OSError, match="Errno"):
            os.pwrite(fd, b"xx", offset_bytes)
    with FdBorrower(domain.open_bar(writable=True), writable=True) as machine:
        machine.write(PAGE_SIZE + 50, b"y" * 1000)
        domain.sync(lease)
    domain.end(lease)
    assert os.pread(owner_fd, 3 * PAGE_SIZE, PAGE_SIZE + 50) == (
        b"y" * 50 + b"\2" * (PAGE_SIZE - 100) + b"\3" * PAGE_SIZE + b"\4" * PAGE_SIZE
    )
    os.close(fd)
    os.close(owner_fd)


def test_nothing_is_read_past_the_page_cache(domain: FuseDomain) -> None:
    lease = domain.lend(FileBacking(file_backing_fd(PAGES)))
    fd = domain.open_lease(lease)
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_DIRECT)
    with pytest.raises(OSError, match="Errno") as refused:
        os.pread(fd, PAGE_SIZE, 0)
    assert refused.value.errno == errno.EINVAL
    os.close(fd)


def test_write_calls_of_any_size_reach_the_backing_and_leave_the_rest_alone(domain: FuseDomain) -> None:
    owner_fd = file_backing_fd(3)
    backing = FileBacking(os.dup(owner_fd), writable=True)
    lease = domain.lend(backing, size_bytes=2 * PAGE_SIZE + 10, protection=Protection.READ_WRITE)
    fd = domain.open_lease(lease)
    assert os.pwrite(fd, b"middle", PAGE_SIZE - 3) == 6
    assert os.pwrite(fd, b"end", 2 * PAGE_SIZE + 7) == 3
    os.fsync(fd)
    os.close(fd)
    assert os.pread(owner_fd, 8, PAGE_SIZE - 4) == b"\1middle\2"
    assert os.pread(owner_fd, 5, 2 * PAGE_SIZE + 6) == b"\3end\3"
    os.close(owner_fd)


def test_sync_writes_back_what_was_stored_in_a_mapping(domain: FuseDomain) -> None:
    owner_fd = file_backing_fd(PAGES)
    lease = domain.lend(FileBacking(os.dup(owner_fd), writable=True), protection=Protection.READ_WRITE)
    with FdBorrower(domain.open_lease(lease), writable=True) as borrower:
        borrower.write(5, b"stored")
        domain.sync(lease)
        assert os.pread(owner_fd, 6, 5) == b"stored"
    os.close(owner_fd)


# -- the file of the whole aperture


def test_bar_shows_each_lease_at_its_gfn(domain: FuseDomain) -> None:
    first = domain.lend(FileBacking(file_backing_fd(3)))
    second = domain.lend(FileBacking(file_backing_fd(5)))
    with FdBorrower(domain.open_bar()) as machine:
        assert machine.read(first.gfns.start * PAGE_SIZE, 1) == b"\1"
        assert machine.read((second.gfns.end - 1) * PAGE_SIZE, 1) == b"\5"
        domain.end(first)
        third = domain.lend(FileBacking(file_backing_fd(2)))
        assert third.gfns.start == first.gfns.start
        assert machine.read((third.gfns.start + 1) * PAGE_SIZE, 1) == b"\2", "not the gap's zeros, nor the old lease's"
        with pytest.raises(Faulted):
            machine.read(900 * PAGE_SIZE, 1)


def test_a_gap_that_was_read_ahead_holds_the_new_lease_later(domain: FuseDomain) -> None:
    domain.lend(FileBacking(file_backing_fd(1)))
    with FdBorrower(domain.open_bar()) as machine:
        assert machine.read(0, 1) == b"\1"
        lease = domain.lend(FileBacking(file_backing_fd(1)))
        assert lease.gfns.start == 1
        assert machine.read(PAGE_SIZE, 1) == b"\1"


def test_stores_through_bar_reach_the_backings_that_allow_it(domain: FuseDomain) -> None:
    read_only_fd, writable_fd = file_backing_fd(1), file_backing_fd(1)
    read_only = domain.lend(FileBacking(os.dup(read_only_fd), writable=True))
    writable = domain.lend(FileBacking(os.dup(writable_fd), writable=True), protection=Protection.READ_WRITE)
    with FdBorrower(domain.open_bar(writable=True), writable=True) as machine:
        machine.write(read_only.gfns.start * PAGE_SIZE, b"no")
        machine.write(writable.gfns.start * PAGE_SIZE, b"yes")
        os.close(domain.open_bar(writable=True))
        assert os.pread(writable_fd, 1, 0) == b"\1", "who closes a descriptor of it waits for no write-back"
    domain.end(read_only)
    domain.end(writable)
    assert os.pread(read_only_fd, 2, 0) == b"\1\1"
    assert os.pread(writable_fd, 3, 0) == b"yes"
    os.close(read_only_fd)
    os.close(writable_fd)


def test_revoking_all_leaves_nothing_of_the_gaps_either() -> None:
    """A guest that touches all of the aperture would keep the host's memory for good."""
    with opened(FuseDomain, aperture_pages=1024, gap_zeros=True) as domain:
        lease = domain.lend(FileBacking(file_backing_fd(1), writable=True), protection=Protection.READ_WRITE)
        with FdBorrower(domain.open_bar(writable=True), writable=True) as machine:
            machine.write(0, b"lent")
            machine.write(900 * PAGE_SIZE, b"kept")
            assert machine.read(900 * PAGE_SIZE, 4) == b"kept"
            assert domain.revoke_all() == 1
            assert machine.read(900 * PAGE_SIZE, 4) == bytes(4)
            assert machine.read(0, 4) == b"lent"
            domain.end(lease)
            assert domain.revoke_all() == 0


# -- what the borrower draws again


def blocks_of(fd: int) -> int:
    return os.fstat(fd).st_blocks


def test_revoking_what_is_drawn_again_leaves_nothing_in_memory(domain: FuseDomain) -> None:
    fd = os.memfd_create("drawn")
    os.ftruncate(fd, PAGES * PAGE_SIZE)
    backing = FileBacking(os.dup(fd), writable=True)
    lease = domain.lend(backing, protection=Protection.READ_WRITE, loss=LossPolicy.ZERO, redrawn=True)
    with FdBorrower(domain.open_lease(lease), writable=True) as borrower:
        for page in range(PAGES):
            borrower.write(page * PAGE_SIZE, b"drawn")
        domain.sync(lease)
        assert blocks_of(fd) >= PAGES * PAGE_SIZE // 512
        borrower.write(0, b"again")
        assert domain.revoke(lease) == PAGES
        assert blocks_of(fd) == 0
        assert borrower.first_bytes(PAGES) == bytes(PAGES)
        assert blocks_of(fd) == 0
        borrower.write(0, b"anew")
        domain.sync(lease)
        assert os.pread(fd, 4, 0) == b"anew"
        domain.revoke(lease, PageRange(0, 1))
        assert borrower.read(0, 4) == b"anew", "only as a whole is it given up"
        borrower.write(0, b"last")
        domain.end(lease)
    assert os.pread(fd, 4, 0) == b"anew", "nobody will look at it: it isn't written back"
    os.close(fd)


@pytest.mark.parametrize("make", [FuseDomain, ProcessDomain])
def test_what_the_owner_takes_away_is_kept_even_if_it_would_be_drawn_again(make: Callable[..., Domain]) -> None:
    """Only the lender's revocation gives it up."""
    with opened(make, aperture_pages=64) as domain:
        fd = os.memfd_create("drawn")
        os.ftruncate(fd, PAGE_SIZE)
        backing = FileBacking(os.dup(fd), writable=True)
        lease = domain.lend(backing, protection=Protection.READ_WRITE, loss=LossPolicy.ZERO, redrawn=True)
        with FdBorrower(domain.open_lease(lease), writable=True) as borrower:
            borrower.write(0, b"drawn")
            backing.invalidate()
            assert os.pread(fd, 5, 0) == b"drawn"
            assert borrower.read(0, 5) == b"drawn"
            assert lease.revocations == 0
            domain.revoke(lease)
            assert borrower.read(0, 5) == bytes(5)
        os.close(fd)


def test_only_files_can_be_drawn_again(domain: FuseDomain) -> None:
    heap = VramHeap(vram_pages=4, visible_pages=4, system_pages=4)
    buffer = heap.allocate(4)
    with pytest.raises(ValueError, match="only the content of files"):
        domain.lend(buffer, redrawn=True)
    buffer.close()
    heap.close()


# -- writing


def limits_of(domain: FuseDomain) -> list[str]:
    device = os.fstat(domain.root_fd).st_dev
    return [Path(f"/sys/class/bdi/0:{os.minor(device)}/{name}").read_text() for name in ("max_ratio", "strict_limit")]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may lift the kernel's limit of dirty pages")
def test_what_is_lent_for_writing_may_all_be_dirty() -> None:
    """With the kernel's limit for FUSE, 1 % of its own, a window's worth of stores is slowed down on a small machine."""
    with opened(FuseDomain, aperture_pages=64) as domain:
        assert limits_of(domain) == ["100\n", "0\n"]
        assert not domain.slows_writers
    with opened(FuseDomain, aperture_pages=64, read_only=True) as domain:
        assert limits_of(domain) == ["1\n", "1\n"]
        assert not domain.slows_writers


# -- losing pages


def test_one_lost_page_does_not_spoil_its_neighbours(domain: FuseDomain) -> None:
    owner_fd = file_backing_fd(PAGES)
    lease = domain.lend(FileBacking(os.dup(owner_fd)), loss=LossPolicy.ZERO)
    os.ftruncate(owner_fd, 10 * PAGE_SIZE)
    with FdBorrower(domain.open_lease(lease)) as borrower:
        expected = bytes(range(1, 11)) + bytes(PAGES - 10)
        assert borrower.first_bytes(PAGES) == expected
    lost = {event.page for event in domain.events.recent() if event.kind is LendingEventKind.LOST}
    assert lost == set(range(10, PAGES))
    os.close(owner_fd)


def test_a_lost_page_under_the_policy_of_a_fault(domain: FuseDomain) -> None:
    owner_fd = file_backing_fd(PAGES)
    lease = domain.lend(FileBacking(os.dup(owner_fd)))
    os.ftruncate(owner_fd, 10 * PAGE_SIZE)
    with FdBorrower(domain.open_lease(lease)) as borrower:
        assert borrower.first_bytes(10) == bytes(range(1, 11))
        with pytest.raises(Faulted):
            borrower.read(10 * PAGE_SIZE, 1)
    lost = {event.page for event in domain.events.recent() if event.kind is LendingEventKind.LOST}
    assert lost == {10}, "what was read ahead is not lost before it is touched"
    assert domain.stats().leases[0].pages_present == 11
    os.close(owner_fd)


def test_the_owner_cuts_the_file_off_in_good_order(domain: FuseDomain) -> None:
    backing = FileBacking(file_backing_fd(PAGES), writable=True)
    lease = domain.lend(backing)
    with FdBorrower(domain.open_lease(lease)) as borrower:
        assert borrower.first_bytes(PAGES) == bytes(range(1, PAGES + 1))
        backing.truncate(10 * PAGE_SIZE)
        assert borrower.read(9 * PAGE_SIZE, 1) == b"\x0a"
        with pytest.raises(Faulted):
            borrower.read(10 * PAGE_SIZE, 1)


# -- nothing stays behind


def test_the_mount_is_in_no_mount_table(domain: FuseDomain) -> None:
    assert mounts_of_ours() == []
    assert sorted(os.listdir(f"/proc/self/fd/{domain.root_fd}")) == ["bar", "lease"]
    lease = domain.lend(FileBacking(file_backing_fd(1)))
    assert os.listdir(f"/proc/self/fd/{domain.root_fd}/lease") == [str(lease.lease_id)]


def test_a_path_for_a_program_that_needs_one(tmp_path: Path) -> None:
    try:
        with opened(FuseDomain, aperture_pages=64, mount_path=str(tmp_path)) as domain:
            domain.lend(FileBacking(file_backing_fd(1)))
            assert (tmp_path / "bar").stat().st_size == 64 * PAGE_SIZE
            assert (tmp_path / "lease" / "1").read_bytes() == b"\1" * PAGE_SIZE
    except OSError as refused:
        if refused.errno != errno.EPERM:
            raise
        pytest.skip("only root may attach a mount")
    assert list(tmp_path.iterdir()) == []


LENDER = """
import os, sys, time
from waylend.backing.file import FileBacking
from waylend.domain.fuse.domain import FuseDomain
fd = os.memfd_create("lender")
os.ftruncate(fd, 40 * 4096)
domain = FuseDomain("doomed", aperture_pages=64)
lease = domain.lend(FileBacking(fd))
print(os.getpid(), domain.open_lease(lease), flush=True)
sys.stdin.read()
"""


def test_a_killed_lender_is_an_error_for_the_borrower_not_a_hang() -> None:
    lender = subprocess.Popen([sys.executable, "-c", LENDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert lender.stdout is not None
    assert lender.stdin is not None
    pid, fd = lender.stdout.readline().split()
    borrowed = os.open(f"/proc/{pid}/fd/{fd}", os.O_RDONLY)
    connections = set(os.listdir("/sys/fs/fuse/connections")) if os.path.isdir("/sys/fs/fuse/connections") else set()
    with FdBorrower(borrowed) as borrower:
        assert borrower.read(0, 1) == b"\0"
        lender.send_signal(signal.SIGKILL)
        lender.wait(DEADLINE_S)
        with pytest.raises(Faulted):
            borrower.read(39 * PAGE_SIZE, 1)
    lender.stdout.close()
    lender.stdin.close()
    assert mounts_of_ours() == []
    if connections:
        wait_until(lambda: set(os.listdir("/sys/fs/fuse/connections")) < connections, "the connection is gone")
