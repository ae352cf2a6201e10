"""The command: its client, its socket, how it ends, and what it leaves (nothing)."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.compositor_shim.player import Player
from tests.processes import Process

COMMAND = (sys.executable, "-m", "compositor_shim")
PAINT = Path(__file__).parents[2] / "examples" / "paint.py"


def run(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "XDG_RUNTIME_DIR": f"{folder}"}
    argv = [*COMMAND, *map(str, arguments)]
    return subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=60, check=False)


def test_screenshot_shows_the_client_that_has_ended(tmp_path: Path) -> None:
    shot = tmp_path / "shot.png"
    flags = ("--socket", "wayland-7", "--size", "800x600", "--screenshot-on-exit", shot)
    done = run(tmp_path, *flags, "--", sys.executable, PAINT, "--frames", 3)
    assert (done.returncode, done.stderr) == (0, "")
    picture = Image.open(shot)
    assert picture.size == (800, 600)
    assert len(picture.getcolors(1 << 20) or ()) > 100
    assert os.listdir(tmp_path) == ["shot.png"]


def test_status_is_the_clients(tmp_path: Path) -> None:
    assert run(tmp_path, "--", "sh", "-c", "exit 7").returncode == 7
    assert run(tmp_path, "--", "sh", "-c", "kill -9 $$").returncode == 128 + 9
    missing = run(tmp_path, "--", "no-such-program-here")
    assert missing.returncode == 127
    assert "can't run no-such-program-here" in missing.stderr
    assert os.listdir(tmp_path) == []


def test_client_that_breaks_the_protocol_fails(tmp_path: Path) -> None:
    code = (
        "import os, pathlib\n"
        "from tests.compositor_shim.player import Player\n"
        "from tests.compositor_shim.test_strictness import scale_of_nothing\n"
        "player = Player(pathlib.Path(os.environ['WAYLAND_DISPLAY']))\n"
        "scale_of_nothing(player); player.round_trip()\n"
    )
    done = run(tmp_path, "--", "env", f"PYTHONPATH={PAINT.parents[1]}", sys.executable, "-c", code)
    assert done.returncode == 1
    assert "wl_surface#" in done.stderr
    assert "buffer scale 0" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_it_with_its_client(tmp_path: Path, number: signal.Signals) -> None:
    environ = {**os.environ, "XDG_RUNTIME_DIR": f"{tmp_path}"}
    log = tmp_path / "log"
    with Process(
        [*COMMAND, "--socket", "wayland-7", "--", "sh", "-c", "echo here; exec sleep 1000"], log, environ
    ) as shim:
        shim.wait_until(lambda: "here" in shim.log(), "its client")
        os.kill(shim.popen.pid, number)
        assert shim.popen.wait(10) == 128 + signal.SIGTERM
    assert os.listdir(tmp_path) == ["log"]


def test_socket_in_use_is_left_alone(tmp_path: Path) -> None:
    environ = {**os.environ, "XDG_RUNTIME_DIR": f"{tmp_path}"}
    with Process([*COMMAND, "--socket", "wayland-1"], tmp_path / "log", environ) as shim:
        shim.wait_until((tmp_path / "wayland-1").exists, "its socket")
        second = run(tmp_path, "--socket", "wayland-1", "--", "true")
        assert second.returncode == 1
        assert "wayland-1: in use by another process" in second.stderr
        # Without a name it takes the next.
        third = run(tmp_path, "--", "sh", "-c", "basename $WAYLAND_DISPLAY")
        assert third.stdout == "wayland-2\n"
        Player(tmp_path / "wayland-1").close()
        shim.end(signal.SIGTERM)


def test_bad_arguments_are_named(tmp_path: Path) -> None:
    assert "'800' is no size like 1280x800" in run(tmp_path, "--size", "800").stderr
    done = subprocess.run([*COMMAND], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=False)
    assert "XDG_RUNTIME_DIR is not set" in done.stderr


def test_sandbox_is_known_by_its_context(tmp_path: Path) -> None:
    environ = {**os.environ, "XDG_RUNTIME_DIR": f"{tmp_path}"}
    with Process([*COMMAND, "--socket", "wayland-1", "--verbose"], tmp_path / "log", environ) as shim:
        shim.wait_until((tmp_path / "wayland-1").exists, "its socket")
        engine = Player(tmp_path / "wayland-1")
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listening.bind(str(tmp_path / "sandbox"))
        listening.listen()
        keep, close = socket.socketpair()
        context = engine.make(
            engine.bind("wp_security_context_manager_v1"),
            "create_listener",
            "wp_security_context_v1",
            fds=(listening.fileno(), close.fileno()),
        )
        engine.send(context, "set_sandbox_engine", b"org.example")
        engine.send(context, "commit")
        engine.round_trip()
        close.close()
        inside = Player(tmp_path / "sandbox")
        nested, other = socket.socketpair()
        inside.make(
            inside.bind("wp_security_context_manager_v1"),
            "create_listener",
            "wp_security_context_v1",
            fds=(listening.fileno(), other.fileno()),
        )
        inside.round_trip()
        assert inside.error is not None
        assert "a sandbox in a sandbox" in inside.error[2]
        for end in (engine, inside, listening, keep, nested, other):
            end.close()
        shim.end(signal.SIGTERM)
