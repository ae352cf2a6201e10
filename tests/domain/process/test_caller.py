"""ProcessDomain: what its process adds to the contract: it dies with its lender, and its death is an error, not a hang."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import sortedcontainers

import waylend
from tests.domain.borrowers import DEADLINE_S, Faulted, FdBorrower, file_backing_fd, opened
from tests.processes import wait_until
from waylend.backing.file import FileBacking
from waylend.domain.process.caller import ProcessDomain
from waylend.errors import LeaseEnded, NoSpace, QuotaExceeded
from waylend.lending.lease import LeaseState
from waylend.lending.pages import PAGE_SIZE


def runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_it_serves_in_another_process() -> None:
    with opened(ProcessDomain, aperture_pages=64) as domain:
        lease = domain.lend(FileBacking(file_backing_fd(3)), name="keymap")
        # The rule that the serving process never touches lent memory doesn't bind this one any more.
        fd = domain.open_lease(lease)
        assert os.pread(fd, 1, 2 * PAGE_SIZE) == b"\3"
        os.close(fd)
        assert domain.pid != os.getpid()
        assert runs(domain.pid)
    assert not runs(domain.pid)


def test_errors_come_back_as_what_they_were() -> None:
    with opened(ProcessDomain, aperture_pages=4, lease_limit=1) as domain:
        with pytest.raises((NoSpace, QuotaExceeded)):
            domain.lend(backing := FileBacking(file_backing_fd(5)))
        backing.close()
        domain.lend(FileBacking(file_backing_fd(1)))
        with pytest.raises(QuotaExceeded, match="has its 1 leases"):
            domain.lend(backing := FileBacking(file_backing_fd(1)))
        backing.close()


def test_many_leases_in_one_answer() -> None:
    with opened(ProcessDomain, aperture_pages=4096, lease_limit=4096) as domain:
        backing = FileBacking(file_backing_fd(1))
        for _ in range(2000):
            domain.lend(backing, name="a lease with a rather long name, as names go")
        assert len(domain.stats().leases) == 2000


def test_when_its_process_is_killed_everything_is_over() -> None:
    with opened(ProcessDomain, aperture_pages=64) as domain:
        lease = domain.lend(FileBacking(file_backing_fd(40)))
        with FdBorrower(domain.open_lease(lease)) as borrower:
            assert borrower.read(0, 1) == b"\1"
            os.kill(domain.pid, signal.SIGKILL)
            with pytest.raises(LeaseEnded):
                domain.open_lease(lease)
            with pytest.raises(Faulted):
                borrower.read(39 * PAGE_SIZE, 1)
        assert domain.stats().leases == ()


ZIPPED = """
import os
from waylend.backing.file import FileBacking
from waylend.domain.process.caller import ProcessDomain
fd = os.memfd_create("zipped")
os.write(fd, b"zipped")
domain = ProcessDomain("zipped")
lent = domain.open_lease(domain.lend(FileBacking(fd)))
print(os.read(lent, 6).decode(), domain.__module__, ProcessDomain.lend.__code__.co_filename)
domain.close()
"""


def test_its_process_finds_all_modules_in_an_archive_too(tmp_path: Path) -> None:
    """As zipapp makes them: one file holds the program and all that it imports."""
    with zipfile.PyZipFile(f"{tmp_path / 'app.pyz'}", "w") as archive:
        for package in (waylend, sortedcontainers):
            folder = Path(f"{package.__file__}").parent
            for file in folder.rglob("*.py"):
                archive.write(file, file.relative_to(folder.parent))
        archive.writestr("__main__.py", ZIPPED)
    ran = subprocess.run(
        [sys.executable, "-I", "-S", f"{tmp_path / 'app.pyz'}"],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert ran.stderr == ""
    assert ran.stdout.split()[0] == "zipped"
    assert f"{tmp_path}" in ran.stdout


LENDER = """
import sys
from waylend.domain.process.caller import ProcessDomain
print(ProcessDomain("doomed").pid, flush=True)
sys.stdin.read()
"""


def test_it_dies_with_its_lender() -> None:
    lender = subprocess.Popen([sys.executable, "-c", LENDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert lender.stdout is not None
    assert lender.stdin is not None
    pid = int(lender.stdout.readline())
    assert runs(pid)
    lender.kill()
    lender.wait(DEADLINE_S)
    wait_until(lambda: not runs(pid), "the serving process ends with its lender")
    lender.stdout.close()
    lender.stdin.close()


def test_a_lease_that_ends_by_itself_lets_its_backing_go_here_too() -> None:
    """Nobody asks anything meanwhile: the process tells."""
    with opened(ProcessDomain, aperture_pages=64) as domain:
        backing = FileBacking(file_backing_fd(4))
        lease = domain.lend(backing)
        borrower = FdBorrower(domain.open_lease(lease))
        domain.end_when_unused(lease)
        assert backing.fileno() >= 0
        borrower.kill()
        wait_until(lambda: backing.fileno() < 0, "the backing to be closed")
        assert domain.lease(lease.lease_id) is None


def test_lending_anew_after_its_process_was_killed_starts_another() -> None:
    with opened(ProcessDomain, aperture_pages=64) as domain:
        old = domain.lend(FileBacking(file_backing_fd(4)))
        os.kill(domain.pid, signal.SIGKILL)
        wait_until(lambda: old.state is LeaseState.ENDED, "its leases to be over")
        new = domain.lend(FileBacking(file_backing_fd(4)))
        assert new.lease_id == old.lease_id, "the numbers begin again"
        for call in (domain.open_lease, domain.revoke, domain.sync):
            with pytest.raises(LeaseEnded):
                call(old)
        domain.end(old)
        with FdBorrower(domain.open_lease(new)) as borrower:
            assert borrower.read(PAGE_SIZE, 1) == b"\2"
