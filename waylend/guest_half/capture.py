"""Capture protocols in a guest half: what the compositor writes to a client's buffer comes back into the client's pool.

The compositor writes to lent memory. Before the client hears that its picture is ready, the picture is in its own file.
A client whose pool takes nothing (sealed, cut short, opened for reading) is ended.
"""

from __future__ import annotations

from typing import ClassVar

from waylend.guest_half.pools import PoolBuffer, Pools
from waylend.relay.interpose import FdMessage, Interposer


class Captures(Interposer):
    """``zwlr_screencopy_frame_v1`` writes a buffer whole; ``ext_image_copy_capture_frame_v1`` perhaps just what has changed."""

    REQUESTS: ClassVar = (
        "zwlr_screencopy_frame_v1.copy",
        "zwlr_screencopy_frame_v1.copy_with_damage",
        "zwlr_screencopy_frame_v1.destroy",
        "ext_image_copy_capture_frame_v1.attach_buffer",
        "ext_image_copy_capture_frame_v1.capture",
        "ext_image_copy_capture_frame_v1.destroy",
    )
    EVENTS: ClassVar = (
        "zwlr_screencopy_frame_v1.ready",
        "zwlr_screencopy_frame_v1.failed",
        "ext_image_copy_capture_frame_v1.ready",
        "ext_image_copy_capture_frame_v1.failed",
    )

    def __init__(self, pools: Pools) -> None:
        self._pools = pools
        self._attached: dict[int, int] = {}  # frame -> buffer, both object ids
        self._under_way: dict[int, PoolBuffer] = {}  # by frame

    def copy(self, message: FdMessage) -> None:
        (buffer_id,) = message.args
        assert isinstance(buffer_id, int)
        self._begin(message, buffer_id, copy_in=False)

    copy_with_damage = copy

    def attach_buffer(self, message: FdMessage) -> None:
        (buffer_id,) = message.args
        assert isinstance(buffer_id, int)
        self._attached[message.object_id] = buffer_id

    def capture(self, message: FdMessage) -> None:
        self._begin(message, self._attached.pop(message.object_id, 0), copy_in=True)

    def _begin(self, message: FdMessage, buffer_id: int, *, copy_in: bool) -> None:
        if message.object_id in self._under_way:
            return  # the compositor says what is wrong with that
        buffer = self._pools.begin_capture(message, buffer_id, copy_in=copy_in)
        if buffer is not None:
            self._under_way[message.object_id] = buffer

    def ready(self, message: FdMessage) -> None:
        buffer = self._end(message.object_id)
        if buffer is not None:
            self._pools.copy_back(message, buffer)

    def failed(self, message: FdMessage) -> None:
        self._end(message.object_id)

    def destroy(self, message: FdMessage) -> None:
        self._attached.pop(message.object_id, None)
        self._end(message.object_id)

    def _end(self, frame: int) -> PoolBuffer | None:
        buffer = self._under_way.pop(frame, None)
        if buffer is not None:
            self._pools.end_capture(buffer)
        return buffer

    def close(self) -> None:
        self._attached.clear()
        self._under_way.clear()
