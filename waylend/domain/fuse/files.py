"""The files that a FuseDomain serves: their node numbers, and what is kept of each. No system call lives here."""

from __future__ import annotations

import threading
from typing import Final

from waylend.backing.base import Backing
from waylend.domain.fuse import wire
from waylend.domain.lent_range import LentRange
from waylend.lending.lease import Lease

ROOT: Final = wire.ROOT_NODE
#: The directory ``lease``.
LEASES: Final = 2
#: The file ``bar``: the whole aperture.
BAR: Final = 3
FIRST_LEASE: Final = 16


def node_of(lease: Lease) -> int:
    return FIRST_LEASE + lease.lease_id


class CachedFile:
    """A file of which the kernel may have pages cached. ``known``: it has asked for it. ``dropping``: see ``unmap``."""

    def __init__(self) -> None:
        self.known = False
        self.dropping = threading.Lock()


class LeaseFile(LentRange, CachedFile):
    """A lease's own file, and what the server keeps of the lease besides the book's entry."""

    def __init__(self, lease: Lease, backing: Backing, *, redrawn: bool) -> None:
        LentRange.__init__(self, lease, backing)
        CachedFile.__init__(self)
        #: Open files of borrowers, descriptors in flight and mappings included.
        self.opens = 0
        self.redrawn = redrawn
        #: Revocations under way that give up what the borrower wrote.
        self.forgets = 0
