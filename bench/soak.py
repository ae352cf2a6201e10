"""``make soak``: hours in minutes. Clients against one proxy, then a million faults on pages that are taken away all the time.

    python -m bench.soak [--seconds N] [--faults N]

The first part runs clients of all kinds without a pause, half of the time against one ``waylend serve``, half of it against the
two halves, kills some of them in the middle, and watches each process's memory and descriptors: neither may grow. The second
part is ``bench.hammer`` over each mechanism.
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
_OTHER_PIXELS = b"the compositor saw other pixels"


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def own_bytes(pid: int) -> int:
    """Its own memory: what it has mapped of others comes and goes with them."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("RssAnon"))
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


class Watched:
    """A process that must not grow. ``idle_fds`` are open when nobody is there; ``warm_bytes`` it has after a while."""

    def __init__(self, name: str, pid: int) -> None:
        self.name = name
        self.pid = pid
        self.idle_fds = least_fds(pid, 1.0)
        self.warm_bytes: int | None = None

    @property
    def grown_bytes(self) -> int:
        return own_bytes(self.pid) - (self.warm_bytes or 0)

    def wrong(self) -> list[str]:
        """With no client there any more."""
        found = []
        if (left := least_fds(self.pid, 6.0)) > self.idle_fds:
            found.append(
                f"{self.name}: {left} descriptors are open with no client there; at the start {self.idle_fds} were"
            )
        if self.grown_bytes > _GROWTH_BYTES:
            found.append(f"{self.name}: memory grew by {self.grown_bytes >> 10} KiB")
        return found


def proxies(stack: contextlib.ExitStack, form: str, folder: Path) -> dict[str, int]:
    """Starts what leads from the socket ``wayland-1`` to the one ``host``; the processes' ids by name."""
    waylend = [sys.executable, "-m", "waylend"]
    serve = [*waylend, "serve", "--compositor", f"{folder / 'host'}", "--listen", f"{folder / 'wayland-1'}"]
    bar = ["--bar", f"{folder / 'bar'}", "--channel", f"unix:{folder / 'channel'}"]
    host = [*waylend, "-v", "host", "--compositor", f"{folder / 'host'}", *bar]
    guest = [*waylend, "guest", "--listen", f"{folder / 'wayland-1'}", *bar]
    parts = {
        "serve": {"serve": (serve, folder / "wayland-1")},
        "halves": {"host half": (host, folder / "channel"), "guest half": (guest, folder / "wayland-1")},
    }
    found = {}
    for name, (argv, made) in parts[form].items():
        before = set(children_of(os.getpid()))
        stack.enter_context(running(argv, made, folder))
        (found[name],) = set(children_of(os.getpid())) - before
    return found


def unexcused(black: list[str], folder: Path) -> list[str]:
    """The compositor may see black for a moment when the host half takes all pages, as it says: each client once."""
    log = folder / "channel.log"
    taken = log.read_text().count("its pages are taken") if log.exists() else 0
    return black if len(black) > taken * (_AT_ONCE - 1) else []


def soak_clients(form: str, seconds: float) -> list[str]:
    """What went wrong."""
    wrong: list[str] = []
    black: list[str] = []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="waylend-soak-")))
        host, guest = folder / "host", folder / "wayland-1"
        stack.enter_context(running([sys.executable, "-m", "bench.sink", f"{host}"], host, folder))
        pids = proxies(stack, form, folder)
        # The first client has them make what they keep: the domain.
        subprocess.run([sys.executable, "-m", "bench.client", f"{guest}", "keymap"], capture_output=True, check=True)
        watched = [Watched(name, pid) for name, pid in pids.items()]
        clients: list[subprocess.Popen[bytes]] = []
        done = killed = 0
        began = told = time.monotonic()
        while (now := time.monotonic()) - began < seconds:
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
                    (black if _OTHER_PIXELS in said else wrong).append(
                        f"{form}: a client ended: {said.decode()[-300:]}"
                    )
                done += 1
            if now - began > min(60, seconds / 4):
                for one in watched:
                    one.warm_bytes = one.warm_bytes or own_bytes(one.pid)
            if now - told > 5:
                told = now
                state = ", ".join(
                    f"{one.name} {own_bytes(one.pid) >> 20} MB, {fd_count(one.pid)} fds" for one in watched
                )
                _tell(f"{now - began:4.0f} s: {done} clients; {state}")
            time.sleep(0.05)
        for client in clients:
            client.kill()
            client.communicate()
        wrong += unexcused(black, folder)
        for one in watched:
            wrong += one.wrong()
        grown = ", ".join(f"{one.name} {one.grown_bytes >> 10} KiB" for one in watched)
        _tell(f"{form}: {done} clients ({killed} of them killed), memory grew since warm by: {grown}", end="\n")
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
    parser.add_argument(
        "--seconds", type=float, default=300, help="of clients, half of them each against serve and the halves"
    )
    parser.add_argument("--faults", type=int, default=1_000_000)
    options = parser.parse_args()
    wrong = [line for form in ("serve", "halves") for line in soak_clients(form, options.seconds / 2)]
    wrong += soak_faults(options.faults)
    for line in wrong:
        print(f"soak: {line}", file=sys.stderr)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
