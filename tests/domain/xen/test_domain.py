"""The model of Xen: vCPUs that wait, what a lender may do, and what lent memory is not good for."""

from __future__ import annotations

import errno
import itertools
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from tests.domain.borrowers import file_backing_fd
from tests.processes import wait_until
from waylend.backing.file import FileBacking
from waylend.domain.xen.operations import HypercallError
from waylend.lending.lease import BackingIndex, Protection
from waylend.lending.pages import PAGE_SHIFT, PAGE_SIZE, PageRange
from waylend.models.vram import VramHeap
from waylend.models.xen_domain import XenModelDomain
from waylend.models.xen_guest import GuestDomain, GuestFault
from waylend.models.xen_hypervisor import Hypervisor, LendingFd

LENT = PageRange(0x1000, 0x1004)
AT = LENT.start << PAGE_SHIFT
RAM_GFN = 1
CONTENT = b"\x11" * PAGE_SIZE


@pytest.fixture
def hypervisor() -> Hypervisor:
    return Hypervisor()


@pytest.fixture
def guest(hypervisor: Hypervisor) -> GuestDomain:
    return hypervisor.create_domain(ram_pages=4)


@pytest.fixture
def lending(hypervisor: Hypervisor, guest: GuestDomain) -> LendingFd:
    """A domain with four lent pages, the first of which is there."""
    lending = hypervisor.open_lending(0, guest.domain_id)
    lending.lend(LENT, writable=True)
    lending.resolve(LENT.start, CONTENT)
    return lending


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(HypercallError) as caught:
        call()
    return errno.errorcode[caught.value.errno]


# vCPUs


def test_vcpu_pauses_at_an_absent_page_and_goes_on_with_what_the_lender_brings(
    guest: GuestDomain, lending: LendingFd
) -> None:
    vcpu = guest.add_vcpu()
    assert vcpu.touch(AT) == b"\x11"
    assert vcpu.touch(AT + PAGE_SIZE, content=b"x") is None
    assert vcpu.paused_at == LENT.start + 1
    assert lending.next_fault(0) == (vcpu.vcpu_id, LENT.start + 1, True)
    lending.resolve(LENT.start + 1, bytes(PAGE_SIZE))
    assert vcpu.paused_at is None
    assert vcpu.touch(AT + PAGE_SIZE, content=b"x") == b"x"
    assert lending.next_fault(0) is None


def test_one_fault_is_told_for_all_that_wait_at_a_page(guest: GuestDomain, lending: LendingFd) -> None:
    vcpus = [guest.add_vcpu() for _ in range(3)]
    assert [vcpu.touch(AT + PAGE_SIZE) for vcpu in vcpus] == [None] * 3
    assert lending.next_fault(0) is not None
    assert lending.next_fault(0) is None
    lending.resolve(LENT.start + 1, CONTENT)
    assert {vcpu.paused_at for vcpu in vcpus} == {None}


def test_access_across_pages_waits_for_each(guest: GuestDomain, lending: LendingFd) -> None:
    vcpu = guest.add_vcpu()
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(vcpu.read(AT + PAGE_SIZE - 2, 4)))
    reader.start()
    fault = lending.next_fault(10)
    assert fault is not None
    lending.resolve(fault.gfn, b"\x22" * PAGE_SIZE)
    reader.join(10)
    assert found == [b"\x11\x11\x22\x22"]


def test_revoking_takes_pages_from_every_vcpu_and_brings_back_what_was_written(
    guest: GuestDomain, lending: LendingFd
) -> None:
    vcpu = guest.add_vcpu()
    vcpu.touch(AT + 5, content=b"dirty")
    ((gfn, content),) = lending.revoke(LENT)
    assert (gfn, content[5:10]) == (LENT.start, b"dirty")
    assert vcpu.touch(AT) is None
    assert lending.revoke(LENT) == []


