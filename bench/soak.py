"""``make soak``: hours in minutes. Clients against one proxy, then a million faults on pages that are taken away all the time.

    python -m bench.soak [--seconds N] [--faults N]

The first half runs clients of all kinds against one ``waylend serve`` without a pause, kills some of them in the middle,
and watches the proxy's memory and descriptors: neither may grow. The second half is ``bench.hammer`` over each mechanism.
The exit status is 1 if anything grew, was stale or failed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.__main__ import MODES, running
from bench.hammer import FileOwner, Hammered, Owner, VramOwner, hammer
from waylend.domain.base import Domain
from waylend.domain.fuse.domain import FuseDomain
from waylend.domain.process.caller import ProcessDomain

#: What a proxy may grow by after its first minute or tenth: caches of the allocator, no more.
_GROWTH_BYTES = 6 << 20
_AT_ONCE = 4


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def resident_bytes(pid: int) -> int:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) << 10


def fd_count(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def least_fds(pid: int, seconds: float) -> int:
    """What stays open when nobody is there: a moment after the last client, its end has been noticed."""
    end = time.monotonic() + seconds
    least = fd_count(pid)
    while time.monotonic() < end:
        time.sleep(0.05)
        least = min(least, fd_count(pid))
    return least


def soak_relay(seconds: float) -> list[str]:
    """What went wrong."""
    wrong: list[str] = []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="waylend-soak-")))
        host, guest = folder / "host", folder / "waylend"
        stack.enter_context(running([sys.executable, "-m", "bench.sink", f"{host}"], host, folder))
        before = set(children_of(os.getpid()))
        serve = [sys.executable, "-m", "waylend", "serve", "--compositor", f"{host}", "--listen", f"{guest}"]
        stack.enter_context(running(serve, guest, folder))
        (pid,) = set(children_of(os.getpid())) - before
        # The first client has it make what it keeps: the domain.
        subprocess.run([sys.executable, "-m", "bench.client", f"{guest}", "keymap"], capture_output=True, check=True)
        idle_fds = least_fds(pid, 1.0)
        began = time.monotonic()
        warm: int | None = None
        clients: list[subprocess.Popen[bytes]] = []
        done = killed = 0
        told = 0.0
        while (elapsed := time.monotonic() - began) < seconds:
            while len(clients) < _AT_ONCE:
                mode = random.choice([mode for mode in MODES if mode != "connect"])
                argv = [sys.executable, "-m", "bench.client", f"{guest}", mode]
                clients.append(subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE))
            if random.random() < 0.02:
                random.choice(clients).send_signal(signal.SIGKILL)
            for client in [client for client in clients if client.poll() is not None]:
                clients.remove(client)
                _, said = client.communicate()
                if client.returncode == -signal.SIGKILL:
                    killed += 1
                elif client.returncode:
                    wrong.append(f"a client ended with {client.returncode}: {said.decode()[-300:]}")
                done += 1
            if warm is None and elapsed > min(60, seconds / 4):
                warm = resident_bytes(pid)
            if elapsed - told > 5:
                told = elapsed
                _tell(f"{elapsed:4.0f} s: {done} clients, {resident_bytes(pid) >> 20} MB, {fd_count(pid)} descriptors")
            time.sleep(0.05)
        for client in clients:
            client.kill()
            client.communicate()
        if (left := least_fds(pid, 5.0)) > idle_fds:
            wrong.append(f"{left} descriptors are open with no client there; at the start {idle_fds} were")
        grown = resident_bytes(pid) - (warm or 0)
        if grown > _GROWTH_BYTES:
            wrong.append(f"memory grew by {grown >> 10} KiB")
        _tell(f"{done} clients ({killed} of them killed), memory grew by {grown >> 10} KiB since warm", end="\n")
    return wrong


def soak_faults(faults: int) -> list[str]:
    """What went wrong."""
    wrong: list[str] = []
    kinds: dict[str, tuple[Callable[..., Domain], Callable[[], Owner]]] = {
        "fuse, file": (FuseDomain, FileOwner),
        "fuse, vram": (FuseDomain, VramOwner),
        "process, file": (ProcessDomain, FileOwner),
    }

    for name, (make_domain, make_owner) in kinds.items():

        def look(result: Hammered, name: str = name) -> None:
            _tell(f"{name}: {result.faults:,} faults, {result.changes:,} changes, {result.disturbances:,} moves")

        share = faults // len(kinds)
        result = hammer(make_domain, make_owner, faults=share, deadline_s=share / 200 + 60, look=look)
        _tell(
            f"{name}: {result.faults:,} faults, {result.touches:,} touches, {result.changes:,} changes, "
            f"{result.disturbances:,} moves in {result.seconds:.0f} s",
            end="\n",
        )
        wrong += result.stale
        if result.faults < share:
            wrong.append(f"{name}: only {result.faults:,} of {share:,} faults in {result.seconds:.0f} s")
    return wrong


def _tell(line: str, end: str = "") -> None:
    if end or os.isatty(1):
        print(f"\r\033[K{line}" if os.isatty(1) else line, end=end, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300, help="of clients against the relay")
    parser.add_argument("--faults", type=int, default=1_000_000)
    options = parser.parse_args()
    wrong = soak_relay(options.seconds) + soak_faults(options.faults)
    for line in wrong:
        print(f"soak: {line}", file=sys.stderr)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
