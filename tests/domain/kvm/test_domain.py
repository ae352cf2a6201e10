"""What the KVM domain does beyond the contract: page tables, dirty pages, refusals, vCPUs. Guests are in ``guests``."""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.domain.borrowers import file_backing_fd, opened
from tests.domain.guests import COUNT, MAILBOX, SCRATCH, SPIN_READ, SPIN_WRITE, WATCH, WINDOW, Guest, page_tables
from tests.processes import wait_until
from waylend.backing.file import FileBacking
from waylend.domain.kvm.domain import KvmDomain
from waylend.domain.kvm.vm import ExitKind
from waylend.errors import BackingLost, NoSpace
from waylend.lending.lease import DIRTY, LOST, PRESENT, Lease, LossPolicy, Protection
from waylend.lending.p2m import LendingEvent, LendingEventKind
from waylend.lending.pages import PAGE_SIZE, PageRange

PAGES = 16


class WatchedBacking(FileBacking):
    """A file backing that says which pages it was asked for and given, and waits where the test wants it to."""

    def __init__(self, fd: int, *, writable: bool = True) -> None:
        super().__init__(fd, writable=writable)
        self.reads: list[int] = []
        self.writes: list[int] = []
        self.before_read: Callable[[int], None] = lambda page: None
        self.before_write: Callable[[int], None] = lambda page: None

    def read(self, pages: PageRange) -> bytes:
        self.reads += range(*pages)
        self.before_read(pages.start)
        return super().read(pages)

    def write(self, pages: PageRange, content: bytes | memoryview) -> None:
        self.before_write(pages.start)
        super().write(pages, content)
        self.writes += range(*pages)


class Stopper:
    """Something slow: who comes waits until the test lets go."""

    def __init__(self) -> None:
        self.reached, self._go = threading.Event(), threading.Event()

    def __call__(self, page: int) -> None:
        self.reached.set()
        assert self._go.wait(30)

    def let_go(self) -> None:
        self._go.set()


@pytest.fixture
def domain() -> Iterator[KvmDomain]:
    with opened(KvmDomain, aperture_pages=256) as made:
        yield made


@pytest.fixture
def owner_fd() -> Iterator[int]:
    """The lent file, as its owner has it: page N is full of the byte N + 1."""
    fd = file_backing_fd(PAGES)
    yield fd
    os.close(fd)


@pytest.fixture
def guest(domain: KvmDomain) -> Iterator[Guest]:
    with Guest(domain, vcpu_count=2) as made:
        yield made


def lend(
    domain: KvmDomain, owner_fd: int, *, writable: bool = True, loss: LossPolicy = LossPolicy.FAULT
) -> tuple[Lease, WatchedBacking]:
    """All of the file."""
    backing = WatchedBacking(os.dup(owner_fd), writable=writable)
    protection = Protection.READ_WRITE if writable else Protection.READ
    return domain.lend(backing, protection=protection, loss=loss), backing


def states(domain: KvmDomain, lease: Lease) -> list[int]:
    """The lease's pages as the book has them; a guest that has its page may go on before that is written down."""
    domain.stats()  # waits for who is writing
    return list(lease.pages)


def word_in(fd: int, page: int) -> int:
    value: int = struct.unpack("<I", os.pread(fd, 4, page * PAGE_SIZE))[0]
    return value


# -- faults


def test_each_page_is_asked_for_once(domain: KvmDomain, owner_fd: int, guest: Guest) -> None:
    _, backing = lend(domain, owner_fd, writable=False)
    for _ in range(3):
        assert guest.read(WINDOW + 2 * PAGE_SIZE - 2, 4) == b"\2\2\3\3"
    assert sorted(backing.reads) == [1, 2]
    (stats,) = domain.stats().leases
    assert (stats.faults_served, stats.pages_present) == (2, 2)


