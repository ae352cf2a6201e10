"""Where a client's buffers are in the aperture: regions of leases that were asked for as they are needed.

A large buffer has a lease of its own; small ones (cursors, decorations) share leases. No system call here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from waylend.lending.intervals import IntervalMap

#: The smallest lease that is asked for.
MIN_LEASE_PAGES = 64
#: A lease without buffers is kept for the next one of about its size, so that a window that is being resized doesn't ask
#: for each frame anew. One, of at most this size.
_MAX_SPARE_PAGES = 16384


class AskedLease(Protocol):
    """A lease as the guest half has it. ``gfn`` is below 0 until it is granted; ``failure`` says why it won't be."""

    page_count: int
    gfn: int
    failure: str

    def give_back(self) -> None: ...


class LentRegion:
    """Pages ``start`` .. ``start + page_count`` of a lease, which are one buffer's until ``free``."""

    __slots__ = ("_block", "page_count", "start")

    def __init__(self, block: _Block, start: int, page_count: int) -> None:
        self._block = block
        self.start = start
        self.page_count = page_count

    @property
    def lease(self) -> AskedLease:
        return self._block.lease

    @property
    def gfn(self) -> int:
        """The first page's index in the aperture, or -1 while the lease isn't granted."""
        gfn = self._block.lease.gfn
        return gfn if gfn < 0 else gfn + self.start

    @property
    def failure(self) -> str:
        return self._block.lease.failure

    def free(self) -> None:
        """Once."""
        self._block.free(self)


class _Block:
    """A lease and which of its pages are taken."""

    def __init__(self, arena: Arena, lease: AskedLease) -> None:
        self.lease = lease
        self.taken: IntervalMap[LentRegion] = IntervalMap()
        self._arena = arena

    def take(self, page_count: int) -> LentRegion | None:
        start = self.taken.first_fit(0, self.lease.page_count, page_count, 1)
        if start is None:
            return None
        region = LentRegion(self, start, page_count)
        self.taken.insert(start, start + page_count, region)
        return region

    def free(self, region: LentRegion) -> None:
        self.taken.remove(region.start)
        if not len(self.taken):
            self._arena.emptied(self)


class Arena:
    """One client's leases. ``ask(page_count)`` asks the host for another."""

    def __init__(self, ask: Callable[[int], AskedLease]) -> None:
        self._ask = ask
        self._blocks: list[_Block] = []
        self._spare: _Block | None = None

    def take(self, page_count: int) -> LentRegion:
        """Pages for a buffer; they may have to be waited for (``LentRegion.gfn``)."""
        self._blocks = [block for block in self._blocks if not block.lease.failure]
        if self._spare is not None and self._spare.lease.failure:
            self._spare = None
        for block in self._blocks:
            region = block.take(page_count) if page_count <= block.lease.page_count else None
            if region is not None:
                return region
        spare = self._spare
        if spare is not None and page_count <= spare.lease.page_count <= 2 * page_count + MIN_LEASE_PAGES:
            self._spare = None
            self._blocks.append(spare)
            region = spare.take(page_count)
            assert region is not None
            return region
        block = _Block(self, self._ask(max(page_count, MIN_LEASE_PAGES)))
        self._blocks.append(block)
        taken = block.take(page_count)
        assert taken is not None
        return taken

    def emptied(self, block: _Block) -> None:
        """A lease has no buffers any more: it is the spare one now, and the one that was goes back."""
        if block not in self._blocks:
            return
        self._blocks.remove(block)
        if block.lease.page_count > _MAX_SPARE_PAGES:
            block.lease.give_back()
            return
        spare, self._spare = self._spare, block
        if spare is not None:
            spare.lease.give_back()

    def check(self) -> None:
        """Walks the invariants; raises AssertionError."""
        for block in self._blocks:
            block.taken.check()
            assert len(block.taken)
        assert self._spare is None or not len(self._spare.taken)
