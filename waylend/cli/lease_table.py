"""What proxies have lent, as a person reads it: for ``waylend leases`` and ``waylend top``. Rich is imported here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from waylend.lending.pages import PAGE_SHIFT

#: Heading -> what of a lease stands below it.
_COLUMNS = {
    "lease": "lease_id",
    "name": "name",
    "access": "protection",
    "on loss": "loss",
    "pages": "page_count",
    "present": "pages_present",
    "faults": "faults_served",
    "revoked": "revocations",
}
#: From when on it is worth a line that nothing is heard of a guest.
LONG_SILENCE_S = 10.0
_LEFT = ("name", "access", "on loss")
_SUMMED = ("pages", "present", "faults")


def shown(
    proxies: Sequence[dict[str, Any]], rates: dict[tuple[int, str, int], float] | None = None
) -> Iterator[RenderableType]:
    """A heading and a table for each domain of ``proxies`` (answers of the control socket).

    ``rates``: faults a second, by (pid, domain, lease); with it there is a column for that, and sums.
    """
    if not proxies:
        yield Text("no proxy is running")
    for proxy in proxies:
        for domain in proxy["domains"]:
            leases = domain["leases"]
            name, rest = heading_of(proxy, domain)
            yield Text(name, style="bold").append(rest, style="not bold")
            silent_s = proxy.get("guest_silent_s") or 0.0
            if silent_s >= LONG_SILENCE_S:
                yield Text(f"  nothing was heard of the guest for {silent_s:.0f} s: it may be paused")
            if not leases:
                yield Text("  nothing is lent")
                continue
            if rates is None:
                yield _table(leases)
                continue
            yield _table(
                leases, [rates.get((proxy["pid"], domain["name"], lease["lease_id"]), 0.0) for lease in leases]
            )
            resident = sum(lease["pages_present"] for lease in leases) << PAGE_SHIFT
            yield Text(
                f"{resident >> 20} of {domain['aperture_pages'] >> (20 - PAGE_SHIFT)} MiB of the aperture are there"
            )


def heading_of(proxy: Mapping[str, Any], domain: Mapping[str, Any]) -> tuple[str, str]:
    """The domain's name, and what else is to be said of it."""
    where = f"{', '.join(proxy['listen'])} -> {proxy['compositor']}"
    return domain["name"], f" by {domain['mechanism']}: pid {proxy['pid']}, {where}"


def _table(leases: Sequence[dict[str, Any]], rates: Sequence[float] | None = None) -> Table:
    """``rates``: one for each lease."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, show_footer=rates is not None)
    for heading, key in _COLUMNS.items():
        footer = f"{sum(lease[key] for lease in leases)}" if heading in _SUMMED else ""
        if heading == "name":
            footer = f"{len(leases)} leases"
        table.add_column(heading, footer, justify="left" if heading in _LEFT else "right", no_wrap=True)
    if rates is not None:
        table.add_column("faults/s", f"{sum(rates):.0f}", justify="right", no_wrap=True)
    for number, lease in enumerate(leases):
        cells = [f"{lease[key]}" for key in _COLUMNS.values()]
        table.add_row(*cells, *([] if rates is None else [f"{rates[number]:.0f}"]))
    return table
