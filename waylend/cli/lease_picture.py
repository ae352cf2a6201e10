"""The maps of apertures as a picture: for ``waylend leases --png``. It needs Pillow, which the shim brings."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from waylend.cli.aperture_map import MEANINGS, ApertureMap, Cell, CellState, colour_of, map_of
from waylend.cli.lease_table import heading_of
from waylend.errors import Unavailable, UsageError
from waylend.lending.pages import PAGE_SHIFT

_SIDE = 8  # of a cell, with the pixel between it and the next
_COLUMNS = 128
_MOST_ROWS = 64
_MARGIN = 16
_LINE = 18
_TEXT_SIZE = 13
_MOST_NAMED = 24

_GROUND, _INK, _FAINT = (250, 250, 248), (40, 40, 44), (228, 228, 224)
_LOST = (220, 30, 30)


def save_picture(proxies: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Writes a PNG file. Raises Unavailable without Pillow, UsageError."""
    try:
        image, draw, font = (importlib.import_module(f"PIL.{name}") for name in ("Image", "ImageDraw", "ImageFont"))
    except ImportError as error:
        raise Unavailable(f"a picture needs Pillow: {error}", f"{sys.executable} -m pip install pillow") from error
    parts = [(proxy, domain, map_of(domain, _COLUMNS * _MOST_ROWS)) for proxy in proxies for domain in proxy["domains"]]
    height = 2 * _MARGIN + sum(_height(domain, found) for _, domain, found in parts) or 1
    picture = image.new("RGB", (2 * _MARGIN + _COLUMNS * _SIDE, max(height, 2 * _MARGIN + _LINE)), _GROUND)
    pen = _Pen(draw.Draw(picture), font.load_default(_TEXT_SIZE))
    if not parts:
        pen.write("no proxy is running")
    for proxy, domain, found in parts:
        pen.draw_domain(proxy, domain, found)
    try:
        picture.save(path, "PNG")
    except OSError as error:
        raise UsageError(f"can't write {path}: {error.strerror or error}") from error


def _height(domain: Mapping[str, Any], found: ApertureMap) -> int:
    rows = -(-len(found.cells) // _COLUMNS)
    named = min(len(domain["leases"]), _MOST_NAMED) + (len(domain["leases"]) > _MOST_NAMED)
    return rows * _SIDE + (3 + max(named, 1)) * _LINE + _MARGIN


class _Pen:
    """Draws from the top to the bottom. ``draw`` is a PIL.ImageDraw."""

    def __init__(self, draw: Any, font: Any) -> None:
        self._draw = draw
        self._font = font
        self._top = _MARGIN

    def write(self, text: str, left: int = _MARGIN, ink: tuple[int, int, int] = _INK) -> None:
        self._draw.text((left, self._top), text, font=self._font, fill=ink)
        self._top += _LINE

    def draw_domain(self, proxy: Mapping[str, Any], domain: Mapping[str, Any], found: ApertureMap) -> None:
        self.write("".join(heading_of(proxy, domain)))
        for at, cell in enumerate(found.cells):
            left, top = _MARGIN + at % _COLUMNS * _SIDE, self._top + at // _COLUMNS * _SIDE
            self._box(left, top, _SIDE - 2, cell)
        self._top += -(-len(found.cells) // _COLUMNS) * _SIDE + 4
        self._legend(found)
        leases = sorted(domain["leases"], key=lambda lease: -int(lease["page_count"]))
        for lease in leases[:_MOST_NAMED]:
            self._box(_MARGIN, self._top + 3, 9, Cell(CellState.PRESENT, lease["lease_id"]))
            present = f"{lease['pages_present']} of {lease['page_count']} pages present"
            faults = f"faults {lease['faults_served']}, revoked {lease['revocations']}"
            self.write(f"{lease['lease_id']}  {lease['name']}: {present}, {faults}", _MARGIN + 18)
        if len(leases) > _MOST_NAMED:
            self.write(f"and {len(leases) - _MOST_NAMED} smaller ones", _MARGIN + 18)
        if not leases:
            self.write("nothing is lent", _MARGIN + 18)
        self._top += _MARGIN

    def _legend(self, found: ApertureMap) -> None:
        top, left = self._top, _MARGIN
        self.write(f"a cell is {found.pages_per_cell << (PAGE_SHIFT - 10)} KiB", left)
        left += 130
        for state, meaning in MEANINGS.items():
            self._box(left, top + 4, 8, Cell(state, 0 if state is CellState.FREE else 1))
            self._draw.text((left + 14, top), meaning, font=self._font, fill=_INK)
            left += 26 + int(self._draw.textlength(meaning, font=self._font))
        if found.free_pages:
            self.write(f"{found.free_pages >> (20 - PAGE_SHIFT)} MiB behind it are not lent")

    def _box(self, left: int, top: int, side: int, cell: Cell) -> None:
        """Absent: an outline. Some: half of it. Dirty: with a dark core. Lost: red, crossed."""
        colour = colour_of(cell.lease_id)
        box = (left, top, left + side, top + side)
        if cell.state is CellState.FREE:
            self._draw.rectangle(box, fill=_FAINT)
        elif cell.state is CellState.ABSENT:
            self._draw.rectangle(box, fill=_GROUND, outline=colour)
        elif cell.state is CellState.SOME:
            self._draw.rectangle(box, fill=_GROUND, outline=colour)
            self._draw.rectangle((left, top + side // 2, left + side, top + side), fill=colour)
        elif cell.state is CellState.LOST:
            self._draw.rectangle(box, fill=_LOST)
            self._draw.line(box, fill=_GROUND)
        else:
            self._draw.rectangle(box, fill=colour)
            if cell.state is CellState.DIRTY:
                self._draw.rectangle((left + 2, top + 2, left + side - 2, top + side - 2), fill=_INK)
