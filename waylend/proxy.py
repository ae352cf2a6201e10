"""A proxy for a local guest: a relay in its own thread, its domain, and anyio around them.

async with serve(listen="wayland-9", policy=Policy(title_prefix="[work] ")) as proxy:
    await proxy.ended.wait()
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import resource
import secrets
import socket
import tempfile
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import anyio.abc
import anyio.to_thread

from waylend.control import ControlServer, control_dir
from waylend.domain.base import Domain
from waylend.domain.fuse import FuseDomain
from waylend.domain.memfd import MemfdDomain
from waylend.errors import CompositorError, Unavailable, UsageError
from waylend.hostlink import HostLink, host_link
from waylend.lending.pages import page_count_of
from waylend.policy import Policy
from waylend.relay.events import Event
from waylend.relay.loop import Loop
from waylend.relay.relay import Relay
from waylend.relay.session import Trace
from waylend.relay.sockets import ListeningSocket, connector, socket_path
from waylend.wire.spec import InterfaceSpec
from waylend.wire.tables import load_tables

logger = logging.getLogger(__name__)

_LOOK_AGAIN_S = 0.2


@dataclass
class Proxy:
    """A running proxy. ``ended`` is set when the compositor has gone and the proxy is not to wait for it."""

    listen_paths: tuple[Path, ...]
    control_path: Path | None
    domain: Domain
    ended: anyio.Event = field(default_factory=anyio.Event)


@asynccontextmanager
async def serve(
    *,
    listen: str | Sequence[socket.socket],
    host: str | socket.socket | None = None,
    policy: Policy | None = None,
    once: bool = False,
    socket_mode: int | None = None,
    control: str | bool = True,
    app_id: str = "",
    on_event: Callable[[Event], None] | None = None,
    trace: Trace | None = None,
    domain: Domain | None = None,
) -> AsyncIterator[Proxy]:
    """Runs a proxy until the context is left; then every client gets its end, and nothing stays behind.

    ``listen``: a socket name to make (with its lock file), or listening sockets that somebody else made. ``host``: the
    compositor's socket name, by default $WAYLAND_DISPLAY, or a socket that is connected to it (it serves one client).
    ``control``: whether (or at which path) to answer ``waylend leases``. ``on_event`` is called in this event loop's
    thread. ``domain`` is closed at the end; by default FUSE, else memfd.

    Raises UsageError, and CompositorError when the compositor isn't there and ``once`` is set; otherwise waits for it.
    """
    policy = policy or Policy()
    compositor = _Compositor(
        host
        if isinstance(host, socket.socket)
        else socket_path(host or os.environ.get("WAYLAND_DISPLAY") or "wayland-0")
    )
    tables = load_tables()
    _make_room_for_fds()
    async with _single_errors(), AsyncExitStack() as stack:
        sockets, paths = _claim(stack, listen, socket_mode)
        if compositor.path in paths:
            raise UsageError(f"{compositor.path} is the compositor's own socket: listen on another")
        domain = domain or local_domain(policy)
        stack.callback(domain.close)
        proxy = Proxy(paths, None, domain)
        loop = Loop()
        relay = Relay(
            loop,
            tables=tables,
            policy=policy,
            domain=domain,
            connect=compositor.new_connection,
            observer=await stack.enter_async_context(_called_in_this_thread(on_event)) if on_event else None,
            trace=trace,
        )
        await stack.enter_async_context(_running(loop, relay))
        tasks = await stack.enter_async_context(anyio.create_task_group())
        stack.callback(tasks.cancel_scope.cancel)
        if compositor.path:
            await tasks.start(_keep_in_touch, compositor, proxy, tables, app_id, once)
        proxy.control_path = Path(control) if isinstance(control, str) else _control_path() if control else None
        if proxy.control_path:
            about = {
                "pid": os.getpid(),
                "listen": [f"{path}" for path in paths],
                "host": f"{compositor.path or 'a socket'}",
            }
            server = ControlServer({domain.name: domain}, about)
            await stack.enter_async_context(server.listening(proxy.control_path))
        for sock in sockets:
            loop.call(functools.partial(relay.listen, sock))
        yield proxy


@asynccontextmanager
async def _single_errors() -> AsyncIterator[None]:
    """A task group wraps every error into a group; whoever uses ``serve`` should not have to know that there is one."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        raise error from None


class _Compositor:
    """Where sessions connect to just now: its own socket, or one on which it knows them as a guest's."""

    def __init__(self, host: Path | socket.socket) -> None:
        self.path = host if isinstance(host, Path) else None
        self.connect = connector(host) if isinstance(host, Path) else _connected_once(host)

    def new_connection(self) -> socket.socket:
        return self.connect()


