"""KvmDomain: a borrower that is a KVM guest of this very process: its VMM, or one that embeds us.

The aperture is a range of our addresses (``guest_range``) that any number of our virtual machines map with one persistent
memory slot each. The guest's first touch of a page is a userfaultfd event: the vCPU stands still until the page is
copied in from the backing. Taking pages away is a punched hole: MMU notifiers carry it into the guest before it
returns, whatever the guest does, so no revocation waits for a borrower. Stores are caught by write protection on their
first time, so the book knows which pages are dirty; these are read back, when the guest can't write to them any more
and before they go, through the memfd behind the window.

An access to what isn't lent, a store to a read-only lease, and a page lost under the policy ``fault`` bring
the vCPU back to its owner: KVM_RUN ends with EFAULT, EHWPOISON, KVM_EXIT_MEMORY_FAULT, or KVM_EXIT_MMIO within the slot, as the
kernel and its processor have it (``vm`` tells them as ExitKind.REFUSED).

What the borrower can't do (docs/lending.md, "Restrictions") follows from what it has, guest addresses: it has no descriptor and
no name for the pages, so it can't pass them on; host system calls never take its pointers; read-only leases are
write-protected in our page tables, from which its own are made; devices reach the window only where the VMM maps it for them,
which it must not. It can't outlive its lender, which is the process that it lives in.

Two rules for the VMM: run vCPUs so that the interpreter lock isn't held meanwhile (``vm.KvmVcpu.run`` does), and
never touch the window through the mapping.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Unpack

from waylend.domain.in_process import BookOptions
from waylend.domain.kvm.aperture import KvmAperture
from waylend.domain.kvm.vm import open_kvm, set_memory_slot
from waylend.domain.machine import MachineDomain, MachineRange
from waylend.errors import LeaseEnded, NoSpace
from waylend.lending.lease import Lease
from waylend.lending.pages import PAGE_SHIFT, PageRange
from waylend.linux import PROT_NONE, PROT_READ, PROT_READ_WRITE

logger = logging.getLogger(__name__)


class KvmDomain(MachineDomain):
    """See ``Domain``. Raises Unavailable, with reason and remedy, where KVM or userfaultfd is not to be had.

    ``attach`` maps the aperture into a virtual machine. ``thread_count`` threads serve its faults. For the rest: BookOptions.
    """

    mechanism = "kvm"

    def __init__(
        self,
        name: str,
        *,
        thread_count: int = 2,
        **book: Unpack[BookOptions],
    ) -> None:
        super().__init__(
            name,
            **book,
        )
        self._attached: list[tuple[int, int]] = []  # (descriptor of the virtual machine, slot)
        os.close(open_kvm())
        self._aperture = KvmAperture(
            self._table.aperture_pages, self._p2m, self._lent_at, name=name, thread_count=thread_count
        )

    # -- the VMM's side

    @property
    def size_bytes(self) -> int:
        """Of the aperture, as a memory slot or a device's BAR has it."""
        return self._table.aperture_pages << PAGE_SHIFT

    @property
    def host_address(self) -> int:
        """Where the aperture is in this process, for a VMM that maps it in another way. Never to be touched holding
        the interpreter lock.
        """
        return self._aperture.window.address

    def attach(self, vm_fd: int, *, slot: int, guest_address: int) -> Callable[[], None]:
        """Maps the aperture into a virtual machine of this process: gfn 0 at ``guest_address``, in memory slot ``slot``.

        The slot stays as it is while pages come and go. Returns the way to end it, for which leases that end when unused
        wait; ``close`` ends it too. Raises LeaseEnded, OSError.
        """
        with self._lock:
            if self._closed:
                raise LeaseEnded(f"domain {self.name} is closed")
            attached = (os.dup(vm_fd), slot)
            try:
                set_memory_slot(vm_fd, slot, guest_address, self.size_bytes, self._aperture.window.address)
            except BaseException:
                os.close(attached[0])
                raise
            self._attached.append(attached)
        return lambda: self._detach(attached)

    def _detach(self, attached: tuple[int, int]) -> None:
        with self._lock:
            if attached not in self._attached:
                return
            self._attached.remove(attached)
            unused = [] if self._attached else self._unused()
        vm_fd, slot = attached
        try:
            set_memory_slot(vm_fd, slot, 0, 0, 0)
        finally:
            os.close(vm_fd)
        for lease in unused:
            self.end(lease)

    def close(self) -> None:
        if not self._end_all():
            return
        with self._lock:
            attached = list(self._attached)
        self._aperture.stop_serving()
        for each in attached:  # only now: KVM waits for vCPUs that wait for a page
            self._detach(each)
        self._aperture.window.close()

    # -- what the mechanism does

    def _open_range(self, lease: Lease) -> None:
        window = self._aperture.window
        try:
            window.drop_marks(lease.gfns)
            window.permit(lease.gfns, PROT_READ_WRITE if lease.writable else PROT_READ)
        except OSError as error:  # vm.max_map_count
            raise NoSpace(f"the kernel has no room for another range of addresses: {error}") from error

    def _close_range(self, lease: Lease) -> None:
        try:
            self._aperture.window.permit(lease.gfns, PROT_NONE)
        except OSError:  # vm.max_map_count: an access is a fault then, which nobody's page answers
            logger.exception("domain %s, lease %d: closing its addresses", self.name, lease.lease_id)

    def _take(self, lent: MachineRange, pages: PageRange) -> int:
        return self._aperture.take(lent, pages)

    def _write_back(self, lent: MachineRange) -> None:
        self._aperture.write_back(lent)

    def _wake(self, lease: Lease) -> None:
        self._aperture.wake(lease, PageRange(0, lease.page_count))

    def _in_use(self) -> bool:
        return bool(self._attached)