def test_two_vcpus_on_one_page_are_one_fault(domain: KvmDomain, owner_fd: int, guest: Guest) -> None:
    lease, backing = lend(domain, owner_fd)
    backing.before_read = stopper = Stopper()
    runs = [guest.start(SPIN_WRITE, vcpu=vcpu, rsi=WINDOW) for vcpu in (0, 1)]
    assert stopper.reached.wait(30)
    stopper.let_go()
    wait_until(lambda: lease.pages[0] == DIRTY, "both store")
    assert [run.stop().kind for run in runs] == [ExitKind.STOPPED] * 2
    assert backing.reads == [0]


def test_faults_on_other_pages_go_on_while_one_backing_is_slow(domain: KvmDomain, owner_fd: int, guest: Guest) -> None:
    _, slow = lend(domain, owner_fd)
    lend(domain, owner_fd)
    slow.before_read = stopper = Stopper()
    waiting = guest.start(SPIN_READ, vcpu=1, rsi=WINDOW)
    assert stopper.reached.wait(30)
    assert guest.read(WINDOW + PAGES * PAGE_SIZE, 1) == b"\1"
    stopper.let_go()
    assert waiting.stop().kind is ExitKind.STOPPED


def test_observers_hear_of_it(domain: KvmDomain, owner_fd: int, guest: Guest) -> None:
    heard: list[LendingEvent] = []
    domain.events.watch(heard.append)
    lease, _ = lend(domain, owner_fd)
    guest.read(WINDOW, 1)
    domain.revoke(lease, PageRange(0, 2))
    domain.end(lease)
    assert [(event.kind, event.page, event.page_count) for event in heard] == [
        (LendingEventKind.LENT, 0, PAGES),
        (LendingEventKind.FAULTED, 0, 1),
        (LendingEventKind.SERVED, 0, 1),
        (LendingEventKind.REVOKED, 0, 2),
        (LendingEventKind.ENDED, 0, PAGES),
    ]


# -- what the guest writes


def test_only_pages_that_were_written_to_are_handed_back(domain: KvmDomain, owner_fd: int, guest: Guest) -> None:
    lease, backing = lend(domain, owner_fd)
    guest.read(WINDOW, PAGES * PAGE_SIZE)  # all are read first ...
    guest.write(WINDOW + 3 * PAGE_SIZE, b"stored")  # ... this one is then written to
    assert states(domain, lease) == [DIRTY if page == 3 else PRESENT for page in range(PAGES)]
    assert domain.revoke(lease) == PAGES
    assert backing.writes == [3]
    guest.write(WINDOW + 5 * PAGE_SIZE, b"first touch")  # this one is written to at first touch
    assert states(domain, lease)[5] == DIRTY
    domain.revoke(lease)
    assert backing.writes == [3, 5]
    assert os.pread(owner_fd, 11, 5 * PAGE_SIZE) == b"first touch"


def test_sync_leaves_the_guest_its_pages_and_sees_later_stores(domain: KvmDomain, owner_fd: int, guest: Guest) -> None:
    lease, backing = lend(domain, owner_fd)
    for content in (b"one", b"two"):
        guest.write(WINDOW, content)
        domain.sync(lease)
        assert os.pread(owner_fd, 3, 0) == content
    domain.sync(lease)
    assert (backing.reads, backing.writes, states(domain, lease)[0]) == ([0], [0, 0], PRESENT)


def test_a_sync_that_fails_loses_nothing(domain: KvmDomain, owner_fd: int, guest: Guest) -> None:
    lease, _ = lend(domain, owner_fd)
    guest.write(WINDOW + PAGE_SIZE, b"kept")
    os.ftruncate(owner_fd, 0)
    with pytest.raises(BackingLost):
        domain.sync(lease)
    os.ftruncate(owner_fd, PAGES * PAGE_SIZE)
    domain.sync(lease)
    assert os.pread(owner_fd, 4, PAGE_SIZE) == b"kept"