async def _keep_in_touch(
    compositor: _Compositor,
    proxy: Proxy,
    tables: Mapping[str, InterfaceSpec],
    app_id: str,
    once: bool,
    *,
    task_status: anyio.abc.TaskStatus[None],
) -> None:
    """Knows whether the compositor is there, and comes back to it. Started once it has looked for the first time."""
    assert compositor.path is not None
    status: anyio.abc.TaskStatus[None] | None = task_status
    waiting = False
    while True:
        try:
            async with _linked(compositor, tables, app_id) as link:
                if waiting:
                    logger.warning("the compositor at %s is there", compositor.path)
                waiting = False
                if status is not None:
                    status.started()
                    status = None
                await link.wait_closed()
                why = "it closed the connection"
        except CompositorError as error:
            why = f"{error}"
        if once and status is not None:
            raise CompositorError(f"no compositor at {compositor.path}: {why}")
        if once:
            logger.warning("the compositor at %s is gone", compositor.path)
            proxy.ended.set()
            return
        if not waiting:
            logger.warning("no compositor at %s (%s): waiting for it", compositor.path, why)
            waiting = True
        if status is not None:
            status.started()
            status = None
        await anyio.sleep(_LOOK_AGAIN_S)


@asynccontextmanager
async def _linked(compositor: _Compositor, tables: Mapping[str, InterfaceSpec], app_id: str) -> AsyncIterator[HostLink]:
    """A link to the compositor, and sessions connect as a guest's where it can tell. Raises CompositorError."""
    assert compositor.path is not None
    try:
        async with AsyncExitStack() as stack:
            link = await stack.enter_async_context(host_link(compositor.path, tables))
            compositor.connect = connector(compositor.path)
            if link.offers_security_context:
                private_dir = stack.enter_context(
                    tempfile.TemporaryDirectory(prefix="waylend-", dir=compositor.path.parent)
                )
                path = Path(private_dir) / "context"
                instance_id = f"{os.getpid()}-{secrets.token_hex(4)}"
                await stack.enter_async_context(link.security_context(path, app_id=app_id, instance_id=instance_id))
                compositor.connect = connector(path)
            yield link
    except OSError as error:
        raise CompositorError(error.strerror or f"{error}") from error


def _connected_once(sock: socket.socket) -> Callable[[], socket.socket]:
    """For a compositor that comes as a connected socket (WAYLAND_SOCKET): it is the first client's, and then used up."""
    left = [sock]

    def connect() -> socket.socket:
        if not left:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "the socket that was passed serves one client only")
        return left.pop()

    return connect


@asynccontextmanager
async def _running(loop: Loop, relay: Relay) -> AsyncIterator[None]:
    """The relay's thread, until the context is left."""

    def run() -> None:
        try:
            loop.run()
        finally:
            relay.close()
            loop.close()

    thread = threading.Thread(target=run, name="relay")
    thread.start()
    try:
        yield
    finally:
        loop.stop()
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(thread.join)


@asynccontextmanager
async def _called_in_this_thread(on_event: Callable[[Event], None]) -> AsyncIterator[Callable[[Event], None]]:
    """An observer for the relay's thread; what it is told reaches ``on_event`` in the event loop's."""
    arrived: deque[Event] = deque()
    wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def observe(event: Event) -> None:
        arrived.append(event)
        os.eventfd_write(wake_fd, 1)

    def deliver() -> None:
        while arrived:
            on_event(arrived.popleft())

    async def pass_on() -> None:
        while True:
            await anyio.wait_readable(wake_fd)
            os.eventfd_read(wake_fd)
            deliver()

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pass_on)
            yield observe
            tasks.cancel_scope.cancel()
        deliver()
    finally:
        os.close(wake_fd)


def _claim(
    stack: AsyncExitStack, listen: str | Sequence[socket.socket], mode: int | None
) -> tuple[Sequence[socket.socket], tuple[Path, ...]]:
    if isinstance(listen, str):
        listening = ListeningSocket(socket_path(listen), mode=mode)
        stack.callback(listening.close)
        return (listening.sock,), (listening.path,)
    return listen, tuple(Path(os.fsdecode(sock.getsockname())) for sock in listen)


def _control_path() -> Path | None:
    """One of our own in XDG_RUNTIME_DIR; where that isn't set, the proxy works all the same, but can't be asked."""
    try:
        return control_dir() / f"{os.getpid()}-{secrets.token_hex(2)}.control"
    except (UsageError, OSError) as error:
        logger.warning("`waylend leases` won't see this proxy: %s", error)
        return None


def _make_room_for_fds() -> None:
    """A client is two sockets and what it sends: the soft limit of 1024 fds is for programs that use select."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def local_domain(policy: Policy, *, name: str = "local") -> Domain:
    """The best domain that this machine offers for a local guest: FUSE, else memfd."""
    limits = policy.limits
    aperture_pages = page_count_of(limits.aperture_bytes)
    try:
        return FuseDomain(name, aperture_pages=aperture_pages, read_only=True, lease_limit=limits.leases)
    except Unavailable as error:
        logger.warning("lent files are filled at once and can't be taken back page by page: %s", error)
        return MemfdDomain(name, aperture_pages=aperture_pages, read_only=True, lease_limit=limits.leases)
