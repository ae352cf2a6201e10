"""``waylend leases``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from waylend.cli.options import can_be_written, json_option
from waylend.service.control import answers_of, running_proxies


@click.command("leases")
@click.option("--control", metavar="PATH", help="Ask the proxy with this control socket. [default: all of this user]")
@click.option(
    "--png",
    type=click.Path(path_type=Path, dir_okay=False),
    callback=can_be_written,
    metavar="FILE",
    help="Draw a map of each domain's aperture into a PNG file, instead.",
)
@json_option
def command(control: str | None, png: Path | None, as_json: bool) -> None:
    """Show what running proxies have lent: domains, leases, pages present, faults served."""
    paths = [Path(control)] if control else running_proxies()
    proxies, failed = answers_of(paths, "leases")
    if as_json:
        print(json.dumps(proxies, indent=2))
        sys.exit(1 if failed else 0)
    if png is not None:
        from waylend.cli.lease_picture import save_picture  # noqa: PLC0415

        if proxies or not failed:
            save_picture(proxies, png)
        sys.exit(1 if failed else 0)
    # Rich is worth its start-up time only where a table is printed.
    from rich.console import Console  # noqa: PLC0415

    from waylend.cli.lease_table import shown  # noqa: PLC0415

    console = Console(highlight=False)
    if proxies or not failed:
        for part in shown(proxies):
            console.print(part, soft_wrap=True)
    sys.exit(1 if failed else 0)
