"""The lender's book of one domain, with the backings that its leases stand on: what every mechanism keeps in the same way."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from waylend.backing.base import Backing
from waylend.domain.base import check_range
from waylend.lending.lease import BackingIndex, Lease, LeaseTable, LossPolicy, Protection
from waylend.lending.pages import PAGE_SHIFT, PageRange


class _Holding:
    """A backing that this domain owns, and how many leases stand on it."""

    def __init__(self, unsubscribe: Callable[[], None]) -> None:
        self.unsubscribe = unsubscribe
        self.lease_count = 0


class LeaseBook:
    """Leases and their backings. Not locked: its domain does that.

    ``invalidate`` is called, without the lock, with the key and pages that a backing's owner takes away.
    """

    def __init__(
        self,
        name: str,
        aperture_pages: int,
        *,
        read_only: bool,
        lease_limit: int,
        page_limit: int | None,
        by_backing: BackingIndex | None,
        invalidate: Callable[[Hashable, PageRange], None],
    ) -> None:
        self.table = LeaseTable(
            name, aperture_pages, lease_limit=lease_limit, page_limit=page_limit, by_backing=by_backing
        )
        self._read_only = read_only
        self._invalidate = invalidate
        self._holdings: dict[int, _Holding] = {}

    def enter(
        self,
        backing: Backing,
        *,
        offset_bytes: int,
        size_bytes: int | None,
        protection: Protection,
        loss: LossPolicy,
        name: str,
    ) -> Lease:
        """A new lease of ``backing``, which is ours from now on; see ``Domain.lend``.

        Raises NoSpace, QuotaExceeded, ValueError: then the backing stays its owner's.
        """
        if size_bytes is None:
            size_bytes = backing.size_bytes - offset_bytes
        check_range(backing, offset_bytes, size_bytes)
        if protection is Protection.READ_WRITE and (self._read_only or not backing.writable):
            raise ValueError("can't lend for writing: the domain or the backing is read-only")
        key = backing.key
        lease = self.table.add(
            backing_key=key,
            backing_start=offset_bytes >> PAGE_SHIFT,
            size_bytes=size_bytes,
            protection=protection,
            loss=loss,
            name=name,
        )
        holding = self._holdings.get(id(backing))
        if holding is None:
            unsubscribe = backing.subscribe(lambda pages: self._invalidate(key, pages))
            holding = self._holdings[id(backing)] = _Holding(unsubscribe)
        holding.lease_count += 1
        return lease

    def withdraw(self, lease: Lease, backing: Backing) -> None:
        """Takes back an entry that came to nothing: the backing stays its owner's."""
        self.table.remove(lease)
        holding = self._holdings[id(backing)]
        holding.lease_count -= 1
        if not holding.lease_count:
            del self._holdings[id(backing)]
            holding.unsubscribe()

    def leave(self, lease: Lease, backing: Backing) -> Callable[[], None]:
        """Takes an ended lease out. What is returned is to be called without the lock: it lets the backing go with its
        last lease, when no fault uses it any more.
        """
        self.table.remove(lease)
        holding = self._holdings[id(backing)]
        holding.lease_count -= 1
        if holding.lease_count:
            return lambda: None
        del self._holdings[id(backing)]
        in_use = lease.faults_in_flight > 0
        if in_use:
            lease.on_idle = backing.close

        def let_go() -> None:
            holding.unsubscribe()
            if not in_use:
                backing.close()

        return let_go
