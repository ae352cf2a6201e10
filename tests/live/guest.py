"""The guest's side of the live tests: applications, and the `waylend serve` between them and a compositor.

With WAYLEND_LIVE_VIA=direct in the environment the applications connect to the compositor itself, and nothing here is
said about waylend: so one finds out whose fault a failing test is.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.live.compositors import Compositor, plain_environment
from tests.processes import Process, require, run, wait_until

WAYLEND = (sys.executable, "-m", "waylend")


class Proxy:
    """A `waylend serve` in front of ``host``. ``close`` ends it and raises AssertionError if it leaves anything behind."""

    def __init__(self, host: Compositor, *flags: str) -> None:
        self.runtime_dir = Path(tempfile.mkdtemp(prefix="waylend-"))
        self.socket = self.runtime_dir / "wayland-0"
        self.control = self.runtime_dir / "control"
        self.host = host
        self._flags = flags
        self._log_dir = Path(tempfile.mkdtemp(prefix="waylend-log-"))
        try:
            self.start()
        except BaseException:
            self.process.end()
            raise

    def start(self) -> None:
        command = [*WAYLEND, "serve", "--listen", str(self.socket), "--compositor", str(self.host.socket)]
        command += ["--control", str(self.control), *self._flags]
        environment = plain_environment(self.runtime_dir, PYTHONUNBUFFERED="1")
        self.process = Process(command, self._log_dir / "log", environment)
        self.process.wait_until(lambda: self.socket.exists() and self.control.exists(), "waylend's sockets")
        self.process.wait_until(self._answers, "waylend to answer at its control socket")
        self._fds_at_start = self.fd_kinds()

    def _answers(self) -> bool:
        with contextlib.suppress(AssertionError):
            return self.ask("leases") != ""
        return False

    def ask(self, command: str, *arguments: str) -> str:
        """What `waylend COMMAND` prints when it asks this proxy."""
        asked = [*WAYLEND, command, *arguments, "--control", str(self.control)]
        return run(asked, plain_environment(self.runtime_dir)).decode()

    def domains(self) -> list[dict[str, Any]]:
        (proxy,) = json.loads(self.ask("leases", "--json"))
        domains: list[dict[str, Any]] = proxy["domains"]
        return domains

    def leases(self) -> list[dict[str, Any]]:
        return [lease for domain in self.domains() for lease in domain["leases"]]

    def fd_kinds(self) -> list[str]:
        """What it has open, without the numbers that tell one socket from another."""
        return sorted(
            re.sub(r"\[\d+\]|\.waylend-\w+|(?<=^/proc/)\d+", "", what) for what in self.process.fds().values()
        )

    def log(self) -> str:
        return self.process.log()

    def check_idle(self) -> None:
        """With no client there, nothing of the clients stays: no fd, no lease."""
        with contextlib.suppress(AssertionError):
            wait_until(lambda: self.fd_kinds() == self._fds_at_start, "fds closed")
        assert self.fd_kinds() == self._fds_at_start, "fds of clients stay open"
        assert self.leases() == [], "leases of clients stay"

    def close(self) -> None:
        """Ends it as an administrator does, and looks at what it leaves."""
        try:
            if self.process.running:
                status = self.process.end()
                assert status == 0, f"waylend ended with {status}; its log:\n{self.process.log()}"
            assert "Traceback" not in self.process.log(), self.process.log()
            left = sorted(str(path.relative_to(self.runtime_dir)) for path in self.runtime_dir.rglob("*"))
            assert left in ([], ["waylend"]), f"left in the runtime directory: {left}"
            mounts = [point for point in _mounts() if Path(point).is_relative_to(self.runtime_dir)]
            assert not mounts, f"mounts stay: {mounts}"
            more = [name for name in os.listdir(self.host.runtime_dir) if name.startswith("waylend-")]
            assert not more, f"left in the compositor's directory: {more}"
        finally:
            self.process.end()
            shutil.rmtree(self.runtime_dir)
            shutil.rmtree(self._log_dir)


def _mounts() -> frozenset[str]:
    """What this process sees mounted: the mount points."""
    return frozenset(line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())


class Guest:
    """Starts applications as a guest has them: a home and a runtime directory of their own, no X11, no bus."""

    def __init__(self, host: Compositor, folder: Path, *flags: str, proxy_type: type[Proxy] = Proxy) -> None:
        self.host = host
        self.folder = folder
        self.proxy = None if os.environ.get("WAYLEND_LIVE_VIA") == "direct" else proxy_type(host, *flags)
        self._apps: list[Process] = []

    def environment(self, *, direct: bool = False) -> dict[str, str]:
        socket = self.host.socket if self.proxy is None or direct else self.proxy.socket
        (self.folder / "home").mkdir(exist_ok=True)
        return plain_environment(
            socket.parent,
            HOME=str(self.folder / "home"),
            WAYLAND_DISPLAY=socket.name,
            XDG_SESSION_TYPE="wayland",
            SHELL="/bin/sh",
            PS1="$ ",
            GDK_BACKEND="wayland",
            QT_QPA_PLATFORM="wayland",
            SDL_VIDEODRIVER="wayland",
            PYGAME_HIDE_SUPPORT_PROMPT="1",
            GSETTINGS_BACKEND="memory",
            DBUS_SESSION_BUS_ADDRESS="disabled:",
            NO_AT_BRIDGE="1",
            LIBGL_ALWAYS_SOFTWARE="1",
        )

    def start(
        self,
        *arguments: str | os.PathLike[str],
        direct: bool = False,
        stdin: int = subprocess.DEVNULL,
        **more: str,
    ) -> Process:
        """Starts an application, by way of waylend unless ``direct``; ``more`` goes into its environment."""
        require(os.fspath(arguments[0]))
        log = self.folder / f"app-{len(self._apps)}-{Path(arguments[0]).name}.log"
        app = Process(arguments, log, self.environment(direct=direct) | more, stdin=stdin)
        self._apps.append(app)
        return app

    def start_python(
        self, script: str, *arguments: str, direct: bool = False, stdin: int = subprocess.DEVNULL
    ) -> Process:
        """Starts one of tests/live/clients."""
        path = Path(__file__).parent / "clients" / script
        return self.start(sys.executable, path, *arguments, direct=direct, stdin=stdin)

    def run(self, arguments: Sequence[str | os.PathLike[str]]) -> bytes:
        require(os.fspath(arguments[0]))
        return run(arguments, self.environment())

    def logs(self) -> str:
        shown = [(app.name, app.log()) for app in self._apps]
        if self.proxy is not None:
            shown.append(("waylend", self.proxy.log()))
        return "\n".join(f"--- {name}\n{log}" for name, log in shown)

    def close(self) -> None:
        for app in self._apps:
            app.end()
        if self.proxy is not None:
            try:
                if self.proxy.process.running:
                    self.proxy.check_idle()
            finally:
                self.proxy.close()
