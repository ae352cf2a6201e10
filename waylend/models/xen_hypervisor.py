"""A model of a hypervisor that lends memory between domains, as docs/lending.md has it.

It has what the design needs and no more: domains with a p2m, virtual CPUs that pause at a lent page that isn't there, the
lending hypercalls, and the other hypercalls in as far as they must know lent pages: copies from and to a guest, grants,
foreign mappings, the IOMMU, migration. The lender's interface is shaped after KVM's: a ``LendingFd`` is a capability for one
domain, like the descriptor of a virtual machine; ranges are like memory slots; a fault is told like KVM_EXIT_MEMORY_FAULT.

Where real hardware copies a pointer, this copies bytes: a lent page is a ``Frame`` that the lender fills. The domains themselves
are in ``xen_guest``. Errors are Linux's and Xen's numbers (``HypercallError``).
"""

from __future__ import annotations

import errno
import itertools

from waylend.domain.xen.operations import Dirtied, FaultRecord, HypercallError
from waylend.lending.pages import PAGE_SHIFT, PAGE_SIZE, PageRange
from waylend.models.xen_guest import Entry, Frame, GuestDomain, P2MType, pieces_of


class LendingFd:
    """The capability to lend to one domain, and to no other: the lender's hypercalls. Nothing is lent by it after ``close``.

    None of them waits for the borrower. Ranges are whole: what ``lend`` began, ``end`` ends. When the domain dies, what it
    wrote can still be taken by ``revoke`` and ``clean``; all else but ``end`` and ``close`` is ESTALE then.
    """

    def __init__(self, domain: GuestDomain) -> None:
        self._domain = domain
        self.closed = False

    def _check_open(self) -> None:
        if self.closed or self._domain.dead:
            raise HypercallError(errno.ESTALE, "the domain is gone, or the capability was closed")

    def lend(self, gfns: PageRange, *, writable: bool) -> None:
        """The domain may touch ``gfns`` from now on; none of them has a page. EEXIST where there is memory already.

        EINVAL for a range of nothing.
        """
        domain = self._domain
        with domain.lock:
            self._check_open()
            if not 0 <= gfns.start < gfns.end:
                raise HypercallError(errno.EINVAL, f"no range: gfns {gfns.start:#x} to {gfns.end:#x}")
            if any(gfn in domain.p2m for gfn in range(*gfns)):
                raise HypercallError(errno.EEXIST, f"there is memory between gfns {gfns.start:#x} and {gfns.end:#x}")
            domain.lent[gfns.start] = gfns
            for gfn in range(*gfns):
                domain.p2m[gfn] = Entry(P2MType.LENT_ABSENT, None, writable)

    def _lent(self, gfn: int) -> Entry:
        entry = self._domain.p2m.get(gfn)
        if entry is None or entry.kind is P2MType.RAM:
            raise HypercallError(errno.EINVAL, f"gfn {gfn:#x} is not lent")
        return entry

    def _vacant(self, gfn: int) -> Entry:
        self._check_open()
        entry = self._lent(gfn)
        if entry.frame is not None:
            raise HypercallError(errno.EEXIST, f"gfn {gfn:#x} has a page")
        return entry

    def resolve(self, gfn: int, content: bytes, *, dirty: bool = False) -> None:
        """Puts a page there; whoever waits for it goes on. EINVAL where nothing is lent, and for what isn't a page.

        EEXIST where a page is, which may have been written to (as UFFDIO_COPY has it): revoke it first.
        """
        if len(content) != PAGE_SIZE:
            raise HypercallError(errno.EINVAL, f"{len(content)} bytes are no page")
        with self._domain.lock:
            entry = self._vacant(gfn)
            entry.frame = Frame(content)
            entry.frame.dirty = dirty
            entry.kind = P2MType.LENT
            self._domain.let_go_on(gfn)

    def fail(self, gfn: int) -> None:
        """There is no page to be had: whoever touches it gets a fault, until it is revoked. EINVAL, EEXIST as ``resolve``."""
        with self._domain.lock:
            self._vacant(gfn).kind = P2MType.LENT_LOST
            self._domain.let_go_on(gfn)

    def retry(self, gfn: int) -> None:
        """Whoever waits there tries again, whatever is there now."""
        with self._domain.lock:
            self._domain.let_go_on(gfn)

    def revoke(self, gfns: PageRange) -> list[Dirtied]:
        """The pages are out of reach when this returns, in every vCPU; what was written to them comes back.

        Can't fail for what is lent, also when the domain is gone. EINVAL for a range that isn't: then nothing is taken.
        """
        found = []
        with self._domain.lock:
            if self.closed:
                return []  # everything went with it
            for gfn, entry in [(gfn, self._lent(gfn)) for gfn in range(*gfns)]:
                if entry.frame is not None and entry.frame.dirty:
                    found.append(Dirtied(gfn, bytes(entry.frame.content)))
                entry.frame, entry.kind = None, P2MType.LENT_ABSENT
        return found

    def clean(self, gfns: PageRange) -> list[Dirtied]:
        """What was written since the last time (as KVM_GET_DIRTY_LOG); the borrower keeps its pages."""
        found = []
        with self._domain.lock:
            for gfn in range(*gfns):
                frame = self._lent(gfn).frame
                if frame is not None and frame.dirty:
                    frame.dirty = False
                    found.append(Dirtied(gfn, bytes(frame.content)))
        return found

    def end(self, gfns: PageRange) -> None:
        """Nothing is lent there any more: whoever waits or comes gets a fault. EINVAL for what isn't one whole range."""
        domain = self._domain
        with domain.lock:
            if self.closed:
                return
            if domain.lent.get(gfns.start) != gfns:
                raise HypercallError(errno.EINVAL, f"nothing was lent from gfn {gfns.start:#x} to {gfns.end:#x}")
            self._end(gfns)

    def _end(self, gfns: PageRange) -> None:
        del self._domain.lent[gfns.start]
        for gfn in range(*gfns):
            del self._domain.p2m[gfn]
            self._domain.let_go_on(gfn)

    def next_fault(self, timeout_s: float | None = None) -> FaultRecord | None:
        """The next vCPU that waits; None after ``timeout_s``, when the domain is gone or the capability closed."""
        domain = self._domain
        with domain.changed:
            domain.changed.wait_for(lambda: domain.faults or self.closed or domain.dead, timeout_s)
            if self.closed or domain.dead or not domain.faults:
                return None
            return domain.faults.popleft()

    def close(self) -> None:
        """Ends all that was lent: a lender that dies leaves nothing behind. Idempotent."""
        with self._domain.changed:
            if self.closed:
                return
            self.closed = True
            for gfns in list(self._domain.lent.values()):
                self._end(gfns)
            self._domain.lending = None
            self._domain.changed.notify_all()


