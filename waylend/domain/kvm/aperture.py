"""How the pages of a KVM guest's aperture come and go: faults resolved, dirty pages read back, pages dropped.

Which lease stands where, and when one begins and ends, is KvmDomain's business. The protocol between faults and invalidations
is P2M's; here is what a kernel with userfaultfd makes of it. No serving thread waits for an invalidation: a fault on a
page that is being taken away is left alone, and at the end whoever waits there is woken and faults again.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from functools import partial

from waylend.domain.kvm.guest_range import GuestRange
from waylend.domain.kvm.userfault import FAULT_WP, FAULT_WRITE, FaultServer, Userfault
from waylend.domain.machine import MachineRange
from waylend.errors import BackingLost, LeaseEnded, Unavailable
from waylend.lending.lease import ABSENT, DIRTY, LOST, PRESENT, RESOLVING, Lease, LeaseState
from waylend.lending.p2m import P2M
from waylend.lending.pages import PAGE_SHIFT, PAGE_SIZE, PageRange

logger = logging.getLogger(__name__)

#: How much is taken back at a time.
_STRIDE_PAGES = 1024
_DIRTY_RUN = re.compile(bytes((DIRTY,)) + b"+")


class KvmAperture:
    """``page_count`` pages of guest addresses, served by ``thread_count`` threads. Raises Unavailable.

    ``lent_at`` says what stands at a gfn; it is called under the P2M's lock.
    """

    def __init__(
        self, page_count: int, p2m: P2M, lent_at: Callable[[int], MachineRange | None], *, name: str, thread_count: int
    ) -> None:
        self._p2m = p2m
        self._lock = p2m.lock
        self._lent_at = lent_at
        self._name = name
        #: What the last fault was on: most are followed by one on the same.
        self._recent: MachineRange | None = None
        self._userfault = Userfault()
        try:
            self.window = GuestRange(page_count)
        except OSError as error:
            self._userfault.close()
            raise Unavailable(f"no addresses for an aperture of {page_count} pages: {error}") from error
        try:
            self._userfault.register(self.window.address, self.window.size_bytes)
        except OSError as error:
            self.window.close()
            self._userfault.close()
            raise Unavailable(f"userfaultfd refuses shared memory: {error}", "needs Linux with CONFIG_SHMEM") from error
        self._base = self.window.address
        self._server = FaultServer(
            self._userfault, self.window.doorbell, self._on_fault, name=name, thread_count=thread_count
        )

    def stop_serving(self) -> None:
        """Ends the threads. Whoever waits for a page is woken, and finds what the window permits: by now nothing."""
        self._server.close()

    def wake(self, lease: Lease, pages: PageRange) -> None:
        """Has every access that waits for one of ``pages`` (from 0) tried again."""
        self._userfault.wake(self.window.address_of(lease.gfns.start + pages.start), pages.page_count << PAGE_SHIFT)

    # -- taking pages away

    def take(self, lent: MachineRange, pages: PageRange) -> int:
        """Takes ``pages`` (from 0) away; how many the guest may have had. Waits for nobody but the lease's own backing."""
        try:
            return self._p2m.invalidate(lent.lease, pages, lambda _: self._unmap(lent, pages))
        finally:
            self.wake(lent.lease, pages)  # faults that came meanwhile were left alone

    def _unmap(self, lent: MachineRange, pages: PageRange) -> None:
        """Once it returns the guest has none of ``pages``, and the backing has what the guest wrote.

        The guest loses all pages first, the backing is written to afterwards: a slow backing leaves it nothing in hand.
        """
        lease = lent.lease
        # Of two that punch one page at a time, the second finds it unmapped already, maybe before the TLBs are flushed.
        with lent.taking_back:
            if not lease.writable:
                self._drop(lease, pages)
                return
            written: list[tuple[PageRange, bytes]] = []
            for stretch in _stretches(pages):
                written += [(run, self.window.read(_gfns(lease, run))) for run in self._clean(lease, stretch)]
                self._drop(lease, stretch)
            for run, content in written:
                lent.hand_over(self._p2m.events, run.start << PAGE_SHIFT, content)

    def write_back(self, lent: MachineRange) -> None:
        """Hands all that is dirty to the backing; the guest keeps it. Raises BackingLost: then what is left is still dirty."""
        lease = lent.lease
        with lent.taking_back:
            for stretch in _stretches(PageRange(0, lease.page_count)):
                runs = self._clean(lease, stretch)
                while runs:
                    try:
                        lent.store(runs[0].start << PAGE_SHIFT, self.window.read(_gfns(lease, runs[0])))
                    except BaseException:
                        with self._lock:
                            for run in runs:
                                lease.pages[run.start : run.end] = bytes((DIRTY,)) * run.page_count
                        raise
                    del runs[0]

    def _clean(self, lease: Lease, pages: PageRange) -> list[PageRange]:
        """The dirty ones of ``pages``, which the book has as clean from now on: a store to them is a fault again."""
        with self._lock:
            runs = [PageRange(*found.span()) for found in _DIRTY_RUN.finditer(lease.pages, *pages)]
            if runs:
                first, last = runs[0].start, runs[-1].end
                self._userfault.protect(self.window.address_of(lease.gfns.start + first), (last - first) << PAGE_SHIFT)
            for run in runs:
                lease.pages[run.start : run.end] = bytes((PRESENT,)) * run.page_count
        return runs

    def _drop(self, lease: Lease, pages: PageRange) -> None:
        gfns = _gfns(lease, pages)
        self.window.punch(gfns)
        if lease.pages.find(LOST, *pages) >= 0:
            self.window.drop_marks(gfns)

    # -- faults; on serving threads

    def _on_fault(self, address: int, flags: int) -> None:
        gfn = (address - self._base) >> PAGE_SHIFT
        lent = self._recent
        if lent is None or not lent.first_gfn <= gfn < lent.end_gfn or lent.lease.state is LeaseState.ENDED:
            with self._lock:
                lent = self._recent = self._lent_at(gfn)
                if lent is None:  # lent when the fault began, and not any more; lending it anew removes the mark
                    self._poison(gfn)
                    return
        lease = lent.lease
        page = gfn - lent.first_gfn
        try:
            if flags & FAULT_WP:
                self._first_store(lease, page)
            elif lease.in_progress and self._is_taken(lease, page):
                pass
            elif flags & FAULT_WRITE and lease.writable:
                self._resolve_store(lent, page, address & -PAGE_SIZE)
            else:
                install = partial(self._userfault.copy, address & -PAGE_SIZE, write_protected=lease.writable)
                self._resolve(lent, page, lent.fetch, install, PRESENT)
        except Exception:
            # The guest must neither stand still for ever nor have what isn't sure.
            logger.exception("domain %s, lease %d, page %d", self._name, lease.lease_id, page)
            self._refuse(lease, page, (ABSENT, LOST))

    def _is_taken(self, lease: Lease, page: int) -> bool:
        """Whether that page is being taken away. The end of that wakes whoever waits there, and they fault again."""
        with self._lock:
            return _being_taken(lease, page)

    def _resolve(
        self,
        lent: MachineRange,
        page: int,
        fetch: Callable[[PageRange], bytes],
        install: Callable[[bytes], None],
        present_state: int,
    ) -> None:
        lease = lent.lease
        try:
            resolved = self._p2m.fault(lease, page, fetch, install, present_state=present_state)
        except LeaseEnded:
            return  # its end wakes whoever waits
        except BackingLost as lost:
            logger.info("domain %s, lease %d: %s", self._name, lease.lease_id, lost)
            self._refuse(lease, page, (LOST,))
            return
        except (
            FileExistsError
        ):  # after an invalidation two faults can be on their way to one page; the other was faster
            resolved = False
        if not resolved:
            self._userfault.wake(self.window.address_of(lent.first_gfn + page), PAGE_SIZE)

    def _resolve_store(self, lent: MachineRange, page: int, address: int) -> None:
        """The page is dirty from the beginning, and its guest needs no second fault. Unless it is lost: zeros aren't dirty."""
        found = False

        def fetch(pages: PageRange) -> bytes:
            nonlocal found
            found = False
            content = lent.fetch(pages)
            found = True
            return content

        def install(content: bytes) -> None:
            self._userfault.copy(address, content, write_protected=not found)

        self._resolve(lent, page, fetch, install, DIRTY)

    def _first_store(self, lease: Lease, page: int) -> None:
        """A store to a page that the guest has only read so far: it is dirty now."""
        address = self.window.address_of(lease.gfns.start + page)
        with self._lock:
            if lease.state is LeaseState.ENDED or _being_taken(lease, page):
                return  # their end wakes whoever waits
            if lease.writable and lease.pages[page] not in (ABSENT, RESOLVING):
                lease.pages[page] = DIRTY
                self._userfault.unprotect(address, PAGE_SIZE)
            else:  # the page has gone since
                self._userfault.wake(address, PAGE_SIZE)

    def _refuse(self, lease: Lease, page: int, states: tuple[int, ...]) -> None:
        """Every access to that page brings its vCPU back to the owner, until it is taken away and asked for anew.

        Unless its state is none of ``states`` any more: then the guest asks anew at once.
        """
        address = self.window.address_of(lease.gfns.start + page)
        with self._lock:
            if lease.state is LeaseState.ENDED or _being_taken(lease, page):
                return  # their end wakes whoever waits
            if lease.pages[page] not in states:
                self._userfault.wake(address, PAGE_SIZE)
                return
            lease.pages[page] = LOST
            self._poison(lease.gfns.start + page)

    def _poison(self, gfn: int) -> None:
        """Of a page that isn't there."""
        address = self.window.address_of(gfn)
        # Write protection leaves a mark where a page has gone, and the kernel poisons no page that has one.
        self._userfault.unprotect(address, PAGE_SIZE, waking=False)
        self._userfault.poison(address)


def _being_taken(lease: Lease, page: int) -> bool:
    return any(pages.start <= page < pages.end for pages in lease.in_progress)


def _gfns(lease: Lease, pages: PageRange) -> PageRange:
    return PageRange(lease.gfns.start + pages.start, lease.gfns.start + pages.end)


def _stretches(pages: PageRange) -> Iterator[PageRange]:
    for start in range(pages.start, pages.end, _STRIDE_PAGES):
        yield PageRange(start, min(start + _STRIDE_PAGES, pages.end))
