"""ProcessDomain: what its process adds to the contract: it dies with its lender, and its death is an error, not a hang."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
import sortedcontainers

import waylend
from tests.domain.borrowers import DEADLINE_S, Faulted, FdBorrower, file_backing_fd, opened
from tests.domain.hanging import HangingBacking
from tests.processes import absent, wait_until
from waylend.backing.file import FileBacking
from waylend.domain.fuse.domain import FuseDomain
from waylend.domain.process import serving
from waylend.domain.process.caller import ProcessDomain
from waylend.errors import LeaseEnded, NoSpace, QuotaExceeded, RevokeTimeout, Unavailable
from waylend.jail import seccomp
from waylend.lending.lease import Lease, LeaseState, Protection
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


# -- a start that fails


def test_a_start_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as nowhere:
        nowhere.setattr(sys, "executable", "/nowhere/python")
        with pytest.raises(Unavailable, match=r"can't start a process that serves: .*/nowhere/python"):
            ProcessDomain("failed")
    with monkeypatch.context() as empty:
        empty.setattr(serving, "_module_path", list)
        with pytest.raises(Unavailable, match=r"did not come up: ModuleNotFoundError: No module named 'waylend'"):
            ProcessDomain("failed")
    with pytest.raises(Unavailable, match=r"did not come up: .*at least two threads"):
        ProcessDomain("failed", thread_count=1)
    assert sorted(os.listdir("/proc/self/fd")) == before


# -- nobody waits for somebody else's request, nor for ever


class HangingFile:
    """A file whose writes take as long as the test likes: lent by a domain of its own, from a backing that hangs."""

    def __init__(self) -> None:
        self._domain = FuseDomain("slow", aperture_pages=64, thread_count=4, deadline_s=DEADLINE_S)
        self.backing = HangingBacking()
        self.backing.hangs = False
        self._lease = self._domain.lend(self.backing, protection=Protection.READ_WRITE)

    def open(self) -> int:
        return self._domain.open_lease(self._lease)

    def close(self) -> None:
        self.backing.go_on.set()
        self._domain.close()


@pytest.fixture
def hanging_file() -> Iterator[HangingFile]:
    try:
        file = HangingFile()
    except Unavailable as missing:
        absent(str(missing))
    yield file
    file.close()


@contextlib.contextmanager
def lent_dirty(domain: ProcessDomain, file: HangingFile) -> Iterator[Lease]:
    """A lease of that file, with a page that was written to; and writing it back hangs from now on."""
    lease = domain.lend(FileBacking(file.open(), writable=True), protection=Protection.READ_WRITE)
    borrower = FdBorrower(domain.open_lease(lease), writable=True)
    borrower.write(0, b"dirty")
    file.backing.hangs = True
    yield lease
    file.backing.go_on.set()
    borrower.kill()


def test_a_request_that_takes_its_time_holds_up_nobody_else(hanging_file: HangingFile) -> None:
    options = {"aperture_pages": 256, "deadline_s": DEADLINE_S, "thread_count": 4}
    with opened(ProcessDomain, **options) as domain, lent_dirty(domain, hanging_file) as lease:
        ending = threading.Thread(target=domain.end, args=(lease,))
        ending.start()
        assert hanging_file.backing.asked.wait(DEADLINE_S)
        other = domain.lend(FileBacking(file_backing_fd(2)))
        with FdBorrower(domain.open_lease(other)) as borrower:
            assert borrower.read(PAGE_SIZE, 1) == b"\2"
        domain.revoke(other)
        domain.end(other)
        assert len(domain.stats().leases) == 1
        assert ending.is_alive(), "all of that while the first was under way"
        hanging_file.backing.go_on.set()
        ending.join(DEADLINE_S)
        assert not ending.is_alive()
        assert lease.state is LeaseState.ENDED


def test_sync_may_take_longer_than_an_answer_as_long_as_the_process_lives(hanging_file: HangingFile) -> None:
    with (
        opened(
            ProcessDomain, aperture_pages=256, deadline_s=DEADLINE_S, thread_count=4, answer_deadline_s=0.4
        ) as domain,
        lent_dirty(domain, hanging_file) as lease,
    ):
        syncing = threading.Thread(target=domain.sync, args=(lease,))
        syncing.start()
        assert hanging_file.backing.asked.wait(DEADLINE_S)
        syncing.join(1.5)  # the test's input, not a wait: a few times as long as the deadline
        assert syncing.is_alive()
        hanging_file.backing.go_on.set()
        syncing.join(DEADLINE_S)
        assert not syncing.is_alive()
        assert runs(domain.pid)


class Lost:
    """Whoever wants to know when a domain has lost all that it lent."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.happened = threading.Event()

    def __call__(self, reason: str) -> None:
        self.reasons.append(reason)
        self.happened.set()


