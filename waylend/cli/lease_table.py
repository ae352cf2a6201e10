"""What proxies have lent, as a person reads it: for ``waylend leases`` and ``waylend top``. Rich is imported here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from waylend.lending.pages import PAGE_SHIFT

_LEFT = ("name", "access", "on loss")
_COLUMNS = ("lease", "name", "access", "on loss", "pages", "present", "faults", "revoked")


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
            heading = Text(domain["name"], style="bold")
            heading.append(
                f" by {domain['mechanism']}: pid {proxy['pid']}, {', '.join(proxy['listen'])} -> {proxy['host']}",
                style="not bold",
            )
            yield heading
            if not leases:
                yield Text("  nothing is lent")
                continue
            table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, show_footer=rates is not None)
            for name in (*_COLUMNS, *(("faults/s",) if rates is not None else ())):
                table.add_column(name, justify="left" if name in _LEFT else "right", no_wrap=True)
            total = 0.0
            for lease in leases:
                cells = [
                    f"{lease['lease_id']}",
                    lease["name"],
                    lease["protection"],
                    lease["loss"],
                    f"{lease['page_count']}",
                    f"{lease['pages_present']}",
                    f"{lease['faults_served']}",
                    f"{lease['revocations']}",
                ]
                if rates is not None:
                    rate = rates.get((proxy["pid"], domain["name"], lease["lease_id"]), 0.0)
                    total += rate
                    cells.append(f"{rate:.0f}")
                table.add_row(*cells)
            if rates is not None:
                table.columns[1].footer = f"{len(leases)} leases"
                for column, key in ((4, "page_count"), (5, "pages_present"), (6, "faults_served")):
                    table.columns[column].footer = f"{sum(lease[key] for lease in leases)}"
                table.columns[8].footer = f"{total:.0f}"
            yield table
            if rates is not None:
                resident = sum(lease["pages_present"] for lease in leases) << PAGE_SHIFT
                yield Text(
                    f"{resident >> 20} of {domain['aperture_pages'] >> (20 - PAGE_SHIFT)} MiB of the aperture are there"
                )
