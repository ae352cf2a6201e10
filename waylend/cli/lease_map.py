"""The maps of apertures on a terminal: for ``waylend top --map``. Rich is imported here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from waylend.cli.aperture_map import MEANINGS, ApertureMap, Cell, CellState, colour_of, map_of
from waylend.cli.lease_table import heading_of
from waylend.lending.pages import PAGE_SHIFT

#: What stands around the cells of a domain: heading, legend, the line of the scale, an empty one.
_OTHER_ROWS = 5
#: Leases that are named below a map; the others are told by their colours only.
_MOST_NAMED = 8


class MapView:
    """Draws one look after the other, and knows what has come since the last."""

    def __init__(self) -> None:
        self._last: dict[tuple[int, str], ApertureMap] = {}

    def shown(
        self,
        proxies: Sequence[dict[str, Any]],
        rates: Mapping[tuple[int, str, int], float],
        columns: int,
        rows: int,
    ) -> Iterator[RenderableType]:
        """A map of each domain's aperture, on a terminal of that size. ``rates``: see ``lease_table``. Raises UsageError."""
        if not proxies:
            yield Text("no proxy is running")
        last, self._last = self._last, {}
        domains = [(proxy, domain) for proxy in proxies for domain in proxy["domains"]]
        for proxy, domain in domains:
            name, rest = heading_of(proxy, domain)
            yield Text(name, style="bold").append(rest, style="not bold")
            leases = domain["leases"]
            if not leases:
                yield Text("  nothing is lent\n")
                continue
            named = min(len(leases), _MOST_NAMED + 1)
            room = columns * max(2, rows // len(domains) - _OTHER_ROWS - named)
            key = (proxy["pid"], domain["name"])
            found = self._last[key] = map_of(domain, room, last.get(key))
            yield _cells(found, columns)
            yield _scale(found)
            yield from _names(
                leases, {lease["lease_id"]: rates.get((*key, lease["lease_id"]), 0.0) for lease in leases}
            )


def _cells(found: ApertureMap, columns: int) -> Text:
    lines = []
    for at in range(0, len(found.cells), columns):
        lines.append(Text.assemble(*((cell.state.value, _style(cell)) for cell in found.cells[at : at + columns])))
    return Text("\n").join(lines)


def _style(cell: Cell) -> str:
    if cell.state is CellState.FREE:
        return "dim"
    if cell.state is CellState.LOST:
        return "bold red"
    red, green, blue = colour_of(cell.lease_id)
    return f"{'bold reverse ' if cell.flashes else ''}rgb({red},{green},{blue})"


def _scale(found: ApertureMap) -> Text:
    parts = [f"a cell is {found.pages_per_cell << (PAGE_SHIFT - 10)} KiB:"]
    parts += [f"{state.value} {meaning}" for state, meaning in MEANINGS.items()]
    if found.free_pages:
        parts.append(f"({found.free_pages >> (20 - PAGE_SHIFT)} MiB behind it are not lent)")
    return Text("  ".join(parts), style="dim")


def _names(leases: Sequence[Mapping[str, Any]], rates: Mapping[int, float]) -> Iterator[Text]:
    """The largest leases by their colours, in their order."""
    largest = sorted(leases, key=lambda lease: -int(lease["page_count"]))[:_MOST_NAMED]
    for lease in (lease for lease in leases if lease in largest):
        red, green, blue = colour_of(lease["lease_id"])
        line = Text("█ ", style=f"rgb({red},{green},{blue})")
        present = f"{lease['pages_present']} of {lease['page_count']} pages"
        yield line.append(
            f"{lease['lease_id']} {lease['name']}, {present}, {rates[lease['lease_id']]:.0f} faults/s", style="default"
        )
    if len(leases) > _MOST_NAMED:
        yield Text(f"  and {len(leases) - _MOST_NAMED} smaller ones", style="dim")
    yield Text("")
