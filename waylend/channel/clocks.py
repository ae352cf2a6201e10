"""How far the other half's clocks are from ours: asked for through the channel, and known to half of what an answer takes."""

from __future__ import annotations

import time
from collections import deque
from typing import NamedTuple

#: Those of clock_gettime(2) that a compositor may tell times of: REALTIME, MONOTONIC, RAW, the coarse ones, BOOTTIME, TAI.
CLOCK_IDS = (0, 1, 4, 5, 6, 7, 11)
#: Bit of hello's features: the host half answers get_clock.
FEATURE = 1
#: How many answers count: the clocks drift apart.
_KEPT = 8
_SECOND_NS = 1_000_000_000
_LAST_NS = (_SECOND_NS << 64) - 1


class Timespec(NamedTuple):
    """A time as Wayland's messages have it."""

    tv_sec_hi: int
    tv_sec_lo: int
    tv_nsec: int

    @classmethod
    def of(cls, nanoseconds: int) -> Timespec:
        """Of a time before 0, 0; of one that is beyond all, the last."""
        seconds, rest = divmod(min(max(nanoseconds, 0), _LAST_NS), _SECOND_NS)
        return cls(seconds >> 32, seconds & 0xFFFFFFFF, rest)

    @property
    def is_valid(self) -> bool:
        return self.tv_nsec < _SECOND_NS

    @property
    def nanoseconds(self) -> int:
        return ((self.tv_sec_hi << 32) + self.tv_sec_lo) * _SECOND_NS + self.tv_nsec


class _Answer(NamedTuple):
    ahead_ns: int
    error_ns: int


class ClockDifference:
    """Of one clock: how far theirs is ahead of ours. 0 until it is known, and where it may be 0: then it is one machine's."""

    def __init__(self) -> None:
        self.ahead_ns = 0
        self._answers: deque[_Answer] = deque(maxlen=_KEPT)

    def add(self, asked_ns: int, theirs_ns: int, answered_ns: int) -> None:
        """What their clock said between two times of ours."""
        new = _Answer(theirs_ns - (asked_ns + answered_ns) // 2, (answered_ns - asked_ns) // 2 + 1)
        if any(abs(new.ahead_ns - old.ahead_ns) > new.error_ns + old.error_ns for old in self._answers):
            self._answers.clear()  # one of the clocks was set, or its machine slept
        self._answers.append(new)
        best = min(self._answers, key=lambda answer: answer.error_ns)
        self.ahead_ns = 0 if abs(best.ahead_ns) <= best.error_ns else best.ahead_ns


def now_ns(clock_id: int) -> int:
    """Raises OSError for a clock that this kernel lacks."""
    return time.clock_gettime_ns(clock_id)
