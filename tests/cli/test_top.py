"""What ``waylend top`` makes of what proxies answer."""

from __future__ import annotations

import io
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.processes import Process
from waylend.cli.lease_table import shown
from waylend.cli.top import _Faults


def proxy_with(*faults: int, pid: int = 7) -> dict[str, Any]:
    leases = [
        {
            "lease_id": number,
            "name": "keymap",
            "protection": "read",
            "loss": "fault",
            "size_bytes": 4097,
            "page_count": 2,
            "pages_present": 1,
            "faults_served": count,
            "revocations": 0,
        }
        for number, count in enumerate(faults, 1)
    ]
    domain = {"name": "work", "mechanism": "fuse", "aperture_pages": 65536, "leases": leases}
    return {"pid": pid, "listen": ["/guest"], "compositor": "/host", "domains": [domain]}


def text_of(proxies: list[dict[str, Any]], rates: dict[tuple[int, str, int], float] | None = None) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=80)
    for part in shown(proxies, rates):
        console.print(part)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_rates_are_what_came_since_the_last_look() -> None:
    faults = _Faults()
    assert faults.rates([proxy_with(100, 5)], 10.0) == {}
    assert faults.rates([proxy_with(300, 5, 8), proxy_with(1, pid=8)], 12.0) == {
        (7, "work", 1): 100.0,
        (7, "work", 2): 0.0,
        (7, "work", 3): 4.0,
        (8, "work", 1): 0.5,
    }


def test_a_table_fits_a_terminal_and_sums_up() -> None:
    heading, columns, first, second, sums, resident = text_of([proxy_with(100, 5)], {(7, "work", 1): 99.6})
    assert heading == "work by fuse: pid 7, /guest -> /host"
    assert columns.split() == "lease name access on loss pages present faults revoked faults/s".split()
    assert first.split() == ["1", "keymap", "read", "fault", "2", "1", "100", "0", "100"]
    assert second.split() == ["2", "keymap", "read", "fault", "2", "1", "5", "0", "0"]
    assert sums.split() == ["2", "leases", "4", "2", "105", "100"]
    assert resident == "0 of 256 MiB of the aperture are there"


def test_nothing_is_said_as_such() -> None:
    assert text_of([]) == ["no proxy is running"]
    assert text_of([proxy_with()]) == ["work by fuse: pid 7, /guest -> /host", "  nothing is lent"]


def test_a_guest_that_is_paused_is_said_to_be_silent() -> None:
    assert "heard" not in "".join(text_of([proxy_with(1) | {"guest_silent_s": 5.0}]))
    assert "  nothing was heard of the guest for 45 s: it may be paused" in text_of(
        [proxy_with(1) | {"guest_silent_s": 45.0}]
    )
    assert "heard" not in "".join(text_of([proxy_with(1) | {"guest_silent_s": None}]))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_also_where_it_was_ignored_before(tmp_path: Path, number: signal.Signals) -> None:
    """As behind `nohup`, or `&` in a script."""
    tmp_path.chmod(0o700)
    top = [sys.executable, "-m", "waylend", "top"]
    argv = ["sh", "-c", "trap '' INT TERM; exec \"$@\"", "sh", *top]
    with Process(argv, tmp_path / "log", {"XDG_RUNTIME_DIR": f"{tmp_path}"}) as watching:
        watching.wait_until(lambda: "no proxy is running" in watching.log(), "its first look")
        watching.send(number)
        assert watching.wait() == 0
    assert "Traceback" not in watching.log()
