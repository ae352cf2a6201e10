"""Running a guest half: its sockets for clients, and its thread, for as long as a context."""

from __future__ import annotations

import functools
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from waylend.channel.transport import Address
from waylend.guest_half.bar import find_bar
from waylend.guest_half.half import GuestHalf
from waylend.policy import Policy
from waylend.relay.loop import Loop
from waylend.relay.session import Trace
from waylend.service.in_thread import beating, listening_sockets, make_room_for_fds, running, single_errors
from waylend.wire.tables import load_tables


@dataclass
class RunningGuestHalf:
    """A running guest half."""

    listen_paths: tuple[Path, ...]


@asynccontextmanager
async def serve_in_guest(
    *,
    listen: str | Sequence[socket.socket],
    channel: str,
    bar: str | None = None,
    token: str = "",
    policy: Policy | None = None,
    socket_mode: int | None = None,
    silence_s: float = 0.0,
    trace: Trace | None = None,
) -> AsyncIterator[RunningGuestHalf]:
    """Runs the guest half until the context is left; then every client gets its end.

    ``listen``: a socket name to make, or listening sockets. ``channel``: where the host half is (``transport``). ``bar``: the
    aperture's file; by default the PCI device that a VMM gave this machine. Of ``policy`` the limits count: what a guest may
    see is the host half's business. Raises UsageError, Unavailable.
    """
    address = Address.parse(channel)
    make_room_for_fds()
    async with single_errors(), AsyncExitStack() as stack:
        sockets, paths = listening_sockets(stack, listen, socket_mode)
        loop = Loop()
        half = GuestHalf(
            loop,
            tables=load_tables(),
            address=address,
            bar_path=bar or find_bar(),
            policy=policy or Policy(),
            token=token,
            trace=trace,
            silence_s=silence_s,
        )
        loop.call(half.open)
        for sock in sockets:
            loop.call(functools.partial(half.relay.listen, sock))
        await stack.enter_async_context(running(loop, half.close))
        await stack.enter_async_context(beating(loop, half.beat))
        yield RunningGuestHalf(paths)
