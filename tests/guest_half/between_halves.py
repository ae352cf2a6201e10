"""A guest half in a thread of its own, in front of a host half: the real one, or one that the test plays by hand.

The real one's domain serves faults from a process of its own, so this one may map what it lends. The one that is played
by hand lends from a plain file.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tests.host_half.hosting import GuestByHand, Hosting, bar_fd
from tests.relay.between import DEADLINE_S, REGISTRY, TABLES, Peer, bind
from waylend.channel.messages import CHANNEL_ID
from waylend.channel.transport import Address
from waylend.guest_half.half import GuestHalf
from waylend.lending.pages import PAGE_SIZE
from waylend.policy import Limits, Policy
from waylend.relay.endpoint import Endpoint
from waylend.relay.loop import Loop
from waylend.wire.codec import decode, encode
from waylend.wire.objects import DISPLAY_ID

T = TypeVar("T")

APERTURE_PAGES = 1024
COMPOSITOR, SHM, SEAT, SURFACE, POOL, BUFFER, KEYBOARD = range(3, 10)
WIDTH, HEIGHT = 16, 8
SIZE_BYTES = WIDTH * HEIGHT * 4


class GuestSide:
    """A guest half that looks for its host half in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.channel_path, self.bar_path = folder / "channel", folder / "bar"
        self._peers: list[Peer] = []
        self.loop = Loop()
        self.half = GuestHalf(
            self.loop,
            tables=TABLES,
            address=Address("unix", path=str(self.channel_path)),
            bar_path=str(self.bar_path),
            policy=Policy(),
        )
        self._thread = threading.Thread(target=self.loop.run)
        self._thread.start()
        self.in_loop(self.half.open)

    def in_loop(self, call: Callable[[], T]) -> T:
        """Runs ``call`` in the loop's thread and waits for what it returns."""
        done: queue.Queue[T] = queue.Queue()
        self.loop.call(lambda: done.put(call()))
        return done.get(timeout=DEADLINE_S)

    def client(self) -> Peer:
        """One that has asked for the registry."""
        ours, its = socket.socketpair()
        peer = Peer(ours)
        self._peers.append(peer)
        self.in_loop(lambda: self.half.relay.take_in(Endpoint(its)))
        peer.send("wl_display.get_registry", DISPLAY_ID, REGISTRY)
        return peer

    def objects(self) -> set[int]:
        """Those of the channel that the guest half keeps."""
        end = self.half.end
        return set() if end is None else set(self.in_loop(lambda: set(end.channel.objects)))

    def knows(self, object_id: int) -> bool:
        """Whether a client has made that object."""
        return self.in_loop(lambda: any(object_id in one.objects.kinds for one in self.half.relay.sessions.values()))

    def close(self) -> None:
        for peer in self._peers:
            peer.close()
        self.loop.stop()
        self._thread.join(DEADLINE_S)
        self.half.close()
        self.loop.close()


