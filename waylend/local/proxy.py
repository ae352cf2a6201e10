"""A proxy for a local guest: a relay in its own thread, its domain, and anyio around them.

async with serve(listen="wayland-9", policy=Policy(title_prefix="[work] ")) as proxy:
    await proxy.ended.wait()
"""

from __future__ import annotations

import functools
import logging
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio

from waylend.domain.base import Domain
from waylend.domain.memfd import MemfdDomain
from waylend.domain.process.caller import ProcessDomain
from waylend.errors import Unavailable, UsageError
from waylend.lending.pages import page_count_of
from waylend.local.interposers import for_local_guests
from waylend.policy import Policy
from waylend.relay.endpoint import Endpoint
from waylend.relay.events import RelayEvent
from waylend.relay.interpose import MakesInterposer
from waylend.relay.loop import Loop
from waylend.relay.relay import Relay
from waylend.relay.session import Trace
from waylend.service.answering import answering
from waylend.service.compositor import CompositorSocket, keep_in_touch
from waylend.service.in_thread import (
    called_in_this_thread,
    listening_sockets,
    make_room_for_fds,
    running,
    single_errors,
)
from waylend.wire.tables import load_tables

logger = logging.getLogger(__name__)


@dataclass
class RunningProxy:
    """A running proxy. ``ended`` is set when the compositor has gone and the proxy is not to wait for it."""

    listen_paths: tuple[Path, ...]
    control_path: Path | None
    domain: Domain
    ended: anyio.Event = field(default_factory=anyio.Event)


@asynccontextmanager
async def serve(
    *,
    listen: str | Sequence[socket.socket],
    compositor: str | socket.socket | None = None,
    policy: Policy | None = None,
    once: bool = False,
    socket_mode: int | None = None,
    control: str | bool = True,
    app_id: str = "",
    on_event: Callable[[RelayEvent], None] | None = None,
    trace: Trace | None = None,
    domain: Domain | None = None,
    interposers: Sequence[MakesInterposer] = (),
) -> AsyncIterator[RunningProxy]:
    """Runs a proxy until the context is left; then every client gets its end, and nothing stays behind.

    ``listen``: a socket name to make (with its lock file), or listening sockets that somebody else made. ``compositor``: its
    socket's name, by default $WAYLAND_DISPLAY, or a socket that is connected to it (it serves one client).
    ``control``: whether (or at which path) to answer ``waylend leases``. ``on_event`` is called in this event loop's
    thread; what it raises is logged. ``domain`` is closed at the end; by default FUSE, else memfd. ``interposers`` are
    classes of your own, made anew for each client: see ``Interposer``.

    Raises UsageError, and CompositorError when the compositor isn't there and ``once`` is set; otherwise waits for it.
    """
    policy = policy or Policy()
    where = CompositorSocket.named(compositor)
    tables = load_tables()
    make_room_for_fds()
    async with single_errors(), AsyncExitStack() as stack:
        sockets, paths = listening_sockets(stack, listen, socket_mode)
        if where.path in paths:
            raise UsageError(f"{where.path} is the compositor's own socket: listen on another")
        domain = domain or local_domain(policy)
        stack.callback(domain.close)
        proxy = RunningProxy(paths, None, domain)
        loop = Loop()
        stack.callback(loop.close)
        relay = Relay(
            loop,
            tables=tables,
            policy=policy,
            interposers=for_local_guests(tables, policy, domain),
            connect=lambda: Endpoint(where.new_connection()),
            embedded=interposers,
            observer=await stack.enter_async_context(called_in_this_thread(on_event)) if on_event else None,
            trace=trace,
        )
        await stack.enter_async_context(running(loop, relay.close))
        tasks = await stack.enter_async_context(anyio.create_task_group())
        stack.callback(tasks.cancel_scope.cancel)
        if where.path:
            await tasks.start(keep_in_touch, where, proxy.ended, tables, app_id, policy, once)
        proxy.control_path = await answering(stack, control, domain, listen=paths, compositor=where.path)
        for sock in sockets:
            loop.call(functools.partial(relay.listen, sock))
        yield proxy


def local_domain(policy: Policy, *, name: str = "local") -> Domain:
    """The best domain that this machine offers for a local guest: FUSE, else memfd."""
    limits = policy.limits
    aperture_pages = page_count_of(limits.aperture_bytes)
    try:
        return ProcessDomain(name, aperture_pages=aperture_pages, read_only=True, lease_limit=limits.leases)
    except Unavailable as error:
        logger.warning("lent files are filled at once and can't be taken back page by page: %s", error)
        return MemfdDomain(name, aperture_pages=aperture_pages, read_only=True, lease_limit=limits.leases)
