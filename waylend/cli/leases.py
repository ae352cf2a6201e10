"""``waylend leases``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from waylend.cli.options import json_option
from waylend.control import ask, running_proxies


@click.command("leases")
@click.option("--control", metavar="PATH", help="Ask the proxy with this control socket. [default: all of this user]")
@json_option
def command(control: str | None, as_json: bool) -> None:
    """Show what running proxies have lent: domains, leases, pages present, faults served."""
    proxies = [ask(path, "leases") for path in ([Path(control)] if control else running_proxies())]
    if as_json:
        print(json.dumps(proxies, indent=2))
        return
    if not proxies:
        print("no proxy is running")
    for proxy in proxies:
        _print(proxy)


def _print(proxy: dict[str, Any]) -> None:
    # Rich is worth its start-up time only where a table is printed.
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    console = Console(highlight=False)
    for domain in proxy["domains"]:
        console.print(
            f"[bold]{domain['name']}[/bold] by {domain['mechanism']}: pid {proxy['pid']}, "
            f"{', '.join(proxy['listen'])} -> {proxy['host']}",
            soft_wrap=True,
        )
        table = Table(box=None, pad_edge=False)
        for heading in ("lease", "name", "access", "on loss", "bytes", "pages", "present", "faults", "revoked"):
            table.add_column(heading, justify="left" if heading in ("name", "access", "on loss") else "right")
        for lease in domain["leases"]:
            table.add_row(
                f"{lease['lease_id']}",
                lease["name"],
                lease["protection"],
                lease["loss"],
                f"{lease['size_bytes']}",
                f"{lease['page_count']}",
                f"{lease['pages_present']}",
                f"{lease['faults_served']}",
                f"{lease['revocations']}",
            )
        console.print(table if domain["leases"] else "  nothing is lent")
