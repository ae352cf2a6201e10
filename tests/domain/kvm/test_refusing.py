"""What a KVM guest is refused: what nobody lends, what it may only read, what is lost; and a guest of lent memory alone."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import pytest

from tests.domain.borrowers import opened
from tests.domain.guests import WINDOW, Guest, page_tables
from tests.domain.kvm.lent import PAGES, lend, states, word_in
from tests.processes import wait_until
from waylend.backing.file import FileBacking
from waylend.domain.kvm.domain import KvmDomain
from waylend.domain.kvm.vm import ExitKind
from waylend.errors import NoSpace
from waylend.lending.lease import LOST, LossPolicy, Protection
from waylend.lending.pages import PAGE_SIZE, PageRange


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
