"""Times that compositors and clients tell each other, of clocks that are not the same in two machines: translated both ways.

Times in milliseconds (wl_callback.done, input events) have no clock that anybody could know, and pass as they are.
"""

from __future__ import annotations

import struct
import time
from typing import ClassVar

from waylend.channel.clocks import Timespec
from waylend.channel.halves import GuestEnd
from waylend.relay.interpose import Client, FdMessage, Interposer
from waylend.wire.spec import HEADER_BYTES

#: The first arguments of each message here but ``clock_id``.
_TIMESPEC = struct.Struct("=3I")


class Clocks(Interposer):
    """``wp_presentation.clock_id`` says of which clock times are; until a client has heard it, of CLOCK_MONOTONIC."""

    REQUESTS: ClassVar = ("wp_commit_timer_v1.set_timestamp",)
    EVENTS: ClassVar = (
        "wp_presentation.clock_id",
        "wp_presentation_feedback.presented",
        "zwp_input_timestamps_v1.timestamp",
        "zwlr_screencopy_frame_v1.ready",
        "ext_image_copy_capture_frame_v1.presentation_time",
    )

    def __init__(self, client: Client, end: GuestEnd) -> None:
        super().__init__(client)
        self._end = end
        self._clock_id = time.CLOCK_MONOTONIC

    def clock_id(self, message: FdMessage) -> None:
        (clock_id,) = message.args
        assert isinstance(clock_id, int)
        self._clock_id = clock_id
        self._end.want_clock(clock_id)

    def set_timestamp(self, message: FdMessage) -> bytes | None:
        return self._moved(message, self._ahead_ns)

    def presented(self, message: FdMessage) -> bytes | None:
        return self._moved(message, -self._ahead_ns)

    timestamp = ready = presentation_time = presented

    @property
    def _ahead_ns(self) -> int:
        """How far the host's clock is ahead."""
        difference = self._end.clocks.get(self._clock_id)
        return 0 if difference is None else difference.ahead_ns

    @staticmethod
    def _moved(message: FdMessage, by_ns: int) -> bytes | None:
        told = Timespec(*_TIMESPEC.unpack_from(message.raw, HEADER_BYTES))
        if not by_ns or not told.is_valid:  # what is wrong with it is for the compositor to say
            return None
        raw = bytearray(message.raw)
        _TIMESPEC.pack_into(raw, HEADER_BYTES, *Timespec.of(told.nanoseconds + by_ns))
        return bytes(raw)
