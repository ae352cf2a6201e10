"""Gaps: where an aperture is free. By width, so that room is found without a scan, and by place, so that it can be given back."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from sortedcontainers import SortedList

from waylend.lending.intervals import IntervalMap
from waylend.lending.pages import PageRange


class Gaps:
    """The free gfns of ``page_count``, all of them to begin with, as gaps that don't touch. With n gaps all is O(log n)."""

    def __init__(self, page_count: int) -> None:
        self._by_width: SortedList = SortedList()  # (width, start)
        self._by_place: IntervalMap[None] = IntervalMap()
        if page_count:
            self._insert(0, page_count)

    def __iter__(self) -> Iterator[PageRange]:
        """All, in order. O(n)."""
        return (PageRange(start, end) for start, end, _ in self._by_place)

    def take(self, page_count: int, alignment_pages: int = 1) -> int | None:
        """The first gfn of ``page_count`` ones that were free: aligned, in the narrowest gap that has room, the lowest of those.

        None where there is none. Besides O(log n) it may look at the gaps that are wide enough, but not where it is aligned.
        """
        for width, start in self._by_width.irange((page_count, 0)):
            gfn: int = -(-start // alignment_pages) * alignment_pages
            if gfn + page_count <= start + width:
                self._take(start, start + width, gfn, page_count)
                return gfn
        return None

    def take_at(self, gfn: int, page_count: int) -> bool:
        """Takes exactly these, if they are free; whether they were."""
        gap = self._by_place.stab_range(gfn)
        if gap is None or gfn + page_count > gap[1]:
            return False
        self._take(gap[0], gap[1], gfn, page_count)
        return True

    def give_back(self, gfns: PageRange) -> None:
        """They are free from now on, in one gap with what is free beside them. Raises ValueError if some are free already."""
        start, end = gfns
        if next(self._by_place.overlapping(start, end), None) is not None:
            raise ValueError(f"some gfns of {start}..{end} are free already")
        before = self._by_place.stab_range(start - 1)
        if before is not None:
            start = before[0]
            self._remove(start, before[1])
        behind = self._by_place.stab_range(end)
        if behind is not None:
            self._remove(end, behind[1])
            end = behind[1]
        self._insert(start, end)

    def check(self) -> None:
        """Walks the invariants; raises AssertionError. O(n log n)."""
        self._by_place.check()
        gaps = list(self)
        assert sorted((gap.page_count, gap.start) for gap in gaps) == list(self._by_width)
        assert all(gap.end < following.start for gap, following in pairwise(gaps)), "gaps touch"

    def _take(self, start: int, end: int, gfn: int, page_count: int) -> None:
        """Out of the gap ``start`` .. ``end``."""
        self._remove(start, end)
        if start < gfn:
            self._insert(start, gfn)
        if gfn + page_count < end:
            self._insert(gfn + page_count, end)

    def _insert(self, start: int, end: int) -> None:
        self._by_width.add((end - start, start))
        self._by_place.insert(start, end, None)

    def _remove(self, start: int, end: int) -> None:
        self._by_width.remove((end - start, start))
        self._by_place.remove(start)
