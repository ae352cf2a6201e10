"""One-page faults against a limit in C, in turns in one run. ``python bench/faults.py --limit PROGRAM [--pin CPU]``.

PROGRAM is a server in C that answers faults with a constant page: ``PROGRAM fuse PAGES FOLDER`` prints JSON with ``fault_us``.
Nothing here asserts anything: targets belong to the reader. ``waylend bench faults`` gives the figures without a limit.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile

from waylend.cli.measure import measure_faults
from waylend.domain.fuse.domain import FuseDomain


def measure_limit(program: str, page_count: int = 16384) -> dict[str, float]:
    """What the C program reaches."""
    with tempfile.TemporaryDirectory() as directory:
        done = subprocess.run([program, "fuse", str(page_count), directory], capture_output=True, check=True)
    measured: dict[str, float] = json.loads(done.stdout)["fault_us"]
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--pin", type=int, help="run everything on this CPU")
    parser.add_argument("--limit", required=True, help="a program that measures the limit in C")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if options.pin is not None:
        os.sched_setaffinity(0, {options.pin})
    limits, ours = [], []
    for _ in range(options.rounds):
        limits.append(measure_limit(options.limit)["p50"])
        ours.append(measure_faults(FuseDomain, rounds=1)["p50_us"])
    limit, our = statistics.median(limits), statistics.median(ours)
    print(f"p50 of one page: limit {limit:.2f} us, ours {our:.2f} us, {our / limit:.2f} times the limit")


if __name__ == "__main__":
    main()