def test_cleaning_leaves_the_pages_and_tells_each_store_once(guest: GuestDomain, lending: LendingFd) -> None:
    vcpu = guest.add_vcpu()
    vcpu.touch(AT, content=b"a")
    assert len(lending.clean(LENT)) == 1
    assert lending.clean(LENT) == []
    vcpu.touch(AT, content=b"b")
    assert [content[:1] for _, content in lending.clean(LENT)] == [b"b"]


def test_lost_page_is_a_fault_in_the_guest_until_it_is_revoked(guest: GuestDomain, lending: LendingFd) -> None:
    vcpu = guest.add_vcpu()
    lending.fail(LENT.start + 1)
    with pytest.raises(GuestFault):
        vcpu.touch(AT + PAGE_SIZE)
    lending.revoke(LENT)
    assert vcpu.touch(AT + PAGE_SIZE) is None


def test_read_only_page_and_no_memory_are_faults(guest: GuestDomain, lending: LendingFd) -> None:
    lending.lend(PageRange(0x2000, 0x2001), writable=False)
    vcpu = guest.add_vcpu()
    for address, content in ((0x2000 << PAGE_SHIFT, b"x"), (0x3000 << PAGE_SHIFT, None)):
        with pytest.raises(GuestFault):
            vcpu.touch(address, content=content)


def test_killed_vcpu_waits_for_nothing(guest: GuestDomain, lending: LendingFd) -> None:
    vcpu = guest.add_vcpu()
    vcpu.touch(AT + PAGE_SIZE)
    vcpu.kill()
    lending.resolve(LENT.start + 1, CONTENT)
    assert guest.waiting == {}


# The capability


def test_only_who_controls_a_domain_may_lend_to_it_and_only_one_at_a_time(hypervisor: Hypervisor) -> None:
    guest = hypervisor.create_domain()
    stranger = hypervisor.create_domain()
    assert refused(lambda: hypervisor.open_lending(stranger.domain_id, guest.domain_id)) == "EPERM"
    assert refused(lambda: hypervisor.open_lending(0, 99)) == "ESRCH"
    lending = hypervisor.open_lending(0, guest.domain_id)
    assert refused(lambda: hypervisor.open_lending(0, guest.domain_id)) == "EBUSY"
    lending.close()
    hypervisor.open_lending(0, guest.domain_id)
    # A driver domain controls what it made, and dom0 needn't.
    child = hypervisor.create_domain(stranger.domain_id)
    hypervisor.open_lending(stranger.domain_id, child.domain_id)
    assert refused(lambda: hypervisor.open_lending(0, child.domain_id)) == "EPERM"


def test_capability_reaches_lent_memory_of_its_domain_and_nothing_else(guest: GuestDomain, lending: LendingFd) -> None:
    ram = PageRange(RAM_GFN, RAM_GFN + 1)
    assert refused(lambda: lending.resolve(RAM_GFN, CONTENT)) == "EINVAL"
    assert refused(lambda: lending.fail(RAM_GFN)) == "EINVAL"
    assert refused(lambda: lending.revoke(ram)) == "EINVAL"
    assert refused(lambda: lending.end(ram)) == "EINVAL"
    assert refused(lambda: lending.end(PageRange(LENT.start, LENT.start + 1))) == "EINVAL"
    assert refused(lambda: lending.lend(ram, writable=True)) == "EEXIST"
    assert refused(lambda: lending.lend(LENT, writable=True)) == "EEXIST"
    for nothing in (PageRange(9, 9), PageRange(-1, 1)):
        assert refused(partial(lending.lend, nothing, writable=True)) == "EINVAL"


def test_refused_revocation_takes_nothing(guest: GuestDomain, lending: LendingFd) -> None:
    beyond = PageRange(LENT.start, LENT.end + 1)
    vcpu = guest.add_vcpu()
    vcpu.touch(AT, content=b"x")
    assert refused(lambda: lending.revoke(beyond)) == "EINVAL"
    assert vcpu.touch(AT) == b"x"
    assert len(lending.revoke(LENT)) == 1


