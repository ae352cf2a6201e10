"""KvmDomain: a borrower that is a KVM guest of this very process: its VMM, or one that embeds us.

The aperture is a range of our addresses (``window``) that any number of our virtual machines map with one persistent
memory slot each. The guest's first touch of a page is a userfaultfd event: the vCPU stands still until the page is
copied in from the backing. Taking pages away is a punched hole: MMU notifiers carry it into the guest before it
returns, whatever the guest does, so no revocation waits for a borrower. Stores are caught by write protection on their
first time, so the book knows which pages are dirty; these are read back, when the guest can't write to them any more
and before they go, through the memfd behind the window.

An access to what isn't lent, a store to a read-only lease, and a page lost under the policy ``fault`` bring
the vCPU back to its owner: KVM_RUN ends with EFAULT, EHWPOISON, KVM_EXIT_MEMORY_FAULT, or KVM_EXIT_MMIO within the slot, as the
kernel and its processor have it (``kvm_vm`` tells them as ExitKind.REFUSED).

What the borrower can't do (DESIGN 4.6) follows from what it has, guest addresses: it has no descriptor and no name
for the pages, so it can't pass them on; host system calls never take its pointers; read-only leases are
write-protected in our page tables, from which its own are made; devices reach the window only where the VMM maps it for them,
which it must not. It can't outlive its lender, which is the process that it lives in.

Two rules for the VMM: run vCPUs so that the interpreter lock isn't held meanwhile (``kvm_vm.Vcpu.run`` does), and
never touch the window through the mapping.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

from waylend.backing.base import Backing
from waylend.domain.base import DomainStats, LeaseStats, check_range
from waylend.domain.kvm_aperture import Aperture, Lent
from waylend.domain.kvm_vm import open_kvm, set_memory_slot
from waylend.domain.window import PROT_NONE, PROT_READ, PROT_READ_WRITE
from waylend.errors import LeaseEnded, NoSpace, Unavailable
from waylend.lending.lease import BackingIndex, Lease, LeaseState, LeaseTable, LossPolicy, Protection
from waylend.lending.p2m import P2M, EventKind, EventLog
from waylend.lending.pages import PAGE_SHIFT, PageRange

log = logging.getLogger(__name__)


class _Holding:
    """A backing that this domain owns, and how many leases stand on it."""

    def __init__(self, unsubscribe: Callable[[], None]) -> None:
        self.unsubscribe = unsubscribe
        self.lease_count = 0


class KvmDomain:
    """See ``Domain``. Raises Unavailable, with reason and remedy, where KVM or userfaultfd is not to be had.

    ``attach`` maps the aperture into a virtual machine. ``read_only`` refuses writable leases. ``by_backing`` is an
    index to share with other domains of the same lender.
    """

    mechanism = "kvm"

    def __init__(
        self,
        name: str,
        *,
        aperture_pages: int = (256 << 20) >> PAGE_SHIFT,
        read_only: bool = False,
        lease_limit: int = 1024,
        page_limit: int | None = None,
        thread_count: int = 2,
        by_backing: BackingIndex | None = None,
    ) -> None:
        self.name = name
        self.events = EventLog()
        self._p2m = P2M(self.events)
        self._lock = self._p2m.lock
        self._table = LeaseTable(
            name, aperture_pages, lease_limit=lease_limit, page_limit=page_limit, by_backing=by_backing
        )
        self._read_only = read_only
        #: By lease id; a lease that ends stays here until nothing of it is in use any more.
        self._lent: dict[int, Lent] = {}
        self._holdings: dict[int, _Holding] = {}
        self._attached: list[tuple[int, int]] = []  # (descriptor of the virtual machine, slot)
        self._closed = False
        #: Told when a taker of pages is through, or a lease has gone.
        self._settled = threading.Condition(self._lock)
        os.close(open_kvm())
        self._aperture = Aperture(aperture_pages, self._p2m, self._lent_at, name=name, thread_count=thread_count)

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
            unused = [] if self._attached else [lease for lease in self._table if lease.state is LeaseState.ENDING]
        vm_fd, slot = attached
        try:
            set_memory_slot(vm_fd, slot, 0, 0, 0)
        finally:
            os.close(vm_fd)
        for lease in unused:
            self.end(lease)

    # -- the lender's side

    def lend(
        self,
        backing: Backing,
        *,
        offset_bytes: int = 0,
        size_bytes: int | None = None,
        protection: Protection = Protection.READ,
        loss: LossPolicy = LossPolicy.FAULT,
        name: str = "",
    ) -> Lease:
        if size_bytes is None:
            size_bytes = backing.size_bytes - offset_bytes
        check_range(backing, offset_bytes, size_bytes)
        if protection is Protection.READ_WRITE and (self._read_only or not backing.writable):
            raise ValueError("can't lend for writing: the domain or the backing is read-only")
        with self._lock:
            if self._closed:
                raise LeaseEnded(f"domain {self.name} is closed")
            lease = self._table.add(
                backing_key=backing.key,
                backing_start=offset_bytes >> PAGE_SHIFT,
                size_bytes=size_bytes,
                protection=protection,
                loss=loss,
                name=name,
            )
            window = self._aperture.window
            try:
                window.drop_marks(lease.gfns)
                window.permit(lease.gfns, PROT_READ_WRITE if lease.writable else PROT_READ)
            except OSError as error:  # vm.max_map_count
                self._table.remove(lease)
                raise NoSpace(f"the kernel has no room for another range of addresses: {error}") from error
            holding = self._holdings.get(id(backing))
            if holding is None:
                key = backing.key
                unsubscribe = backing.subscribe(lambda pages: self._on_invalidate(key, pages))
                holding = self._holdings[id(backing)] = _Holding(unsubscribe)
            holding.lease_count += 1
            self._lent[lease.lease_id] = Lent(lease, backing)
        self.events.emit(EventKind.LENT, lease, PageRange(0, lease.page_count))
        return lease

    def open_lease(self, lease: Lease) -> int:
        """A guest borrows by address: there is no descriptor. Raises LeaseEnded, else Unavailable."""
        with self._taking(lease):
            raise Unavailable(
                "what is lent to a KVM guest has an address in the guest, no descriptor", "lend to processes by fuse"
            )

    def revoke(self, lease: Lease, pages: PageRange | None = None) -> int:
        """See ``Domain``. ``pages`` (from 0) takes only a part. Raises LeaseEnded."""
        if pages is None:
            pages = PageRange(0, lease.page_count)
        elif not PageRange(0, lease.page_count).contains(pages):
            raise ValueError(f"lease {lease.lease_id} has no pages {pages.start} to {pages.end}")
        with self._taking(lease) as lent:
            taken = self._aperture.take(lent, pages)
            with self._lock:
                lease.revocations += 1
        self.events.emit(EventKind.REVOKED, lease, pages)
        return taken

    def revoke_all(self) -> int:
        """Revokes every lease of the domain."""
        taken = 0
        for lease in self._leases():
            try:
                taken += self.revoke(lease)
            except LeaseEnded:
                pass  # in between
        return taken

    def sync(self, lease: Lease) -> None:
        """What the borrower has written so far is in the backing, and durable there where the backing has such a thing.

        The borrower keeps its pages. Raises LeaseEnded; BackingLost, and then they are still dirty.
        """
        with self._taking(lease) as lent:
            if lease.writable:
                self._aperture.write_back(lent)
                lent.backing.sync()

    def end(self, lease: Lease) -> None:
        with self._lock:
            lent = self._lent.get(lease.lease_id)
            if lent is None or lent.lease is not lease or lease.state is LeaseState.ENDED:
                return
            lease.state = LeaseState.ENDED
        try:
            self._aperture.window.permit(lease.gfns, PROT_NONE)
        except OSError:  # vm.max_map_count: an access is a fault then, which nobody's page answers
            log.exception("domain %s, lease %d: closing its addresses", self.name, lease.lease_id)
        try:
            self._aperture.take(lent, PageRange(0, lease.page_count))
        finally:
            self._forget(lent)
        self.events.emit(EventKind.ENDED, lease, PageRange(0, lease.page_count))

    def end_when_unused(self, lease: Lease) -> None:
        """See ``Domain``. A guest uses a lease for as long as the aperture is attached to a virtual machine."""
        with self._lock:
            if lease.state is LeaseState.ENDED:
                return
            lease.state = LeaseState.ENDING
            used = bool(self._attached)
        if not used:
            self.end(lease)

    def lease(self, lease_id: int) -> Lease | None:
        """The lease with that id, while it isn't over."""
        with self._lock:
            return self._table.by_id(lease_id)

    def stats(self) -> DomainStats:
        with self._lock:
            leases = tuple(LeaseStats.of(lease) for lease in self._table)
        return DomainStats(self.name, self.mechanism, self._table.aperture_pages, leases)

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
        for lease in self._leases():
            self.end(lease)
        with self._lock:
            while self._lent:  # being ended by others
                self._settled.wait()
            attached = list(self._attached)
        self._aperture.stop_serving()
        for each in attached:  # only now: KVM waits for vCPUs that wait for a page
            self._detach(each)
        self._aperture.window.close()

    # -- the book

    def _leases(self) -> list[Lease]:
        with self._lock:
            return list(self._table)

    def _lent_at(self, gfn: int) -> Lent | None:
        lease = self._table.at(gfn)
        return None if lease is None else self._lent[lease.lease_id]

    @contextmanager
    def _taking(self, lease: Lease) -> Iterator[Lent]:
        """Keeps the lease from going while its pages are taken. Raises LeaseEnded."""
        with self._lock:
            lent = self._lent.get(lease.lease_id)
            if lent is None or lent.lease is not lease or lease.state is LeaseState.ENDED:
                raise LeaseEnded(f"lease {lease.lease_id} of domain {self.name} is over")
            lent.takers += 1
        try:
            yield lent
        finally:
            with self._lock:
                lent.takers -= 1
                self._settled.notify_all()

    def _on_invalidate(self, key: Hashable, pages: PageRange) -> None:
        """Leases that are ending are taken too: nobody may have the pages when this returns."""
        with self._lock:
            all_lent = [self._lent[lease.lease_id] for lease in self._table.on_backing(key, pages)]
            for lent in all_lent:
                lent.takers += 1
        try:
            for lent in all_lent:
                self._aperture.take(lent, lent.lease.from_backing(pages))
        finally:
            with self._lock:
                for lent in all_lent:
                    lent.takers -= 1
                self._settled.notify_all()
        for lent in all_lent:
            self.events.emit(EventKind.REVOKED, lent.lease, lent.lease.from_backing(pages))

    def _forget(self, lent: Lent) -> None:
        """Takes an ended lease out of the book, and lets its backing go when no fault uses it any more."""
        lease, backing = lent.lease, lent.backing
        with self._lock:
            while lent.takers:
                self._settled.wait()
            self._table.remove(lease)
            holding = self._holdings[id(backing)]
            holding.lease_count -= 1
            last = not holding.lease_count
            if last:
                del self._holdings[id(backing)]
                if lease.faults_in_flight:
                    lease.on_idle = backing.close
        if last:
            holding.unsubscribe()
            if lease.on_idle is None:
                backing.close()
        self._aperture.wake(lease, PageRange(0, lease.page_count))
        with self._lock:
            del self._lent[lease.lease_id]
            self._settled.notify_all()
