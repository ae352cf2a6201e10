"""What a command does to the process that it is."""

from __future__ import annotations

import gc
import os
import socket

from waylend.errors import UsageError


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