def test_page_is_replaced_only_after_it_was_revoked(guest: GuestDomain, lending: LendingFd) -> None:
    guest.add_vcpu().touch(AT, content=b"written")
    assert refused(lambda: lending.resolve(LENT.start, CONTENT)) == "EEXIST"
    assert refused(lambda: lending.fail(LENT.start)) == "EEXIST"
    assert len(lending.revoke(LENT)) == 1
    for short in (b"", CONTENT[1:], CONTENT + b"x"):
        assert refused(partial(lending.resolve, LENT.start, short)) == "EINVAL"
    lending.resolve(LENT.start, CONTENT)


def test_access_stays_within_its_page(guest: GuestDomain, lending: LendingFd) -> None:
    vcpu = guest.add_vcpu()
    with pytest.raises(ValueError, match="crosses a page's end"):
        vcpu.touch(AT + PAGE_SIZE - 1, content=b"xy")
    with pytest.raises(ValueError, match="crosses a page's end"):
        vcpu.touch(AT + PAGE_SIZE - 1, 2)


def test_closing_it_ends_all_that_was_lent(guest: GuestDomain, lending: LendingFd) -> None:
    vcpu = guest.add_vcpu()
    vcpu.touch(AT + PAGE_SIZE)
    lending.close()
    assert vcpu.paused_at is None
    with pytest.raises(GuestFault):
        vcpu.touch(AT)
    assert refused(lambda: lending.lend(LENT, writable=True)) == "ESTALE"


def test_dead_domain_holds_up_nothing(hypervisor: Hypervisor, guest: GuestDomain, lending: LendingFd) -> None:
    vcpu, waiting = guest.add_vcpu(), guest.add_vcpu()
    vcpu.touch(AT, content=b"mine")
    waiting.touch(AT + PAGE_SIZE)
    hypervisor.destroy_domain(guest.domain_id)
    assert waiting.paused_at is None
    for address in (AT, RAM_GFN << PAGE_SHIFT):
        with pytest.raises(GuestFault):
            vcpu.touch(address)
    assert refused(lambda: hypervisor.destroy_domain(guest.domain_id)) == "ESRCH"
    assert refused(lambda: lending.resolve(LENT.start + 1, CONTENT)) == "ESTALE"
    assert lending.next_fault(10) is None
    ((gfn, content),) = lending.revoke(LENT)
    assert (gfn, content[:4]) == (LENT.start, b"mine"), "what it wrote is the lender's"
    assert lending.revoke(LENT) == []
    lending.end(LENT)


# What lent memory is not good for


def test_hypercalls_see_lent_memory_as_absent(hypervisor: Hypervisor, guest: GuestDomain, lending: LendingFd) -> None:
    ram = RAM_GFN << PAGE_SHIFT
    hypervisor.copy_to_guest(guest.domain_id, ram, b"result")
    assert hypervisor.copy_from_guest(guest.domain_id, ram, 6) == b"result"
    for address in (AT, AT + PAGE_SIZE):  # present or not
        assert refused(partial(hypervisor.copy_from_guest, guest.domain_id, address, 6)) == "EFAULT"
        assert refused(partial(hypervisor.copy_to_guest, guest.domain_id, address, b"x")) == "EFAULT"
    assert lending.next_fault(0) is None, "the lender isn't asked for a page"


@pytest.mark.parametrize("present", [True, False])
def test_lent_memory_goes_no_further(
    hypervisor: Hypervisor, guest: GuestDomain, lending: LendingFd, present: bool
) -> None:
    gfn = LENT.start + (not present)
    other = hypervisor.create_domain()
    ways: list[Callable[[int], object]] = [
        lambda gfn: hypervisor.grant(guest.domain_id, gfn, other.domain_id),
        lambda gfn: hypervisor.map_foreign(0, guest.domain_id, gfn),
        lambda gfn: hypervisor.lend_onwards(guest.domain_id, gfn),
        lambda gfn: hypervisor.map_in_iommu(guest.domain_id, gfn),
    ]
    for way in ways:
        way(RAM_GFN)
        assert refused(partial(way, gfn)) == "EPERM"
    assert guest.iommu == {RAM_GFN}
    assert refused(lambda: hypervisor.map_foreign(other.domain_id, guest.domain_id, RAM_GFN)) == "EPERM"


