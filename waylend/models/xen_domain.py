"""XenModelDomain: what stands in for a Xen guest and its lender where there is no Xen: a XenDomain over the model."""

from __future__ import annotations

from typing import Unpack

from waylend.domain.in_process import BookOptions
from waylend.domain.xen.domain import XenDomain
from waylend.domain.xen.operations import LendingOperations
from waylend.models.xen_guest import GuestDomain
from waylend.models.xen_hypervisor import Hypervisor


class XenModelDomain(XenDomain):
    """See ``XenDomain``. By default on a hypervisor of its own, whose domain is ``guest``."""

    mechanism = "xen_model"

    def __init__(
        self,
        name: str,
        *,
        thread_count: int = 1,
        operations: LendingOperations | None = None,
        first_gfn: int = 0x100000,
        **book: Unpack[BookOptions],
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
            thread_count=thread_count,
            **book,
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
