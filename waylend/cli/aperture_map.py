"""The aperture of a domain as a row of cells, of so many pages each: what ``waylend top --map`` and ``leases --png`` draw."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from waylend.errors import UsageError
from waylend.lending.lease import DIRTY, LOST, PRESENT
from waylend.lending.page_states import decoded


class CellState(enum.Enum):
    """What is in a cell, the most telling of it; its value is how a terminal shows it."""

    FREE = "·"
    ABSENT = "░"
    SOME = "▒"
    PRESENT = "█"
    DIRTY = "◆"
    LOST = "✗"


MEANINGS = {
    CellState.FREE: "not lent",
    CellState.ABSENT: "lent, absent",
    CellState.SOME: "some present",
    CellState.PRESENT: "present",
    CellState.DIRTY: "dirty",
    CellState.LOST: "lost",
}


@dataclass(frozen=True)
class Cell:
    """``lease_id`` is the lease that has most of it, 0 for none. ``flashes``: faults were served there since the last look."""

    state: CellState
    lease_id: int = 0
    present: int = 0
    flashes: bool = False


@dataclass(frozen=True)
class ApertureMap:
    """Of one domain. ``cells`` reach to the end of the last lease; ``free_pages`` behind it are nobody's."""

    pages_per_cell: int
    cells: tuple[Cell, ...]
    free_pages: int
    #: Faults that were served so far, by lease.
    faults: Mapping[int, int]


def map_of(domain: Mapping[str, Any], most_cells: int, last: ApertureMap | None = None) -> ApertureMap:
    """The map of a domain, as the control socket tells of it, in at most ``most_cells`` cells of a power of two of pages.

    Cells flash that have more pages than in ``last``, where that is of the same scale; and where a lease had faults and no
    cell has more (pages went and came again), all of its cells that have any. Raises UsageError.
    """
    leases = sorted(domain["leases"], key=lambda lease: int(lease["gfn_start"]))
    end = max((lease["gfn_start"] + lease["page_count"] for lease in leases), default=0)
    scale = 1
    while end > scale * most_cells:
        scale *= 2
    found = [_Content() for _ in range(-(-end // scale))]
    for lease in leases:
        for gfn, page_count, state in _stretches(lease, scale):
            if gfn + page_count > end:
                raise UsageError(f"lease {lease['lease_id']} is not where the proxy says it is")
            found[gfn // scale].add(lease["lease_id"], page_count, state)
    same = last is not None and last.pages_per_cell == scale
    before = last.cells if last is not None and same else ()
    cells = tuple(content.cell(before[at] if at < len(before) else None) for at, content in enumerate(found))
    faults = {lease["lease_id"]: lease["faults_served"] for lease in leases}
    if last is not None and same:
        faulted = {lease_id for lease_id, count in faults.items() if count > last.faults.get(lease_id, count)}
        somewhere = faulted - {cell.lease_id for cell in cells if cell.flashes}
        cells = tuple(
            replace(cell, flashes=True) if cell.lease_id in somewhere and cell.present else cell for cell in cells
        )
    return ApertureMap(scale, cells, domain["aperture_pages"] - end, faults)


def _stretches(lease: Mapping[str, Any], scale: int) -> Iterator[tuple[int, int, int]]:
    """First gfn, page count and state of pieces of the lease that lie in one cell each, and have one state each."""
    start, end = lease["gfn_start"], lease["gfn_start"] + lease["page_count"]
    try:
        group, states = decoded(lease["page_states"], lease["page_count"])
    except ValueError as error:
        raise UsageError(f"lease {lease['lease_id']}: {error}") from None
    for at, state in enumerate(states):
        gfn, until = start + at * group, min(end, start + (at + 1) * group)
        while gfn < until:
            piece = min(until, (gfn // scale + 1) * scale)
            yield gfn, piece - gfn, state
            gfn = piece


class _Content:
    """What is in one cell, while it is being found out."""

    def __init__(self) -> None:
        self._pages_of: dict[int, int] = {}
        self._present = 0
        self._worst = 0

    def add(self, lease_id: int, page_count: int, state: int) -> None:
        self._pages_of[lease_id] = self._pages_of.get(lease_id, 0) + page_count
        self._worst = max(self._worst, state)
        if state >= PRESENT:
            self._present += page_count

    def cell(self, last: Cell | None) -> Cell:
        if not self._pages_of:
            return Cell(CellState.FREE)
        lease_id = max(self._pages_of, key=self._pages_of.__getitem__)
        flashes = last is not None and self._present > last.present
        return Cell(self._state(), lease_id, self._present, flashes)

    def _state(self) -> CellState:
        if self._worst == LOST:
            return CellState.LOST
        if self._worst == DIRTY:
            return CellState.DIRTY
        if not self._present:
            return CellState.ABSENT
        return CellState.PRESENT if self._present == sum(self._pages_of.values()) else CellState.SOME


#: Colours of leases, in turn; red, green, blue. Ink stands out on black and on white.
COLOURS: Sequence[tuple[int, int, int]] = (
    (86, 156, 214),
    (106, 176, 76),
    (229, 142, 38),
    (155, 89, 182),
    (22, 160, 133),
    (212, 172, 13),
    (120, 130, 230),
    (205, 97, 133),
)


def colour_of(lease_id: int) -> tuple[int, int, int]:
    return COLOURS[lease_id % len(COLOURS)]
