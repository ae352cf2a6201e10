"""The host half: the compositor's side of a guest in a VM. One process, one domain, one guest.

It owns the aperture and its leases, and takes nothing that the guest half says on trust. The domain serves faults from a
process of its own; this one touches lent memory never.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio

from waylend.backing.file import FileBacking
from waylend.channel.connection import ChannelConnection
from waylend.channel.halves import HostEnd
from waylend.channel.link import GONE
from waylend.channel.transport import Address, check_identity, listen_for_guest
from waylend.domain.process.caller import ProcessDomain
from waylend.errors import ChannelError, LendingError, PeerError, UsageError
from waylend.host_half.closing import ClosingThread, CompositorEnd
from waylend.host_half.interposers import AperturePools, FilesAcross, OnlyPipes
from waylend.host_half.leases import LeaseGiven
from waylend.host_half.recycler import LeaseRecycler
from waylend.lending.lease import Lease, LossPolicy, Protection
from waylend.lending.p2m import LendingEvent, LendingEventKind
from waylend.lending.pages import PAGE_SIZE, page_count_of
from waylend.policy import NOT_ACROSS_MACHINES, Policy
from waylend.relay.events import LeaseLent, LeaseReturned, RelayEvent
from waylend.relay.interpose import Interposer
from waylend.relay.interpose.lent_files import FileLender
from waylend.relay.interpose.registry import GlobalFilter, Registry
from waylend.relay.interpose.toplevel import Toplevels
from waylend.relay.loop import EPOLLIN, Loop
from waylend.relay.relay import MakeInterposers, Relay
from waylend.relay.session import Session, Trace
from waylend.service.compositor import CompositorSocket, keep_in_touch
from waylend.service.control import ControlServer
from waylend.service.in_thread import (
    beating,
    called_in_this_thread,
    listening_sockets,
    make_room_for_fds,
    new_control_path,
    running,
    single_errors,
)
from waylend.wire.spec import InterfaceSpec
from waylend.wire.tables import load_tables

logger = logging.getLogger(__name__)

#: The most that a wl_shm pool can have, in whole pages: its size is an int32.
_MOST_POOL_BYTES = (1 << 31) - PAGE_SIZE


class HostHalf:
    """Lives in the loop's thread, with the relay. What attachments stand for is decided here (``Attachments``)."""

    def __init__(
        self,
        loop: Loop,
        *,
        tables: Mapping[str, InterfaceSpec],
        policy: Policy,
        domain: ProcessDomain,
        connect: Callable[[], socket.socket],
        observer: Callable[[RelayEvent], None] | None = None,
        trace: Trace | None = None,
        token: str = "",
        silence_s: float = 30.0,
    ) -> None:
        self._loop = loop
        self._policy = policy.with_changes(deny=NOT_ACROSS_MACHINES)
        self._tables = tables
        self._domain = domain
        self._token = token
        self._silence_s = silence_s
        self._bar_fd = domain.open_bar(writable=True)
        status = os.fstat(self._bar_fd)
        self._page_count = status.st_size // PAGE_SIZE
        self.pool_bytes = min(status.st_size, _MOST_POOL_BYTES)
        self.bar_identity = (status.st_dev, status.st_ino)
        self.stand_in_fd = os.memfd_create("waylend-no-pool", os.MFD_CLOEXEC)
        os.ftruncate(self.stand_in_fd, PAGE_SIZE)
        self._files = FileLender(domain)
        self._recycler = LeaseRecycler(domain)
        self._closing = ClosingThread(self._bar_fd, domain)
        self._unwatch = domain.events.watch(self._on_lending, faults=False)
        self._passed: dict[int, tuple[Lease | None, int]] = {}
        self._leases: dict[ChannelConnection, dict[int, Lease]] = {}
        self._given: dict[int, LeaseGiven] = {}  # by the lease's number
        self._sessions: dict[int, ChannelConnection] = {}
        self._end: HostEnd | None = None
        self.relay = Relay(
            loop,
            tables=tables,
            policy=self._policy,
            connect=lambda: CompositorEnd(connect(), self._closing.close_later),
            interposers=self._interposers(),
            observer=observer,
            trace=trace,
        )

    def _interposers(self) -> tuple[tuple[type[Interposer], ...], MakeInterposers]:
        global_filter = GlobalFilter(self._tables, self._policy)

        def make(session: Session) -> Iterable[Interposer]:
            assert isinstance(session.client, ChannelConnection)
            self._sessions[session.session_id] = session.client
            return (
                Registry(session, global_filter),
                FilesAcross(session, self._files, self),
                AperturePools(session, self),
                OnlyPipes(session),
                Toplevels(session),
            )

        return (Registry, FilesAcross, AperturePools, OnlyPipes, Toplevels), make

    # The guest half

    def listen(self, sock: socket.socket, uids: frozenset[int], cids: frozenset[int]) -> None:
        """Takes the guest half from a listening socket, which stays its maker's to close (after the loop)."""
        sock.setblocking(False)

        def accept(_events: int) -> None:
            try:
                guest, _ = sock.accept()
            except OSError as error:
                logger.warning("can't take the guest half in: %s", error.strerror)
                return
            try:
                check_identity(guest, uids, cids)
                self.take_in(guest.detach())
            except ChannelError as error:
                logger.warning("%s", error)
                guest.close()

        self._loop.add(sock.fileno(), EPOLLIN, accept)

    def take_in(self, fd: int) -> None:
        """The guest half's byte stream, which is ours from now on."""
        if self._end is not None and self._end.channel.greeted:
            logger.warning("a guest half is here already: another is turned away")
            os.close(fd)
            return
        if self._end is not None:
            # A VMM connects its port long before anybody speaks through it; but who says nothing holds up nobody.
            self._end.close()
        logger.info("a guest half connected")
        self._recycler.keep(True)
        self._end = HostEnd(
            self._loop,
            fd,
            attachments=self,
            page_count=self._page_count,
            on_connection=self._on_connection,
            on_over=self._on_over,
            token=self._token,
            silence_s=self._silence_s,
        )

    def _on_connection(self, connection: ChannelConnection) -> None:
        self._leases[connection] = {}
        self.relay.take_in(connection)

    def _on_over(self, why: str) -> None:
        # A guest may come and go; what a guest half or its VMM does wrong is worth a word.
        logger.log(logging.INFO if why == GONE else logging.WARNING, "the channel to the guest half is over: %s", why)
        self._end = None
        self._recycler.keep(False)

    def beat(self, elapsed_s: float) -> None:
        """To be called every ``elapsed_s`` in the loop's thread."""
        if self._end is not None:
            self._end.beat(elapsed_s)

    # Attachments

    def attach(self, connection: ChannelConnection, fd: int) -> bool:
        if fd not in self._passed:
            return False
        lease, size_bytes = self._passed.pop(fd)
        if lease is None:
            connection.tell("attach_file", 0, 0, 0)
        else:
            connection.tell("attach_file", lease.lease_id, lease.gfns.start, size_bytes)
        return True

    def open_aperture(self, _connection: ChannelConnection) -> int:
        return os.dup(self._bar_fd)

    def open_file(self, _connection: ChannelConnection, _lease: int, _gfn: int, _size_bytes: int) -> int:
        raise PeerError("a guest half attaches no files")

    def lease_asked(self, connection: ChannelConnection, object_id: int, page_count: int) -> None:
        given = LeaseGiven(connection.channel, object_id, lambda given: self._give_back(connection, given))
        leases = self._leases.get(connection)
        if leases is None:
            given.refuse("the connection is over")
            return
        try:
            if not 0 < page_count <= self._page_count:
                raise LendingError(f"{page_count} pages are more than the aperture has")
            lease = self._recycler.take(page_count) or self._lend(page_count)
        except (LendingError, OSError) as error:
            logger.info("a guest asked for %d pages: %s", page_count, error)
            given.refuse(f"{error}")
            return
        leases[object_id] = lease
        self._given[lease.lease_id] = given
        connection.channel.send(connection.outbox, given.encode("granted", lease.gfns.start))
        self.relay.emit(LeaseLent(self._session_of(connection), lease.lease_id, lease.name, lease.size_bytes))

    def _lend(self, page_count: int) -> Lease:
        try:
            return self._lend_anew(page_count)
        except LendingError:
            if not self._recycler.end_all():
                raise
            return self._lend_anew(page_count)

    def _lend_anew(self, page_count: int) -> Lease:
        fd = os.memfd_create("waylend-buffer", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, page_count * PAGE_SIZE)
        except OSError:
            os.close(fd)
            raise
        backing = FileBacking(fd, writable=True)
        try:
            # The compositor looks at these pages, too: what is lost is black, and no fault of the compositor's.
            return self._domain.lend(
                backing,
                protection=Protection.READ_WRITE,
                loss=LossPolicy.ZERO,
                name="wl_shm buffers",
                redrawn=True,
            )
        except BaseException:
            backing.close()
            raise

    def _session_of(self, connection: ChannelConnection) -> int:
        return next((number for number, one in self._sessions.items() if one is connection), 0)

    def _give_back(self, connection: ChannelConnection, given: LeaseGiven) -> None:
        lease = self._leases.get(connection, {}).pop(given.object_id, None)
        if lease is not None:
            self._retire(connection, lease)

    def _on_lending(self, event: LendingEvent) -> None:
        """On any thread."""
        if event.kind is LendingEventKind.REVOKED:
            self._loop.call(functools.partial(self._tell_revoked, event.lease_id))

    def _tell_revoked(self, lease_id: int) -> None:
        given = self._given.get(lease_id)
        if given is not None:
            given.tell("revoked")

    def _retire(self, connection: ChannelConnection, lease: Lease) -> None:
        self._given.pop(lease.lease_id, None)
        self._recycler.add(lease)
        self.relay.emit(LeaseReturned(self._session_of(connection), lease.lease_id))

    def connection_over(self, connection: ChannelConnection) -> None:
        for object_id, lease in self._leases.pop(connection, {}).items():
            connection.channel.remove(object_id)
            self._retire(connection, lease)
        self._sessions.pop(self._session_of(connection), None)

    # What the interposers ask for

    def leases_of(self, session_id: int) -> Iterable[Lease]:
        return self._leases.get(self._sessions[session_id], {}).values()

    def aperture_mapped(self, session_id: int) -> None:
        compositor = self.relay.sessions[session_id].compositor
        assert isinstance(compositor, CompositorEnd)
        compositor.maps_aperture = True

    def file_passed(self, fd: int, lease: Lease | None, size_bytes: int) -> None:
        self._passed[fd] = (lease, size_bytes)

    def file_ended(self, lease: Lease) -> None:
        if self._end is not None:
            self._end.tell("file_ended", lease.lease_id)

    def close(self) -> None:
        """In the loop's thread, or after it has ended: ends the channel, all sessions and all leases."""
        self._unwatch()
        end, self._end = self._end, None
        if end is not None:
            end.close()
        self.relay.close()
        self._closing.close()
        self._recycler.close()
        os.close(self._bar_fd)
        os.close(self.stand_in_fd)


