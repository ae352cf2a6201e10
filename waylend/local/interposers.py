"""What stands between a local client and the compositor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from waylend.domain.base import Domain
from waylend.policy import Policy
from waylend.relay.interpose import Interposer
from waylend.relay.interpose.descriptors import Descriptors
from waylend.relay.interpose.lent_files import FileLender, LentFiles
from waylend.relay.interpose.registry import GlobalFilter, Registry
from waylend.relay.interpose.toplevel import Toplevels
from waylend.relay.relay import MakeInterposers
from waylend.relay.session import Session
from waylend.wire.spec import InterfaceSpec


def for_local_guests(
    tables: Mapping[str, InterfaceSpec], policy: Policy, domain: Domain
) -> tuple[tuple[type[Interposer], ...], MakeInterposers]:
    """The types, and what makes them for a session, for ``Relay``; leases are of ``domain``."""
    global_filter = GlobalFilter(tables, policy)
    lender = FileLender(domain)

    def make(session: Session) -> Iterable[Interposer]:
        return Registry(session, global_filter), LentFiles(session, lender), Descriptors(session), Toplevels(session)

    return (Registry, LentFiles, Descriptors, Toplevels), make