@pytest.mark.parametrize("taking", ["revoke", "sync"])
def test_nothing_is_lost_of_what_a_guest_stores_without_a_pause(
    domain: KvmDomain, owner_fd: int, guest: Guest, taking: str
) -> None:
    lease, _ = lend(domain, owner_fd)
    os.pwrite(owner_fd, bytes(PAGE_SIZE), 0)
    run = guest.start(COUNT, rdi=WINDOW)
    seen = [0]
    for _ in range(100):
        wait_until(lambda: lease.pages[0] == DIRTY, "the guest counts")
        getattr(domain, taking)(lease)
        seen.append(word_in(owner_fd, 0))
    assert run.stop().kind is ExitKind.STOPPED
    domain.end(lease)
    assert seen == sorted(seen)
    assert seen[-1] > 0
    counted = guest.vcpus[0].registers()["rcx"] & 0xFFFFFFFF
    assert word_in(owner_fd, 0) - counted in (0, 1), "stopped between the two counts, or after them"


def test_nothing_behind_the_lease_is_changed(domain: KvmDomain, owner_fd: int, guest: Guest) -> None:
    backing = WatchedBacking(os.dup(owner_fd))
    lease = domain.lend(backing, size_bytes=PAGE_SIZE + 10, protection=Protection.READ_WRITE)
    assert guest.read(WINDOW + PAGE_SIZE, 12) == b"\2" * 10 + b"\0\0", "nor read"
    guest.write(WINDOW + PAGE_SIZE - 2, b"x" * PAGE_SIZE)
    domain.revoke(lease)
    assert os.pread(owner_fd, 14, PAGE_SIZE - 2) == b"x" * 12 + b"\2\2"


def test_what_a_cut_off_file_can_still_take_is_handed_back(domain: KvmDomain, owner_fd: int, guest: Guest) -> None:
    lost: list[LendingEvent] = []
    lease, backing = lend(domain, owner_fd)
    domain.events.watch(lambda event: lost.append(event) if event.kind is LendingEventKind.LOST else None)
    guest.write(WINDOW, b"z" * 4 * PAGE_SIZE)
    os.ftruncate(owner_fd, 2 * PAGE_SIZE)
    domain.revoke(lease)
    assert backing.writes == [0, 1]
    assert os.pread(owner_fd, PAGES * PAGE_SIZE, 0) == b"z" * 2 * PAGE_SIZE
    assert [event.page for event in lost] == [2, 3]


# -- taking pages away


def test_no_guest_reads_an_older_page_than_the_last_acknowledged(
    domain: KvmDomain, owner_fd: int, guest: Guest
) -> None:
    _, backing = lend(domain, owner_fd, writable=False)
    os.pwrite(owner_fd, bytes(PAGE_SIZE), 0)
    counts = [SCRATCH, SCRATCH + PAGE_SIZE]
    runs = [guest.start(WATCH, vcpu=vcpu, rbx=MAILBOX, rdi=WINDOW, rsi=count) for vcpu, count in enumerate(counts)]

    def looked() -> int:
        return sum(guest.word(count) for count in counts)

    for generation in range(1, 301):
        os.pwrite(owner_fd, struct.pack("<I", generation), 0)
        backing.invalidate(PageRange(0, 1))
        guest.set_word(MAILBOX, generation)  # acknowledged: nothing older may be read after this
        before = looked()
        wait_until(lambda before=before: looked() > before + 4, "a guest looks again")  # type: ignore[misc]
    assert [run.stop().kind for run in runs] == [ExitKind.STOPPED] * 2, "a guest halts when it has seen an old page"


def test_a_slow_backing_leaves_the_guest_nothing_in_hand(domain: KvmDomain, owner_fd: int, guest: Guest) -> None:
    lease, backing = lend(domain, owner_fd)
    assert guest.write(WINDOW, b"old").kind is ExitKind.HALTED
    backing.before_write = stopper = Stopper()
    revoking = threading.Thread(target=domain.revoke, args=(lease,))
    revoking.start()
    assert stopper.reached.wait(30)
    run = guest.start(SPIN_READ, vcpu=1, rsi=WINDOW)
    try:
        assert guest.read(WINDOW + PAGES * PAGE_SIZE, 1), "what isn't lent is refused meanwhile"
        assert revoking.is_alive(), "it is acknowledged when the backing has what was written, and not before"
        assert lease.faults_served == 1, "a fault on the page waits for that too"
    finally:
        stopper.let_go()
        revoking.join()
    wait_until(lambda: lease.faults_served == 2, "the page comes back")
    assert run.stop().kind is ExitKind.STOPPED
    assert os.pread(owner_fd, 3, 0) == b"old"


