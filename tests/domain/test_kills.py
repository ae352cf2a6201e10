"""SIGKILL at any point: nothing of the killed stays, and who depended on it gets an error, not a hang."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.domain.borrowers import Faulted, FdBorrower, file_backing_fd, opened
from tests.processes import wait_until
from waylend.backing.file import FileBacking
from waylend.domain.fuse.domain import FuseDomain
from waylend.lending.lease import Protection
from waylend.lending.pages import PAGE_SIZE

PAGES = 512
#: A lender: lends a file to whoever gets the descriptor, takes pages back all the time, says when it is there.
LENDER = r"""
import os, socket, sys
sys.path.insert(0, sys.argv[1])
from waylend.backing.file import FileBacking
from waylend.domain.{module} import {name}
from waylend.lending.lease import Protection
domain = {name}("killed", aperture_pages=8192)
fd = os.memfd_create("backing")
os.truncate(fd, 8192 * 4096)
lease = domain.lend(FileBacking(fd, writable=True), protection=Protection.READ_WRITE)
lent = domain.open_lease(lease)
socket.send_fds(socket.socket(fileno=int(sys.argv[2])), [b"!"], [lent])
os.close(lent)
while True:
    domain.revoke(lease)
"""


def mounts() -> set[str]:
    return {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}


def connections() -> set[str]:
    """FUSE connections that the kernel keeps; empty where fusectl isn't mounted."""
    try:
        return set(os.listdir("/sys/fs/fuse/connections"))
    except FileNotFoundError:
        return set()


@pytest.fixture
def nothing_stays() -> Iterator[None]:
    before = (mounts(), connections(), sorted(os.listdir("/proc/self/fd")))
    yield
    wait_until(lambda: connections() <= before[1], "the FUSE connections to go")
    assert mounts() == before[0]
    assert sorted(os.listdir("/proc/self/fd")) == before[2]


def test_borrowers_killed_at_random_points(nothing_stays: None) -> None:
    """While they fault, and while their dirty pages are taken back: nobody is held up, and their leases can end."""
    chance = random.Random(1)
    with opened(FuseDomain, aperture_pages=4 * PAGES) as domain:
        over = threading.Event()
        failed: list[BaseException] = []
        lease = domain.lend(FileBacking(file_backing_fd(PAGES), writable=True), protection=Protection.READ_WRITE)

        def revoke() -> None:
            try:
                while not over.is_set():
                    domain.revoke(lease)
            except BaseException as error:
                failed.append(error)

        revoking = threading.Thread(target=revoke)
        revoking.start()
        try:
            for _ in range(25):
                borrower = FdBorrower(domain.open_lease(lease), writable=True)
                borrower.spin(0, PAGES)
                time.sleep(chance.uniform(0, 0.03))  # not a wait: the point in time is the test's input
                borrower.kill()
        finally:
            over.set()
            revoking.join()
        assert not failed
        domain.end_when_unused(lease)
        wait_until(lambda: domain.lease(lease.lease_id) is None, "the lease to end with its last borrower")


@pytest.mark.parametrize(("module", "name"), [("fuse.domain", "FuseDomain"), ("process.caller", "ProcessDomain")])
def test_lenders_killed_at_random_points(nothing_stays: None, module: str, name: str) -> None:
    """Wherever it was, serving, unmapping or writing back: its borrowers' next fault is an error, not a hang."""
    chance = random.Random(2)
    root = f"{Path(__file__).parents[2]}"
    for _ in range(6):
        ours, theirs = socket.socketpair()
        code = LENDER.replace("{module}", module).replace("{name}", name)
        argv = [sys.executable, "-c", code, root, f"{theirs.fileno()}"]
        with ours, subprocess.Popen(argv, pass_fds=[theirs.fileno()]) as lender:
            theirs.close()
            ours.settimeout(30)
            _, (fd,), _, _ = socket.recv_fds(ours, 1, 1)
            with FdBorrower(fd, writable=True) as borrower:
                killer = threading.Timer(chance.uniform(0, 0.05), lender.kill)
                killer.start()
                # Each page that it has never had is brought by nobody, at the latest when the serving process has noticed.
                untouched = iter(range(PAGES, 8192, 64))

                def faults(borrower: FdBorrower = borrower, untouched: Iterator[int] = untouched) -> bool:
                    try:
                        borrower.read(next(untouched) * PAGE_SIZE, 1)
                    except Faulted:
                        return True
                    time.sleep(0.01)
                    return False

                try:
                    while lender.poll() is None:
                        borrower.first_bytes(PAGES)
                    wait_until(faults, "a fault that nobody serves")
                except Faulted:
                    pass
                killer.join()


def test_what_a_killed_borrower_wrote_is_in_the_file(tmp_path: Path) -> None:
    """On a real disk, and after SIGKILL: what it had stored in its mapping reaches the file."""
    path = tmp_path / "file"
    path.write_bytes(bytes(PAGES * PAGE_SIZE))
    with opened(FuseDomain, aperture_pages=1024) as domain:
        backing = FileBacking(os.open(path, os.O_RDWR), writable=True)
        lease = domain.lend(backing, protection=Protection.READ_WRITE)
        borrower = FdBorrower(domain.open_lease(lease), writable=True)
        for page in range(0, PAGES, 7):
            borrower.write(page * PAGE_SIZE + 5, b"kept")
        borrower.kill()
        domain.sync(lease)
        content = path.read_bytes()
    assert all(content[page * PAGE_SIZE + 5 :][:4] == b"kept" for page in range(0, PAGES, 7))
