"""What the KVM domain does beyond the contract: page tables, dirty pages, refusals, vCPUs. Guests are in ``guests``."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable

import pytest

from tests.domain.guests import COUNT, MAILBOX, SCRATCH, SPIN_READ, SPIN_WRITE, WATCH, WINDOW, Guest
from tests.domain.kvm.lent import PAGES, Stopper, WatchedBacking, lend, states, word_in
from tests.processes import wait_until
from waylend.domain.kvm.domain import KvmDomain
from waylend.domain.kvm.vm import ExitKind
from waylend.errors import BackingLost
from waylend.lending.lease import DIRTY, PRESENT, Protection
from waylend.lending.p2m import LendingEvent, LendingEventKind
from waylend.lending.pages import PAGE_SIZE, PageRange

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