@dataclass
class Host:
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
    silence_s: float = 30.0,
    on_event: Callable[[RelayEvent], None] | None = None,
    trace: Trace | None = None,
) -> AsyncIterator[Host]:
    """Runs the host half until the context is left; then the guest's windows close and its leases end.

    ``channel`` is where the guest half (or its VMM) connects: ``unix:PATH`` or ``vsock:PORT``. ``bar_link`` is a symbolic
    link to make to the aperture's file. ``token``, ``uids`` (besides our own and root) and ``cids`` say who may be the guest
    half. For the others see ``serve``. Raises UsageError, Unavailable, CompositorError.
    """
    policy = policy or Policy()
    where = CompositorSocket.named(compositor)
    address = Address.parse(channel)
    tables = load_tables()
    make_room_for_fds()
    async with single_errors(), AsyncExitStack() as stack:
        listening = _listen(stack, address)
        domain = ProcessDomain(
            name,
            aperture_pages=page_count_of(policy.limits.aperture_bytes),
            lease_limit=policy.limits.leases,
            gap_zeros=True,
        )
        stack.callback(domain.close)
        if bar_link is not None:
            _link(stack, bar_link, domain.bar_path)
        running_host = Host(f"{address}", None, domain.bar_path, domain)
        loop = Loop()
        half = HostHalf(
            loop,
            tables=tables,
            policy=policy,
            domain=domain,
            connect=where.new_connection,
            observer=await stack.enter_async_context(called_in_this_thread(on_event)) if on_event else None,
            trace=trace,
            token=token,
            silence_s=silence_s,
        )
        await stack.enter_async_context(running(loop, half.close))
        await stack.enter_async_context(beating(loop, half.beat))
        tasks = await stack.enter_async_context(anyio.create_task_group())
        stack.callback(tasks.cancel_scope.cancel)
        if where.path:
            await tasks.start(keep_in_touch, where, running_host.ended, tables, name, once)
        running_host.control_path = (
            Path(control) if isinstance(control, str) else new_control_path() if control else None
        )
        if running_host.control_path:
            about = {"pid": os.getpid(), "listen": [f"{address}"], "compositor": f"{where.path or 'a socket'}"}
            server = ControlServer({domain.name: domain}, about)
            await stack.enter_async_context(server.listening(running_host.control_path))
        allowed = frozenset({0, os.geteuid(), *uids})
        loop.call(lambda: half.listen(listening, allowed, frozenset(cids)))
        yield running_host


def _listen(stack: AsyncExitStack, address: Address) -> socket.socket:
    if address.kind == "unix":
        (listening,), _paths = listening_sockets(stack, os.path.abspath(address.path), 0o600)
        return listening
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
