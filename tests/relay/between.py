"""A relay in a thread of its own, between clients and compositors that the test plays by hand."""

from __future__ import annotations

import errno
import os
import queue
import socket
import struct
import threading
from collections.abc import Callable
from typing import TypeVar

from waylend.domain.memfd import MemfdDomain
from waylend.foreign import closing
from waylend.local.interposers import for_local_guests
from waylend.policy import Policy
from waylend.relay.endpoint import Endpoint
from waylend.relay.events import RelayEvent
from waylend.relay.interpose import MakesInterposer
from waylend.relay.loop import Loop
from waylend.relay.relay import Relay
from waylend.relay.session import Trace
from waylend.wire.codec import decode, encode
from waylend.wire.objects import DISPLAY_ID
from waylend.wire.spec import HEADER_BYTES, MessageSpec
from waylend.wire.tables import load_tables

TABLES = load_tables()
DEADLINE_S = 10.0
REGISTRY = 2

T = TypeVar("T")


def spec_of(name: str) -> MessageSpec:
    interface, message = name.split(".")
    table = TABLES[interface]
    return next(spec for spec in (*table.requests, *table.events) if spec.name == message)


class Peer:
    """One end of a connection. Messages are named (``wl_surface.commit``), whichever way they go."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(DEADLINE_S)
        self.sock = sock
        self.arrived = b""
        self.fds: list[int] = []

    def send(self, name: str, object_id: int, *args: object, fds: tuple[int, ...] = ()) -> None:
        self.send_raw(encode(spec_of(name), object_id, args)[0], fds)

    def send_raw(self, octets: bytes, fds: tuple[int, ...] = ()) -> None:
        if fds:
            socket.send_fds(self.sock, [octets], fds)
        else:
            self.sock.sendall(octets)

    def read(self, size_bytes: int) -> bytes:
        """Exactly so many bytes. Raises EOFError."""
        while len(self.arrived) < size_bytes:
            octets, fds, _, _ = socket.recv_fds(self.sock, 1 << 16, 64)
            self.fds += fds
            if not octets:
                raise EOFError
            self.arrived += octets
        octets, self.arrived = self.arrived[:size_bytes], self.arrived[size_bytes:]
        return octets

    def receive(self, name: str) -> tuple[int, list[object]]:
        """The next message, which must be that one: its object id and arguments. Fds are in ``fds``."""
        header = self.read(HEADER_BYTES)
        object_id, word = struct.unpack("=II", header)
        body = self.read((word >> 16) - HEADER_BYTES)
        spec = spec_of(name)
        assert word & 0xFFFF == spec.opcode, f"expected {name}, got opcode {word & 0xFFFF} of {object_id}"
        return object_id, decode(spec, body, ["fd"] * 4)

    def is_at_end(self) -> bool:
        """Waits for the end of file; whether nothing came before it."""
        try:
            self.read(1)
        except (EOFError, ConnectionResetError):
            return True
        return False

    def close(self) -> None:
        self.sock.close()
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()


class Between:
    """The relay, and what its observer heard."""

    def __init__(
        self,
        policy: Policy,
        *,
        embedded: tuple[MakesInterposer, ...] = (),
        trace: Trace | None = None,
    ) -> None:
        self.domain = MemfdDomain("test", read_only=True, lease_limit=policy.limits.leases)
        self.loop = Loop()
        self.events: queue.Queue[RelayEvent] = queue.Queue()
        self.compositor_ends: list[socket.socket] = []
        self.peers: list[Peer] = []
        self.relay = Relay(
            self.loop,
            tables=TABLES,
            policy=policy,
            interposers=for_local_guests(TABLES, policy, self.domain),
            embedded=embedded,
            connect=self._connect,
            observer=self.events.put,
            trace=trace,
        )
        self._thread = threading.Thread(target=self.loop.run)
        self._thread.start()

    def _connect(self) -> Endpoint:
        if not self.compositor_ends:
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        return Endpoint(self.compositor_ends.pop())

    def open(self, *, buffer_bytes: int | None = None) -> tuple[Peer, Peer]:
        """A client and its compositor, connected through the relay."""
        ours, relays = socket.socketpair()
        compositor, its = socket.socketpair()
        if buffer_bytes:
            for sock in (ours, relays, compositor, its):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
        self.compositor_ends.append(its)
        self._take_in(relays)
        peers = Peer(ours), Peer(compositor)
        self.peers += peers
        return peers

    def _take_in(self, relays: socket.socket) -> None:
        self.in_loop(lambda: self.relay.take_in(Endpoint(relays)))

    def take_in(self) -> Peer:
        """A client for whom there is no compositor (yet)."""
        ours, relays = socket.socketpair()
        self._take_in(relays)
        client = Peer(ours)
        self.peers.append(client)
        return client

    def compositor_comes(self) -> Peer:
        """From now on a connection can be had, once."""
        compositor, its = socket.socketpair()
        self.in_loop(lambda: self.compositor_ends.append(its))
        peer = Peer(compositor)
        self.peers.append(peer)
        return peer

    def in_loop(self, call: Callable[[], T]) -> T:
        """Runs ``call`` in the loop's thread and waits for what it returns."""
        done: queue.Queue[T] = queue.Queue()
        self.loop.call(lambda: done.put(call()))
        return done.get(timeout=DEADLINE_S)

    def wait_for(self, kind: type[RelayEvent]) -> RelayEvent:
        """The next event of that kind."""
        while True:
            event = self.events.get(timeout=DEADLINE_S)
            if isinstance(event, kind):
                return event

    def close(self) -> None:
        for peer in self.peers:
            peer.close()
        self.loop.stop()
        self._thread.join(DEADLINE_S)
        self.relay.close()
        self.loop.close()
        for sock in self.compositor_ends:
            sock.close()
        self.domain.close()


def open_fds() -> set[str]:
    """What this process has open, as its targets, when all is closed that was to be."""
    closing.close_all((os.open(os.devnull, os.O_RDONLY),))  # from the first time on there is a thread for it
    assert closing.settle(DEADLINE_S)
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{fd} {os.readlink(f'/proc/self/fd/{fd}')}")
        except FileNotFoundError:
            continue
    return found


def begin(client: Peer, compositor: Peer, *globals_: tuple[int, str, int]) -> None:
    """The client asks for the registry, the compositor announces, and both have seen it."""
    client.send("wl_display.get_registry", DISPLAY_ID, REGISTRY)
    compositor.receive("wl_display.get_registry")
    for name, interface, version in globals_:
        compositor.send("wl_registry.global", REGISTRY, name, interface.encode(), version)
        client.receive("wl_registry.global")


def bind(client: Peer, compositor: Peer, name: int, interface: str, version: int, object_id: int) -> None:
    client.send("wl_registry.bind", REGISTRY, name, interface.encode(), version, object_id)
    compositor.receive("wl_registry.bind")
