"""`waylend run` and what APP starts: programs that fork and launchers keep their windows, and a signal ends all of them."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.compositors import Sway, plain_environment
from tests.live.guest import WAYLEND
from tests.processes import Process, descendants, require, run, wait_until


@pytest.fixture
def runtime_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="guest-") as path:
        yield Path(path)


def start_run(sway: Sway, runtime_dir: Path, folder: Path, *arguments: str, **more: str) -> Process:
    environment = plain_environment(runtime_dir, WAYLAND_DISPLAY=str(sway.socket), PYTHONUNBUFFERED="1") | more
    return Process([*WAYLEND, "run", *arguments], folder / "run.log", environment)


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


def children_named(pid: int, name: str) -> list[int]:
    children = []
    for child in descendants(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            if Path(f"/proc/{child}/stat").read_text().split()[3] == f"{pid}":
                children.append(child)
    return [child for child in children if Path(f"/proc/{child}/comm").read_text().strip() == name]


# --- what APP gets -------------------------------------------------------------------------------------------------------


def environment_of(sway: Sway, runtime_dir: Path, folder: Path, *options: str, **more: str) -> dict[str, str]:
    app = start_run(sway, runtime_dir, folder, *options, "--", "env", "-0", **more)
    assert app.wait() == 0, app.log()
    entries = (entry.partition("=") for entry in app.log().split("\0") if entry)
    return {name: value for name, _, value in entries}


def test_nothing_of_the_environment_leads_past_the_proxy(sway: Sway, runtime_dir: Path, tmp_path: Path) -> None:
    leading = dict.fromkeys(
        "DISPLAY XAUTHORITY SWAYSOCK I3SOCK LISTEN_PID LISTEN_FDNAMES WATCHDOG_USEC INVOCATION_ID".split(), "1"
    )
    environment = environment_of(sway, runtime_dir, tmp_path, **leading, KEPT="1", LANG="C")
    assert not leading.keys() & environment.keys()
    assert environment["KEPT"] == "1"
    assert environment["WAYLAND_DISPLAY"] != str(sway.socket)


def test_a_clean_environment_names_no_service_and_no_secret(sway: Sway, runtime_dir: Path, tmp_path: Path) -> None:
    environment = environment_of(
        sway, runtime_dir, tmp_path, "--clean-env", SSH_AUTH_SOCK="1", AWS_SECRET="1", DBUS_SESSION_BUS_ADDRESS="1"
    )
    assert set(environment) <= {"HOME", "LANG", "PATH", "WAYLAND_DISPLAY", "PWD", "_"}


def test_a_private_session_bus(sway: Sway, runtime_dir: Path, tmp_path: Path) -> None:
    require("dbus-run-session")
    environment = environment_of(sway, runtime_dir, tmp_path, "--dbus", DBUS_SESSION_BUS_ADDRESS="unix:path=/the-hosts")
    assert environment["DBUS_SESSION_BUS_ADDRESS"] not in ("", "unix:path=/the-hosts")


def test_the_proxy_is_in_jail_and_the_app_is_not(sway: Sway, runtime_dir: Path, tmp_path: Path) -> None:
    app = start_run(sway, runtime_dir, tmp_path, "--", "grep", "-E", "NoNewPrivs|Seccomp:", "/proc/self/status")
    assert app.wait() == 0
    assert app.log().split() == ["NoNewPrivs:", "0", "Seccomp:", "0"]
    with start_run(sway, runtime_dir, tmp_path, "--", "foot", "sh", "-c", "sleep 1000") as proxy:
        sway.wait_for_window(proxy, "foot")
        status = Path(f"/proc/{proxy.pid}/status").read_text().split()
        assert status[status.index("NoNewPrivs:") + 1] == "1"
        assert status[status.index("Seccomp:") + 1] == "2"


# --- what APP leaves -----------------------------------------------------------------------------------------------------


def test_a_launcher_leaves_a_window_that_stays(sway: Sway, runtime_dir: Path, tmp_path: Path) -> None:
    ends = tmp_path / "ends"
    script = f"foot sh -c 'while ! [ -e {ends} ]; do sleep 0.05; done' & sleep 0.3; exit 3"
    app = start_run(sway, runtime_dir, tmp_path, "--", "sh", "-c", script)
    window = sway.wait_for_window(app, "foot")
    assert app.running
    assert window in sway.windows()
    ends.touch()
    assert app.wait() == 3


def test_without_waiting_the_end_of_app_is_the_end(sway: Sway, runtime_dir: Path, tmp_path: Path) -> None:
    script = "foot sh -c 'sleep 1000' & sleep 1"
    app = start_run(sway, runtime_dir, tmp_path, "--no-wait", "--", "sh", "-c", script)
    assert app.wait() == 0
    wait_until(lambda: not sway.windows(), "the window to go")


def test_what_was_copied_can_be_pasted_outside(sway: Sway, runtime_dir: Path, tmp_path: Path) -> None:
    """wl-copy goes to the background, and is a client until somebody else copies."""
    for program in ("wl-copy", "wl-paste"):
        require(program)
    host = sway.environment()
    app = start_run(sway, runtime_dir, tmp_path, "--", "wl-copy", "-t", "text/plain", "copied in the guest")

    def pasted() -> bool:
        try:
            return run(["wl-paste", "-n"], host) == b"copied in the guest"
        except AssertionError:  # nothing is copied yet
            return False

    app.wait_until(pasted, "the host to paste")
    assert app.running
    with Process(["wl-copy", "--foreground", "copied by the host"], tmp_path / "host.log", host):
        assert app.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_that_app_started(
    sway: Sway, runtime_dir: Path, tmp_path: Path, number: signal.Signals
) -> None:
    pids = tmp_path / "pids"
    script = f"sleep 1000 & echo $! > {pids}; foot sh -c 'sleep 1000' & echo $! >> {pids}; wait"
    app = start_run(sway, runtime_dir, tmp_path, "--", "sh", "-c", script)
    sway.wait_for_window(app, "foot")
    started = [int(pid) for pid in pids.read_text().split()]
    assert len(started) == 2
    app.send(number)
    app.wait()
    wait_until(lambda: not any(is_there(pid) for pid in started), "all of it to be gone")
    assert not sway.windows()


def test_a_signal_ends_what_a_launcher_left(sway: Sway, runtime_dir: Path, tmp_path: Path) -> None:
    script = "foot sh -c 'sleep 1000' & sleep 0.3"
    app = start_run(sway, runtime_dir, tmp_path, "--", "sh", "-c", script)
    sway.wait_for_window(app, "foot")
    wait_until(lambda: not children_named(app.pid, "sh"), "the launcher's end")
    app.send(signal.SIGTERM)
    app.wait(5)
    wait_until(lambda: not sway.windows(), "the window to go")


# --- at a terminal -------------------------------------------------------------------------------------------------------


class Terminal:
    """A controlling terminal, on which ``waylend run`` is in the foreground. What it shows is read by ``shows``."""

    def __init__(self, sway: Sway, runtime_dir: Path, folder: Path, script: str) -> None:
        self._master, slave = os.openpty()
        environment = plain_environment(runtime_dir, WAYLAND_DISPLAY=str(sway.socket))
        command = [require("setsid"), "--ctty", *WAYLEND, "run", "--", "sh", "-c", script]
        self.process = Process(command, folder / "run.log", environment, stdin=slave)
        os.close(slave)

    def type(self, octets: bytes) -> None:
        os.write(self._master, octets)

    def close(self) -> None:
        self.process.end()
        os.close(self._master)


@pytest.fixture
def script_runs(sway: Sway, runtime_dir: Path, tmp_path: Path) -> Iterator[Terminal]:
    # It starts nothing later: a shell that is stopped in the middle of vfork(2) doesn't count as stopped.
    script = "sleep 1000 & trap 'echo interrupted; kill $!; exit 9' INT; trap 'echo continued' CONT; echo started;"
    script += "while :; do wait; done"
    terminal = Terminal(sway, runtime_dir, tmp_path, script)
    terminal.process.wait_until(lambda: "started" in terminal.process.log(), "the script to run")
    yield terminal
    terminal.close()


def test_ctrl_c_is_for_the_app(script_runs: Terminal) -> None:
    script_runs.type(b"\x03")
    assert script_runs.process.wait() == 9
    assert "interrupted" in script_runs.process.log()


def test_ctrl_z_stops_the_proxy_with_the_app_and_both_go_on(script_runs: Terminal) -> None:
    process = script_runs.process

    def state() -> str:
        return Path(f"/proc/{process.pid}/stat").read_text().rpartition(") ")[2][0]

    script_runs.type(b"\x1a")
    wait_until(lambda: state() == "T", "waylend to stop")
    process.send(signal.SIGCONT)
    process.wait_until(lambda: "continued" in process.log(), "the app to go on")
    script_runs.type(b"\x03")
    assert process.wait() == 9
