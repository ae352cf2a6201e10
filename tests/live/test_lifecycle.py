"""How things end: the app, the proxy, the compositor, one client of two; and what stays behind, which is nothing."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.live.compositors import Sway, plain_environment
from tests.live.conftest import MakeGuest
from tests.live.guest import WAYLEND
from tests.live.picture import has_colours
from tests.processes import Process, wait_until

LEFT, RIGHT = (200, 40, 90), (40, 160, 220)


@pytest.fixture
def runtime_dir() -> Iterator[Path]:
    """A runtime directory that is as empty after the test as before."""
    path = Path(tempfile.mkdtemp(prefix="guest-"))
    yield path
    left = sorted(entry.name for entry in path.rglob("*") if entry.name != "waylend")
    mounts = Path("/proc/self/mountinfo").read_text()
    shutil.rmtree(path)
    assert left == []
    assert str(path) not in mounts


def start_run(
    sway: Sway,
    runtime_dir: Path,
    folder: Path,
    *arguments: str | os.PathLike[str],
    pass_fds: Sequence[int] = (),
    **more: str,
) -> Process:
    """`waylend run` in a session on sway, in which DISPLAY leads to an X server that isn't there."""
    environment = plain_environment(runtime_dir, WAYLAND_DISPLAY=str(sway.socket), DISPLAY=":77", PYTHONUNBUFFERED="1")
    return Process([*WAYLEND, "run", *arguments], folder / "run.log", environment | more, pass_fds=pass_fds)


# --- waylend run ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("app", "status"),
    [(["true"], 0), (["sh", "-c", "exit 7"], 7), (["sh", "-c", "kill -KILL $$"], 137), (["no-app"], 127)],
)
def test_run_ends_with_the_apps_status(
    sway: Sway, runtime_dir: Path, tmp_path: Path, app: list[str], status: int
) -> None:
    run = start_run(sway, runtime_dir, tmp_path, "--", *app)
    assert run.wait() == status
    # An app's failure is the app's to explain, a missing app ours; both take one line at most.
    assert run.log().count("\n") == (1 if status == 127 else 0), run.log()


def test_run_gives_the_app_its_arguments_and_one_way_out(sway: Sway, runtime_dir: Path, tmp_path: Path) -> None:
    script = 'echo "$WAYLAND_DISPLAY ${DISPLAY-none} ${WAYLAND_SOCKET-none} $1"'
    run = start_run(sway, runtime_dir, tmp_path, "--", "sh", "-c", script, "sh", "--title-prefix")
    assert run.wait() == 0
    display, x11, passed, argument = run.log().split()
    assert display != str(sway.socket)
    assert (x11, passed, argument) == ("none", "none", "--title-prefix")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_ends_the_app_and_the_proxy(
    sway: Sway, runtime_dir: Path, tmp_path: Path, number: signal.Signals
) -> None:
    run = start_run(sway, runtime_dir, tmp_path, "--", "foot", "sh", "-c", "sleep 1000")
    window = sway.wait_for_window(run, "foot")
    run.send(number)
    run.wait()
    assert "Traceback" not in run.log()
    wait_until(lambda: window not in sway.windows(), "the window to go")


