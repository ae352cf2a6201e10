"""Damage, against a bitmap: what changed is in it, always; how much more it says is bounded."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from tests.guest_half.damage_pixels import pixels_of
from waylend.guest_half.damage import Damage, ViewportState, spans

WIDTH, HEIGHT = 37, 23
COORDINATES = st.integers(-50, 80)
BOXES = st.tuples(COORDINATES, COORDINATES, COORDINATES, COORDINATES)
PIXEL_BYTES = 4


@given(st.lists(BOXES, max_size=30))
def test_what_was_added_is_in_it(boxes: list[tuple[int, int, int, int]]) -> None:
    damage = Damage(WIDTH, HEIGHT)
    added: set[tuple[int, int]] = set()
    for left, top, right, bottom in boxes:
        damage.add(left, top, right, bottom)
        added |= {
            (x, y)
            for x in range(max(left, 0), min(right, WIDTH))
            for y in range(max(top, 0), min(bottom, HEIGHT))
        }  # fmt: skip
    found = pixels_of(damage)
    assert added <= found
    assert len(boxes) > 16 or added == found
    assert bool(damage) == bool(added)


@given(st.lists(BOXES, max_size=5), st.sampled_from([0, PIXEL_BYTES]), st.integers(0, 3000))
def test_spans_hold_every_changed_byte_within_the_buffer(
    boxes: list[tuple[int, int, int, int]], pixel_bytes: int, padding: int
) -> None:
    damage = Damage(WIDTH, HEIGHT)
    for box in boxes:
        damage.add(*box)
    stride = WIDTH * PIXEL_BYTES + padding
    copied = bytearray(stride * HEIGHT)
    last_end = -1
    for offset, size in spans(damage, stride, pixel_bytes):
        assert size > 0
        assert offset > last_end
        last_end = offset + size
        assert 0 <= offset <= offset + size <= len(copied)
        copied[offset : offset + size] = b"\1" * size
    for x, y in pixels_of(damage):
        at = y * stride + x * PIXEL_BYTES
        assert copied[at : at + PIXEL_BYTES] == b"\1" * PIXEL_BYTES


def test_rows_with_little_between_them_are_one_span() -> None:
    damage = Damage(100, 100)
    damage.add(0, 10, 99, 20)
    assert spans(damage, 400, 4) == [(4000, 9 * 400 + 396)]
    wide = Damage(10_000, 100)
    wide.add(5, 10, 6, 12)
    assert spans(wide, 40_000, 4) == [(400_020, 4), (440_020, 4)]
    wide.add(3000, 10, 3001, 11)
    wide.add(1000, 11, 1001, 12)
    assert spans(wide, 40_000, 4) == [(400_020, 4), (412_000, 4), (440_020, 3984)]


VIEWPORTS = st.builds(
    ViewportState,
    source=st.none() | st.tuples(st.floats(0, 5), st.floats(0, 5), st.floats(0.5, 10), st.floats(0.5, 10)),
    destination=st.none() | st.tuples(st.integers(1, 60), st.integers(1, 60)),
)


@given(BOXES, st.integers(1, 3), st.integers(0, 7), VIEWPORTS)
def test_every_pixel_that_a_surface_shows_there_is_in_it(
    box: tuple[int, int, int, int], scale: int, transform: int, viewport: ViewportState
) -> None:
    """The oracle goes the other way: for each pixel of the buffer, where the surface shows it."""
    damage = Damage(WIDTH, HEIGHT)
    x, y, width, height = box[0], box[1], abs(box[2]), abs(box[3])
    damage.add_from_surface(x, y, width, height, scale=scale, transform=transform, viewport=viewport)
    found = pixels_of(damage)
    if transform not in (0, 2):
        assert damage.whole or not (width and height)
        return
    if not (width and height):
        assert not found  # an empty box damages nothing, wherever it lies in a stretched row
        return
    source = viewport.source or (0.0, 0.0, WIDTH / scale, HEIGHT / scale)
    shown = viewport.destination or (source[2], source[3])
    for column in range(WIDTH):
        for row in range(HEIGHT):
            across, down = (column, row) if transform == 0 else (WIDTH - 1 - column, HEIGHT - 1 - row)
            left = ((across / scale) - source[0]) * shown[0] / source[2]
            right = (((across + 1) / scale) - source[0]) * shown[0] / source[2]
            top = ((down / scale) - source[1]) * shown[1] / source[3]
            bottom = (((down + 1) / scale) - source[1]) * shown[1] / source[3]
            tiny = 1e-6
            if left < x + width - tiny and right > x + tiny and top < y + height - tiny and bottom > y + tiny:
                assert (column, row) in found


def test_absurd_coordinates_are_only_clipped() -> None:
    damage = Damage(WIDTH, HEIGHT)
    most = 0x7FFFFFFF
    damage.add_from_surface(-most, -most, most, most, scale=1, transform=0, viewport=ViewportState())
    assert not damage
    damage.add_from_surface(
        -most, -most, most, most, scale=most, transform=2, viewport=ViewportState((0.0, 0.0, 1e-9, 1e-9))
    )
    damage.add_from_surface(0, 0, most, most, scale=1, transform=0, viewport=ViewportState())
    assert damage.whole
    assert not math.isnan(sum(size for _, size in spans(damage, 200, 4)))
