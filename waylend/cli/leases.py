"""``waylend leases``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from waylend.cli.options import json_option
from waylend.service.control import ask, running_proxies


@click.command("leases")
@click.option("--control", metavar="PATH", help="Ask the proxy with this control socket. [default: all of this user]")
@json_option
def command(control: str | None, as_json: bool) -> None:
    """Show what running proxies have lent: domains, leases, pages present, faults served."""
    proxies = [ask(path, "leases") for path in ([Path(control)] if control else running_proxies())]
    if as_json:
        print(json.dumps(proxies, indent=2))
        return
    # Rich is worth its start-up time only where a table is printed.
    from rich.console import Console  # noqa: PLC0415

    from waylend.cli.lease_table import shown  # noqa: PLC0415

    console = Console(highlight=False)
    for part in shown(proxies):
        console.print(part, soft_wrap=True)
