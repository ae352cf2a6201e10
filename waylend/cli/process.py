"""What commands do to the processes that they are, and to those that they start."""

from __future__ import annotations

import gc
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import ClassVar

import anyio
import anyio.abc
import click

from waylend.domain.process import starter
from waylend.errors import CompositorError, UsageError
from waylend.relay.sockets import (
    ListeningSocket,
    activated_sockets,
    notify_supervisor,
    own_dir,
    runtime_dir,
    socket_path,
)

logger = logging.getLogger(__name__)

# How long an app may take to end when it is asked to, before it is killed.
_GRACE_S = 5.0
_SHIM_START_S = 10.0
_LEAVING_S = 1.5
_REMEDY = "say --compositor SOCKET, or --compositor shim for a headless one of our own"


class Child:
    """A child process that is waited for by a descriptor (pidfd_open(2)): that takes no thread, which a jail would not hold."""

    #: Those of this process that aren't closed yet.
    open: ClassVar[set[Child]] = set()

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._fd = os.pidfd_open(process.pid)
        self.open.add(self)
        self.pid = process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.poll()

    def send_signal(self, number: int) -> None:
        self._process.send_signal(number)

    async def wait(self) -> int:
        while (status := self._process.poll()) is None:
            await anyio.wait_readable(self._fd)
        return status

    async def end(self, number: int = signal.SIGTERM) -> None:
        """Asks it to end, and kills it when it doesn't."""
        if self.returncode is None:
            self.send_signal(number)
            with anyio.move_on_after(_GRACE_S):
                await self.wait()
                return
            self.send_signal(signal.SIGKILL)
            await self.wait()

    def close(self) -> None:
        """Waits for one that is killed. Idempotent."""
        self.open.discard(self)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._process.wait()


def freeze_memory() -> None:
    """What was made so far lives as long as the process: the collector need not walk it again and again."""
    gc.collect()
    gc.freeze()


def compositor_or_passed_socket(compositor: str | None) -> str | socket.socket | None:
    """The compositor: as named, or else the connection that our parent made for us (WAYLAND_SOCKET).

    Removes WAYLAND_SOCKET from the environment, as libwayland does: it is used up. Raises UsageError.
    """
    number = os.environ.pop("WAYLAND_SOCKET", None)
    if number is None or compositor is not None:
        return compositor
    try:
        sock = socket.socket(fileno=int(number))
    except (ValueError, OSError) as error:
        raise UsageError(f"WAYLAND_SOCKET={number}: not a connected socket") from error
    sock.set_inheritable(False)
    return sock


@contextmanager
def private_folder() -> Iterator[str]:
    """A folder for a socket, until the context is left: in XDG_RUNTIME_DIR, or where that isn't set, with the temporary files.

    Raises UsageError.
    """
    place = f"{runtime_dir()}" if os.environ.get("XDG_RUNTIME_DIR") else None
    try:
        folder = tempfile.TemporaryDirectory(prefix="waylend-", dir=place)  # mode 700 it is anyway
    except OSError as error:
        raise UsageError(f"can't make a folder in {place or tempfile.gettempdir()}: {error.strerror}") from error
    with folder as path:
        yield path


@contextmanager
def private_name(kind: str) -> Iterator[Path]:
    """A path for a socket that nobody else makes, in a folder of our own: in XDG_RUNTIME_DIR, or where that isn't set a temporary
    one. What killed predecessors left there goes. Raises UsageError.
    """
    if not os.environ.get("XDG_RUNTIME_DIR"):
        with private_folder() as folder_name:
            yield Path(folder_name) / f"{kind}-0"
        return
    folder = own_dir()
    for left in folder.glob("*.socket*"):
        pid = left.name.split("-")[1]
        if not os.path.exists(f"/proc/{pid}"):
            left.unlink(missing_ok=True)
    yield folder / f"{kind}-{os.getpid()}-{secrets.token_hex(2)}.socket"


class ShimFailed(click.exceptions.Exit):
    """The shim couldn't do what it was asked for, or a client broke a protocol. It has said so itself."""

    def __init__(self) -> None:
        super().__init__(1)


