"""``waylend top``."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import click

from waylend.cli.options import json_option
from waylend.errors import UsageError
from waylend.service.control import ask, running_proxies


@click.command("top")
@click.option("--control", metavar="PATH", help="Ask the proxy with this control socket. [default: all of this user]")
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 3600),
    default=1.0,
    metavar="SECONDS",
    show_default=True,
    help="How often to look.",
)
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after looking so often. [default: at Ctrl-C]")
@click.option("--map", "as_map", is_flag=True, help="Draw each domain's aperture as a map; pages that came flash.")
@json_option
def command(control: str | None, interval: float, count: int | None, as_map: bool, as_json: bool) -> None:
    """Watch what running proxies have lent: pages present and faults a second, until Ctrl-C.

    Not on a terminal, each look is printed below the last; with --json it is one line.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        # Behind `nohup` or `&` they are ignored, and would stay so.
        signal.signal(number, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        _watch(None if control is None else Path(control), interval, count, as_map, as_json)


def _watch(control: Path | None, interval_s: float, count: int | None, as_map: bool, as_json: bool) -> None:
    from rich.console import Console, Group  # noqa: PLC0415 (only where something is shown)
    from rich.live import Live  # noqa: PLC0415

    from waylend.cli.lease_map import MapView  # noqa: PLC0415
    from waylend.cli.lease_table import shown  # noqa: PLC0415

    console = Console(highlight=False)
    faults = _Faults()
    view = MapView()
    with contextlib.ExitStack() as stack:
        live = None
        if console.is_terminal and not as_json:
            live = stack.enter_context(Live(console=console, screen=True, auto_refresh=False))
        for number in itertools.count(1):
            proxies = _answers(control)
            rates = faults.rates(proxies, time.monotonic())
            if as_json:
                print(json.dumps(proxies), flush=True)
            else:
                parts = view.shown(proxies, rates, *console.size) if as_map else shown(proxies, rates)
                if live is not None:
                    live.update(Group(*parts), refresh=True)
                else:
                    console.print(Group(*parts), soft_wrap=True)
                    sys.stdout.flush()
            if number == count:
                return
            time.sleep(interval_s)


def _answers(control: Path | None) -> list[dict[str, Any]]:
    """What the proxies say; without those that went in between, unless it is the one that was asked for."""
    if control is not None:
        return [ask(control, "leases")]
    answers = []
    for path in running_proxies():
        with contextlib.suppress(UsageError):
            answers.append(ask(path, "leases"))
    return answers


class _Faults:
    """Makes rates of counters."""

    def __init__(self) -> None:
        self._last: dict[tuple[int, str, int], int] = {}
        self._at_s = 0.0

    def rates(self, proxies: list[dict[str, Any]], now_s: float) -> dict[tuple[int, str, int], float]:
        """Faults a second since the last call, by (pid, domain, lease); a lease that is new counts from 0."""
        counts = {
            (proxy["pid"], domain["name"], lease["lease_id"]): lease["faults_served"]
            for proxy in proxies
            for domain in proxy["domains"]
            for lease in domain["leases"]
        }
        elapsed_s = now_s - self._at_s
        first = not self._at_s
        last, self._last, self._at_s = self._last, counts, now_s
        return {} if first else {key: (count - last.get(key, 0)) / elapsed_s for key, count in counts.items()}
