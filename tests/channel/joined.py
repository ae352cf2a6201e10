"""Two ends of a channel in one loop, turned by hand: what the tests of the channel stand on. Connections end in ``Party``s."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable

from waylend.channel.attachments import Attachment
from waylend.channel.connection import ChannelConnection
from waylend.channel.halves import GuestEnd, HostEnd
from waylend.channel.link import EPOLLIN, EPOLLOUT
from waylend.errors import PeerError
from waylend.host_half.leases import LeaseGiven, LeaseWanted
from waylend.lending.lease import Lease, LossPolicy, Protection
from waylend.lending.pages import PAGE_SIZE, PageRange
from waylend.relay.endpoint import ReceiveBuffer
from waylend.relay.loop import Loop

DEADLINE_S = 10.0


class HandLoop(Loop):
    """Turned by hand, with ``until`` and ``settle`` in the place of a thread. What a handler raises ends the test."""

    def failed(self, what: str, error: Exception) -> None:
        raise error

    def until(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < end, f"not within {DEADLINE_S} s: {what}"
            self.turn(0.01)

    def settle(self) -> None:
        """Until nothing happens any more."""
        while self.turn(0.005):
            pass


class Party:
    """What a session is to a connection: takes what comes, unless it is told not to."""

    def __init__(self, loop: HandLoop, connection: ChannelConnection, *, reads: bool = True) -> None:
        self.connection = connection
        self.octets = b""
        self.fds: list[int] = []
        self.ended = False
        self.failure = ""
        self._buffer = ReceiveBuffer()
        self.connection.join(loop, self._on_events, self._feed)
        if not reads:
            self.read(False)

    def read(self, reads: bool) -> None:
        self.connection.watch(EPOLLIN if reads else 0)

    def _on_events(self, events: int) -> None:
        if events & EPOLLOUT:
            return
        try:
            count, fds = self.connection.receive(self._buffer)
        except BlockingIOError:
            return
        except PeerError as error:
            self.failure = f"{error}"
            self.connection.close()
            return
        self.fds += fds or []
        if not count:
            self.ended = True
            self.connection.close()
        self.octets += bytes(self._buffer.octets[:count])

    def _feed(self, _words: memoryview, octets: memoryview, count: int) -> None:
        self.octets += bytes(octets[:count])

    def send(self, octets: bytes, fds: list[int] | None = None) -> None:
        self.connection.send(memoryview(octets), fds)

    def take_fd(self) -> int:
        return self.fds.pop(0)


class FileOfHost(Attachment):
    """Lease 7 at page 3."""

    def tell(self, connection: ChannelConnection) -> None:
        connection.tell("attach_file", 7, 3, 100)


class Files:
    """What attachments are on both sides: the aperture is a regular file, and so is all that the host lends."""

    def __init__(self) -> None:
        self.aperture = os.memfd_create("aperture", os.MFD_CLOEXEC)
        self.leases: list[tuple[ChannelConnection, int, int]] = []
        self.wanted: list[LeaseWanted] = []
        self.given_back: list[LeaseGiven] = []
        self.opened: list[tuple[int, int, int]] = []
        self.over: list[ChannelConnection] = []
        self.max_streams = self.max_sinks = 100
        self.piling_up = 0

    def grant(self, gfn: int) -> LeaseGiven:
        """The last that was asked for."""
        connection, object_id, page_count = self.leases[-1]
        gfns = PageRange(gfn, gfn + page_count)
        lease = Lease(1, "", "test", gfns, page_count * PAGE_SIZE, "", 0, Protection.READ, LossPolicy.ZERO)
        return LeaseGiven(connection, object_id, lease, self.given_back.append)

    def of(self, connection: ChannelConnection) -> FilesOf:
        return FilesOf(self, connection)

    def close(self) -> None:
        os.close(self.aperture)


class FilesOf:
    """``Attachments``."""

    def __init__(self, files: Files, connection: ChannelConnection) -> None:
        self._files = files
        self._connection = connection

    def open_aperture(self) -> int:
        return os.dup(self._files.aperture)

    def open_file(self, lease: int, gfn: int, size_bytes: int) -> int:
        self._files.opened.append((lease, gfn, size_bytes))
        return os.dup(self._files.aperture)

    def lease_asked(self, object_id: int, page_count: int) -> None:
        self._files.leases.append((self._connection, object_id, page_count))
        self._files.wanted.append(LeaseWanted(self._connection, object_id, page_count))

    def room_for_descriptor(self, _count: int = 1) -> None: ...

    def room_for_stream(self) -> None:
        if len(self._connection.streams) >= self._files.max_streams:
            raise PeerError("too many pipes")

    def room_for_sink(self) -> None:
        if len(self._connection.streams) >= self._files.max_sinks:
            raise PeerError("too many pipes")

    def piling_up(self) -> None:
        self._files.piling_up += 1

    def connection_over(self) -> None:
        self._files.over.append(self._connection)


class Joined:
    """A guest end and a host end, greeted, over a unix socket pair of the given buffer size."""

    def __init__(
        self,
        *,
        buffer_bytes: int | None = None,
        token: str = "",
        host_token: str = "",
        port: bool = False,
        max_objects: int = 1000,
        silence_s: float = 0.0,
    ) -> None:
        self.loop = HandLoop()
        self.files = Files()
        self.arrived: list[Party] = []
        self.reads = True
        self.guest_over: list[str] = []
        self.host_over: list[str] = []
        self.pages: list[int] = []
        self.ended_files: list[int] = []
        guest, host = socket.socketpair()
        if buffer_bytes:
            for sock in (guest, host):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
        self.host = HostEnd(
            self.loop,
            host.detach(),
            attachments_of=self.files.of,
            page_count=65536,
            on_connection=lambda connection: self.arrived.append(Party(self.loop, connection, reads=self.reads)),
            on_over=self.host_over.append,
            token=host_token,
            max_objects=max_objects,
            silence_s=silence_s,
        )
        self.guest = GuestEnd(
            self.loop,
            guest.detach(),
            attachments_of=self.files.of,
            on_ready=self.pages.append,
            on_file_ended=self.ended_files.append,
            on_over=self.guest_over.append,
            token=token,
            is_port=port,
        )
        self.loop.settle()

    def connect(self) -> tuple[Party, Party]:
        """A client's connection: the guest's side of it and the host's."""
        guest = Party(self.loop, self.guest.connect())
        count = len(self.arrived)
        self.loop.until(lambda: len(self.arrived) > count, "the connection to arrive")
        return guest, self.arrived[-1]

    def close(self) -> None:
        self.guest.close()
        self.host.close()
        self.loop.settle()
        for party in self.arrived:
            for fd in party.fds:
                os.close(fd)
            party.fds.clear()
        self.loop.close()
        self.files.close()
