"""Sizes of wl_shm buffers, as those who fill them count (ffmpeg's av_image_get_buffer_size, GStreamer's GstVideoInfo)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waylend.wire.formats import PIXEL_FORMATS, size_bytes_of


def code(name: str) -> int:
    return {"ARGB": 0, "XRGB": 1}.get(name, int.from_bytes(name.ljust(4).encode(), "little"))


@pytest.mark.parametrize(
    ("name", "width", "height", "stride", "size"),
    [
        ("ARGB", 1920, 1080, 7680, 8_294_400),
        ("XRGB", 1, 1, 4, 4),
        ("RG16", 1366, 768, 2732, 2_098_176),
        ("RG24", 1366, 768, 4100, 3_148_800),
        ("AR4H", 64, 64, 512, 32_768),
        ("YUYV", 1920, 1080, 3840, 4_147_200),
        ("Y210", 1920, 1080, 7680, 8_294_400),
        ("NV12", 1920, 1080, 1920, 3_110_400),
        ("NV21", 1280, 720, 1280, 1_382_400),
        ("NV16", 1920, 1080, 1920, 4_147_200),
        ("NV24", 1920, 1080, 1920, 6_220_800),
        ("P010", 1920, 1080, 3840, 6_220_800),
        ("P210", 1920, 1080, 3840, 8_294_400),
        ("YU12", 1920, 1080, 1920, 3_110_400),
        ("YV12", 1280, 720, 1344, 1_451_520),
        ("YU16", 1920, 1080, 1920, 4_147_200),
        ("YU24", 1920, 1080, 1920, 6_220_800),
        ("YU11", 640, 480, 640, 460_800),
        ("YUV9", 640, 480, 640, 345_600),
        ("NV15", 1920, 1080, 2400, 3_888_000),
        ("YU12", 5, 3, 6, 6 * 3 + 2 * (3 * 2)),  # half a row more, on each side, where the size is odd
        ("NV12", 5, 3, 6, 6 * 3 + 6 * 2),
    ],
)
def test_all_planes_are_counted(name: str, width: int, height: int, stride: int, size: int) -> None:
    assert PIXEL_FORMATS[code(name)].least_stride_bytes(width) <= stride
    assert size_bytes_of(code(name), stride, height) == size


def test_a_format_that_nobody_knows_is_what_libwayland_counts() -> None:
    assert code("X0L0") not in PIXEL_FORMATS
    assert size_bytes_of(code("X0L0"), 100, 7) == 700


@given(st.sampled_from(sorted(PIXEL_FORMATS)), st.integers(1, 1 << 15), st.integers(1, 1 << 15), st.integers(0, 64))
def test_a_buffer_has_its_first_plane_and_room_for_its_pixels(
    pixel_format: int, width: int, height: int, padding: int
) -> None:
    known = PIXEL_FORMATS[pixel_format]
    stride = known.least_stride_bytes(width) + padding
    assert known.size_bytes(stride, height) >= stride * height
    assert known.pixel_bytes * width <= stride
    assert known.size_bytes(stride, height) * 8 >= sum(
        plane.bits * (width // plane.across) * (height // plane.down) for plane in known.planes
    )
    # More of either is never less, so that a check of the whole holds for its parts.
    assert (
        known.size_bytes(stride, height)
        <= known.size_bytes(stride + 1, height)
        <= known.size_bytes(stride + 1, height + 1)
    )
