"""ServingProcess: the process that serves a ProcessDomain's faults: how it is started, asked and ended."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import sortedcontainers

from waylend import errors
from waylend.domain.process import starter
from waylend.domain.process.messages import Message
from waylend.domain.process.requests import Requests
from waylend.domain.process.starter import StartedProcess
from waylend.errors import LendingError, Unavailable

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: How long one may take to come up, on a busy machine.
_STARTING_S = 30.0
#: How long a process whose connection has gone may take to end by itself, and then by force.
_ENDING_S = 1.0


class ServingProcess:
    """A new process with a FuseDomain of those ``options``. Raises Unavailable, saying why, where it doesn't come up.

    It has next to no imports and ends with the connection to it, however its lender ends. ``on_events`` and ``on_over``: see
    Requests; the process has ended by the time of ``on_over``.
    """

    def __init__(
        self,
        name: str,
        options: Mapping[str, object],
        *,
        deadline_s: float,
        on_events: Callable[[list[list[Any]]], None],
        on_over: Callable[[ServingProcess, str], None],
    ) -> None:
        self._name = name
        self._on_over = on_over
        self._opened = False
        # What it says before it is up is ours to tell; after that it has our stderr.
        early_fd = os.memfd_create("early", os.MFD_CLOEXEC)
        try:
            ours, self._process = _started(early_fd)
            self._requests = Requests(
                ours, name=name, deadline_s=deadline_s, on_events=on_events, on_over=self._on_gone
            )
            try:
                opening = self._requests.ask(
                    "open", (), max(deadline_s, _STARTING_S), then=self._on_open, name=name, options=dict(options)
                )
                opening.result()
            except Unavailable:
                self._requests.close()
                raise
            except Exception as error:
                self._requests.close()
                said = os.pread(early_fd, 1 << 16, 0).decode(errors="replace").strip().splitlines()
                raise Unavailable(
                    f"the process that would serve domain {name} did not come up: {said[-1] if said else error}"
                    f" (status {self._process.returncode})"
                ) from error
            warned = os.pread(early_fd, 1 << 16, 0).decode(errors="replace").strip()
            if warned:
                logger.warning("domain %s: %s", name, warned)
        finally:
            os.close(early_fd)

    def _on_open(self, answer: Message) -> None:
        self.aperture_pages: int = answer["aperture_pages"]
        self.root_fd: int = answer["root_fd"]
        self._opened = True

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def over(self) -> bool:
        return self._requests.over

    def is_here(self) -> bool:
        """See Requests."""
        return self._requests.is_here()

    def ask(
        self,
        request: str,
        fds: Sequence[int] = (),
        /,
        *,
        then: Callable[[Message], T],
        patient: bool = False,
        **arguments: object,
    ) -> Future[T]:
        """See Requests."""
        return self._requests.ask(request, fds, then=then, patient=patient, **arguments)

    def expire(self, reason: str) -> None:
        """See Requests."""
        self._requests.expire(reason)

    def close(self) -> None:
        """Ends it in good order, or else. Idempotent."""
        if not self.over:
            try:
                self.ask("close", then=lambda _: None).result()
            except LendingError:
                pass  # it has gone: all the better
        self._requests.close()

    def _on_gone(self, reason: str, missed: bool) -> None:
        """On the thread of the requests. The connection is closed, so it is about to end, unless it is stopped or hangs."""
        try:
            self._process.wait(0 if missed else _ENDING_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            try:
                self._process.wait(_ENDING_S)
            except subprocess.TimeoutExpired:  # it hangs in the kernel, in what it was lent itself
                logger.error("domain %s: its process %d can't be ended yet", self._name, self._process.pid)
                threading.Thread(target=self._process.wait, name=f"{self._name}-reaper", daemon=True).start()
        if self._opened:
            self._on_over(self, reason)


def _started(early_fd: int) -> tuple[socket.socket, StartedProcess]:
    """Our end of the connection, and the process. Raises Unavailable."""
    ours, theirs = socket.socketpair()
    try:
        stderr_fd = os.dup(2)
    except OSError:  # a daemon without one
        stderr_fd = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    program = (
        f"import sys; sys.path[:] = {_module_path()!r} + sys.path;"
        f"from waylend.domain.process.server import serve; serve(@FD0@, @FD1@, {starter.jails})"
    )
    try:
        with theirs:
            process = starter.start([sys.executable, "-I", "-S", "-c", program], [theirs.fileno(), stderr_fd], early_fd)
    except OSError as error:
        ours.close()
        raise Unavailable(f"can't start a process that serves: {error}") from error
    finally:
        os.close(stderr_fd)
    return ours, process


def _module_path() -> list[str]:
    """Where the serving process finds our modules, and the one library that the lender's book needs: wherever they are here.

    It looks nowhere else (``python -I -S``), not in what the user's environment or the current directory may hold.
    """
    folders = (
        os.path.dirname(os.path.dirname(os.path.abspath(f"{each.__file__}"))) for each in (errors, sortedcontainers)
    )
    return list(dict.fromkeys(folders))
