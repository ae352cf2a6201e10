"""The README's first command, as somebody runs it who has not logged in at a desktop."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.live.picture import Picture
from tests.processes import require

ROOT = Path(__file__).parents[2]
SHOWN = ROOT / "docs" / "demo.png"


def test_the_demo_shows_what_was_lent_and_writes_a_picture() -> None:
    before, written = SHOWN.read_bytes(), SHOWN.stat().st_mtime_ns
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    try:
        done = subprocess.run(
            [require("make"), "-C", str(ROOT), "demo"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "keymap read" in done.stdout
        assert SHOWN.stat().st_mtime_ns > written
        assert len(Picture.decode(SHOWN.read_bytes()).colours()) > 15
    finally:
        SHOWN.write_bytes(before)  # fonts differ from machine to machine
