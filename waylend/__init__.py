"""waylend runs a guest's applications on the host's desktop, as a Wayland proxy whose memory is lent.

What is named here is the public API; everything else may change. ``docs/embedding.md`` shows it at work.

::

    async with waylend.serve(listen="wayland-9", policy=waylend.Policy(title_prefix="[work] ")) as proxy:
        await proxy.ended.wait()
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from waylend.backing.base import Backing, Subscribers
    from waylend.backing.dmabuf import DmabufBacking
    from waylend.backing.file import FileBacking
    from waylend.backing.mapped import MappedMemory
    from waylend.domain.base import Domain, DomainStats, LeaseStats
    from waylend.domain.fuse.domain import FuseDomain
    from waylend.domain.kvm.domain import KvmDomain
    from waylend.domain.memfd import MemfdDomain
    from waylend.domain.process.caller import ProcessDomain
    from waylend.domain.xen.domain import XenDomain
    from waylend.domain.xen.operations import HypercallError, LendingOperations
    from waylend.errors import (
        BackingLost,
        ChannelError,
        CompositorError,
        Denied,
        LeaseEnded,
        LendingError,
        LimitExceeded,
        Malformed,
        NoSpace,
        PeerError,
        ProtocolError,
        QuotaExceeded,
        RevokeTimeout,
        Unavailable,
        UsageError,
        WaylendError,
    )
    from waylend.guest_half.serving import RunningGuestHalf, serve_in_guest
    from waylend.host_half.serving import RunningHostHalf, serve_guest
    from waylend.lending.lease import BackingIndex, Lease, LeaseState, LossPolicy, Protection
    from waylend.lending.p2m import LendingEvent, LendingEventKind
    from waylend.lending.pages import PAGE_SIZE, PageRange
    from waylend.local.proxy import RunningProxy, serve
    from waylend.models.vram import VramBuffer, VramHeap
    from waylend.models.xen_domain import XenModelDomain
    from waylend.models.xen_guest import GuestFault
    from waylend.models.xen_hypervisor import Hypervisor
    from waylend.policy import Limits, Policy, read_policy
    from waylend.relay.events import (
        LeaseLent,
        LeaseReturned,
        RelayEvent,
        SessionEnded,
        SessionOpened,
        WindowClosed,
        WindowNamed,
        WindowOpened,
    )
    from waylend.relay.interpose import Client, Interposer, MakesInterposer
    from waylend.wire.scan import Message, NotYet

# Imported when it is asked for: who lends memory needs no event loop, and who serves needs no FUSE.
_WHERE = {
    "waylend.backing.base": (
        "Backing",
        "Subscribers",
    ),
    "waylend.backing.dmabuf": ("DmabufBacking",),
    "waylend.backing.file": ("FileBacking",),
    "waylend.backing.mapped": ("MappedMemory",),
    "waylend.domain.base": (
        "Domain",
        "DomainStats",
        "LeaseStats",
    ),
    "waylend.domain.fuse.domain": ("FuseDomain",),
    "waylend.domain.kvm.domain": ("KvmDomain",),
    "waylend.domain.memfd": ("MemfdDomain",),
    "waylend.domain.process.caller": ("ProcessDomain",),
    "waylend.domain.xen.domain": ("XenDomain",),
    "waylend.domain.xen.operations": (
        "HypercallError",
        "LendingOperations",
    ),
    "waylend.errors": (
        "BackingLost",
        "ChannelError",
        "CompositorError",
        "Denied",
        "LeaseEnded",
        "LendingError",
        "LimitExceeded",
        "Malformed",
        "NoSpace",
        "PeerError",
        "ProtocolError",
        "QuotaExceeded",
        "RevokeTimeout",
        "Unavailable",
        "UsageError",
        "WaylendError",
    ),
    "waylend.guest_half.serving": (
        "RunningGuestHalf",
        "serve_in_guest",
    ),
    "waylend.host_half.serving": (
        "RunningHostHalf",
        "serve_guest",
    ),
    "waylend.lending.lease": (
        "BackingIndex",
        "Lease",
        "LeaseState",
        "LossPolicy",
        "Protection",
    ),
    "waylend.lending.p2m": (
        "LendingEvent",
        "LendingEventKind",
    ),
    "waylend.lending.pages": (
        "PAGE_SIZE",
        "PageRange",
    ),
    "waylend.local.proxy": (
        "RunningProxy",
        "serve",
    ),
    "waylend.models.vram": (
        "VramBuffer",
        "VramHeap",
    ),
    "waylend.models.xen_domain": ("XenModelDomain",),
    "waylend.models.xen_guest": ("GuestFault",),
    "waylend.models.xen_hypervisor": ("Hypervisor",),
    "waylend.policy": (
        "Limits",
        "Policy",
        "read_policy",
    ),
    "waylend.relay.events": (
        "LeaseLent",
        "LeaseReturned",
        "RelayEvent",
        "SessionEnded",
        "SessionOpened",
        "WindowClosed",
        "WindowNamed",
        "WindowOpened",
    ),
    "waylend.relay.interpose": (
        "Client",
        "Interposer",
        "MakesInterposer",
    ),
    "waylend.wire.scan": (
        "Message",
        "NotYet",
    ),
}
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}

__all__ = [
    "PAGE_SIZE",
    "Backing",
    "BackingIndex",
    "BackingLost",
    "ChannelError",
    "Client",
    "CompositorError",
    "Denied",
    "DmabufBacking",
    "Domain",
    "DomainStats",
    "FileBacking",
    "FuseDomain",
    "GuestFault",
    "HypercallError",
    "Hypervisor",
    "Interposer",
    "KvmDomain",
    "Lease",
    "LeaseEnded",
    "LeaseLent",
    "LeaseReturned",
    "LeaseState",
    "LeaseStats",
    "LendingError",
    "LendingEvent",
    "LendingEventKind",
    "LendingOperations",
    "LimitExceeded",
    "Limits",
    "LossPolicy",
    "MakesInterposer",
    "Malformed",
    "MappedMemory",
    "MemfdDomain",
    "Message",
    "NoSpace",
    "NotYet",
    "PageRange",
    "PeerError",
    "Policy",
    "ProcessDomain",
    "Protection",
    "ProtocolError",
    "QuotaExceeded",
    "RelayEvent",
    "RevokeTimeout",
    "RunningGuestHalf",
    "RunningHostHalf",
    "RunningProxy",
    "SessionEnded",
    "SessionOpened",
    "Subscribers",
    "Unavailable",
    "UsageError",
    "VramBuffer",
    "VramHeap",
    "WaylendError",
    "WindowClosed",
    "WindowNamed",
    "WindowOpened",
    "XenDomain",
    "XenModelDomain",
    "read_policy",
    "serve",
    "serve_guest",
    "serve_in_guest",
]


def __getattr__(name: str) -> object:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
