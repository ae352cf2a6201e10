"""Pages and half-open ranges of them: the unit in which everything is lent."""

from __future__ import annotations

from typing import NamedTuple

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT


def page_count_of(size_bytes: int) -> int:
    """How many pages hold ``size_bytes``."""
    return (size_bytes + PAGE_SIZE - 1) >> PAGE_SHIFT


class PageRange(NamedTuple):
    """Pages ``start`` .. ``end``, the end excluded. What the index counts from is said where the range is used."""

    start: int
    end: int

    @property
    def page_count(self) -> int:
        return self.end - self.start

    def overlaps(self, other: PageRange) -> bool:
        """Whether they have a page in common; an empty range has none with any."""
        return max(self.start, other.start) < min(self.end, other.end)

    def intersection(self, other: PageRange) -> PageRange:
        """The common pages; an empty range (start == end) where there are none."""
        start = max(self.start, other.start)
        return PageRange(start, max(start, min(self.end, other.end)))

    def contains(self, other: PageRange) -> bool:
        return self.start <= other.start and other.end <= self.end