def test_a_process_that_is_stopped_is_given_up_and_nothing_hangs(caplog: pytest.LogCaptureFixture) -> None:
    lost = Lost()
    with opened(ProcessDomain, aperture_pages=64, answer_deadline_s=0.5, on_lost=lost) as domain:
        backing = FileBacking(file_backing_fd(40))
        lease = domain.lend(backing)
        pid = domain.pid
        with FdBorrower(domain.open_lease(lease)) as borrower:
            os.kill(pid, signal.SIGSTOP)
            with pytest.raises(LeaseEnded, match=r"did not answer 'revoke' within 0\.5 s"):
                domain.revoke(lease)
            with pytest.raises(Faulted):
                borrower.read(39 * PAGE_SIZE, 1)
        assert lost.happened.wait(DEADLINE_S)
        assert lost.reasons == ["its process did not answer 'revoke' within 0.5 s"]
        assert "all that it lent is cut off" in caplog.text
        assert lease.state is LeaseState.ENDED
        assert backing.fileno() < 0
        assert not runs(pid)
        again = domain.lend(FileBacking(file_backing_fd(4)))
        with FdBorrower(domain.open_lease(again)) as borrower:
            assert borrower.read(PAGE_SIZE, 1) == b"\2"


def test_what_is_lent_later_waits_for_nobody() -> None:
    """Not even for a process that reads nothing: far more than its socket has room for."""
    with opened(ProcessDomain, aperture_pages=4096, lease_limit=4096, answer_deadline_s=DEADLINE_S) as domain:
        backing = FileBacking(file_backing_fd(1))
        os.kill(domain.pid, signal.SIGSTOP)
        asked: list[Future[Lease]] = []
        asking = threading.Thread(
            target=lambda: asked.extend(domain.lend_later(backing, name="x" * 1000) for _ in range(700))
        )
        asking.start()
        asking.join(DEADLINE_S / 2)
        assert not asking.is_alive()
        assert not any(future.done() for future in asked)
        os.kill(domain.pid, signal.SIGCONT)
        leases = [future.result(DEADLINE_S) for future in asked]
        assert len({lease.gfns for lease in leases}) == 700
        fd = domain.open_lease_later(leases[-1]).result(DEADLINE_S)
        assert os.pread(fd, 1, 0) == b"\1"
        os.close(fd)


def test_what_nobody_uses_any_more_is_in_nobodys_way() -> None:
    """Who says that a lease may end waits for nothing, and yet has its place at once."""
    with opened(ProcessDomain, aperture_pages=8, lease_limit=2) as domain:
        for _ in range(200):
            leases = [domain.lend(FileBacking(file_backing_fd(4))) for _ in range(2)]
            for lease in leases:
                domain.end_when_unused(lease)


def test_what_cannot_be_lent_later_is_still_the_callers() -> None:
    with opened(ProcessDomain, aperture_pages=4) as domain:
        backing = FileBacking(file_backing_fd(5))
        assert isinstance(domain.lend_later(backing).exception(DEADLINE_S), NoSpace | QuotaExceeded)
        assert backing.fileno() >= 0
        with pytest.raises(ValueError, match="can't lend"):
            domain.lend_later(backing, offset_bytes=PAGE_SIZE, size_bytes=5 * PAGE_SIZE)
        lent = domain.lend_later(backing, size_bytes=PAGE_SIZE)
        assert not lent.cancel(), "what is under way can't be taken back, only be ended"
        domain.end(lent.result(DEADLINE_S))
        assert backing.fileno() < 0


def test_when_the_deadline_of_a_revocation_passes_the_owner_is_told(hanging_file: HangingFile) -> None:
    lost = Lost()
    with opened(ProcessDomain, aperture_pages=256, deadline_s=0.3, thread_count=4, on_lost=lost) as domain:
        other = domain.lend(FileBacking(file_backing_fd(1)))
        with lent_dirty(domain, hanging_file) as lease:
            with pytest.raises(RevokeTimeout, match=r"longer than 0\.3 s"):
                domain.end(lease)
            assert lost.happened.wait(DEADLINE_S)
            assert lost.reasons == ["pages could not be taken away within 0.3 s"]
            assert other.state is LeaseState.ENDED
            hanging_file.backing.go_on.set()
            with FdBorrower(domain.open_lease(domain.lend(FileBacking(file_backing_fd(2))))) as borrower:
                assert borrower.read(PAGE_SIZE, 1) == b"\2"


def test_when_its_process_is_killed_the_owner_is_told_but_not_when_it_is_closed() -> None:
    lost = Lost()
    with opened(ProcessDomain, aperture_pages=64, on_lost=lost) as domain:
        os.kill(domain.pid, signal.SIGKILL)
        assert lost.happened.wait(DEADLINE_S)
        assert lost.reasons == ["its process has ended"]
    assert len(lost.reasons) == 1


def test_an_observer_that_waits_for_the_domain_is_refused_not_a_deadlock(caplog: pytest.LogCaptureFixture) -> None:
    with opened(ProcessDomain, aperture_pages=64) as domain:
        domain.events.watch(lambda event: domain.stats(), faults=False)
        lease = domain.lend(FileBacking(file_backing_fd(1)))
        domain.revoke(lease)
        wait_until(lambda: "must not wait for its domain" in caplog.text, "it is refused")


def test_every_thread_of_it_is_in_jail() -> None:
    """Which files it can't open is tried in tests/jail."""
    try:
        seccomp.check_available()
    except Unavailable as error:
        absent(f"{error}")
    with opened(ProcessDomain) as domain:
        for thread in Path(f"/proc/{domain.pid}/task").iterdir():
            status = (thread / "status").read_text().split()
            assert status[status.index("NoNewPrivs:") + 1] == "1"
            assert status[status.index("Seccomp:") + 1] == "2"
