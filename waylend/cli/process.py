"""What commands do to the processes that they are, and to those that they start."""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.abc

from waylend.errors import UsageError
from waylend.relay.sockets import runtime_dir

# How long an app may take to end when it is asked to, before it is killed.
_GRACE_S = 5.0
_SHIM_START_S = 10.0


def freeze_memory() -> None:
    """What was made so far lives as long as the process: the collector need not walk it again and again."""
    gc.collect()
    gc.freeze()


def host_or_passed_socket(host: str | None) -> str | socket.socket | None:
    """The compositor: as named, or else the connection that our parent made for us (WAYLAND_SOCKET).

    Removes WAYLAND_SOCKET from the environment, as libwayland does: it is used up. Raises UsageError.
    """
    number = os.environ.pop("WAYLAND_SOCKET", None)
    if number is None or host is not None:
        return host
    try:
        sock = socket.socket(fileno=int(number))
    except (ValueError, OSError) as error:
        raise UsageError(f"WAYLAND_SOCKET={number}: not a connected socket") from error
    sock.set_inheritable(False)
    return sock


def private_place() -> str | None:
    """Where the socket goes: XDG_RUNTIME_DIR, or where that isn't set, the system's temporary folder (mode 700 it is anyway)."""
    try:
        return f"{runtime_dir()}"
    except UsageError:
        return None


@asynccontextmanager
async def the_compositor(host: str | None, folder: Path, size: str, screenshot: Path | None) -> AsyncIterator[Any]:
    """The compositor to use; a shim of our own runs until the context is left."""
    if host != "shim":
        yield host_or_passed_socket(host)
        return
    path = folder / "shim-0"
    argv = [sys.executable, "-m", "compositor_shim", "--socket", f"{path}", "--size", size]
    if screenshot:
        argv += ["--screenshot-on-exit", f"{screenshot}"]
    # In a session of its own: Ctrl-C at the terminal is ours to handle, and the shim's screenshot comes last.
    async with await anyio.open_process(
        argv, stdin=subprocess.DEVNULL, stdout=None, stderr=None, start_new_session=True
    ) as shim:
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
                await end_process(shim)


async def end_process(process: anyio.abc.Process, number: int = signal.SIGTERM) -> None:
    """Asks a process to end, and kills it when it doesn't."""
    if process.returncode is None:
        process.send_signal(signal.Signals(number))
        with anyio.move_on_after(_GRACE_S):
            await process.wait()
            return
        process.kill()
        await process.wait()
