"""What starts serving processes for a lender that may start nothing itself any more, since it has gone to jail.

A lender that jails itself makes a starter before (``prepare``): a small process that does nothing but start what it is asked to,
and ends with the lender. Where there is none, the lender starts them itself. The starter runs this file, without waylend.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Protocol

_MAX_REQUEST_BYTES = 1 << 16
_MAX_FDS = 8
_ANSWER_S = 10.0


class StartedProcess(Protocol):
    """The part of subprocess.Popen that a lender needs."""

    pid: int
    returncode: int | None

    def wait(self, timeout: float | None = None) -> int: ...
    def kill(self) -> None: ...


class _Starter:
    def __init__(self) -> None:
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._connection.settimeout(_ANSWER_S)
        self.started: list[_Grandchild] = []
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__, f"{theirs.fileno()}"],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        process.returncode = 0  # it ends with us; nobody waits for it

    def start(self, argv: Sequence[str], pass_fds: Sequence[int], stderr: int | None) -> StartedProcess:
        fds = [*pass_fds, *([] if stderr is None else [stderr])]
        socket.send_fds(self._connection, [json.dumps([list(argv), len(pass_fds)]).encode()], fds)
        answer, pid_fds, _, _ = socket.recv_fds(self._connection, 64, 1)
        pid, error_number = json.loads(answer)
        if error_number:
            raise OSError(error_number, os.strerror(error_number))
        process = _Grandchild(pid, pid_fds[0])
        self.started = [one for one in self.started if one.returncode is None] + [process]
        return process


class _Grandchild:
    """A process that the starter started. It is the starter's to reap, so how it ended stays unknown."""

    def __init__(self, pid: int, pid_fd: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._pid_fd = pid_fd

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            poller = select.poll()
            poller.register(self._pid_fd, select.POLLIN)
            if not poller.poll(None if timeout is None else int(timeout * 1000)):
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            self.returncode = 0
            os.close(self._pid_fd)
        return self.returncode

    def kill(self) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pid_fd, signal.SIGKILL)


_prepared: list[_Starter] = []
#: Whether serving processes go to jail; not, for debugging.
jails = True


def prepare() -> None:
    """From now on, what this process starts is started by a starter. Idempotent."""
    if not _prepared:
        _prepared.append(_Starter())


def kill_all() -> None:
    """What a starter has started and has not ended, even if it is stopped."""
    for starter in _prepared:
        for process in starter.started:
            process.kill()


def start(argv: Sequence[str], pass_fds: Sequence[int], stderr: int | None = None) -> StartedProcess:
    """Starts a program without stdin, with ``pass_fds`` open: ``@FD0@`` and so on in ``argv`` stand for their numbers over there.

    Raises OSError.
    """
    if _prepared:
        return _prepared[0].start(argv, pass_fds, stderr)
    return _popen(argv, pass_fds, stderr)


def _popen(argv: Sequence[str], pass_fds: Sequence[int], stderr: int | None) -> subprocess.Popen[bytes]:
    for number, fd in enumerate(pass_fds):
        argv = [word.replace(f"@FD{number}@", f"{fd}") for word in argv]
    return subprocess.Popen(argv, pass_fds=pass_fds, stdin=subprocess.DEVNULL, stderr=stderr)


def _serve(connection: socket.socket) -> None:
    """What runs in the starter. A request is JSON: the command line, and how many of the descriptors beside it to leave open; one
    more is to be its stderr. An answer: its pid, with a descriptor of it (pidfd_open(2)), or an error's number.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the lender, whose end is ours
    started: list[subprocess.Popen[bytes]] = []
    while True:
        request, fds, _, _ = socket.recv_fds(connection, _MAX_REQUEST_BYTES, _MAX_FDS, socket.MSG_CMSG_CLOEXEC)
        if not request:
            return
        started = [process for process in started if process.poll() is None]
        argv, count = json.loads(request)
        try:
            process = _popen(argv, fds[:count], fds[count] if len(fds) > count else None)
        except OSError as error:
            connection.send(json.dumps([0, error.errno]).encode())
        else:
            started.append(process)
            pid_fd = os.pidfd_open(process.pid)
            socket.send_fds(connection, [json.dumps([process.pid, 0]).encode()], [pid_fd])
            os.close(pid_fd)
        for fd in fds:
            os.close(fd)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
    os._exit(0)  # what was started ends by itself
