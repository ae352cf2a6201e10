"""``waylend bench``."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable
from typing import Any

import click

from waylend.cli.options import json_option
from waylend.domain.base import Domain

#: name -> where its class is.
_DOMAINS = {
    "fuse": ("waylend.domain.fuse.domain", "FuseDomain"),
    "process": ("waylend.domain.process.caller", "ProcessDomain"),
}
_TITLES = {
    "p50_us": ("one-page fault, median", "us"),
    "p99_us": ("one-page fault, 99 of 100", "us"),
    "max_us": ("one-page fault, slowest", "us"),
    "sequential_pages_per_s": ("sequential touch", "pages/s"),
}


@click.group("bench")
def command() -> None:
    """Measure what this machine does with lent memory. Compare figures of one run only."""


@command.command("faults", short_help="Measure how fast lent pages come and go.")
@click.option(
    "--domain",
    "domains",
    multiple=True,
    type=click.Choice(list(_DOMAINS)),
    help="The mechanism: fuse in this process, or in a process of its own. May be repeated. [default: both]",
)
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1, 100), help="Medians of so many.")
@click.option("--pin", type=click.IntRange(0), metavar="CPU", help="Run everything on one CPU: far less noise.")
@json_option
def faults(domains: tuple[str, ...], rounds: int, pin: int | None, as_json: bool) -> None:
    """Serving page faults, taking pages back (1 page, 64 MiB, 256 MiB, 256 MiB dirty), and looking leases up."""
    from waylend.cli import measure  # noqa: PLC0415 (threads, and what it needs of them: not for --help)

    if pin is not None:
        try:
            os.sched_setaffinity(0, {pin})
        except OSError as error:
            raise click.BadParameter(f"CPU {pin}: {error.strerror}", param_hint="--pin") from None
    result: dict[str, Any] = {}
    for name in domains or _DOMAINS:
        make_domain = _made_by(*_DOMAINS[name])
        _say(f"{name}: faults", as_json)
        measured = measure.measure_faults(make_domain, rounds=rounds)
        _say(f"{name}: revoking", as_json)
        result[name] = {"faults": measured, "revoking_ms": measure.measure_revoking(make_domain, rounds=rounds)}
    _say("looking up", as_json)
    result["lookup_us"] = measure.measure_lookups()
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        _print(result)


def _made_by(module: str, name: str) -> Callable[..., Domain]:
    made: Callable[..., Domain] = getattr(importlib.import_module(module), name)
    return made


def _say(what: str, as_json: bool) -> None:
    """Where it is, on a terminal: the whole takes a minute."""
    if not as_json:
        click.echo(f"\r\033[K{what} ...", err=True, nl=False) if os.isatty(2) else None


def _print(result: dict[str, Any]) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    if os.isatty(2):
        click.echo("\r\033[K", err=True, nl=False)
    names = [name for name in result if name != "lookup_us"]
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    table.add_column("")
    for key, (title, unit) in _TITLES.items():
        table.add_row(title, *(f"{result[name]['faults'][key]:,.1f}" for name in names), unit)
    for key in result[names[0]]["revoking_ms"]:
        table.add_row(f"revoking {key}", *(f"{result[name]['revoking_ms'][key]:,.3f}" for name in names), "ms")
    for size, value in result["lookup_us"].items():
        table.add_row(f"looking up one of {size:,}", f"{value:.2f}", *("" for _ in names[1:]), "us")
    Console(highlight=False).print(table)
