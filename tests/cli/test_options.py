"""The command line: what it says when it is used wrongly, in one line, with what to do about it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def waylend(*args: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "waylend", *args], capture_output=True, text=True, timeout=30, env=env or {}, check=False
    )


def test_help_names_every_command() -> None:
    done = waylend("--help")
    assert done.returncode == 0
    for command in ("run", "serve", "leases", "top", "revoke", "doctor", "bench"):
        assert f"\n  {command} " in done.stdout


@pytest.mark.parametrize("command", ["run", "serve", "leases", "top", "revoke", "doctor", "bench"])
def test_every_command_has_help(command: str) -> None:
    done = waylend(command, "--help")
    assert done.returncode == 0
    assert "Usage: waylend" in done.stdout


@pytest.mark.parametrize(
    ("args", "status", "complaint"),
    [
        (["serve"], 2, "give --listen SOCKET"),
        (["serve", "--listen", "wayland-9"], 1, "waylend: XDG_RUNTIME_DIR is not set"),
        (["serve", "--listen", "/" + "x" * 200, "--compositor", "/h"], 1, "the path is longer than 107 bytes"),
        (
            ["serve", "--listen", "/nowhere/socket", "--compositor", "/h"],
            1,
            "waylend: can't listen on /nowhere/socket: No such file",
        ),
        (["serve", "--listen", "/x", "--socket-mode", "9"], 2, "'9' is no octal number"),
        (
            ["run", "--compositor", "/nowhere/wayland-0", "true"],
            1,
            "waylend: no compositor at /nowhere/wayland-0: No such file",
        ),
        (["run", "--screenshot", "x.png", "true"], 2, "--screenshot needs --compositor shim"),
        (["run"], 2, "Missing argument 'APP'"),
        (["top", "--interval", "0"], 2, "0.0 is not in the range"),
        (["top"], 1, "waylend: XDG_RUNTIME_DIR is not set"),
        (["vm", "--memory", "lots", "true"], 2, "'lots' is no size like 512M or 2G"),
        (
            ["vm", "--compositor", "/h", "--kernel", "/nowhere/vmlinuz", "true"],
            1,
            "can't read the kernel /nowhere/vmlinuz",
        ),
        (["host", "--channel", "foo:bar", "--compositor", "/h"], 1, "'foo:bar' is no channel"),
        (["host", "--channel", "unix:/c", "--token-file", "/nowhere", "--compositor", "/h"], 2, "/nowhere"),
        (["guest", "--listen", "/g", "--channel", "foo:bar"], 1, "'foo:bar' is no channel"),
        (["revoke"], 2, "give a LEASE or --all"),
        (["revoke", "1", "--all"], 2, "give a LEASE or --all"),
        (["run", "--policy", "/nowhere.toml", "true"], 1, "waylend: policy /nowhere.toml: No such file or directory"),
        (["run", "--title-prefix", "\x1b[31m", "true"], 1, "waylend: prefix '\\x1b[31m': holds characters"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(args: list[str], status: int, complaint: str) -> None:
    done = waylend(*args)
    assert done.returncode == status
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1 or status == 2  # click adds its usage


def test_no_proxy_runs(tmp_path: Path) -> None:
    env = {"XDG_RUNTIME_DIR": str(tmp_path)}
    assert waylend("leases", env=env).stdout == "no proxy is running\n"
    assert waylend("leases", "--json", env=env).stdout == "[]\n"
    assert waylend("revoke", "--all", env=env).stderr == "waylend: no proxy is running\n"
