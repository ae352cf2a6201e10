"""XenModelDomain: what stands in for a Xen guest and its lender where there is no Xen: a XenDomain over the model."""

from __future__ import annotations

from waylend.domain.xen.domain import XenDomain
from waylend.domain.xen.operations import LendingOperations
from waylend.lending.lease import BackingIndex
from waylend.lending.pages import PAGE_SHIFT
from waylend.models.xen_guest import GuestDomain
from waylend.models.xen_hypervisor import Hypervisor


class XenModelDomain(XenDomain):
    """See ``XenDomain``. By default on a hypervisor of its own, whose domain is ``guest``."""

    mechanism = "xen_model"

    def __init__(
        self,
        name: str,
        *,
        aperture_pages: int = (256 << 20) >> PAGE_SHIFT,
        read_only: bool = False,
        lease_limit: int = 1024,
        page_limit: int | None = None,
        thread_count: int = 1,
        by_backing: BackingIndex | None = None,
        operations: LendingOperations | None = None,
        first_gfn: int = 0x100000,
    ) -> None:
        #: The borrower, where it is ours.
        self.guest: GuestDomain | None = None
        if operations is None:
            hypervisor = Hypervisor()
            self.guest = hypervisor.create_domain()
            self.guest.on_idle = self._end_unused
            operations = hypervisor.open_lending(0, self.guest.domain_id)
        super().__init__(
            name,
            aperture_pages=aperture_pages,
            read_only=read_only,
            lease_limit=lease_limit,
            page_limit=page_limit,
            thread_count=thread_count,
            by_backing=by_backing,
            operations=operations,
            first_gfn=first_gfn,
        )

    def _in_use(self) -> bool:
        """A guest uses all of its aperture for as long as it has a vCPU; of others' guests nobody tells us."""
        return self.guest is not None and bool(self.guest.vcpus)

    def _end_unused(self) -> None:
        with self._lock:
            unused = self._unused()
        for lease in unused:
            self.end(lease)
