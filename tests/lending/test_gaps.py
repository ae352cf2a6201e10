"""Gaps against a bitmap of free pages."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from waylend.lending.gaps import Gaps
from waylend.lending.pages import PageRange

PAGES = 64


class AgainstBitmap(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.gaps = Gaps(PAGES)
        self.free = [True] * PAGES
        self.taken: list[PageRange] = []

    def _took(self, gfn: int, count: int) -> None:
        self.free[gfn : gfn + count] = [False] * count
        self.taken.append(PageRange(gfn, gfn + count))

    def _widths(self) -> dict[int, int]:
        """How wide the gap is around each free page."""
        widths: dict[int, int] = {}
        start = 0
        for page in range(PAGES + 1):
            if page == PAGES or not self.free[page]:
                widths.update(dict.fromkeys(range(start, page), page - start))
                start = page + 1
        return widths

    @rule(count=st.integers(1, 30), alignment=st.sampled_from([1, 2, 8, 16]))
    def take(self, count: int, alignment: int) -> None:
        widths = self._widths()
        fits = [
            (widths[gfn], gfn) for gfn in range(0, PAGES - count + 1, alignment) if all(self.free[gfn : gfn + count])
        ]
        gfn = self.gaps.take(count, alignment)
        assert gfn == (min(fits)[1] if fits else None)
        if gfn is not None:
            self._took(gfn, count)

    @rule(gfn=st.integers(-2, PAGES + 1), count=st.integers(1, 30))
    def take_at(self, gfn: int, count: int) -> None:
        is_free = gfn >= 0 and gfn + count <= PAGES and all(self.free[gfn : gfn + count])
        assert self.gaps.take_at(gfn, count) is is_free
        if is_free:
            self._took(gfn, count)

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        gfns = data.draw(st.sampled_from(self.taken))
        self.taken.remove(gfns)
        self.gaps.give_back(gfns)
        self.free[gfns.start : gfns.end] = [True] * gfns.page_count
        with pytest.raises(ValueError, match="free already"):
            self.gaps.give_back(gfns)

    @invariant()
    def the_same(self) -> None:
        self.gaps.check()
        assert [page for gap in self.gaps for page in range(*gap)] == [
            page for page, is_free in enumerate(self.free) if is_free
        ]


TestAgainstBitmap = AgainstBitmap.TestCase
TestAgainstBitmap.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)


def test_an_aperture_of_nothing_has_no_gap() -> None:
    assert list(Gaps(0)) == []
    assert Gaps(0).take(1) is None
