"""Where a client's buffers are in the aperture: regions of leases that were asked for as they are needed.

A large buffer has a lease of its own; small ones (cursors, decorations) share leases. No system call here.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, insort
from collections.abc import Callable
from typing import Protocol

#: The smallest lease that is asked for. Buffers up to this size share leases.
MIN_LEASE_PAGES = 64
#: A lease to share is a part of what its client has already, so that many small buffers are not many leases.
_SHARED_PART = 4
_MAX_SHARED_PAGES = 4096
#: A lease without buffers is kept for the next one of about its size, so that a window that is being resized doesn't ask
#: for each frame anew. One, of at most this size, and for so long: others may be short of memory.
_MAX_SPARE_PAGES = 16384
SPARE_S = 2.0


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
        self._block.arena.free(self._block, self)


class _Block:
    """A lease, and its gaps: their ends by their starts, and the other way. ``number`` tells it from others."""

    __slots__ = ("arena", "by_end", "by_start", "lease", "number", "taken_pages")

    def __init__(self, arena: Arena, lease: AskedLease, number: int) -> None:
        self.arena = arena
        self.lease = lease
        self.number = number
        self.by_start: dict[int, int] = {}
        self.by_end: dict[int, int] = {}
        self.taken_pages = 0


class Arena:
    """One client's leases. ``ask(page_count)`` asks the host for another; ``call_later(delay_s, call)`` is the loop's.

    With n gaps finding room is O(log n); a change moves the list's tail, which is one memmove.
    """

    def __init__(
        self, ask: Callable[[int], AskedLease], call_later: Callable[[float, Callable[[], None]], object]
    ) -> None:
        self._ask = ask
        self._call_later = call_later
        #: All gaps of leases that are in use, the narrowest first: (page count, block's number, start, block). Those of a
        #: lease that is over go when they are met.
        self._gaps: list[tuple[int, int, int, _Block]] = []
        self._numbers = itertools.count()
        #: Not in use: it has no gaps in the list.
        self._spare: _Block | None = None
        #: How often there was one: a timer is for the one that it was set for.
        self._spares = 0
        self._taken_pages = 0

    def take(self, page_count: int) -> LentRegion:
        """Pages for a buffer; they may have to be waited for (``LentRegion.gfn``)."""
        while (at := bisect_left(self._gaps, (page_count,))) < len(self._gaps):
            gap_pages, _, start, block = self._gaps.pop(at)
            if not block.lease.failure:
                del block.by_start[start], block.by_end[start + gap_pages]
                return self._take_from(block, start, start + gap_pages, page_count)
        spare = self._spare
        if spare is not None and spare.lease.failure:
            spare = self._spare = None
        if spare is not None and page_count <= spare.lease.page_count <= 2 * page_count + MIN_LEASE_PAGES:
            self._spare = None
            block = spare
        else:
            block = _Block(self, self._ask(self._lease_pages_for(page_count)), next(self._numbers))
        return self._take_from(block, 0, block.lease.page_count, page_count)

    def _lease_pages_for(self, page_count: int) -> int:
        if page_count > MIN_LEASE_PAGES:
            return page_count
        return max(MIN_LEASE_PAGES, min(self._taken_pages // _SHARED_PART, _MAX_SHARED_PAGES))

    def _take_from(self, block: _Block, start: int, end: int, page_count: int) -> LentRegion:
        block.taken_pages += page_count
        self._taken_pages += page_count
        if start + page_count < end:
            self._add_gap(block, start + page_count, end)
        return LentRegion(block, start, page_count)

    def _add_gap(self, block: _Block, start: int, end: int) -> None:
        block.by_start[start] = end
        block.by_end[end] = start
        insort(self._gaps, (end - start, block.number, start, block))

    def _remove_gap(self, block: _Block, start: int, end: int) -> None:
        del block.by_start[start], block.by_end[end]
        del self._gaps[bisect_left(self._gaps, (end - start, block.number, start))]

    def free(self, block: _Block, region: LentRegion) -> None:
        """See ``LentRegion.free``."""
        block.taken_pages -= region.page_count
        self._taken_pages -= region.page_count
        if block.lease.failure:
            return
        start, end = region.start, region.start + region.page_count
        before, behind = block.by_end.get(start), block.by_start.get(end)
        if before is not None:
            self._remove_gap(block, before, start)
            start = before
        if behind is not None:
            self._remove_gap(block, end, behind)
            end = behind
        if block.taken_pages:
            self._add_gap(block, start, end)
        else:
            self._emptied(block)

    def _emptied(self, block: _Block) -> None:
        """A lease has no buffers any more: it is the spare one now, and the one that was goes back."""
        if block.lease.page_count > _MAX_SPARE_PAGES:
            block.lease.give_back()
            return
        spare, self._spare = self._spare, block
        if spare is not None:
            spare.lease.give_back()
        self._spares += 1
        number = self._spares
        self._call_later(SPARE_S, lambda: self._give_back_spare(number))

    def _give_back_spare(self, number: int) -> None:
        if self._spare is not None and self._spares == number:
            self._spare.lease.give_back()
            self._spare = None

    def check(self) -> None:
        """Walks the invariants; raises AssertionError."""
        free_pages: dict[_Block, int] = {}
        for page_count, number, start, block in self._gaps:
            assert number == block.number
            assert page_count > 0
            if not block.lease.failure:
                assert block.by_start[start] == start + page_count
                assert block.by_end[start + page_count] == start
                assert start + page_count not in block.by_start, "two gaps side by side"
                free_pages[block] = free_pages.get(block, 0) + page_count
        for block, page_count in free_pages.items():
            assert block is not self._spare
            assert block.taken_pages
            assert block.taken_pages + page_count == block.lease.page_count
        assert self._spare is None or not (self._spare.taken_pages or self._spare.by_start)
