"""One VM for a module's tests: `waylend vm` with an agent in it that starts applications."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.live.compositors import Compositor, plain_environment
from tests.live.guest import WAYLEND, Guest
from tests.processes import DEADLINE_S, Process, require, require_module, run, wait_until

_AGENT = Path(__file__).parent / "clients" / "agent.py"
#: Booting takes 15 to 30 s when the machine is emulated, and this one has little to do it with.
BOOT_S = 180.0


def require_vm() -> None:
    for program in ("qemu-system-x86_64", "busybox"):
        require(program)
    require_module("virtme_ng")


class AppInVm(Process):
    """An application in the VM: what its agent tells of it."""

    def __init__(self, vm: VmGuest, number: int, name: str) -> None:
        self.name, self._vm, self._number = name, vm, number

    def _told(self, what: str) -> list[Any]:
        return [told[what] for told in self._vm.told() if told.get("id") == self._number and what in told]

    @property
    def running(self) -> bool:
        return not self._told("status")

    def log(self) -> str:
        return "".join(self._told("out"))

    def wait(self, deadline_s: float = DEADLINE_S) -> int:
        wait_until(lambda: not self.running, f"{self.name} to end", deadline_s)
        return int(self._told("status")[0])

    def send(self, number: int) -> None:
        self._vm.request(signal=self._number, number=number)

    def end(self, number: int = signal.SIGTERM, deadline_s: float = 20.0) -> int:
        if self.running:
            self.send(number)
            try:
                return self.wait(deadline_s)
            except AssertionError:
                self.send(signal.SIGKILL)
        return self.wait()


class VmGuest(Guest):
    """Starts applications in the VM; those that are started ``direct`` run here, beside it."""

    def __init__(self, host: Compositor, folder: Path, *flags: str) -> None:
        self.host, self.folder, self.proxy = host, folder, None
        self._apps: list[Process] = []
        self.runtime_dir = folder / "runtime"
        self.runtime_dir.mkdir(mode=0o700)
        self._own_environment = plain_environment(
            self.runtime_dir, PYTHONUNBUFFERED="1", HOME=os.environ.get("HOME", "/"), PATH=_path()
        )
        reader, self._requests = os.pipe()
        command = [*WAYLEND, "vm", "--accel", "tcg", "--compositor", str(host.socket), *flags]
        command += ["--", sys.executable, str(_AGENT)]
        self.vm = Process(command, folder / "vm.log", self._own_environment, stdin=reader)
        os.close(reader)

    def wait_until_up(self) -> None:
        self.vm.wait_until(lambda: any("ready" in told for told in self.told()), "the VM to be up", BOOT_S)

    def told(self) -> list[dict[str, Any]]:
        whole_lines = self.vm.log().rpartition("\n")[0].split("\n")
        return [json.loads(line.removeprefix("agent: ")) for line in whole_lines if line.startswith("agent: ")]

    def request(self, **what: Any) -> None:
        os.write(self._requests, json.dumps(what).encode() + b"\n")

    def start(
        self,
        *arguments: str | os.PathLike[str],
        direct: bool = False,
        stdin: int = subprocess.DEVNULL,
        **more: str,
    ) -> Process:
        if direct:
            return super().start(*arguments, direct=True, stdin=stdin, **more)
        require(os.fspath(arguments[0]))
        app = AppInVm(self, len(self._apps), Path(arguments[0]).name)
        argv = [os.fspath(argument) for argument in arguments]
        self.request(start=len(self._apps), argv=argv, env={"SHELL": "/bin/sh", "PS1": "$ ", **more})
        self._apps.append(app)
        return app

    def ask(self, *command: str) -> str:
        """`waylend leases`, `waylend revoke`, about this VM."""
        return run([*WAYLEND, *command], self._own_environment).decode()

    def leases(self) -> list[dict[str, Any]]:
        proxies = json.loads(self.ask("leases", "--json"))
        return [lease for proxy in proxies for domain in proxy["domains"] for lease in domain["leases"]]

    def end_apps(self) -> None:
        for app in self._apps:
            app.end()

    def logs(self) -> str:
        return f"{super().logs()}\n--- waylend vm\n{self.vm.log()}"

    def close(self) -> None:
        os.close(self._requests)
        if self.vm.running:  # a test may have ended it, one way or another
            status = self.vm.end(deadline_s=20.0)
            assert status in (0, 143), self.vm.log()
        assert "Traceback" not in self.vm.log(), self.vm.log()


def _path() -> str:
    return os.pathsep.join((os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)))
