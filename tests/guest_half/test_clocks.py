"""Times of the host's clocks become the guest's, and the other way."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import cast

import pytest

from tests.relay.between import spec_of
from waylend.channel.clocks import ClockDifference, Timespec
from waylend.channel.halves import GuestEnd
from waylend.guest_half.clocks import Clocks
from waylend.relay.interpose import Client, FdMessage
from waylend.wire.codec import decode, encode
from waylend.wire.spec import HEADER_BYTES

AHEAD_NS = 7_300_000_000
TOLD = Timespec(1, 20, 500_000_000)


class End:
    """The channel, whose host is ahead by AHEAD_NS in CLOCK_MONOTONIC and by none in others."""

    def __init__(self) -> None:
        self.clocks = {time.CLOCK_MONOTONIC: ClockDifference()}
        self.clocks[time.CLOCK_MONOTONIC].ahead_ns = AHEAD_NS
        self.wanted: list[int] = []

    def want_clock(self, clock_id: int) -> None:
        self.wanted.append(clock_id)


@pytest.fixture
def end() -> End:
    return End()


@pytest.fixture
def clocks(end: End) -> Clocks:
    return Clocks(cast("Client", SimpleNamespace()), cast("GuestEnd", end))


def message(name: str, *args: object) -> FdMessage:
    spec = spec_of(name)
    return FdMessage(9, spec, encode(spec, 9, args)[0], [])


def moved(name: str, replacement: bytes | None) -> list[object]:
    assert replacement is not None
    return decode(spec_of(name), memoryview(replacement)[HEADER_BYTES:])


@pytest.mark.parametrize(
    ("name", "rest"),
    [
        ("wp_presentation_feedback.presented", (16_666_666, 0, 5, 7)),
        ("zwp_input_timestamps_v1.timestamp", ()),
        ("zwlr_screencopy_frame_v1.ready", ()),
        ("ext_image_copy_capture_frame_v1.presentation_time", ()),
    ],
)
def test_what_the_compositor_tells_is_the_guests_time(clocks: Clocks, name: str, rest: tuple[int, ...]) -> None:
    method = getattr(clocks, name.partition(".")[2])
    told = moved(name, method(message(name, *TOLD, *rest)))
    assert told == [*Timespec.of(TOLD.nanoseconds - AHEAD_NS), *rest]


def test_what_a_client_asks_for_is_the_hosts_time(clocks: Clocks) -> None:
    name = "wp_commit_timer_v1.set_timestamp"
    assert moved(name, clocks.set_timestamp(message(name, *TOLD))) == [*Timespec.of(TOLD.nanoseconds + AHEAD_NS)]


def test_what_is_wrong_with_a_time_is_for_the_compositor_to_say(clocks: Clocks) -> None:
    assert clocks.set_timestamp(message("wp_commit_timer_v1.set_timestamp", 0, 0, 1_000_000_000)) is None


def test_times_are_of_the_clock_that_the_compositor_names(clocks: Clocks, end: End) -> None:
    clocks.clock_id(message("wp_presentation.clock_id", time.CLOCK_MONOTONIC_RAW))
    assert end.wanted == [time.CLOCK_MONOTONIC_RAW]
    assert clocks.set_timestamp(message("wp_commit_timer_v1.set_timestamp", *TOLD)) is None
