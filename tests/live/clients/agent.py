"""Starts programs in a guest machine, as its standard input asks, and tells what becomes of them.

A request is a line of JSON: {"start": ID, "argv": [...], "env": {...}} or {"signal": ID, "number": N}. What it tells are lines
that begin with ``agent:`` and go on as JSON: {"id": ID, "out": TEXT} and {"id": ID, "status": N}. It ends at end of file.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from typing import Any

_lock = threading.Lock()


def tell(**what: Any) -> None:
    with _lock:
        print(f"agent: {json.dumps(what)}", flush=True)


def follow(number: int, app: subprocess.Popen[str]) -> None:
    assert app.stdout is not None
    for line in app.stdout:
        tell(id=number, out=line)
    tell(id=number, status=app.wait())


def main() -> None:
    apps: dict[int, subprocess.Popen[str]] = {}
    tell(ready=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request:
            app = subprocess.Popen(
                request["argv"],
                env={**os.environ, **request["env"]},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
            apps[request["start"]] = app
            threading.Thread(target=follow, args=(request["start"], app), daemon=True).start()
        else:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(apps[request["signal"]].pid, request["number"])
    for app in apps.values():
        app.kill()


if __name__ == "__main__":
    main()