def test_every_taker_waits_until_the_backing_has_what_was_written(
    domain: KvmDomain, owner_fd: int, guest: Guest
) -> None:
    lease, backing = lend(domain, owner_fd)
    guest.write(WINDOW, b"mine")
    backing.before_write = stopper = Stopper()
    takers = [threading.Thread(target=domain.revoke, args=(lease, PageRange(0, 1)))]
    takers[0].start()
    assert stopper.reached.wait(30)
    takers.append(threading.Thread(target=backing.invalidate))
    takers[1].start()
    wait_until(lambda: len(lease.in_progress) == 2, "both are at it")
    takers[1].join(0.2)
    assert takers[1].is_alive(), "the owner would go on, and then have its new page overwritten"
    stopper.let_go()
    for taker in takers:
        taker.join()
    assert backing.writes == [0]
    assert os.pread(owner_fd, 4, 0) == b"mine"


def test_overlapping_takers_lose_nothing(domain: KvmDomain, owner_fd: int, guest: Guest) -> None:
    lease, backing = lend(domain, owner_fd)
    os.pwrite(owner_fd, bytes(PAGE_SIZE), 0)
    run = guest.start(COUNT, rdi=WINDOW)
    wait_until(lambda: lease.pages[0] == DIRTY, "the guest counts")
    takings: list[Callable[[], object]] = [
        lambda: domain.revoke(lease),
        lambda: domain.revoke(lease, PageRange(0, 1)),
        lambda: backing.invalidate(PageRange(0, 4)),
        lambda: domain.sync(lease),
    ]
    failures: list[BaseException] = []

    def take(taking: Callable[[], object]) -> None:
        try:
            for _ in range(100):
                taking()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=take, args=(taking,)) for taking in takings]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert not any(thread.is_alive() for thread in threads)
    run.stop()
    domain.end(lease)
    counted = guest.vcpus[0].registers()["rcx"] & 0xFFFFFFFF
    assert counted > 0
    assert word_in(owner_fd, 0) - counted in (0, 1)


def test_revoking_part_of_a_lease(domain: KvmDomain, owner_fd: int, guest: Guest) -> None:
    lease, _ = lend(domain, owner_fd)
    guest.read(WINDOW, PAGES * PAGE_SIZE)
    assert domain.revoke(lease, PageRange(4, 7)) == 3
    assert lease.pages_present == PAGES - 3
    with pytest.raises(ValueError, match="has no pages"):
        domain.revoke(lease, PageRange(0, PAGES + 1))
    assert domain.revoke_all() == PAGES - 3


# -- what is refused


def refused_at(guest: Guest, address: int) -> None:
    found = guest.read(address, 1)
    assert not isinstance(found, bytes)
    assert found.kind is ExitKind.REFUSED
    assert found.guest_address in (address, None)


def test_what_nobody_lends_is_refused(domain: KvmDomain, owner_fd: int, guest: Guest) -> None:
    lend(domain, owner_fd)
    refused_at(guest, WINDOW + PAGES * PAGE_SIZE)
    assert guest.write(WINDOW + 200 * PAGE_SIZE, b"!").kind is ExitKind.REFUSED


def test_a_store_to_a_read_only_lease_is_refused_and_changes_nothing(
    domain: KvmDomain, owner_fd: int, guest: Guest
) -> None:
    lend(domain, owner_fd, writable=False)
    for page in (0, 1):
        if page:
            assert guest.read(WINDOW + PAGE_SIZE, 1) == b"\2"
        with Guest(domain) as writer:
            assert writer.write(WINDOW + page * PAGE_SIZE, b"!").kind is ExitKind.REFUSED
    with Guest(domain) as reader:
        assert reader.read(WINDOW, 1) == b"\1"
    assert os.pread(owner_fd, 1, 0) == b"\1"


