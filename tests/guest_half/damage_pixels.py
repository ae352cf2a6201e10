"""Damage as the pixels that it means."""

from __future__ import annotations

from waylend.guest_half.damage import Damage, Rectangle


def pixels_of(damage: Damage) -> set[tuple[int, int]]:
    boxes = [Rectangle(0, 0, damage.width, damage.height)] if damage.whole else damage.rectangles
    return {
        (x, y)
        for left, top, right, bottom in boxes
        for x in range(left, right)
        for y in range(top, bottom)
    }  # fmt: skip
