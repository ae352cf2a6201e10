"""IntervalMap against a dumb oracle: one list cell for each point."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from waylend.lending import intervals
from waylend.lending.intervals import IntervalMap

WIDTH = 60
points = st.integers(0, WIDTH)


class AgainstCells(RuleBasedStateMachine):
    """The oracle: ``cells[point]`` is (start, end, value) of the range there, or None."""

    def __init__(self) -> None:
        super().__init__()
        # Small chunks, so that splitting and emptying them happens all the time.
        self._chunk_max, intervals._CHUNK_MAX = intervals._CHUNK_MAX, 4
        self.map: IntervalMap[int] = IntervalMap()
        self.cells: list[tuple[int, int, int] | None] = [None] * WIDTH
        self.serial = 0

    def teardown(self) -> None:
        intervals._CHUNK_MAX = self._chunk_max

    def ranges(self) -> list[tuple[int, int, int]]:
        return sorted({cell for cell in self.cells if cell})

    @rule(start=points, end=points)
    def insert(self, start: int, end: int) -> None:
        self.serial += 1
        if start >= end or any(self.cells[start:end]):
            with pytest.raises(ValueError, match=r"is empty|overlaps"):
                self.map.insert(start, end, self.serial)
            return
        self.map.insert(start, end, self.serial)
        self.cells[start:end] = [(start, end, self.serial)] * (end - start)

    @precondition(lambda self: any(self.cells))
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        start, end, value = data.draw(st.sampled_from(self.ranges()))
        assert self.map.remove(start) == value
        self.cells[start:end] = [None] * (end - start)

    @rule(start=points)
    def remove_what_is_not_there(self, start: int) -> None:
        if not any(start == first for first, _, _ in self.ranges()):
            with pytest.raises(KeyError):
                self.map.remove(start)

    @precondition(lambda self: any(self.cells))
    @rule(data=st.data(), at=points)
    def split(self, data: st.DataObject, at: int) -> None:
        start, end, value = data.draw(st.sampled_from(self.ranges()))
        if not start < at < end:
            with pytest.raises(ValueError, match="is not inside"):
                self.map.split(start, at)
            return
        self.map.split(start, at)
        self.cells[start:at] = [(start, at, value)] * (at - start)
        self.cells[at:end] = [(at, end, value)] * (end - at)

    @rule(start=points, end=points)
    def overlapping(self, start: int, end: int) -> None:
        expected = [one for one in self.ranges() if start < end and one[0] < end and start < one[1]]
        assert list(self.map.overlapping(start, end)) == expected

    @rule(start=points, end=points)
    def gaps(self, start: int, end: int) -> None:
        free = [point for start_, end_ in self.map.gaps(start, end) for point in range(start_, end_)]
        assert free == [point for point in range(start, end) if self.cells[point] is None]

    @rule(start=points, end=points, width=st.integers(1, 12), alignment=st.sampled_from([1, 2, 8]))
    def first_fit(self, start: int, end: int, width: int, alignment: int) -> None:
        fits = (
            point
            for point in range(start, end - width + 1)
            if point % alignment == 0 and not any(self.cells[point : point + width])
        )
        assert self.map.first_fit(start, end, width, alignment) == next(fits, None)

    @invariant()
    def the_same_everywhere(self) -> None:
        self.map.check()
        assert list(self.map) == self.ranges()
        assert len(self.map) == len(self.ranges())
        for point, cell in enumerate(self.cells):
            assert self.map.stab_range(point) == cell
            assert self.map.stab(point) == (cell and cell[2])


TestAgainstCells = AgainstCells.TestCase
TestAgainstCells.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)


def test_outside_of_everything() -> None:
    ranges: IntervalMap[str] = IntervalMap()
    assert ranges.stab(0) is None
    ranges.insert(10, 20, "here")
    assert ranges.stab(-1) is None
    assert ranges.stab(20) is None
    assert ranges.stab(19) == "here"
    assert ranges.first_fit(0, 15, 11) is None


def test_first_fit_needs_a_width() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        IntervalMap[int]().first_fit(0, 10, 0)


def test_a_map_of_many_chunks() -> None:
    ranges: IntervalMap[int] = IntervalMap()
    for start in range(0, 40_000, 4):
        ranges.insert(start, start + 3, start)
    for start in range(0, 40_000, 8):
        ranges.remove(start)
    ranges.check()
    assert len(ranges) == 5_000
    assert ranges.first_fit(0, 40_000, 4) == 0
    assert ranges.first_fit(0, 40_000, 5) == 7
    assert ranges.first_fit(0, 50_000, 6) == 39_999


@pytest.mark.parametrize(("start", "end"), [(5, 11), (19, 25), (12, 13), (10, 20), (5, 25), (29, 31)])
def test_ranges_that_overlap_are_refused(start: int, end: int) -> None:
    ranges: IntervalMap[str] = IntervalMap()
    ranges.insert(10, 20, "here")
    ranges.insert(30, 40, "there")
    with pytest.raises(ValueError, match="overlaps"):
        ranges.insert(start, end, "between")
    ranges.check()
