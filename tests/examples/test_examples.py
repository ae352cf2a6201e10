"""Each example does what it says at its top."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from compositor_shim import Shim
from compositor_shim.keymap import keymap_text

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def shim() -> Iterator[Shim]:
    with Shim(size=(800, 530)) as shim:
        yield shim
        assert shim.protocol_errors() == []


def run(shim: Shim, runtime_dir: Path, name: str, *arguments: object) -> str:
    environ = {**os.environ, **shim.environ, "XDG_RUNTIME_DIR": f"{runtime_dir}"}
    argv = [sys.executable, f"{EXAMPLES / name}", *map(str, arguments)]
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_paint_shows_its_keymaps_checksum(shim: Shim, tmp_path: Path) -> None:
    content = keymap_text().encode() + b"\0"
    assert (
        run(shim, tmp_path, "paint.py", "--frames", 3)
        == f"keymap {len(content)} {hashlib.sha256(content).hexdigest()}\n"
    )


def test_paint_hears_keys_and_ends_with_escape(shim: Shim) -> None:
    environ = {**os.environ, **shim.environ}
    argv = [sys.executable, f"{EXAMPLES / 'paint.py'}"]
    with subprocess.Popen(argv, env=environ, stdout=subprocess.PIPE, text=True) as paint:
        shim.wait_for_window()
        shim.type_text("hi")
        shim.press_key("Escape")
        told, _ = paint.communicate(timeout=20)
    assert paint.returncode == 0
    assert told.splitlines()[1:] == ["key 35", "key 23", "key 1"]


@pytest.mark.parametrize("hidden", ["wl_shm", "wl_compositor", "xdg_wm_base"])
def test_paint_says_what_the_compositor_lacks(hidden: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    paint = [sys.executable, f"{EXAMPLES / 'paint.py'}"]
    argv = [sys.executable, "-m", "waylend", "run", "--compositor", "shim", "--deny", hidden, "--", *paint]
    environ = {"PATH": os.environ["PATH"], "XDG_RUNTIME_DIR": f"{tmp_path}"}
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (1, f"paint: the compositor offers no {hidden}\n")


def test_paint_says_that_there_is_no_compositor_or_no_more(tmp_path: Path) -> None:
    paint = [sys.executable, f"{EXAMPLES / 'paint.py'}"]
    environ = {"XDG_RUNTIME_DIR": f"{tmp_path}", "WAYLAND_DISPLAY": "nobody"}
    done = subprocess.run(paint, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "no compositor at nobody" in done.stderr
    with Shim(size=(800, 530)) as shim:
        running = subprocess.Popen(
            paint, env={**os.environ, **shim.environ}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        shim.wait_for_window()
    said = running.communicate(timeout=20)[1].decode()
    assert (running.returncode, said) == (1, "paint: the compositor ended the connection\n")


def test_embed_serve_tells_of_windows_and_leases(shim: Shim, tmp_path: Path) -> None:
    paint = (sys.executable, EXAMPLES / "paint.py", "--frames", 3)
    told = run(shim, tmp_path, "embed_serve.py", tmp_path / "wayland-9", "--", *paint)
    for line in (
        r"serving .*/wayland-9, memory is lent by \w+",
        r"client 1: process \d+ of user \d+",
        r"client 1: lease \d+: keymap, \d+ bytes",
        r"client 1: window \d+ opens",
        r"client 1: window \d+ has the title '.*'",
        r"client 1: window \d+ closes",
        r"client 1: lease \d+ returned",
        r"client 1: gone",
    ):
        assert re.search(f"^{line}", told, re.MULTILINE), told
    assert [path.name for path in tmp_path.rglob("*")] == ["waylend"], "more than the empty folder stays"


def test_xen_lending_tells_the_story_of_a_buffer() -> None:
    done = subprocess.run(
        [sys.executable, f"{EXAMPLES / 'xen_lending.py'}"], capture_output=True, text=True, timeout=60, check=True
    )
    for line in (
        "0 of 4 pages present",
        "the guest reads b'blue'",
        "0 pages present; the buffer is in system memory",
        "the guest reads b'red!blue'",
        "hypercall: EFAULT",
        "grant: EPERM",
        "device: EPERM",
        "migration: EBUSY",
        "revoked in",
        "a fault in the guest, at gfn 0x100000",
        "[ended: 4 page(s) from page 0]",
    ):
        assert line in done.stdout, done.stdout
