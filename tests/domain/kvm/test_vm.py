"""The small VMM, and how a KVM domain begins and ends with it: what is missing, what is stopped, what stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import waylend
from tests.domain.borrowers import file_backing_fd, opened
from tests.domain.guests import SPIN_READ, SPIN_WRITE, WINDOW, Guest
from tests.processes import absent, require, wait_until
from waylend.backing.file import FileBacking
from waylend.domain.kvm.domain import KvmDomain
from waylend.domain.kvm.vm import ExitKind
from waylend.errors import LeaseEnded
from waylend.lending.lease import Lease
from waylend.lending.pages import PAGE_SIZE, PageRange

HOME = str(Path(waylend.__file__).parents[1])


class StuckBacking(FileBacking):
    """Reads wait until they are let go."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self.reached, self.go = threading.Event(), threading.Event()

    def read(self, pages: PageRange) -> bytes:
        self.reached.set()
        assert self.go.wait(30)
        return super().read(pages)


@pytest.fixture
def domain() -> Iterator[KvmDomain]:
    with opened(KvmDomain, aperture_pages=64) as made:
        yield made


def lend(domain: KvmDomain) -> Lease:
    return domain.lend(FileBacking(file_backing_fd(4)))


# -- where it is missing


def reason_of(*setup: str) -> str:
    """What a process says that wants a domain, when ``setup`` (Python, with ``os`` and ``mount``) has taken something away."""
    program = f"import sys; sys.path.insert(0, {HOME!r})\n"
    program += """
import os, subprocess
from waylend.domain.kvm.domain import KvmDomain
from waylend.errors import Unavailable
def mount(*arguments):
    subprocess.run(["mount", *arguments], check=True)
"""
    program += "\n".join(setup)
    program += """
before = os.listdir("/proc/self/fd")
try:
    KvmDomain("test").close()
except Unavailable as missing:
    assert os.listdir("/proc/self/fd") == before, "descriptors stay behind"
    print(missing)
"""
    command = [require("unshare"), "--mount", sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


#: In a mount namespace of its own: another node for KVM, and nobody special from then on.
KVM_OF = "mount('-t', 'tmpfs', 'none', '/mnt'); os.umask(0); os.mknod('/mnt/kvm', 0o20{mode}, os.makedev(10, 232))"
BIND_KVM = "mount('--bind', '/mnt/kvm', '/dev/kvm')"
NO_USERFAULTFD = """
if os.path.exists('/dev/userfaultfd'):
    os.mknod('/mnt/userfaultfd', 0o20600, os.makedev(10, 257))
    mount('--bind', '/mnt/userfaultfd', '/dev/userfaultfd')
"""
BE_NOBODY = "os.setgroups([]); os.setgid(65534); os.setuid(65534)"


@pytest.mark.usefixtures("domain")  # skips where there is no KVM to take away
@pytest.mark.parametrize(
    ("setup", "reason"),
    [
        pytest.param(
            ["mount('-t', 'tmpfs', 'none', '/dev')"],
            "there is no /dev/kvm; load the module",
            id="no KVM",
        ),
        pytest.param(
            ["mount('--bind', '/dev/null', '/dev/kvm')"],
            "/dev/kvm is not KVM: Inappropriate ioctl",
            id="something else",
        ),
        pytest.param(
            [KVM_OF.format(mode="600"), BIND_KVM, BE_NOBODY],
            "can't open /dev/kvm: Permission denied; add this user to the group kvm",
            id="no access",
        ),
        pytest.param(
            [KVM_OF.format(mode="666"), BIND_KVM, NO_USERFAULTFD, BE_NOBODY],
            "userfaultfd is not allowed; run as root, or give this user access to /dev/userfaultfd",
            id="no userfaultfd",
        ),
    ],
)
def test_a_missing_piece_is_named(setup: list[str], reason: str) -> None:
    if os.geteuid():
        absent("only root can take /dev/kvm from a process")
    if "userfaultfd" in reason and Path("/proc/sys/vm/unprivileged_userfaultfd").read_text().strip() == "1":
        pytest.skip("here everybody may have a userfaultfd")
    assert reason_of(*setup).startswith(reason)


# -- stopping


def test_a_spinning_vcpu_is_stopped(domain: KvmDomain) -> None:
    lend(domain)
    with Guest(domain) as guest:
        run = guest.start(SPIN_READ, rsi=WINDOW)
        wait_until(lambda: domain.stats().leases[0].pages_present, "it spins")
        assert run.stop().kind is ExitKind.STOPPED
        assert guest.read(WINDOW, 1) == b"\1", "and can go on"


def test_a_vcpu_that_waits_for_a_page_is_stopped(domain: KvmDomain) -> None:
    """At once, or, where KVM emulates the access, as soon as the page is there."""
    backing = StuckBacking(file_backing_fd(4))
    domain.lend(backing)
    with Guest(domain) as guest:
        run = guest.start(SPIN_READ, rsi=WINDOW)
        assert backing.reached.wait(30)
        guest.vcpus[0].stop()
        backing.go.set()
        assert run.exit().kind is ExitKind.STOPPED


def test_a_vcpu_that_is_not_running_is_stopped_when_it_does(domain: KvmDomain) -> None:
    lend(domain)
    with Guest(domain) as guest:
        guest.vcpus[0].stop()
        assert guest.start(SPIN_READ, rsi=WINDOW).exit().kind is ExitKind.STOPPED
        assert guest.read(WINDOW, 1) == b"\1", "once"


def test_the_signals_of_others_stop_no_vcpu(domain: KvmDomain) -> None:
    lend(domain)
    rung: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _: rung.append(number))
    try:
        with Guest(domain) as guest:
            signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
            stopper = threading.Timer(0.2, guest.vcpus[0].stop)
            stopper.start()
            assert guest.run(SPIN_READ, rsi=WINDOW).kind is ExitKind.STOPPED
            stopper.join()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(rung) > 3


