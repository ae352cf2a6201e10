"""The two halves as two processes on one machine, joined by a unix socket and the aperture's file: a VM without the VM."""

from __future__ import annotations

import contextlib
import re
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.live.compositors import plain_environment
from tests.live.guest import WAYLEND, Proxy
from tests.processes import Process, wait_until


class Halves(Proxy):
    """`waylend host` in front of ``host``, and a `waylend guest` that makes the clients' socket.

    ``process`` is the host half: what a Proxy checks (its leases, its descriptors, what it leaves) is checked of it, and
    what the guest half has open besides.
    """

    guest_half: Process
    guest_command: Sequence[str] = WAYLEND

    def start(self) -> None:
        self.channel, self.bar = self.runtime_dir / "channel", self.runtime_dir / "bar"
        self.start_host()
        self.start_guest()
        self._fds_at_start = self.fd_kinds()
        self._guest_fds_at_start = self._guest_fds()

    def start_host(self) -> None:
        command = [*WAYLEND, "-v", "host", "--compositor", str(self.host.socket), "--channel", f"unix:{self.channel}"]
        command += ["--bar", str(self.bar), "--control", str(self.control), *self._flags]
        environment = plain_environment(self.runtime_dir, PYTHONUNBUFFERED="1")
        self.process = Process(command, self._log_dir / "log", environment)
        self.process.wait_until(lambda: self.channel.exists() and self.control.exists(), "the host half's sockets")
        self.process.wait_until(self._answers, "the host half to answer at its control socket")

    def start_guest(self) -> None:
        command = [*self.guest_command, "-v", "guest", "--listen", str(self.socket)]
        command += ["--channel", f"unix:{self.channel}", "--bar", str(self.bar)]
        environment = plain_environment(self.runtime_dir, PYTHONUNBUFFERED="1")
        self.guest_half = Process(command, self._log_dir / "guest-log", environment)
        self.guest_half.wait_until(self.socket.exists, "the guest half's socket")
        self.guest_half.wait_until(self.guest_maps_aperture, "the guest half to have found the host half")

    def guest_maps_aperture(self) -> bool:
        with contextlib.suppress(OSError):
            return "/bar\n" in Path(f"/proc/{self.guest_half.pid}/maps").read_text()
        return False

    def _guest_fds(self) -> list[str]:
        """What it has open, without the numbers that tell one socket, or one process, from another."""
        return sorted(re.sub(r"\[\d+\]|(?<=/proc/)\d+", "", what) for what in self.guest_half.fds().values())

    def log(self) -> str:
        return f"{self.process.log()}--- guest half\n{self.guest_half.log()}"

    def check_idle(self) -> None:
        # Leases linger for a moment after their client.
        with contextlib.suppress(AssertionError):
            wait_until(lambda: self.leases() == [], "leases to end")
        super().check_idle()
        # Copies of the compositor's files go when the host half says that their leases are over.
        with contextlib.suppress(AssertionError):
            wait_until(lambda: self._guest_fds() == self._guest_fds_at_start, "fds of the guest half closed")
        assert self._guest_fds() == self._guest_fds_at_start, "fds of clients stay open in the guest half"

    def close(self) -> None:
        try:
            if self.guest_half.running:
                status = self.guest_half.end()
                assert status == 0, f"the guest half ended with {status}; its log:\n{self.guest_half.log()}"
            assert "Traceback" not in self.guest_half.log(), self.guest_half.log()
        finally:
            self.guest_half.end()
            super().close()


#: Puts a listening socket where a supervisor's are, and becomes the program.
_ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.argv[2], sys.argv[2:])
"""


class ActivatedHalves(Halves):
    """Halves whose guest half is started by ``activate``, as a supervisor does when the first client has connected already."""

    def start(self) -> None:
        self.channel, self.bar = self.runtime_dir / "channel", self.runtime_dir / "bar"
        self.start_host()
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listening.bind(str(self.socket))
        self._listening.listen()

    def activate(self) -> None:
        command = [sys.executable, "-c", _ACTIVATE, str(self._listening.fileno()), *WAYLEND, "-v", "guest"]
        command += ["--channel", f"unix:{self.channel}", "--bar", str(self.bar)]
        environment = plain_environment(self.runtime_dir, PYTHONUNBUFFERED="1")
        self.guest_half = Process(
            command, self._log_dir / "guest-log", environment, pass_fds=[self._listening.fileno()]
        )

    def check_idle(self) -> None:
        """What is open at rest isn't known: clients were there from the beginning."""

    def close(self) -> None:
        # The supervisor's to remove.
        self._listening.close()
        self.socket.unlink()
        super().close()