def test_borrower_migrates_only_with_its_lender(hypervisor: Hypervisor, guest: GuestDomain, lending: LendingFd) -> None:
    assert refused(lambda: hypervisor.save(guest.domain_id)) == "EBUSY"
    other = hypervisor.open_lending(0, hypervisor.create_domain().domain_id)
    assert refused(lambda: hypervisor.save(guest.domain_id, lender=other)) == "EBUSY"
    assert set(hypervisor.save(guest.domain_id, lender=lending)) == {0, 1, 2, 3}, "lent pages stay behind"
    lending.end(LENT)
    hypervisor.save(guest.domain_id)


# The lender's side


@pytest.fixture
def domain() -> Iterator[XenModelDomain]:
    domain = XenModelDomain("xen", aperture_pages=1024)
    yield domain
    domain.close()


def test_gpu_buffer_that_moves_is_followed(domain: XenModelDomain) -> None:
    heap = VramHeap(vram_pages=8, visible_pages=4, system_pages=8)
    buffer = heap.allocate(4)
    buffer.draw(PageRange(0, 4), CONTENT * 4)
    lease = domain.lend(buffer, protection=Protection.READ_WRITE)
    assert domain.guest is not None
    vcpu = domain.guest.add_vcpu()
    address = domain.guest_address(lease)
    assert vcpu.read(address, 4) == b"\x11" * 4
    vcpu.write(address, b"mine")
    heap.evict(buffer)
    assert lease.pages_present == 0
    assert vcpu.read(address, 5) == b"mine\x11"
    heap.unplug()
    with pytest.raises(GuestFault):
        vcpu.read(address, 1)
    domain.end(lease)
    heap.close()


def test_domain_that_dies_takes_its_leases_along_without_a_word(domain: XenModelDomain) -> None:
    hypervisor = Hypervisor()
    guest = hypervisor.create_domain()
    lender = XenModelDomain("d", aperture_pages=64, operations=hypervisor.open_lending(0, guest.domain_id))
    owner_fd = file_backing_fd(4)
    backing = FileBacking(os.dup(owner_fd), writable=True)
    lease = lender.lend(backing, protection=Protection.READ_WRITE)
    guest.add_vcpu().write(lender.guest_address(lease), b"last words")
    hypervisor.destroy_domain(guest.domain_id)
    assert lender.revoke(lease) == 1
    assert os.pread(owner_fd, 11, 0) == b"last words\1"
    lender.close()
    os.close(owner_fd)


def test_fault_that_is_served_after_its_lease_has_gone_ends_too() -> None:
    hypervisor = Hypervisor()
    guest = hypervisor.create_domain()
    lending = hypervisor.open_lending(0, guest.domain_id)
    domain = XenModelDomain("xen", aperture_pages=64, operations=lending, thread_count=0)
    lease = domain.lend(FileBacking(file_backing_fd(1)))
    lending.lend(PageRange(0x10, 0x11), writable=False)  # not by the domain, which knows nothing of it
    early, stray = guest.add_vcpu(), guest.add_vcpu()
    assert early.touch(domain.guest_address(lease)) is None
    assert stray.touch(0x10 << PAGE_SHIFT) is None
    domain.end(lease)
    assert early.paused_at is None, "its end wakes whoever waits"
    assert domain.serve_pending() == 2
    assert stray.paused_at is None
    with pytest.raises(GuestFault):
        early.touch(domain.guest_address(lease))
    domain.close()


