"""Which pixels of a buffer have changed: rectangles, and the way from a surface's coordinates to its buffer's. Pure values.

Everything here may say more than has changed, and never less.
"""

from __future__ import annotations

import math
from typing import NamedTuple

#: More rectangles than this become the one that holds them all.
MAX_RECTANGLES = 16


class Rectangle(NamedTuple):
    """Pixels ``left`` <= x < ``right``, ``top`` <= y < ``bottom``."""

    left: int
    top: int
    right: int
    bottom: int


class ViewportState(NamedTuple):
    """wp_viewport's state; None where it is unset. The source is (x, y, width, height), the destination (width, height)."""

    source: tuple[float, float, float, float] | None = None
    destination: tuple[int, int] | None = None


class Damage:
    """Changed pixels of a buffer of ``width`` x ``height``. ``whole`` or rectangles that lie within it."""

    __slots__ = ("height", "rectangles", "whole", "width")

    def __init__(self, width: int, height: int, *, whole: bool = False) -> None:
        self.width = width
        self.height = height
        self.whole = whole
        self.rectangles: list[Rectangle] = []

    def __bool__(self) -> bool:
        return self.whole or bool(self.rectangles)

    def add(self, left: int, top: int, right: int, bottom: int) -> None:
        """Clips to the buffer."""
        if self.whole:
            return
        left, top, right, bottom = max(left, 0), max(top, 0), min(right, self.width), min(bottom, self.height)
        if left >= right or top >= bottom:
            return
        if left == 0 and top == 0 and right == self.width and bottom == self.height:
            self.add_all()
            return
        new = Rectangle(left, top, right, bottom)
        for old in self.rectangles:
            if old.left <= left and old.top <= top and old.right >= right and old.bottom >= bottom:
                return
        self.rectangles.append(new)
        if len(self.rectangles) > MAX_RECTANGLES:
            all_of_them = self.rectangles
            self.rectangles = [
                Rectangle(
                    min(one.left for one in all_of_them),
                    min(one.top for one in all_of_them),
                    max(one.right for one in all_of_them),
                    max(one.bottom for one in all_of_them),
                )
            ]

    def add_all(self) -> None:
        self.whole = True
        self.rectangles.clear()

    def add_damage(self, other: Damage) -> None:
        """The other is of a buffer of the same size."""
        if other.whole:
            self.add_all()
        for rectangle in other.rectangles:
            self.add(*rectangle)

    def add_from_surface(
        self, x: int, y: int, width: int, height: int, *, scale: int, transform: int, viewport: ViewportState
    ) -> None:
        """A rectangle in the surface's coordinates (wl_surface.damage).

        With a transform other than *normal* or *180* the whole buffer counts as changed. A viewport that scales blurs: a
        pixel more on each side.
        """
        if width <= 0 or height <= 0:
            return
        if transform not in (0, 2) or scale < 1:
            self.add_all()
            return
        left, top, right, bottom = float(x), float(y), float(x + width), float(y + height)
        if viewport.source or viewport.destination:
            # wp_viewport: first the source is cut out of the surface without a viewport, then that is scaled.
            whole_width, whole_height = self.width / scale, self.height / scale
            source_x, source_y, source_width, source_height = viewport.source or (0.0, 0.0, whole_width, whole_height)
            shown_width, shown_height = viewport.destination or (source_width, source_height)
            if shown_width <= 0 or shown_height <= 0:
                self.add_all()
                return
            across, down = source_width / shown_width, source_height / shown_height
            left, right = source_x + left * across - 1, source_x + right * across + 1
            top, bottom = source_y + top * down - 1, source_y + bottom * down + 1
        # Beyond the buffer nothing changes, and floats of any size become ints that mean something.
        left, right = _clamp(left * scale, self.width), _clamp(right * scale, self.width)
        top, bottom = _clamp(top * scale, self.height), _clamp(bottom * scale, self.height)
        box = (math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom))
        if transform == 2:
            box = (self.width - box[2], self.height - box[3], self.width - box[0], self.height - box[1])
        self.add(*box)


def _clamp(value: float, most: int) -> float:
    return min(max(value, 0.0), float(most))


#: What lies between two pieces is copied along if it is less than this: a system call costs as much.
_GAP_BYTES = 8192


def spans(damage: Damage, stride_bytes: int, pixel_bytes: int) -> list[tuple[int, int]]:
    """The bytes to copy for that damage: (offset, size) from the buffer's start, within ``stride_bytes * height``.

    In order, disjoint, and joined where little lies between them. ``pixel_bytes`` is 0 where nobody knows it: then whole
    rows count.
    """
    if damage.whole:
        return [(0, stride_bytes * damage.height)]
    found: list[tuple[int, int]] = []
    for left, top, right, bottom in damage.rectangles:
        if pixel_bytes:
            start, end = left * pixel_bytes, min(right * pixel_bytes, stride_bytes)
        else:
            start, end = 0, stride_bytes
        if stride_bytes - (end - start) <= _GAP_BYTES:
            found.append((top * stride_bytes + start, (bottom - top - 1) * stride_bytes + end - start))
        else:
            found += [(row * stride_bytes + start, end - start) for row in range(top, bottom)]
    return found if len(damage.rectangles) == 1 else _joined(found)


def _joined(found: list[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for offset, size_bytes in sorted(found):
        start, so_far = joined[-1] if joined else (0, 0)
        if joined and offset <= start + so_far + _GAP_BYTES:
            joined[-1] = (start, max(start + so_far, offset + size_bytes) - start)
        else:
            joined.append((offset, size_bytes))
    return joined
