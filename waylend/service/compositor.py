"""The compositor in front of which a half or a proxy stands: where sessions connect to, and whether it is there."""

from __future__ import annotations

import errno
import logging
import os
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio
import anyio.abc

from waylend.errors import CompositorError
from waylend.policy import Policy
from waylend.relay.sockets import NamelessSocket, connector, socket_path
from waylend.service.compositor_link import CompositorLink, compositor_link
from waylend.wire.spec import InterfaceSpec

logger = logging.getLogger(__name__)

_LOOK_AGAIN_S = 0.2


class CompositorSocket:
    """Where sessions connect to just now: its own socket, or one on which it knows them as a guest's; or nowhere.

    A named compositor is to be kept in touch with (``keep_in_touch``): before that, and while it is away, connecting is refused,
    so that no session gets to a compositor that wasn't told whose it is.
    """

    def __init__(self, where: Path | socket.socket) -> None:
        self.path = where if isinstance(where, Path) else None
        self.connect = _away if isinstance(where, Path) else _connected_once(where)
        self._guests_socket: NamelessSocket | None = None

    @classmethod
    def named(cls, name: str | socket.socket | None) -> CompositorSocket:
        """By its socket's name (default $WAYLAND_DISPLAY), or a socket that is connected to it. Raises UsageError."""
        if isinstance(name, socket.socket):
            return cls(name)
        return cls(socket_path(name or os.environ.get("WAYLAND_DISPLAY") or "wayland-0"))

    def new_connection(self) -> socket.socket:
        """Non-blocking. Raises OSError."""
        return self.connect()

    def guests_socket(self) -> NamelessSocket:
        """What the compositor is to take a guest's clients from. Made once: a compositor that comes back gets it again.

        Raises OSError.
        """
        if self._guests_socket is None:
            self._guests_socket = NamelessSocket()
        return self._guests_socket

    def close(self) -> None:
        """After the last connection was made. Idempotent."""
        self.connect = _away
        if self._guests_socket is not None:
            self._guests_socket.close()
            self._guests_socket = None


async def keep_in_touch(
    compositor: CompositorSocket,
    gone: anyio.Event,
    tables: Mapping[str, InterfaceSpec],
    app_id: str,
    policy: Policy,
    once: bool,
    *,
    task_status: anyio.abc.TaskStatus[None],
) -> None:
    """Knows whether the compositor is there, and comes back to it. Started once it has looked for the first time.

    With ``once`` it sets ``gone`` instead of coming back, and raises CompositorError when it isn't there to begin with.
    """
    try:
        await _come_back(compositor, gone, tables, app_id, policy, once, task_status)
    finally:
        compositor.close()


async def _come_back(
    compositor: CompositorSocket,
    gone: anyio.Event,
    tables: Mapping[str, InterfaceSpec],
    app_id: str,
    policy: Policy,
    once: bool,
    task_status: anyio.abc.TaskStatus[None],
) -> None:
    status: anyio.abc.TaskStatus[None] | None = task_status
    waiting = False
    while True:
        try:
            async with _linked(compositor, tables, app_id, policy) as link:
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
            gone.set()
            return
        if not waiting:
            logger.warning("no compositor at %s (%s): waiting for it", compositor.path, why)
            waiting = True
        if status is not None:
            status.started()
            status = None
        await anyio.sleep(_LOOK_AGAIN_S)


@asynccontextmanager
async def _linked(
    compositor: CompositorSocket, tables: Mapping[str, InterfaceSpec], app_id: str, policy: Policy
) -> AsyncIterator[CompositorLink]:
    """A link to the compositor, and sessions connect as a guest's where it can tell. Raises CompositorError."""
    assert compositor.path is not None
    try:
        async with AsyncExitStack() as stack:
            link = await stack.enter_async_context(compositor_link(compositor.path, tables))
            stack.callback(setattr, compositor, "connect", _away)
            if link.offers_security_context and policy.security_context:
                guests = compositor.guests_socket()
                instance_id = f"{os.getpid()}-{secrets.token_hex(4)}"
                await stack.enter_async_context(
                    link.security_context(guests.sock.fileno(), app_id=app_id, instance_id=instance_id)
                )
                await _say_what_it_hides(compositor.path, guests.path, link, tables, policy)
                compositor.connect = connector(guests.path)
            else:
                compositor.connect = connector(compositor.path)
            yield link
    except OSError as error:
        raise CompositorError(error.strerror or f"{error}") from error


async def _say_what_it_hides(
    path: Path, context: Path, link: CompositorLink, tables: Mapping[str, InterfaceSpec], policy: Policy
) -> None:
    """Some compositors show what they call privileged to no client that has a security context, whatever a policy allows."""
    asked_for = {interface for interface in link.globals if policy.asks_for(interface)}
    if not asked_for:
        return
    async with compositor_link(context, tables) as inside:
        hidden = sorted(asked_for - inside.globals.keys())
    if hidden:
        logger.warning(
            "the compositor at %s hides %s from clients with a security context: allowing it shows nothing "
            "(--no-security-context, or security_context = false in the policy: it is not told that this is a guest)",
            path,
            ", ".join(hidden),
        )


def _away() -> socket.socket:
    raise ConnectionRefusedError(errno.ECONNREFUSED, "the compositor is away")


def _connected_once(sock: socket.socket) -> Callable[[], socket.socket]:
    """For a compositor that comes as a connected socket (WAYLAND_SOCKET): it is the first client's, and then used up."""
    left = [sock]

    def connect() -> socket.socket:
        if not left:
            raise OSError(errno.EBUSY, "the socket that was passed serves one client only")
        return left.pop()

    return connect