def test_vcpu_gets_a_fault_when_serving_it_goes_wrong(domain: XenModelDomain, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = domain.lend(FileBacking(file_backing_fd(1)))
    assert domain.guest is not None
    vcpu = domain.guest.add_vcpu()

    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(domain, "_lent_at", broken)
        with pytest.raises(GuestFault):
            vcpu.read(domain.guest_address(lease), 1)
    domain.revoke(lease)
    assert vcpu.read(domain.guest_address(lease), 1) == b"\1"


def test_no_vcpu_sees_a_page_older_than_what_was_acknowledged() -> None:
    """Three vCPUs read a buffer while its card moves it, evicts it and draws into it; two threads serve.

    A page that was read from the card is long on its way to the guest, so that much comes between.
    """
    domain = XenModelDomain("xen", aperture_pages=64, thread_count=2)
    assert domain.guest is not None
    card = VramHeap(vram_pages=16, visible_pages=8, system_pages=8)
    buffer = card.allocate(8)
    read = buffer.read

    def read_slowly(pages: PageRange) -> bytes:
        content = read(pages)
        time.sleep(0.0005)
        return content

    buffer.read = read_slowly  # type: ignore[method-assign]
    address = domain.guest_address(domain.lend(buffer))
    acknowledged = [0] * 8
    stale: list[tuple[int, int, int]] = []
    stopping, chance = threading.Event(), random.Random(1)
    reads = [0] * 3

    def watch(number: int) -> None:
        assert domain.guest is not None
        vcpu = domain.guest.add_vcpu()
        for page in itertools.cycle(range(8)):
            if stopping.is_set():
                return
            oldest = acknowledged[page]
            found = int.from_bytes(vcpu.read(address + page * PAGE_SIZE, 8), "little")
            if found < oldest:
                stale.append((page, found, oldest))
            reads[number] += 1

    readers = [threading.Thread(target=watch, args=(number,)) for number in range(3)]
    for reader in readers:
        reader.start()
    moves = itertools.cycle((card.evict, card.bring_back, card.shuffle))
    deadline_s = time.monotonic() + 30
    generation = 0
    while generation < 300 or min(reads) < 100:
        assert time.monotonic() < deadline_s, "the vCPUs get on"
        generation += 1
        page = generation % 8
        buffer.draw(PageRange(page, page + 1), generation.to_bytes(8, "little") * (PAGE_SIZE // 8))
        acknowledged[page] = generation
        next(moves)(buffer)
        time.sleep(chance.uniform(0, 0.002))  # anywhere in somebody's fault
    stopping.set()
    for reader in readers:
        reader.join(30)
        assert not reader.is_alive(), "a vCPU waits for good"
    assert stale == []
    assert card.stats.moves >= 200
    domain.close()
    card.close()


def test_many_domains_with_many_leases() -> None:
    """A fiftieth of what the model is made for, with one lender that serves them all by itself."""
    hypervisor, index = Hypervisor(), BackingIndex()
    lenders = []
    for number in range(20):
        guest = hypervisor.create_domain()
        lender = XenModelDomain(
            f"d{number}",
            aperture_pages=1000,
            thread_count=0,
            by_backing=index,
            operations=hypervisor.open_lending(0, guest.domain_id),
        )
        backing = FileBacking(file_backing_fd(1))
        for _ in range(1000):
            lender.lend(backing)
        lenders.append((guest, lender))
    for guest, lender in lenders:
        vcpu = guest.add_vcpu()
        for page in range(0, 1000, 100):
            address = (lender.first_gfn + page) << PAGE_SHIFT
            assert vcpu.touch(address) is None
            assert lender.serve_pending() == 1
            assert vcpu.touch(address) == b"\x01"
    assert len(index) == 20_000
    for _, lender in lenders:
        assert lender.revoke_all() == 10
        lender.close()
    assert len(index) == 0


def test_waiting_lender_ends_with_close(domain: XenModelDomain) -> None:
    domain.close()
    wait_until(lambda: not any(thread.is_alive() for thread in domain._threads), "its threads")