def test_app_that_ignores_the_request_to_end_is_ended(sway: Sway, runtime_dir: Path, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    script = f"trap '' TERM INT HUP; touch {ready}; while :; do sleep 0.1; done"
    run = start_run(sway, runtime_dir, tmp_path, "--", "sh", "-c", script)
    run.wait_until(ready.exists, "the app to run")
    run.send(signal.SIGTERM)
    assert run.wait() == 128 + signal.SIGKILL


def test_run_takes_a_passed_connection(sway: Sway, runtime_dir: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(str(sway.socket))
        run = start_run(
            sway, runtime_dir, tmp_path, "--", "foot", "sh", "-c", "sleep 1000",
            pass_fds=[connection.fileno()], WAYLAND_SOCKET=str(connection.fileno()), WAYLAND_DISPLAY="not-this-one",
        )  # fmt: skip
    sway.wait_for_window(run, "foot")
    run.end()
    assert "Traceback" not in run.log()


def test_run_says_in_one_line_what_is_wrong(runtime_dir: Path, tmp_path: Path) -> None:
    environment = plain_environment(runtime_dir, WAYLAND_DISPLAY="nobody-there")
    run = Process([*WAYLEND, "run", "--", "true"], tmp_path / "log", environment)
    assert run.wait() != 0
    assert run.log().count("\n") == 1, run.log()
    assert str(runtime_dir / "nobody-there") in run.log()


def test_killed_proxy_takes_its_mounts_and_its_clients_along(sway: Sway, make_guest: MakeGuest) -> None:
    guest = make_guest(sway)
    if guest.proxy is None:
        pytest.skip("needs the proxy")
    foot = guest.start("foot", "sh", "-c", "sleep 1000")
    sway.wait_for_window(foot, "foot")
    guest.proxy.process.end(signal.SIGKILL)
    foot.wait()
    wait_until(lambda: not sway.windows(), "the window to go")
    # The socket, its lock and the control socket are still there as files: the next proxy takes them over.
    guest.proxy.start()
    sway.wait_for_window(guest.start("foot", "sh", "-c", "sleep 1000"), "foot")


# --- waylend serve -------------------------------------------------------------------------------------------------------


def test_killed_client_touches_no_other(sway: Sway, make_guest: MakeGuest) -> None:
    guest = make_guest(sway)
    sway.park_pointer()
    stays = guest.start_python("qt_window.py")
    window = sway.wait_for_window(stays)
    dies = guest.start("foot", "sh", "-c", "sleep 1000")
    sway.wait_for_window(dies, "foot")
    dies.end(signal.SIGKILL)
    wait_until(lambda: sway.windows() == [window], "the killed client's window to go")
    sway.wait_for_picture(has_colours((LEFT, 0.4), (RIGHT, 0.4)), "the other window", box=window.box, app=stays)
    sway.type_text("still here")
    stays.wait_until(lambda: "still here" in stays.log(), "the other client to hear what is typed")


def test_serve_ends_its_clients_when_it_ends(sway: Sway, make_guest: MakeGuest) -> None:
    guest = make_guest(sway)
    if guest.proxy is None:
        pytest.skip("needs the proxy")
    foot = guest.start("foot", "sh", "-c", "sleep 1000")
    sway.wait_for_window(foot, "foot")
    assert guest.proxy.process.end(signal.SIGINT) == 0
    foot.wait()
    wait_until(lambda: not sway.windows(), "the window to go")


def test_socket_in_use_stays_with_its_owner(sway: Sway, make_guest: MakeGuest, tmp_path: Path) -> None:
    guest = make_guest(sway)
    if guest.proxy is None:
        pytest.skip("needs the proxy")
    command = [*WAYLEND, "serve", "--listen", str(guest.proxy.socket), "--compositor", str(sway.socket)]
    second = Process(command, tmp_path / "second.log", plain_environment(guest.proxy.runtime_dir))
    assert second.wait() != 0
    assert second.log().count("\n") == 1, second.log()
    assert str(guest.proxy.socket) in second.log()
    sway.wait_for_window(guest.start("foot", "sh", "-c", "sleep 1000"), "foot")


ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.argv[2], sys.argv[2:])
"""


def test_serve_is_activated_and_says_when_it_is_ready(sway: Sway, runtime_dir: Path, tmp_path: Path) -> None:
    """As systemd does: sockets from fd 3 on for LISTEN_PID, and a datagram socket that waits for READY=1."""
    path = runtime_dir / "activated"
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor,
    ):
        listening.bind(str(path))
        listening.listen()
        supervisor.bind(str(tmp_path / "notify"))
        supervisor.settimeout(20)
        command = [
            sys.executable,
            "-c",
            ACTIVATE,
            str(listening.fileno()),
            *WAYLEND,
            "serve",
            "--compositor",
            str(sway.socket),
        ]
        environment = plain_environment(runtime_dir, NOTIFY_SOCKET=str(tmp_path / "notify"))
        serve = Process(command, tmp_path / "serve.log", environment, pass_fds=[listening.fileno()])
        try:
            assert supervisor.recv(4096) == b"READY=1", serve.log()
            foot_environment = plain_environment(runtime_dir, WAYLAND_DISPLAY=str(path), HOME=str(tmp_path))
            with Process(["foot", "sh", "-c", "sleep 1000"], tmp_path / "foot.log", foot_environment) as foot:
                sway.wait_for_window(foot, "foot")
            assert serve.end() == 0, serve.log()
            assert supervisor.recv(4096) == b"STOPPING=1"
        finally:
            serve.end()
        # Whoever made the socket removes it.
        assert path.exists()
        path.unlink()


# --- the compositor ------------------------------------------------------------------------------------------------------


@pytest.fixture
def mortal_sway() -> Iterator[Sway]:
    sway = Sway()
    try:
        sway.start()
        yield sway
    finally:
        sway.close()


def _kill(sway: Sway) -> None:
    sway.input.close()
    sway.process.end(signal.SIGKILL)


def test_serve_waits_for_the_compositor_to_come_back(mortal_sway: Sway, make_guest: MakeGuest) -> None:
    guest = make_guest(mortal_sway)
    if guest.proxy is None:
        pytest.skip("needs the proxy")
    serve = guest.proxy.process
    foot = guest.start("foot", "sh", "-c", "sleep 1000")
    mortal_sway.wait_for_window(foot, "foot")
    _kill(mortal_sway)
    foot.wait()
    serve.wait_until(lambda: "waiting for it" in serve.log(), "word that the compositor is gone")
    assert not guest.proxy.leases()
    mortal_sway.start()
    serve.wait_until(lambda: "is there" in serve.log(), "word that the compositor is back")
    again = guest.start_python("qt_window.py")
    box = mortal_sway.wait_for_window(again).box
    mortal_sway.wait_for_picture(has_colours((LEFT, 0.4), (RIGHT, 0.4)), "a window on the new sway", box=box, app=again)


def test_serve_once_ends_with_its_compositor(mortal_sway: Sway, make_guest: MakeGuest) -> None:
    guest = make_guest(mortal_sway, "--once")
    if guest.proxy is None:
        pytest.skip("needs the proxy")
    foot = guest.start("foot", "sh", "-c", "sleep 1000")
    mortal_sway.wait_for_window(foot, "foot")
    _kill(mortal_sway)
    foot.wait()
    guest.proxy.process.wait()
