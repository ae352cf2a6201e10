"""Capture protocols in a guest half: what the compositor writes to a client's buffer comes back into the client's pool.

The compositor writes to lent memory. Before the client hears that its picture is ready, the picture is in its own file.
A client whose pool takes nothing (sealed, cut short, opened for reading) is ended.
"""

from __future__ import annotations

from typing import ClassVar

from waylend.guest_half.buffers import Buffers, PoolBuffer
from waylend.relay.interpose import Client, FdMessage, Interposer


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

    def __init__(self, client: Client, buffers: Buffers) -> None:
        super().__init__(client)
        self._buffers = buffers
        self._attached: dict[int, int] = {}  # frame -> buffer, both object ids
        self._under_way: dict[int, PoolBuffer] = {}  # by frame

    def copy(self, message: FdMessage) -> None:
        (buffer_id,) = message.args
        assert isinstance(buffer_id, int)
        self._begin(message, buffer_id, whole=True)

    copy_with_damage = copy

    def attach_buffer(self, message: FdMessage) -> None:
        (buffer_id,) = message.args
        assert isinstance(buffer_id, int)
        self._attached[message.object_id] = buffer_id

    def capture(self, message: FdMessage) -> None:
        self._begin(message, self._attached.pop(message.object_id, 0), whole=False)

    def _begin(self, message: FdMessage, buffer_id: int, *, whole: bool) -> None:
        """The compositor is about to write to that buffer: to all of it, or to parts and the others are to stay as they are."""
        if message.object_id in self._under_way:
            return  # the compositor says what is wrong with that
        buffer = self._buffers.get(buffer_id)
        if buffer is not None:  # else it is not of wl_shm
            if not whole:
                buffer.stale.add_all()
                self._buffers.copy(buffer)
            buffer.busy = buffer.captures = True
            self._under_way[message.object_id] = buffer

    def ready(self, message: FdMessage) -> None:
        buffer = self._end(message.object_id)
        if buffer is not None:
            self._buffers.copy_back(buffer)

    def failed(self, message: FdMessage) -> None:
        self._end(message.object_id)

    def destroy(self, message: FdMessage) -> None:
        self._attached.pop(message.object_id, None)
        self._end(message.object_id)

    def _end(self, frame: int) -> PoolBuffer | None:
        buffer = self._under_way.pop(frame, None)
        if buffer is not None:
            buffer.busy = buffer.captures = False
        return buffer

    def close(self) -> None:
        self._attached.clear()
        self._under_way.clear()
