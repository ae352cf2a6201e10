"""``make bench``: the relay against no proxy at all and against waypipe, in one run, everything on one CPU, medians.

    python -m bench [--rounds N] [--modes rtt,storm] [--cpu N] [--json FILE]

Latencies depend on the machine and on what else it does: only the ratios mean something.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

#: mode -> (unit, whether less is better)
MODES = {
    "rtt": ("us", True),
    "connect": ("us", True),
    "keymap": ("us", True),
    "storm": ("messages/s", False),
    "objects": ("messages/s", False),
    "events": ("messages/s", False),
    "frames": ("1080p frames/s", False),
}


@contextlib.contextmanager
def running(argv: list[str], socket: Path, folder: Path) -> Iterator[None]:
    """A program that makes ``socket``, until the context is left."""
    log = (folder / f"{socket.name}.log").open("wb")
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(folder), "WAYLAND_DISPLAY": str(folder / "host")}
    process = subprocess.Popen(argv, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 15
        while not socket.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"bench: {argv[0]} made no socket:\n{Path(log.name).read_text()}")
            time.sleep(0.02)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()


def ways(stack: contextlib.ExitStack, folder: Path) -> dict[str, Path]:
    """The sockets that lead to the sink, by the way's name."""
    host = folder / "host"
    stack.enter_context(running([sys.executable, "-m", "bench.sink", f"{host}"], host, folder))
    found = {"direct": host}
    ours = folder / "waylend"
    stack.enter_context(
        running(
            [sys.executable, "-m", "waylend", "serve", "--compositor", f"{host}", "--listen", f"{ours}"], ours, folder
        )
    )
    found["waylend"] = ours
    waypipe = shutil.which("waypipe")
    if waypipe:
        link, theirs = folder / "link", folder / "waypipe"
        stack.enter_context(running([waypipe, "-s", f"{link}", "client"], link, folder))
        server = [waypipe, "-s", f"{link}", "--display", f"{theirs}", "server", "--", "sleep", "100000"]
        stack.enter_context(running(server, theirs, folder))
        found["waypipe"] = theirs
    else:
        print("waypipe is not installed: not compared with it", file=sys.stderr)
    return found


def measure(path: Path, mode: str) -> float | None:
    argv = [sys.executable, "-m", "bench.client", f"{path}", mode]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        print(f"bench: {mode} through {path.name} failed: {error}", file=sys.stderr)
        return None
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--cpu", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.sched_setaffinity(0, {options.cpu})
    results: dict[str, dict[str, float]] = {}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="waylend-bench-")))
        sockets = ways(stack, folder)
        print(
            f"{'':10}"
            + "".join(f"{name:>24}" for name in sockets)
            + f"   medians of {options.rounds}, on CPU {options.cpu}"
        )
        for mode in options.modes.split(","):
            unit, less_is_better = MODES[mode]
            runs: dict[str, list[float]] = {name: [] for name in sockets}
            for _ in range(options.rounds):
                for name, path in sockets.items():
                    value = measure(path, mode)
                    if value is not None:
                        runs[name].append(value)
            row = results[mode] = {name: statistics.median(values) for name, values in runs.items() if values}
            cells = ""
            for name in sockets:
                if name not in row:
                    cells += f"{'failed':>24}"
                    continue
                ratio = row[name] / row["direct"] if less_is_better else row["direct"] / row[name]
                cells += f"{row[name]:>16,.0f}{f'x{ratio:.2f}':>8}"
            print(f"{mode:10}{cells}   {unit}", flush=True)
    print("xN: how many times slower than without a proxy")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
