"""wl_shm's formats: how many bytes a pixel has, for those that have whole pixels in one plane."""

from __future__ import annotations


def _code(name: str) -> int:
    return int.from_bytes(name.encode("ascii"), "little")


# The numbers are those of wl_shm.format: 0 and 1 for the two that everybody has, DRM's four characters for the others.
_BY_SIZE = {
    1: "C8   R8   RGB8 BGR8",
    2: "XR12 XB12 RX12 BX12 AR12 AB12 RA12 BA12 XR15 XB15 RX15 BX15 AR15 AB15 RA15 BA15 RG16 BG16 R16  GR88 RG88",
    3: "RG24 BG24",
    4: ("XB24 RX24 BX24 AB24 RA24 BA24 XR30 XB30 RX30 BX30 AR30 AB30 RA30 BA30 RG32 GR32 AYUV XYUV XVYU"),
    8: "XR4H XB4H AR4H AB4H XR48 XB48 AR48 AB48",
}
#: Format -> bytes of a pixel.
PIXEL_BYTES: dict[int, int] = {0: 4, 1: 4} | {
    _code(name.ljust(4)): size for size, names in _BY_SIZE.items() for name in names.split()
}
# Two bytes for each pixel, in pairs.
PIXEL_BYTES |= {_code(name): 2 for name in ("YUYV", "YVYU", "UYVY", "VYUY")}
