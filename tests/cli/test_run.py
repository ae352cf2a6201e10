"""``waylend run`` as CI uses it: what went wrong is in the exit status, and in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

#: A client that says the words of its first argument, waits for the end of the connection, and ends well.
CLIENT = """
import os, socket, sys
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect(os.environ["WAYLAND_DISPLAY"])
    sock.sendall(bytes.fromhex(sys.argv[1]))
    try:
        while sock.recv(65536):
            pass
    except ConnectionError:
        pass
"""


def words(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(4, "little") for number in numbers)


UNKNOWN_OBJECT = words(99, 8 << 16)


def run(folder: Path, *arguments: str | os.PathLike[str], **more: str) -> subprocess.CompletedProcess[str]:
    folder.chmod(0o700)
    return subprocess.run(
        [sys.executable, "-m", "waylend", "run", *arguments],
        env={"PATH": os.environ["PATH"], "XDG_RUNTIME_DIR": f"{folder}"} | more,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_client_that_breaks_the_protocol_and_ends_well_is_a_failure_that_says_why(tmp_path: Path) -> None:
    done = run(tmp_path, "--compositor", "shim", "--", sys.executable, "-c", CLIENT, UNKNOWN_OBJECT.hex())
    assert (done.returncode, done.stderr) == (1, "waylend: unknown#99: message 0 to an unknown object\n")


def test_what_only_the_compositor_objects_to_is_one_too(tmp_path: Path) -> None:
    """A second role for one surface: bytes in order, and yet against the protocol."""
    client = Path(__file__).with_name("two_roles.py")
    done = run(tmp_path, "--compositor", "shim", "--", sys.executable, client)
    assert done.returncode == 1
    # libwayland has its own words on either side, too.
    said = "compositor-shim: wl_subcompositor#5: wl_surface#3 has a role already"
    assert done.stderr.splitlines()[-1] == said
    alone = subprocess.run(
        ["compositor-shim", "--socket", tmp_path / "shim", "--", sys.executable, client],
        env={"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "XDG_RUNTIME_DIR": f"{tmp_path}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (alone.returncode, alone.stderr.splitlines()[-1]) == (1, said)


def test_a_well_behaved_client_keeps_its_status(tmp_path: Path) -> None:
    done = run(tmp_path, "--compositor", "shim", "--", "sh", "-c", "exit 3")
    assert (done.returncode, done.stderr) == (3, "")


def test_a_screenshot_that_has_no_place_is_said_at_once(tmp_path: Path) -> None:
    done = run(tmp_path, "--compositor", "shim", "--screenshot", "/nonexistent/x.png", "--", "echo", "ran")
    assert (done.returncode, done.stdout) == (2, "")
    assert "can't write /nonexistent/x.png: there is no such folder" in done.stderr


def test_a_screenshot_that_loses_its_place_is_a_failure(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    picture = place / "x.png"
    done = run(tmp_path, "--compositor", "shim", "--screenshot", picture, "--", "rm", "-r", place)
    assert done.returncode == 1
    assert f"{picture}: No such file or directory" in done.stderr
    assert "Traceback" not in done.stderr


def test_trace_does_not_take_app_for_its_file(tmp_path: Path) -> None:
    done = run(tmp_path, "--compositor", "shim", "--trace", "sh", "-c", "exit 4")
    assert (done.returncode, done.stderr) == (4, "")
    trace = tmp_path / "trace"
    done = run(tmp_path, "--size", "300x200", "--compositor=shim", f"--trace={trace}", "echo", "--trace", "--x")
    assert (done.returncode, done.stdout) == (0, "--trace --x\n")
    assert trace.read_text() == ""


@pytest.mark.parametrize(
    ("arguments", "status", "complaint"),
    [
        # What the user mistyped, on a machine that has no compositor either.
        (["--size", "10", "true"], 2, "'10' is no size like 1280x800"),
        (["--size", "0x10", "true"], 2, "a side has 1 to 16384 pixels"),
        (
            ["--allow", "zwlr_layer_shel_v1", "true"],
            1,
            "no global is called 'zwlr_layer_shel_v1': did you mean zwlr_layer",
        ),
        (["--deny", "wl_saet", "true"], 1, "no global is called 'wl_saet': did you mean wl_seat?"),
        (["--allow", "qqqq", "true"], 1, "no global is called 'qqqq'; docs/policy.md"),
        (["--trace=/nowhere/trace", "true"], 2, "/nowhere/trace: No such file or directory"),
        (["--policy", "/nowhere.toml", "true"], 1, "policy /nowhere.toml: No such file or directory"),
        (["--policy", "/", "true"], 1, "policy /: Is a directory"),
        (["no-such-app"], 127, "can't run no-such-app: No such file or directory"),
        (["/etc/passwd"], 126, "can't run /etc/passwd: Permission denied"),
        (["true"], 1, "wayland-0: No such file or directory; say --compositor SOCKET, or --compositor shim"),
    ],
)
def test_what_is_wrong_is_said_before_what_the_machine_lacks(
    tmp_path: Path, arguments: list[str], status: int, complaint: str
) -> None:
    done = run(tmp_path, *arguments)
    assert complaint in done.stderr
    assert done.returncode == status
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1 or status == 2  # click adds its usage


def test_without_a_session_the_shim_is_offered() -> None:
    argv = [sys.executable, "-m", "waylend", "run", "true"]
    done = subprocess.run(argv, env={"PATH": "/bin"}, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "waylend: this is no Wayland session (WAYLAND_DISPLAY is not set); say --compositor SOCKET, or --compositor shim "
        "for a headless one of our own\n"
    )


@pytest.mark.parametrize(
    "toml", ["[globals]\nallow = 3", "limits = 3", "[limits]\nclients = 'x'", "x", "[globals]\nallow = ['wl_sae']"]
)
def test_a_policy_file_of_the_wrong_kind_is_one_line(tmp_path: Path, toml: str) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(toml)
    done = run(tmp_path, "--policy", policy, "true")
    assert done.returncode == 1
    assert done.stderr.startswith(f"waylend: policy {policy}: ")
    assert done.stderr.count("\n") == 1


def test_a_runtime_directory_that_is_not_to_be_used_is_one_line(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    done = run(tmp_path, "--compositor", "shim", "true", XDG_RUNTIME_DIR=f"{missing}")
    assert (done.returncode, done.stderr) == (
        1,
        f"waylend: can't make a folder in {missing}: No such file or directory\n",
    )
    # An empty one is none (basedir-spec).
    assert run(tmp_path, "--compositor", "shim", "true", XDG_RUNTIME_DIR="").returncode == 0