def test_a_lost_page_comes_back_when_its_backing_does(domain: KvmDomain, owner_fd: int) -> None:
    lease, backing = lend(domain, owner_fd)
    os.ftruncate(owner_fd, 0)
    for _ in range(2):
        with Guest(domain) as guest:
            refused_at(guest, WINDOW + PAGE_SIZE)
    assert backing.reads == [1], "lost once and for all, until it is taken away"
    assert states(domain, lease)[1] == LOST
    os.ftruncate(owner_fd, PAGES * PAGE_SIZE)
    os.pwrite(owner_fd, b"again", PAGE_SIZE)
    domain.revoke(lease)
    with Guest(domain) as guest:
        assert guest.read(WINDOW + PAGE_SIZE, 5) == b"again"


@pytest.mark.parametrize("stored", [True, False])
def test_a_page_that_was_there_before_can_be_lost(domain: KvmDomain, owner_fd: int, stored: bool) -> None:
    lease, _ = lend(domain, owner_fd)
    with Guest(domain) as guest:
        guest.read(WINDOW, 1)
        if stored:
            guest.write(WINDOW, b"!")
        domain.sync(lease)
        domain.revoke(lease)
        os.ftruncate(owner_fd, 0)
        refused_at(guest, WINDOW)
        refused_at(guest, WINDOW)
    assert states(domain, lease)[0] == LOST


def test_gfns_that_were_refused_can_be_lent_anew(domain: KvmDomain, owner_fd: int) -> None:
    with Guest(domain) as guest:
        refused_at(guest, WINDOW)
    lease, _ = lend(domain, owner_fd)
    os.ftruncate(owner_fd, 0)
    with Guest(domain) as guest:
        refused_at(guest, WINDOW)
    domain.end(lease)
    os.ftruncate(owner_fd, PAGES * PAGE_SIZE)
    again, _ = lend(domain, owner_fd)
    assert again.gfns == lease.gfns
    with Guest(domain) as guest:
        assert guest.read(WINDOW, 1) == b"\0"


