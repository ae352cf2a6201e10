"""Captures in a guest half: what a compositor writes into lent memory is in the client's own file when it hears of it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator

import pytest

from tests.guest_half.drawing import AT, BUFFER, SIZE_BYTES, Drawing, message
from waylend.errors import ProtocolError
from waylend.guest_half.capture import Captures

FRAME = 6


class Capturing(Drawing):
    def __init__(self) -> None:
        super().__init__()
        self.captures = Captures(self.client, self.buffers)


@pytest.fixture
def capturing() -> Iterator[Capturing]:
    capturing = Capturing()
    yield capturing
    capturing.captures.close()
    capturing.close()


def test_a_whole_picture_comes_back(capturing: Capturing) -> None:
    picture = bytes(range(SIZE_BYTES))
    capturing.captures.copy(message("zwlr_screencopy_frame_v1.copy", FRAME, BUFFER))
    capturing.memory.octets[capturing.lent] = picture
    assert capturing.content == bytes(SIZE_BYTES)
    capturing.captures.ready(message("zwlr_screencopy_frame_v1.ready", FRAME, 0, 0, 0))
    assert capturing.content == picture


def test_what_the_compositor_leaves_alone_stays_the_clients(capturing: Capturing) -> None:
    for drawn in (b"\1", b"\2"):  # and again, without a word of it
        os.pwrite(capturing.fd, drawn * SIZE_BYTES, AT)
        capturing.captures.attach_buffer(message("ext_image_copy_capture_frame_v1.attach_buffer", FRAME, BUFFER))
        capturing.captures.capture(message("ext_image_copy_capture_frame_v1.capture", FRAME))
        capturing.memory.octets[capturing.lent.start] = 9
        capturing.captures.ready(message("ext_image_copy_capture_frame_v1.ready", FRAME))
        assert capturing.content == b"\x09" + drawn * (SIZE_BYTES - 1)


def test_what_the_compositor_is_writing_is_not_drawn_over_when_memory_is_lost(capturing: Capturing) -> None:
    capturing.captures.copy(message("zwlr_screencopy_frame_v1.copy", FRAME, BUFFER))
    capturing.draw(1)
    capturing.memory.lose()
    capturing.memory.octets[capturing.lent] = b"\5" * SIZE_BYTES
    capturing.captures.ready(message("zwlr_screencopy_frame_v1.ready", FRAME, 0, 0, 0))
    assert capturing.content == b"\5" * SIZE_BYTES


@pytest.mark.parametrize("ends_with", ["failed", "destroy"])
def test_what_came_to_nothing_changes_nothing(capturing: Capturing, ends_with: str) -> None:
    capturing.captures.copy(message("zwlr_screencopy_frame_v1.copy", FRAME, BUFFER))
    capturing.memory.octets[capturing.lent] = b"\5" * SIZE_BYTES
    getattr(capturing.captures, ends_with)(message(f"zwlr_screencopy_frame_v1.{ends_with}", FRAME))
    capturing.captures.ready(message("zwlr_screencopy_frame_v1.ready", FRAME, 0, 0, 0))
    assert capturing.content == bytes(SIZE_BYTES)


def test_a_buffer_of_another_kind_or_of_nobody_is_the_compositors_business(capturing: Capturing) -> None:
    capturing.captures.copy(message("zwlr_screencopy_frame_v1.copy", FRAME, 99))
    capturing.captures.capture(message("ext_image_copy_capture_frame_v1.capture", FRAME))
    capturing.captures.ready(message("zwlr_screencopy_frame_v1.ready", FRAME, 0, 0, 0))


def test_a_buffer_that_was_destroyed_meanwhile_gets_nothing(capturing: Capturing) -> None:
    capturing.captures.copy(message("zwlr_screencopy_frame_v1.copy", FRAME, BUFFER))
    capturing.pools.destroy(message("wl_buffer.destroy", BUFFER))
    capturing.captures.ready(message("zwlr_screencopy_frame_v1.ready", FRAME, 0, 0, 0))
    assert capturing.content == bytes(SIZE_BYTES)


def test_a_pool_that_takes_nothing_ends_its_client(capturing: Capturing) -> None:
    capturing.captures.copy(message("zwlr_screencopy_frame_v1.copy", FRAME, BUFFER))
    f_add_seals, f_seal_write = 1033, 8  # fcntl(2)
    fcntl.fcntl(capturing.fd, f_add_seals, f_seal_write)
    with pytest.raises(ProtocolError, match="can't copy what was captured"):
        capturing.captures.ready(message("zwlr_screencopy_frame_v1.ready", FRAME, 0, 0, 0))
