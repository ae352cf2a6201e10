"""waylend runs a guest's applications on the host's desktop, as a Wayland proxy whose memory is lent.

What is named here is the public API; everything else may change.

::

    async with waylend.serve(listen="wayland-9", policy=waylend.Policy(title_prefix="[work] ")) as proxy:
        await proxy.ended.wait()
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from waylend.backing.file import FileBacking
    from waylend.domain.fuse.domain import FuseDomain
    from waylend.domain.kvm.domain import KvmDomain
    from waylend.domain.memfd import MemfdDomain
    from waylend.domain.process.caller import ProcessDomain
    from waylend.errors import (
        CompositorError,
        LendingError,
        PeerError,
        ProtocolError,
        Unavailable,
        UsageError,
        WaylendError,
    )
    from waylend.lending.lease import Lease, LossPolicy, Protection
    from waylend.local.proxy import Proxy, serve
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

# Imported when it is asked for: who lends memory needs no event loop, and who serves needs no FUSE.
_WHERE = {
    "waylend.backing.file": ("FileBacking",),
    "waylend.domain.fuse.domain": ("FuseDomain",),
    "waylend.domain.kvm.domain": ("KvmDomain",),
    "waylend.domain.memfd": ("MemfdDomain",),
    "waylend.domain.process.caller": ("ProcessDomain",),
    "waylend.errors": (
        "CompositorError",
        "LendingError",
        "PeerError",
        "ProtocolError",
        "Unavailable",
        "UsageError",
        "WaylendError",
    ),
    "waylend.lending.lease": ("Lease", "LossPolicy", "Protection"),
    "waylend.policy": ("Limits", "Policy", "read_policy"),
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
    "waylend.local.proxy": ("Proxy", "serve"),
}
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}

__all__ = [
    "CompositorError",
    "FileBacking",
    "FuseDomain",
    "KvmDomain",
    "Lease",
    "LeaseLent",
    "LeaseReturned",
    "LendingError",
    "Limits",
    "LossPolicy",
    "MemfdDomain",
    "PeerError",
    "Policy",
    "ProcessDomain",
    "Protection",
    "ProtocolError",
    "Proxy",
    "RelayEvent",
    "SessionEnded",
    "SessionOpened",
    "Unavailable",
    "UsageError",
    "WaylendError",
    "WindowClosed",
    "WindowNamed",
    "WindowOpened",
    "read_policy",
    "serve",
]


def __getattr__(name: str) -> object:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value
