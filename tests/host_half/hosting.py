"""A host half in a thread of its own, with a real domain, between a guest half and compositors that the test plays by hand."""

from __future__ import annotations

import os
import queue
import socket
import struct
import threading
from collections.abc import Callable
from typing import TypeVar

from tests.relay.between import DEADLINE_S, TABLES, Peer
from waylend.backing.file import FileBacking
from waylend.channel.messages import CHANNEL_ID
from waylend.domain.process.caller import ProcessDomain
from waylend.host_half.half import HostHalf
from waylend.lending.pages import page_count_of
from waylend.policy import Policy
from waylend.relay.events import RelayEvent
from waylend.relay.loop import Loop
from waylend.wire.codec import decode, encode
from waylend.wire.spec import HEADER_BYTES

T = TypeVar("T")


class Hosting:
    """``guest`` opens a channel; each client that it connects finds a compositor in ``compositors``."""

    def __init__(self, policy: Policy | None = None) -> None:
        policy = policy or Policy()
        self.domain = ProcessDomain(
            "test", aperture_pages=page_count_of(policy.limits.aperture_bytes), lease_limit=policy.limits.leases, gap_zeros=True
        )  # fmt: skip
        self.loop = Loop()
        self.events: queue.Queue[RelayEvent] = queue.Queue()
        self.compositors: queue.Queue[Peer] = queue.Queue()
        #: The compositor is away.
        self.away = False
        self._peers: list[Peer] = []
        self._guests: list[GuestByHand] = []
        self.half = HostHalf(
            self.loop,
            tables=TABLES,
            policy=policy,
            domain=self.domain,
            connect=self._connect,
            observer=self.events.put,
        )
        self._thread = threading.Thread(target=self.loop.run)
        self._thread.start()

    def _connect(self) -> socket.socket:
        if self.away:
            raise ConnectionRefusedError
        ours, its = socket.socketpair()
        peer = Peer(ours)
        self._peers.append(peer)
        self.compositors.put(peer)
        its.setblocking(False)
        return its

    def in_loop(self, call: Callable[[], T]) -> T:
        """Runs ``call`` in the loop's thread and waits for what it returns."""
        done: queue.Queue[T] = queue.Queue()
        self.loop.call(lambda: done.put(call()))
        return done.get(timeout=DEADLINE_S)

    def guest(self, *, greets: bool = True) -> GuestByHand:
        ours, its = socket.socketpair()
        self.in_loop(lambda: self.half.take_in(its.detach()))
        guest = GuestByHand(ours)
        self._guests.append(guest)
        if greets:
            guest.tell("waylend_channel_v1.hello", CHANNEL_ID, 1, 0, 5, b"")
            guest.expect("waylend_channel_v1.hello")
        return guest

    def drop_peers(self) -> None:
        for peer in self._peers:
            peer.close()
        for guest in self._guests:
            guest.close()
        self._peers.clear()
        self._guests.clear()
        while not self.compositors.empty():
            self.compositors.get()

    def close(self) -> None:
        self.drop_peers()
        self.loop.stop()
        self._thread.join(DEADLINE_S)
        self.half.close()
        self.loop.close()
        self.domain.close()


class GuestByHand:
    """A guest half that says what it is told to say."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(DEADLINE_S)
        self.sock = sock
        self._arrived = b""

    def raw(self, octets: bytes) -> None:
        self.sock.sendall(octets)

    def tell(self, name: str, object_id: int, *args: object) -> None:
        self.raw(request(name, object_id, *args))

    def client(self, object_id: int, *messages: bytes) -> None:
        """Wayland messages of a client's connection."""
        self.tell("waylend_connection_v1.bytes", object_id, b"".join(messages))

    def next(self) -> tuple[int, int, bytes]:
        """The next message: object, opcode, body. Raises EOFError."""
        while len(self._arrived) < HEADER_BYTES or len(self._arrived) < self._size():
            octets = self.sock.recv(1 << 16)
            if not octets:
                raise EOFError
            self._arrived += octets
        size = self._size()
        message, self._arrived = self._arrived[:size], self._arrived[size:]
        object_id, word = struct.unpack_from("=II", message)
        return object_id, word & 0xFFFF, message[HEADER_BYTES:]

    def _size(self) -> int:
        return int.from_bytes(self._arrived[6:8], "little")

    def expect(self, name: str) -> list[object]:
        """The arguments of the next event of that name; others before it are skipped. Raises EOFError."""
        interface, message = name.split(".")
        spec = next(event for event in TABLES[interface].events if event.name == message)
        while True:
            object_id, opcode, body = self.next()
            if opcode == spec.opcode and (interface == "waylend_channel_v1") == (object_id == CHANNEL_ID):
                return decode(spec, body)

    def rest(self) -> None:
        """Reads to the end of file."""
        try:
            while True:
                self.next()
        except (EOFError, ConnectionResetError):
            return

    def close(self) -> None:
        self.sock.close()


def request(name: str, object_id: int, *args: object) -> bytes:
    interface, message = name.split(".")
    spec = next(one for one in TABLES[interface].requests if one.name == message)
    return encode(spec, object_id, args)[0]


def buffer_backing(hosting: Hosting) -> FileBacking:
    """The file behind the buffers of the one lease that there is: only the process that serves it has it open."""
    fds = f"/proc/{hosting.domain.pid}/fd"
    (fd,) = (fd for fd in os.listdir(fds) if os.readlink(f"{fds}/{fd}").startswith("/memfd:waylend-buffer"))
    return FileBacking(os.open(f"{fds}/{fd}", os.O_RDWR | os.O_CLOEXEC))


def bar_fd(hosting: Hosting) -> int:
    return os.open(hosting.domain.bar_path, os.O_RDWR | os.O_CLOEXEC)
