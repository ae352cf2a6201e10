"""XenDomain: the lender's side for Xen.

The aperture is a range of gfns of the borrower, whose vCPUs pause at a lent page that isn't there. All that it does to the
hypervisor goes through ``LendingOperations``, which the model's ``LendingFd`` has (``models``): a driver for real Xen can take
its place.

What the borrower can't do (docs/lending.md, "Restrictions") is the hypervisor's to enforce, and the model does: hypercalls see
lent memory as absent, it can't be granted, mapped by others, lent onwards or given to a device, and a domain that borrows doesn't
migrate without its lender. The lender controls this one domain, and nothing else, by its capability.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from typing import Unpack

from waylend.domain.in_process import BookOptions
from waylend.domain.machine import MachineDomain, MachineRange
from waylend.domain.xen.operations import Dirtied, FaultRecord, HypercallError, LendingOperations
from waylend.errors import BackingLost, LeaseEnded
from waylend.lending.lease import LOST, Lease
from waylend.lending.pages import PAGE_SHIFT, PageRange

logger = logging.getLogger(__name__)


class XenDomain(MachineDomain):
    """See ``Domain``. ``operations`` is the capability for the borrower; it is closed with the domain.

    ``first_gfn`` is where the aperture begins in the borrower's address space. With ``thread_count`` 0 faults wait for
    ``serve_pending``, as for the lender of a thousand domains.
    """

    mechanism = "xen"

    def __init__(
        self,
        name: str,
        *,
        thread_count: int = 1,
        operations: LendingOperations,
        first_gfn: int = 0x100000,
        **book: Unpack[BookOptions],
    ) -> None:
        super().__init__(
            name,
            **book,
        )
        self.first_gfn = first_gfn
        self._operations = operations
        self._threads = [
            threading.Thread(target=self._serve, name=f"{name}-faults-{n}", daemon=True) for n in range(thread_count)
        ]
        for thread in self._threads:
            thread.start()

    def guest_address(self, lease: Lease) -> int:
        """Where the lease begins in the borrower's address space, in bytes."""
        return (self.first_gfn + lease.gfns.start) << PAGE_SHIFT

    def close(self) -> None:
        if self._end_all():
            self._operations.close()
            for thread in self._threads:
                thread.join()

    # -- faults

    def serve_pending(self) -> int:
        """Serves the faults that wait now; how many there were."""
        served = 0
        while (fault := self._operations.next_fault(0)) is not None:
            self._answer(fault)
            served += 1
        return served

    def _serve(self) -> None:
        while (fault := self._operations.next_fault()) is not None:
            self._answer(fault)

    def _answer(self, fault: FaultRecord) -> None:
        try:
            self._on_fault(fault)
        except HypercallError as error:  # the borrower has gone
            logger.info("domain %s: %s", self.name, error)
        except Exception:
            # The guest must neither stand still for ever nor have what isn't sure.
            logger.exception("domain %s: serving %s", self.name, fault)
            with contextlib.suppress(HypercallError):
                self._operations.fail(fault.gfn)

    def _on_fault(self, fault: FaultRecord) -> None:
        gfn = fault.gfn - self.first_gfn
        with self._lock:
            lent = self._lent_at(gfn)
        if lent is None:  # lent when the fault began, and not any more
            self._operations.retry(fault.gfn)
            return
        page = gfn - lent.first_gfn
        try:
            resolved = self._p2m.fault(
                lent.lease, page, lent.fetch, lambda content: self._operations.resolve(fault.gfn, content)
            )
        except BackingLost as lost:
            logger.info("domain %s, lease %d: %s", self.name, lent.lease.lease_id, lost)
            self._lose(lent, page)
        except LeaseEnded:
            pass  # its end tells whoever waits
        else:
            if not resolved:
                self._operations.retry(fault.gfn)

    def _lose(self, lent: MachineRange, page: int) -> None:
        """The borrower gets a fault there, unless the page has been taken away since: then it asks anew."""
        gfn = self.first_gfn + lent.first_gfn + page
        with self._lock:
            if lent.lease.pages[page] == LOST and not lent.lease.in_progress:
                self._operations.fail(gfn)
                return
        self._operations.retry(gfn)

    # -- what the mechanism does

    def _gfns(self, lease: Lease, pages: PageRange) -> PageRange:
        first = self.first_gfn + lease.gfns.start
        return PageRange(first + pages.start, first + pages.end)

    def _open_range(self, lease: Lease) -> None:
        self._operations.lend(self._gfns(lease, PageRange(0, lease.page_count)), writable=lease.writable)

    def _close_range(self, lease: Lease) -> None:
        """Nothing: the range is closed with its last page, by ``_wake``; until then a fault finds that the lease is over."""

    def _take(self, lent: MachineRange, pages: PageRange) -> int:
        return self._p2m.invalidate(lent.lease, pages, lambda _: self._unmap(lent, pages))

    def _unmap(self, lent: MachineRange, pages: PageRange) -> None:
        with lent.taking_back:
            self._hand_over(lent, self._operations.revoke(self._gfns(lent.lease, pages)))

    def _write_back(self, lent: MachineRange) -> None:
        with lent.taking_back:
            self._hand_over(lent, self._operations.clean(self._gfns(lent.lease, PageRange(0, lent.lease.page_count))))

    def _hand_over(self, lent: MachineRange, dirtied: list[Dirtied]) -> None:
        for gfn, content in dirtied:
            page = gfn - self.first_gfn - lent.first_gfn
            lent.hand_over(self.events, page << PAGE_SHIFT, content)

    def _wake(self, lease: Lease) -> None:
        self._operations.end(self._gfns(lease, PageRange(0, lease.page_count)))

    def _in_use(self) -> bool:
        """Nobody tells us when a guest has stopped using its aperture, so its leases end at once."""
        return False