class BothHalves(GuestSide):
    """``hosting`` is the real host half."""

    def __init__(self, folder: Path, policy: Policy | None = None) -> None:
        self.hosting = Hosting(policy or Policy(limits=Limits(aperture_bytes=APERTURE_PAGES * PAGE_SIZE)))
        (folder / "bar").symlink_to(self.hosting.domain.bar_path)
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(folder / "channel"))
        self._listening.listen()
        allowed = frozenset({os.geteuid()})
        self.hosting.in_loop(lambda: self.hosting.half.listen(self._listening, allowed, frozenset()))
        self._bar_fd = bar_fd(self.hosting)
        super().__init__(folder)

    def begin(self) -> tuple[Peer, Peer]:
        """A client, which has bound what there is, and its compositor."""
        client = self.client()
        compositor = self.hosting.compositors.get(timeout=DEADLINE_S)
        compositor.receive("wl_display.get_registry")
        for name, interface in ((1, "wl_compositor"), (2, "wl_shm"), (3, "wl_seat")):
            compositor.send("wl_registry.global", REGISTRY, name, interface.encode(), 1)
            client.receive("wl_registry.global")
            bind(client, compositor, name, interface, 1, COMPOSITOR + name - 1)
        return client, compositor

    def shows(self, client: Peer, compositor: Peer, pool_fd: int) -> int:
        """The client shows a buffer of that pool; returns where the compositor looks for it, in bytes of the aperture."""
        client.send("wl_compositor.create_surface", COMPOSITOR, SURFACE)
        client.send("wl_shm.create_pool", SHM, POOL, pool_fd, SIZE_BYTES, fds=(pool_fd,))
        client.send("wl_shm_pool.create_buffer", POOL, BUFFER, 0, WIDTH, HEIGHT, WIDTH * 4, 0)
        client.send("wl_surface.attach", SURFACE, BUFFER, 0, 0)
        client.send("wl_surface.commit", SURFACE)
        compositor.receive("wl_compositor.create_surface")
        compositor.receive("wl_shm.create_pool")
        _, (_, offset, *_rest) = compositor.receive("wl_shm_pool.create_buffer")
        compositor.receive("wl_surface.attach")
        compositor.receive("wl_surface.commit")
        assert isinstance(offset, int)
        return offset

    def shows_large(self, client: Peer, compositor: Peer, width: int, height: int, buffer_count: int) -> None:
        """The client shows that many large buffers, one after the other, each in a pool of its own."""
        client.send("wl_compositor.create_surface", COMPOSITOR, SURFACE)
        compositor.receive("wl_compositor.create_surface")
        size_bytes = width * height * 4
        for number in range(buffer_count):
            pool, buffer = 100 + 2 * number, 101 + 2 * number
            fd = os.memfd_create("large", os.MFD_CLOEXEC)
            os.ftruncate(fd, size_bytes)
            client.send("wl_shm.create_pool", SHM, pool, fd, size_bytes, fds=(fd,))
            os.close(fd)
            client.send("wl_shm_pool.create_buffer", pool, buffer, 0, width, height, width * 4, 0)
            client.send("wl_surface.attach", SURFACE, buffer, 0, 0)
            client.send("wl_surface.commit", SURFACE)
            for name in ("wl_shm.create_pool", "wl_shm_pool.create_buffer", "wl_surface.attach", "wl_surface.commit"):
                compositor.receive(name)

    def lent(self, offset: int, size_bytes: int = SIZE_BYTES) -> bytes:
        """What the compositor sees there."""
        return os.pread(self._bar_fd, size_bytes, offset)

    def close(self) -> None:
        super().close()
        os.close(self._bar_fd)
        self.hosting.close()
        self._listening.close()


class HostByHand(GuestByHand):
    """A host half that says what it is told to say; it has greeted the guest half."""

    def __init__(self, sock: socket.socket, *, page_count: int, version: int, features: int) -> None:
        super().__init__(sock)
        _version, _features, nonce, _token = self.expect("waylend_channel_v1.hello")
        self.tell("waylend_channel_v1.hello", CHANNEL_ID, nonce, version, features, page_count)

    def tell(self, name: str, object_id: int, *args: object) -> None:
        interface, event = name.split(".")
        spec = next(one for one in TABLES[interface].events if one.name == event)
        self.raw(encode(spec, object_id, args)[0])

    def expect(self, name: str) -> list[object]:
        """The arguments of the next request of that name; others before it are skipped. Raises EOFError."""
        interface, message = name.split(".")
        spec = next(request for request in TABLES[interface].requests if request.name == message)
        while True:
            object_id, opcode, body = self.next()
            if opcode == spec.opcode and (interface == "waylend_channel_v1") == (object_id == CHANNEL_ID):
                return decode(spec, body)


class HandPlayed(GuestSide):
    """Each host half that the guest half finds is one that the test plays."""

    def __init__(self, folder: Path) -> None:
        with (folder / "bar").open("wb") as bar:
            bar.truncate(APERTURE_PAGES * PAGE_SIZE)
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.settimeout(DEADLINE_S)
        self._listening.bind(str(folder / "channel"))
        self._listening.listen()
        self._hosts: list[HostByHand] = []
        super().__init__(folder)

    def host(self, *, page_count: int = APERTURE_PAGES, version: int = 1, features: int = 0) -> HostByHand:
        """The next one that is found."""
        sock, _ = self._listening.accept()
        host = HostByHand(sock, page_count=page_count, version=version, features=features)
        self._hosts.append(host)
        return host

    def close(self) -> None:
        for host in self._hosts:
            host.close()
        super().close()
        self._listening.close()