def test_ending_succeeds_even_where_the_kernel_has_no_more_ranges(
    domain: KvmDomain, owner_fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mprotect(2) may fail for want of vm.max_map_count; the pages are refused all the same, until they are lent anew."""
    lease, _ = lend(domain, owner_fd)

    def full(gfns: PageRange, protection: int) -> None:
        raise OSError(errno.ENOMEM, "mprotect")

    with Guest(domain) as guest:
        assert guest.read(WINDOW, 1) == b"\1"
        with monkeypatch.context() as patched:
            patched.setattr(domain._aperture.window, "permit", full)
            domain.end(lease)
            backing = FileBacking(os.dup(owner_fd))
            with pytest.raises(NoSpace):
                domain.lend(backing)
            backing.close()
        refused_at(guest, WINDOW)
        lend(domain, owner_fd)
        assert guest.read(WINDOW, 1) == b"\1"


def test_what_is_not_lent_is_closed_off(domain: KvmDomain, owner_fd: int) -> None:
    def permissions() -> list[str]:
        lines = Path("/proc/self/maps").read_text().splitlines()
        return [line.split()[1] for line in lines if "waylend-window" in line]

    closed = permissions()
    assert closed == ["---s", "r--s"], "all of it, but the doorbell"
    leases = [lend(domain, owner_fd, writable=writable)[0] for writable in (True, False)]
    assert permissions() == ["rw-s", "r--s", "---s", "r--s"]
    for lease in leases:
        domain.end(lease)
    assert permissions() == closed


@pytest.mark.parametrize("read_first", [True, False])
def test_zeros_for_a_lost_page_are_written_back_only_when_stored_to(
    domain: KvmDomain, owner_fd: int, guest: Guest, read_first: bool
) -> None:
    lease, backing = lend(domain, owner_fd, loss=LossPolicy.ZERO)
    os.ftruncate(owner_fd, 0)
    assert guest.read(WINDOW + PAGE_SIZE, 2) == b"\0\0"
    assert states(domain, lease)[1] == LOST
    if read_first:
        guest.read(WINDOW, 1)
    guest.write(WINDOW, b"new")
    os.ftruncate(owner_fd, PAGES * PAGE_SIZE)
    os.pwrite(owner_fd, b"saved", PAGE_SIZE)
    domain.revoke(lease)
    assert backing.writes == [0]
    assert os.pread(owner_fd, 5, 0) == b"new\0\0"
    assert os.pread(owner_fd, 5, PAGE_SIZE) == b"saved"


def test_a_backing_that_raises_what_it_should_not_is_a_loss(
    domain: KvmDomain, owner_fd: int, guest: Guest, caplog: pytest.LogCaptureFixture
) -> None:
    _, backing = lend(domain, owner_fd)

    def broken(page: int) -> None:
        raise ZeroDivisionError

    backing.before_read = broken
    refused_at(guest, WINDOW)
    assert "ZeroDivisionError" in caplog.text


# -- a guest that has nothing of its own

#: Adds up the first words of pages 16..31 into eax, 10000 times, over the stack; counts at 0x2000, leaves the sum at 0x2004.
#: The same bytes mean the same in 32 and in 64 bits.
ADD_UP = bytes.fromhex(
    "b910270000"  # mov ecx, 10000
    "be00000100"  # again: mov esi, 0x10000
    "ba10000000"  # mov edx, 16
    "0306"  # page: add eax, [esi]
    "50"  # push eax
    "58"  # pop eax
    "81c600100000"  # add esi, 0x1000
    "ffca"  # dec edx
    "75f2"  # jnz page
    "ff042500200000"  # inc dword [0x2000]
    "ffc9"  # dec ecx
    "75dd"  # jnz again
    "89042504200000"  # mov [0x2004], eax
    "f4"  # hlt
)
#: Of a guest's 32 pages: its code, what it writes, its stack, its page tables (one 2 MiB page, identity).
CODE_AT, STACK_AT, TABLES_AT = 0x1000, 0x4000, 0x5000
MEMORY_PAGES = 32


@pytest.mark.parametrize("mode", ["flat", "long"])
def test_a_guest_whose_entire_memory_is_lent(mode: str) -> None:
    memory_fd = os.memfd_create("memory", os.MFD_CLOEXEC)
    os.ftruncate(memory_fd, MEMORY_PAGES * PAGE_SIZE)
    os.pwrite(memory_fd, ADD_UP, CODE_AT)
    for page in range(16, 32):
        os.pwrite(memory_fd, struct.pack("<I", page), page * PAGE_SIZE)
    os.pwrite(memory_fd, page_tables(TABLES_AT, 2 << 20), TABLES_AT)
    with opened(KvmDomain, aperture_pages=MEMORY_PAGES) as domain:
        lease = domain.lend(FileBacking(os.dup(memory_fd), writable=True), protection=Protection.READ_WRITE)
        with Guest(domain, own_memory=False) as guest:
            if mode == "long":
                guest.vcpus[0].enter_long_mode(TABLES_AT)
            run = guest.begin(rip=CODE_AT, rsp=STACK_AT)
            revocations = 0
            while run.running:
                wait_until(lambda: lease.pages_present >= 19 or not run.running, "code, stack and data come again")
                domain.revoke_all()
                revocations += 1
            assert run.exit().kind is ExitKind.HALTED
            domain.end(lease)
    assert revocations > 3
    assert word_in(memory_fd, 2) == 10000
    assert struct.unpack("<I", os.pread(memory_fd, 4, 0x2004))[0] == 10000 * sum(range(16, 32))
    os.close(memory_fd)
