"""How far the other half's clocks are: within half of what an answer takes, and nothing where it may be nothing."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.channel.joined import Joined
from waylend.channel import clocks
from waylend.channel.clocks import ClockDifference, Timespec

SECOND_NS = 1_000_000_000
AHEAD_NS = 100_000 * SECOND_NS


@given(st.lists(st.tuples(st.integers(0, 10**7), st.integers(0, 10**7)), min_size=1, max_size=20))
def test_the_difference_is_known_to_half_of_the_quickest_answer(ways: list[tuple[int, int]]) -> None:
    """``ways``: how long question and answer took."""
    difference = ClockDifference()
    now = SECOND_NS
    for there, back in ways:
        difference.add(now, now + there + AHEAD_NS, now + there + back)
        now += SECOND_NS
    quickest = min(there + back for there, back in ways[-8:])
    assert abs(difference.ahead_ns - AHEAD_NS) <= quickest // 2 + 1


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_the_same_clock_is_not_corrected(there: int, back: int) -> None:
    difference = ClockDifference()
    difference.add(1000, 1000 + there, 1000 + there + back)
    assert difference.ahead_ns == 0


def test_a_clock_that_was_set_is_believed_at_once() -> None:
    difference = ClockDifference()
    difference.add(0, AHEAD_NS, 10)
    difference.add(1000, 5 * AHEAD_NS, 1_000_000)  # a slow answer, but it contradicts
    assert difference.ahead_ns == pytest.approx(5 * AHEAD_NS, abs=600_000)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, SECOND_NS - 1))
def test_times_survive_the_way_there_and_back(hi: int, lo: int, nanoseconds: int) -> None:
    told = Timespec(hi, lo, nanoseconds)
    assert Timespec.of(told.nanoseconds) == told


def test_times_out_of_range_are_the_nearest_in_range() -> None:
    assert Timespec.of(-1) == (0, 0, 0)
    assert Timespec.of(1 << 200) == (0xFFFFFFFF, 0xFFFFFFFF, SECOND_NS - 1)


def test_it_is_measured_through_the_channel(joined: Joined, monkeypatch: pytest.MonkeyPatch) -> None:
    monotonic = joined.guest.clocks[time.CLOCK_MONOTONIC]
    assert monotonic.ahead_ns == 0, "it is the same machine's"
    ours = clocks.now_ns
    answers = iter([0, AHEAD_NS, 0])  # asked, told, answered
    monkeypatch.setattr(clocks, "now_ns", lambda clock_id: ours(clock_id) + next(answers))
    joined.guest.want_clock(time.CLOCK_BOOTTIME)
    joined.loop.until(lambda: joined.guest.clocks[time.CLOCK_BOOTTIME].ahead_ns != 0, "the clock's difference")
    assert joined.guest.clocks[time.CLOCK_BOOTTIME].ahead_ns == pytest.approx(AHEAD_NS, abs=SECOND_NS)


def test_it_is_asked_for_again_with_each_beat(joined: Joined) -> None:
    joined.loop.settle()
    with pytest.MonkeyPatch.context() as patch:
        added: list[int] = []
        patch.setattr(ClockDifference, "add", lambda _self, *times: added.append(len(times)))
        for count in (1, 2):
            joined.guest.beat(5.0)
            joined.loop.until(lambda count=count: len(added) == count, "an answer")  # type: ignore[misc]


def test_a_clock_that_no_compositor_tells_of_is_not_asked_for(joined: Joined) -> None:
    joined.guest.want_clock(2)  # this process's CPU time
    assert 2 not in joined.guest.clocks
    joined.guest.tell("get_clock", 2)
    joined.loop.until(lambda: bool(joined.host_over), "the end of the channel")
    assert "no clock 2" in joined.host_over[0]


def test_a_clock_that_nobody_asked_for_ends_the_channel(joined: Joined) -> None:
    joined.host.tell("clock", 1, 0, 0, 0)
    joined.loop.until(lambda: bool(joined.guest_over), "the end of the channel")
    assert "nobody asked" in joined.guest_over[0]