def check_shim_options(compositor: str | None, screenshot: Path | None) -> None:
    """Before anything is started. Raises click.UsageError; UsageError where no compositor was named in any way."""
    if screenshot and compositor != "shim":
        raise click.UsageError("--screenshot needs --compositor shim")
    if compositor is None and not {"WAYLAND_DISPLAY", "WAYLAND_SOCKET", "XDG_RUNTIME_DIR"} & os.environ.keys():
        raise UsageError(f"this is no Wayland session (WAYLAND_DISPLAY is not set); {_REMEDY}")


@asynccontextmanager
async def the_compositor(
    compositor: str | None, size: str = "1280x800", screenshot: Path | None = None, *, strict: bool = False
) -> AsyncIterator[str | socket.socket | None]:
    """The compositor to use; a shim of our own runs until the context is left.

    ``strict``: what clients do wrong in the shim's eyes is said, and a failure. Raises UsageError, ShimFailed.
    """
    if compositor != "shim":
        try:
            yield compositor_or_passed_socket(compositor)
        except CompositorError as error:
            raise CompositorError(f"{error}; {_REMEDY}") from error
        return
    with private_name("shim") as path:
        argv = [sys.executable, "-m", "compositor_shim", "--socket", f"{path}", "--size", size]
        argv += ["--strict"] if strict else []
        argv += ["--screenshot-on-exit", f"{screenshot}"] if screenshot else []
        # In a session of its own: Ctrl-C at the terminal is ours to handle, and the shim's screenshot comes last.
        shim = Child(subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True))
        with closing(shim):
            try:
                with anyio.fail_after(_SHIM_START_S):
                    while not path.exists():
                        if shim.returncode is not None:
                            raise UsageError(f"the compositor shim ended with status {shim.returncode}")
                        await anyio.sleep(0.02)
                yield f"{path}"
            except TimeoutError:
                raise UsageError(f"the compositor shim made no socket within {_SHIM_START_S:g} s") from None
            finally:
                with anyio.CancelScope(shield=True):
                    await shim.end()
        if shim.returncode:
            raise ShimFailed


@contextmanager
def listening(listen: str | None, socket_mode: str | None) -> Iterator[list[socket.socket]]:
    """Where to take clients, by ``listen_options`` or from a supervisor (LISTEN_FDS): sockets that are closed at the end.

    Raises click.UsageError, UsageError.
    """
    try:
        mode = None if socket_mode is None else int(socket_mode, 8)
    except ValueError:
        raise click.BadParameter(f"{socket_mode!r} is no octal number", param_hint="--socket-mode") from None
    passed = activated_sockets()
    with ExitStack() as stack:
        for sock in passed:
            stack.enter_context(sock)
        if bool(passed) == (listen is not None):
            raise click.UsageError(
                "give --listen SOCKET, or pass listening sockets (LISTEN_FDS), not both and not neither"
            )
        if listen is not None:
            passed.append(stack.enter_context(closing(ListeningSocket(socket_path(listen), mode=mode))).sock)
        yield passed


def leave_soon(status: int) -> None:
    """The process ends with ``status`` in less than two seconds, whatever still hangs then: a close(2) that waits for a stranger,
    a process that is stopped. Its sockets' names and what it started go all the same.
    """

    def leave() -> None:
        time.sleep(_LEAVING_S)
        logger.warning("something hangs, and is left behind")
        for listening in list(ListeningSocket.open):
            # Not the descriptors: somebody may wait for one.
            listening.unlink()
        for child in list(Child.open):
            child.send_signal(signal.SIGTERM)
        starter.kill_all()
        os._exit(status)

    threading.Thread(target=leave, name="leaving", daemon=True).start()


@contextmanager
def until_asked_to_stop() -> Iterator[Callable[[anyio.Event | None], Awaitable[None]]]:
    """For a service: gives what is to be awaited once it is up, which tells the supervisor and returns when it is to stop.

    That is at SIGINT and SIGTERM, which count from the beginning of the context on, and when the event is set that it is
    called with.
    """
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:

        async def wait(ended: anyio.Event | None) -> None:
            freeze_memory()
            notify_supervisor("READY=1")
            async with anyio.create_task_group() as tasks:

                async def until_signal() -> None:
                    async for _ in signals:
                        leave_soon(0)
                        tasks.cancel_scope.cancel()

                tasks.start_soon(until_signal)
                await (ended.wait() if ended is not None else anyio.sleep_forever())
                tasks.cancel_scope.cancel()
            notify_supervisor("STOPPING=1")

        yield wait
