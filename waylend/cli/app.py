"""APP of ``waylend run``: a process group of its own, from its start before the jail to the end of all that it started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import anyio

from waylend.cli import gate
from waylend.cli.process import Child
from waylend.relay.events import RelayEvent, SessionEnded, SessionOpened

#: How long APP and what it started may take to end when they are asked to, before they are killed.
_GRACE_S = 5.0
#: What APP left running has so long to become a client.
_TO_CONNECT_S = 2.0
_LOOK_S = 0.05


class Clients:
    """Who is connected, and what they did wrong; ``on_event`` is told by the proxy."""

    def __init__(self) -> None:
        self._open: set[int] = set()
        self.violations: list[str] = []

    def on_event(self, event: RelayEvent) -> None:
        if isinstance(event, SessionOpened):
            self._open.add(event.session_id)
        elif isinstance(event, SessionEnded):
            self._open.discard(event.session_id)
            if event.broke_protocol:
                self.violations.append(event.reason)

    def __bool__(self) -> bool:
        return bool(self._open)


class App:
    """Started, and waiting at its gate until ``go``."""

    def __init__(self, process: Child, go_fd: int, *, has_terminal: bool) -> None:
        self._process = process
        self._go_fd = go_fd
        self._has_terminal = has_terminal
        self._asked = 0

    def go(self) -> None:
        os.write(self._go_fd, b"!")

    async def run(self, signals: Any, clients: Clients, *, waits: bool) -> int:
        """To its end, and with ``waits`` to that of its last client; or until ``signals`` end it. Its exit status, as a shell
        has it; 128 + N for a signal of ours that came after its end.
        """
        status = 0
        async with anyio.create_task_group() as tasks:

            async def heed_signals() -> None:
                nonlocal status
                async for number in signals:
                    if number == signal.SIGCHLD:
                        self._stop_with_it()
                    elif self._process.returncode is None:
                        tasks.start_soon(self._end, number)
                    else:
                        await self._end(number)
                        status = 128 + number
                        tasks.cancel_scope.cancel()

            tasks.start_soon(heed_signals)
            ended = await self._process.wait()
            self._take_terminal(os.getpgrp())
            status = ended if ended >= 0 else 128 - ended
            if self._asked:
                await self._until_gone()
            elif waits:
                await self._until_unused(clients)
            tasks.cancel_scope.cancel()
        return status

    async def _until_unused(self, clients: Clients) -> None:
        give_up_at = anyio.current_time() + _TO_CONNECT_S
        while clients or (self._is_there() and anyio.current_time() < give_up_at):
            await anyio.sleep(_LOOK_S)

    async def _until_gone(self) -> None:
        with anyio.move_on_after(_GRACE_S):
            while self._is_there():
                await anyio.sleep(_LOOK_S)

    async def _end(self, number: int) -> None:
        """Asks all of the group to end, and kills what doesn't. Who asks twice is in a hurry."""
        self._asked += 1
        if self._asked == 1:
            self._signal(number)
            self._signal(signal.SIGCONT)
            await self._until_gone()
        self._signal(signal.SIGKILL)

    def _is_there(self) -> bool:
        return self._signal(0)

    def _signal(self, number: int) -> bool:
        """To all of the group. Whether there is anybody."""
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            # Before its gate's first step it has no group of its own.
            if self._process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._process.pid, number)
                return True
            return False
        return True

    # At a terminal APP's group is in the foreground, and Ctrl-C and Ctrl-Z go there.

    def _stop_with_it(self) -> None:
        """Ctrl-Z stops APP; the shell waits for us to stop, too."""
        if not self._has_terminal or self._process.returncode is not None:
            return
        try:
            stopped = os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOHANG)
        except ChildProcessError:
            return
        if stopped is None:
            return
        ours = os.getpgrp()
        self._take_terminal(ours)
        os.kill(os.getpid(), signal.SIGSTOP)
        if os.tcgetpgrp(0) == ours:  # fg, not bg
            self._take_terminal(self._process.pid)
        self._signal(signal.SIGCONT)

    def _take_terminal(self, group: int) -> None:
        if self._has_terminal:
            with contextlib.suppress(OSError):  # it hung up
                os.tcsetpgrp(0, group)

    def close(self) -> None:
        """Nothing of it is left, unless it ended by itself and left something that isn't a client."""
        os.close(self._go_fd)  # which ends one that waits at its gate
        if self._process.returncode is None:
            self._signal(signal.SIGKILL)
        self._process.close()
        self._take_terminal(os.getpgrp())


@contextmanager
def started(argv: Sequence[str], environ: Mapping[str, str]) -> Iterator[App]:
    """Starts ``argv``, up to its gate. What is left of it at the end is killed. Raises OSError."""
    has_terminal = _in_the_foreground()
    if has_terminal:
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # we hand the terminal out and take it back
    waits_fd, go_fd = os.pipe()
    command = [sys.executable, "-I", "-S", gate.__file__, f"{waits_fd}", "terminal" if has_terminal else "-", *argv]
    try:
        process = Child(subprocess.Popen(command, env=dict(environ), pass_fds=[waits_fd]))
    except BaseException:
        os.close(go_fd)
        raise
    finally:
        os.close(waits_fd)
    app = App(process, go_fd, has_terminal=has_terminal)
    try:
        yield app
    finally:
        app.close()


def _in_the_foreground() -> bool:
    try:
        return os.isatty(0) and os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False
