"""Running a host half: its channel's socket, its domain, its compositor and its control socket, for as long as a context."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path

import anyio
from anyio.abc import TaskStatus
from anyio.from_thread import BlockingPortal

from waylend.channel.transport import Address, listen_for_guest
from waylend.domain.process.caller import ProcessDomain
from waylend.errors import LendingError, UsageError
from waylend.host_half.half import HostHalf
from waylend.lending.pages import page_count_of
from waylend.policy import Policy
from waylend.relay.events import RelayEvent
from waylend.relay.interpose import MakesInterposer
from waylend.relay.loop import Loop
from waylend.relay.session import Trace
from waylend.relay.sockets import ListeningSocket, socket_path
from waylend.service.answering import answering
from waylend.service.compositor import CompositorSocket, keep_in_touch
from waylend.service.in_thread import (
    beating,
    called_in_this_thread,
    make_room_for_fds,
    running,
    single_errors,
)
from waylend.wire.tables import load_tables


@dataclass
class RunningHostHalf:
    """A running host half. ``bar_path`` is the aperture's file, for a VMM. ``ended`` is set when the compositor has gone."""

    channel: str
    control_path: Path | None
    bar_path: str
    domain: ProcessDomain
    ended: anyio.Event = field(default_factory=anyio.Event)


@asynccontextmanager
async def serve_guest(
    *,
    channel: str,
    compositor: str | socket.socket | None = None,
    policy: Policy | None = None,
    name: str = "guest",
    bar_link: str | None = None,
    token: str = "",
    uids: Sequence[int] = (),
    cids: Sequence[int] = (),
    once: bool = False,
    control: str | bool = True,
    silence_s: float = 0.0,
    on_event: Callable[[RelayEvent], None] | None = None,
    trace: Trace | None = None,
    interposers: Sequence[MakesInterposer] = (),
) -> AsyncIterator[RunningHostHalf]:
    """Runs the host half until the context is left; then the guest's windows close and its leases end.

    ``channel`` is where the guest half (or its VMM) connects: ``unix:PATH`` or ``vsock:PORT``. ``bar_link`` is a symbolic
    link to make to the aperture's file. ``token``, ``uids`` (besides our own and root) and ``cids`` say who may be the guest
    half. For the others see ``serve``. Raises UsageError, Unavailable, CompositorError; LendingError when the aperture is lost.
    """
    policy = policy or Policy()
    where = CompositorSocket.named(compositor)
    address = Address.parse(channel)
    tables = load_tables()
    make_room_for_fds()
    async with single_errors(), AsyncExitStack() as stack:
        listening = _listen(stack, address)
        domain = _new_domain(stack, name, policy, bar_link)
        running_host = RunningHostHalf(f"{address}", None, domain.bar_path, domain)
        loop = Loop()
        stack.callback(loop.close)
        half = HostHalf(
            loop,
            tables=tables,
            policy=policy,
            domain=domain,
            connect=where.new_connection,
            interposers=interposers,
            observer=await stack.enter_async_context(called_in_this_thread(on_event)) if on_event else None,
            trace=trace,
            token=token,
            silence_s=silence_s,
        )
        await stack.enter_async_context(running(loop, half.close))
        await stack.enter_async_context(beating(loop, half.beat))
        tasks = await stack.enter_async_context(anyio.create_task_group())
        stack.callback(tasks.cancel_scope.cancel)
        await tasks.start(_raise_when_lost, domain)
        if where.path:
            await tasks.start(keep_in_touch, where, running_host.ended, tables, name, policy, once)
        now = functools.partial(_of_the_guest, half)
        running_host.control_path = await answering(
            stack, control, domain, listen=(address,), compositor=where.path, now=now
        )
        allowed = frozenset({0, os.geteuid(), *uids})
        loop.call(lambda: half.listen(listening, allowed, frozenset(cids)))
        yield running_host


async def _raise_when_lost(domain: ProcessDomain, *, task_status: TaskStatus[None]) -> None:
    """Whoever has mapped the aperture that was (the VMM above all) can't be given another: so all of it ends, and says so."""
    lost = anyio.Event()
    reasons: list[str] = []

    async def tell(why: str) -> None:
        reasons.append(why)
        lost.set()

    async with BlockingPortal() as portal:

        def on_lost(why: str) -> None:
            with contextlib.suppress(RuntimeError):  # we are ending anyway
                portal.start_task_soon(tell, why)

        domain.on_lost = on_lost
        try:
            task_status.started()
            await lost.wait()
        finally:
            domain.on_lost = None
    raise LendingError(
        f"the aperture is lost, and every window with it ({reasons[0]}): start the host half and its guest anew"
    )


def _new_domain(stack: AsyncExitStack, name: str, policy: Policy, bar_link: str | None) -> ProcessDomain:
    domain = ProcessDomain(
        name,
        aperture_pages=page_count_of(policy.limits.aperture_bytes),
        # Files of the compositor are leases, too, and no client's own.
        lease_limit=policy.limits.leases + policy.limits.clients,
        gap_zeros=True,
    )
    stack.callback(domain.close)
    if bar_link is not None:
        _link(stack, bar_link, domain.bar_path)
    return domain


def _of_the_guest(half: HostHalf) -> dict[str, object]:
    """What ``waylend leases`` is told besides."""
    return {"guest_silent_s": half.guest_silent_s}


def _listen(stack: AsyncExitStack, address: Address) -> socket.socket:
    if address.kind == "unix":
        path = socket_path(os.path.abspath(address.path))
        return stack.enter_context(closing(ListeningSocket(path, mode=0o600, for_clients=False))).sock
    if address.kind == "vsock":
        try:
            return stack.enter_context(listen_for_guest(address))
        except OSError as error:
            raise UsageError(f"can't listen on {address}: {error.strerror}") from error
    raise UsageError(f"{address}: a host half has no port; give the unix socket that the VMM connects the port to")


def _link(stack: AsyncExitStack, link: str, target: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        if os.path.islink(link):  # a dead host half left it
            os.unlink(link)
    try:
        os.symlink(target, link)
    except OSError as error:
        raise UsageError(f"can't make the link {link}: {error.strerror}") from error

    def unlink() -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(link)

    stack.callback(unlink)
