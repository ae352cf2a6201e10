"""Programs that tests start: found or skipped, started with a log, waited for with a deadline, ended by their own pid.

No test starts a program in another way, and none outlives its test: ``survivors`` finds those that would.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, TypeVar

import pytest

#: Long enough for a busy machine with two cores: nothing here is a measurement.
DEADLINE_S = 30.0

T = TypeVar("T")


#: What the tests have started or asked for so far, as they named it: ``.ci/run`` looks whether the list of packages has it all.
programs: set[str] = set()


def note_programs() -> None:
    """From now on whatever this process starts is in ``programs``."""

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "subprocess.Popen":
            programs.add(os.fsdecode(arguments[0]))

    sys.addaudithook(hear)


def require(program: str) -> str:
    """The path of ``program``. Without it the test is skipped, but fails in CI, where everything has to be there."""
    programs.add(program)
    path = shutil.which(program)
    if path is None:
        absent(f"{program} is not installed (tests/apt-packages.txt)")
    return path


def require_module(name: str) -> None:
    """The same for a Python module that only tests need."""
    if importlib.util.find_spec(name) is None:
        absent(f"{name} is not installed (make test installs it)")


def absent(reason: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def wait_until(condition: Callable[[], T], what: str, deadline_s: float = DEADLINE_S) -> T:
    """Waits until ``condition`` returns something true, and returns that. Raises AssertionError at the deadline."""
    end = time.monotonic() + deadline_s
    while not (result := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {deadline_s:g} s")
        time.sleep(0.01)
    return result


class Process:
    """A started program. Its output goes to a log file; leaving the context ends it."""

    def __init__(
        self,
        arguments: Sequence[str | os.PathLike[str]],
        log: Path,
        environment: Mapping[str, str] | None = None,
        *,
        stdin: int | None = subprocess.DEVNULL,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.name = Path(arguments[0]).name
        self.log_path = log
        with log.open("ab") as output:
            self.popen = subprocess.Popen(
                arguments,
                stdin=stdin,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=None if environment is None else dict(environment),
                pass_fds=pass_fds,
            )

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def running(self) -> bool:
        return self.popen.poll() is None

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def wait(self, deadline_s: float = DEADLINE_S) -> int:
        """Its exit status, as ``subprocess`` has it: minus the signal if one ended it."""
        try:
            return self.popen.wait(deadline_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} runs on after {deadline_s:g} s; its log:\n{self.log()}") from None

    def send(self, number: int) -> None:
        self.popen.send_signal(number)

    def end(self, number: int = signal.SIGTERM, deadline_s: float = 5.0) -> int:
        """Asks it to end, and ends it if it doesn't; returns its exit status."""
        if self.running:
            self.send(number)
            try:
                self.popen.wait(deadline_s)
            except subprocess.TimeoutExpired:
                self.popen.kill()
        return self.popen.wait()

    def wait_until(self, condition: Callable[[], T], what: str, deadline_s: float = DEADLINE_S) -> T:
        """``wait_until`` that also fails, with the log, when the program ends first."""

        def condition_while_running() -> T:
            result = condition()
            if not result and not self.running:
                raise AssertionError(f"{what}: {self.name} ended with {self.wait()}; its log:\n{self.log()}")
            return result

        return wait_until(condition_while_running, what, deadline_s)

    def fds(self) -> dict[int, str]:
        """What it has open: fd number -> what /proc says it is."""
        found = {}
        for name in os.listdir(f"/proc/{self.pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                found[int(name)] = os.readlink(f"/proc/{self.pid}/fd/{name}")
        return found

    def blocks_of(self, name: str) -> list[int]:
        """What each file of that name that it or a child of its has open takes of memory or a disk, in 512 bytes.

        There is one at least.
        """
        blocks = []
        for pid in (self.pid, *descendants(self.pid)):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(FileNotFoundError):
                    if name in os.readlink(f"/proc/{pid}/fd/{fd}"):
                        blocks.append(os.stat(f"/proc/{pid}/fd/{fd}").st_blocks)
        assert blocks, f"{self.name} has no {name} open"
        return blocks

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()


def run(arguments: Sequence[str | os.PathLike[str]], environment: Mapping[str, str] | None = None) -> bytes:
    """Runs a program to its end and returns its stdout; any other exit status than 0 fails the test."""
    done = subprocess.run(
        arguments,
        env=None if environment is None else dict(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, f"{arguments}: exit {done.returncode}\n{done.stderr.decode(errors='replace')}"
    return done.stdout


# --- what outlives its test --------------------------------------------------------------------------------------------


def adopt_orphans() -> None:
    """Makes this process the parent of what its children leave behind (prctl(2), PR_SET_CHILD_SUBREAPER)."""
    pr_set_child_subreaper = 36
    if ctypes.CDLL(None, use_errno=True).prctl(pr_set_child_subreaper, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def descendants(pid: int, except_below: frozenset[int] = frozenset()) -> dict[int, str]:
    """Every process below ``pid`` but not at or below one of ``except_below``: pid -> its command line."""
    found: dict[int, str] = {}
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            children = Path(f"/proc/{pid}/task/{thread}/children").read_text().split()
            for child in set(map(int, children)) - except_below:
                command = _command_line(child)
                if command is not None:
                    found[child] = command
                found |= descendants(child, except_below)
    return found


def _command_line(pid: int) -> str | None:
    """None for a process that has ended and only waits for its parent to ask."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return None
    return None if state == "Z" else command


def survivors(before: frozenset[int], deadline_s: float = 3.0) -> dict[int, str]:
    """What was started since ``before`` and runs on; processes that are just ending get a moment."""
    end = time.monotonic() + deadline_s
    while (left := descendants(os.getpid(), before)) and time.monotonic() < end:
        time.sleep(0.01)
    return left