class Hypervisor:
    """All domains. Domain 0 may control those that it made, as any domain may that made others; nobody controls the machine."""

    def __init__(self) -> None:
        self._domains: dict[int, GuestDomain] = {}
        self._ids = itertools.count()
        self.create_domain(None)

    def create_domain(self, owner_id: int | None = 0, *, ram_pages: int = 0) -> GuestDomain:
        domain = GuestDomain(next(self._ids), ram_pages, owner_id)
        self._domains[domain.domain_id] = domain
        return domain

    def destroy_domain(self, domain_id: int) -> None:
        """Its memory and its vCPUs are gone. What is lent is the lender's: what was written there waits to be revoked. ESRCH."""
        domain = self._domain(domain_id)
        del self._domains[domain_id]
        with domain.changed:
            domain.dead = True
            domain.p2m = {gfn: entry for gfn, entry in domain.p2m.items() if entry.kind is not P2MType.RAM}
            domain.faults.clear()
            domain.changed.notify_all()
            vcpus = list(domain.vcpus)
        for vcpu in vcpus:
            vcpu.kill()

    def _domain(self, domain_id: int) -> GuestDomain:
        try:
            return self._domains[domain_id]
        except KeyError:
            raise HypercallError(errno.ESRCH, f"there is no domain {domain_id}") from None

    def open_lending(self, caller_id: int, domain_id: int) -> LendingFd:
        """The capability to lend to a domain: for whoever controls it, once at a time. EPERM, EBUSY, ESRCH."""
        domain = self._domain(domain_id)
        if domain.owner_id != caller_id:
            raise HypercallError(errno.EPERM, f"domain {caller_id} doesn't control domain {domain_id}")
        with domain.lock:
            if domain.lending is not None:
                raise HypercallError(errno.EBUSY, f"domain {domain_id} has a lender")
            domain.lending = lending = LendingFd(domain)
            return lending

    # -- what lent memory is not good for

    def copy_from_guest(self, domain_id: int, address: int, size_bytes: int) -> bytes:
        """A hypercall's argument that the guest points to. EFAULT in lent memory; no fault is told to the lender."""
        domain = self._domain(domain_id)
        with domain.lock:
            return b"".join(
                bytes(domain.ram(at >> PAGE_SHIFT).content[at % PAGE_SIZE : at % PAGE_SIZE + size])
                for at, size, _ in pieces_of(address, size_bytes)
            )

    def copy_to_guest(self, domain_id: int, address: int, content: bytes) -> None:
        """A hypercall's result. EFAULT in lent memory, before anything is written."""
        domain = self._domain(domain_id)
        with domain.lock:
            pieces = [
                (domain.ram(at >> PAGE_SHIFT), at % PAGE_SIZE, size, start)
                for at, size, start in pieces_of(address, len(content))
            ]
            for frame, offset_bytes, size, start in pieces:
                frame.content[offset_bytes : offset_bytes + size] = content[start : start + size]

    def grant(self, domain_id: int, gfn: int, to_id: int) -> Frame:
        """What domain ``to_id`` gets of a page that ``domain_id`` grants it. EPERM for lent memory: it isn't the granter's."""
        self._domain(to_id)
        return self._own_page(domain_id, gfn, "granted")

    def map_foreign(self, caller_id: int, domain_id: int, gfn: int) -> Frame:
        """A page of a domain, for whoever controls that. EPERM for lent memory, also for its lender."""
        if self._domain(domain_id).owner_id != caller_id:
            raise HypercallError(errno.EPERM, f"domain {caller_id} doesn't control domain {domain_id}")
        return self._own_page(domain_id, gfn, "mapped by others")

    def lend_onwards(self, domain_id: int, gfn: int) -> Frame:
        """A page that a domain, as a lender, would put into another's p2m. EPERM for lent memory."""
        return self._own_page(domain_id, gfn, "lent onwards")

    def map_in_iommu(self, domain_id: int, gfn: int) -> None:
        """A device may reach the page. EPERM for lent memory: nothing could take it back from a transfer under way."""
        self._own_page(domain_id, gfn, "given to a device")
        self._domain(domain_id).iommu.add(gfn)

    def _own_page(self, domain_id: int, gfn: int, what: str) -> Frame:
        domain = self._domain(domain_id)
        with domain.lock:
            entry = domain.p2m.get(gfn)
            if entry is None or (entry.frame is None and entry.kind is P2MType.RAM):
                raise HypercallError(errno.EINVAL, f"domain {domain_id} has no page at gfn {gfn:#x}")
            if entry.kind is not P2MType.RAM:
                raise HypercallError(errno.EPERM, f"gfn {gfn:#x} is lent: it can't be {what}")
            assert entry.frame is not None
            return entry.frame

    def save(self, domain_id: int, *, lender: LendingFd | None = None) -> dict[int, bytes]:
        """A domain's own memory, to be sent elsewhere. EBUSY while something is lent, unless its lender takes part.

        With its lender the ranges stay behind: where it goes, another lender must lend anew.
        """
        domain = self._domain(domain_id)
        with domain.lock:
            if domain.lent and (lender is None or lender is not domain.lending):
                raise HypercallError(errno.EBUSY, f"memory is lent to domain {domain_id}: its lender must take part")
            return {
                gfn: bytes(entry.frame.content)
                for gfn, entry in domain.p2m.items()
                if entry.kind is P2MType.RAM and entry.frame is not None
            }