# -- the end


def windows_mapped() -> int:
    return Path("/proc/self/maps").read_text().count("waylend-window")


def test_closing_a_domain_ends_a_guest_that_spins_and_one_that_waits(domain: KvmDomain) -> None:
    lend(domain)
    backing = StuckBacking(file_backing_fd(4))
    second = domain.lend(backing)
    with Guest(domain, vcpu_count=2) as guest:
        spinning = guest.start(SPIN_READ, rsi=WINDOW)
        waiting = guest.start(SPIN_READ, vcpu=1, rsi=WINDOW + second.gfns.start * PAGE_SIZE)
        assert backing.reached.wait(30)
        wait_until(lambda: domain.stats().leases[0].pages_present, "it spins")
        closing = threading.Thread(target=domain.close)
        closing.start()
        assert waiting.exit().kind is ExitKind.REFUSED, "although its backing is still stuck"
        backing.go.set()
        closing.join(30)
        assert not closing.is_alive()
        assert spinning.exit().kind is ExitKind.REFUSED
        assert not windows_mapped()
        with pytest.raises(LeaseEnded):
            domain.attach(guest.vm.fd, slot=2, guest_address=WINDOW)


def test_a_lease_that_ends_when_unused_does_so_with_the_last_guest(domain: KvmDomain) -> None:
    lease = lend(domain)
    with Guest(domain) as second:
        with Guest(domain):
            domain.end_when_unused(lease)
        assert second.read(WINDOW, 1) == b"\1"
        assert domain.lease(lease.lease_id) is lease
    assert domain.lease(lease.lease_id) is None


def test_a_virtual_machine_may_be_closed_before_it_is_detached(domain: KvmDomain) -> None:
    lend(domain)
    guest = Guest(domain)
    guest.read(WINDOW, 1)
    guest.vm.close()
    guest.close()


def test_a_domain_leaves_no_addresses_and_threads_behind() -> None:
    threads = threading.active_count()
    with opened(KvmDomain, aperture_pages=64) as domain:
        lend(domain)
        assert windows_mapped() > 0
        assert threading.active_count() > threads
    assert not windows_mapped()
    assert threading.active_count() == threads


VMM = """
import os, sys, threading
sys.path.insert(0, {home!r})
from tests.domain.guests import SPIN_WRITE, WINDOW, Guest
from waylend.backing.file import FileBacking
from waylend.domain.kvm.domain import KvmDomain
from waylend.lending.lease import Protection
from waylend.lending.pages import PAGE_SIZE

class Stuck(FileBacking):
    def read(self, pages):
        print("waiting", flush=True)
        threading.Event().wait()

domain = KvmDomain("test", aperture_pages=64)
memory = os.memfd_create("memory")
os.ftruncate(memory, PAGE_SIZE)
domain.lend(FileBacking(os.dup(memory), writable=True), protection=Protection.READ_WRITE)
domain.lend(Stuck(memory))
guest = Guest(domain, vcpu_count=2)
guest.start(SPIN_WRITE, rsi=WINDOW)
guest.start(SPIN_WRITE, vcpu=1, rsi=WINDOW + PAGE_SIZE)
threading.Event().wait()
"""


def test_a_vmm_can_be_killed_while_its_guest_spins_and_waits(domain: KvmDomain) -> None:
    """Its guests, its leases and its memory are of the one process, which nothing keeps."""
    process = subprocess.Popen(
        [sys.executable, "-c", VMM.format(home=HOME).replace("SPIN_WRITE, vcpu=1", "b'\\x8a\\x06', vcpu=1")],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"waiting\n"
    process.kill()
    assert process.wait(10) == -signal.SIGKILL
    process.stdout.close()


def test_a_store_without_a_lease_for_it_is_an_exit(domain: KvmDomain) -> None:
    with Guest(domain) as guest:
        done = guest.run(SPIN_WRITE, rsi=WINDOW + 5 * PAGE_SIZE)
        assert done.kind is ExitKind.REFUSED
        assert done.guest_address in (WINDOW + 5 * PAGE_SIZE, None)
