"""wl_shm's formats: how many bytes a buffer of each has, in all its planes.

A buffer has one stride, its first plane's; the others follow without a gap, with strides in proportion to what they hold (so
weston's renderers read them, and GStreamer writes them). Where a size is odd, a subsampled plane counts as rounded up: nobody
reads beyond that.
"""

from __future__ import annotations

from typing import NamedTuple


class Plane(NamedTuple):
    """``bits`` for each ``across`` x ``down`` pixels."""

    bits: int
    across: int = 1
    down: int = 1


class PixelFormat(NamedTuple):
    """``pixel_bytes`` is 0 where pixels share bytes, or are in several planes."""

    planes: tuple[Plane, ...]
    pixel_bytes: int = 0

    def least_stride_bytes(self, width: int) -> int:
        return -(-width * self.planes[0].bits // 8)

    def size_bytes(self, stride_bytes: int, height: int) -> int:
        """Of all planes, from the first byte on."""
        first_bits = self.planes[0].bits
        return sum(
            -(-stride_bytes * plane.bits // (first_bits * plane.across)) * -(-height // plane.down)
            for plane in self.planes
        )


def _code(name: str) -> int:
    return int.from_bytes(name.ljust(4).encode("ascii"), "little")


# The numbers are those of wl_shm.format: 0 and 1 for the two that everybody has, DRM's four characters for the others
# (drm_fourcc.h). Those that are tiles, or have a layout of their own, are not here.
_WHOLE_PIXELS = {
    1: "C8 R8 RGB8 BGR8",
    2: "XR12 XB12 RX12 BX12 AR12 AB12 RA12 BA12 XR15 XB15 RX15 BX15 AR15 AB15 RA15 BA15 RG16 BG16 R16 GR88 RG88",
    3: "RG24 BG24 VU24",
    4: "XB24 RX24 BX24 AB24 RA24 BA24 XR30 XB30 RX30 BX30 AR30 AB30 RA30 BA30 RG32 GR32 AYUV XYUV Y410 XV30",
    8: "XR4H XB4H AR4H AB4H XR48 XB48 AR48 AB48 AB10 Y412 Y416 XV36 XV48",
}
#: Pairs of pixels that share their colours, in one plane.
_PAIRS = {16: "YUYV YVYU UYVY VYUY", 32: "Y210 Y212 Y216"}
_PLANES = {
    (Plane(8), Plane(16, 2, 2)): "NV12 NV21",
    (Plane(8), Plane(16, 2, 1)): "NV16 NV61",
    (Plane(8), Plane(16)): "NV24 NV42",
    (Plane(10), Plane(20, 2, 2)): "NV15",
    (Plane(16), Plane(32, 2, 2)): "P010 P012 P016",
    (Plane(16), Plane(32, 2, 1)): "P210",
    (Plane(8), Plane(8, 4, 4), Plane(8, 4, 4)): "YUV9 YVU9",
    (Plane(8), Plane(8, 4, 1), Plane(8, 4, 1)): "YU11 YV11",
    (Plane(8), Plane(8, 2, 2), Plane(8, 2, 2)): "YU12 YV12",
    (Plane(8), Plane(8, 2, 1), Plane(8, 2, 1)): "YU16 YV16",
    (Plane(8), Plane(8), Plane(8)): "YU24 YV24",
    (Plane(16), Plane(16), Plane(16)): "Q410 Q401",
    (Plane(32), Plane(8)): "XRA8 XBA8 RXA8 BXA8",
    (Plane(24), Plane(8)): "R8A8 B8A8",
    (Plane(16), Plane(8)): "R5A8 B5A8",
}

PIXEL_FORMATS: dict[int, PixelFormat] = {number: PixelFormat((Plane(32),), 4) for number in (0, 1)}
PIXEL_FORMATS |= {
    _code(name): PixelFormat((Plane(8 * size),), size)
    for size, names in _WHOLE_PIXELS.items()
    for name in names.split()
}
PIXEL_FORMATS |= {_code(name): PixelFormat((Plane(bits),)) for bits, names in _PAIRS.items() for name in names.split()}
PIXEL_FORMATS |= {_code(name): PixelFormat(planes) for planes, names in _PLANES.items() for name in names.split()}


def size_bytes_of(pixel_format: int, stride_bytes: int, height: int) -> int:
    """Of a buffer, from its first byte on; of a format that nobody knows it is what libwayland counts, one plane."""
    known = PIXEL_FORMATS.get(pixel_format)
    return stride_bytes * height if known is None else known.size_bytes(stride_bytes, height)
