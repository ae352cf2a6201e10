"""A Wayland client by hand, whose messages are as one likes: to play foul, and to measure."""

from __future__ import annotations

import os
import socket
import struct
import time

from waylend.wire.codec import encode
from waylend.wire.spec import MessageSpec
from waylend.wire.tables import load_tables

TABLES = load_tables()
REGISTRY = 2
_DEADLINE_S = 10.0


def spec_of(name: str) -> MessageSpec:
    interface, message = name.split(".")
    return next(one for one in TABLES[interface].requests if one.name == message)


class RawClient:
    """A connection to a Wayland socket, whose messages are as one likes."""

    def __init__(self, path: str, deadline_s: float = _DEADLINE_S) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(deadline_s)
        self.sock.connect(path)
        self.globals: dict[str, tuple[int, int]] = {}
        self._last_id = REGISTRY
        self._arrived = b""

    def new_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def message(self, name: str, object_id: int, *args: object) -> bytes:
        return encode(spec_of(name), object_id, args)[0]

    def send(self, name: str, object_id: int, *args: object, fds: tuple[int, ...] = ()) -> None:
        self.send_raw(self.message(name, object_id, *args), fds)

    def send_raw(self, octets: bytes, fds: tuple[int, ...] = ()) -> None:
        if fds:
            sent = socket.send_fds(self.sock, [octets], fds)
            octets = octets[sent:]
        self.sock.sendall(octets)

    def flood(self, octets: bytes) -> None:
        """Sends, and reads what comes, so that both go on."""
        self.sock.setblocking(False)
        left = memoryview(octets)
        while left:
            try:
                left = left[self.sock.send(left) :]
            except BlockingIOError:
                time.sleep(0.001)
            self.skim()
        self.sock.settimeout(_DEADLINE_S)

    def skim(self) -> None:
        """Takes what has come without a look at it. Raises ConnectionResetError when that is the end."""
        self.sock.setblocking(False)
        try:
            while True:
                octets, fds, _, _ = socket.recv_fds(self.sock, 1 << 16, 253)
                for fd in fds:
                    os.close(fd)
                if not octets:
                    raise ConnectionResetError
        except BlockingIOError:
            self.sock.settimeout(_DEADLINE_S)

    def next(self) -> tuple[int, int, bytes]:
        """The next event: object, opcode, body."""
        while len(self._arrived) < 8 or len(self._arrived) < struct.unpack_from("=H", self._arrived, 6)[0]:
            octets, fds, _, _ = socket.recv_fds(self.sock, 1 << 16, 253)
            for fd in fds:
                os.close(fd)
            if not octets:
                raise ConnectionResetError
            self._arrived += octets
        object_id, word = struct.unpack_from("=II", self._arrived)
        body, self._arrived = self._arrived[8 : word >> 16], self._arrived[word >> 16 :]
        return object_id, word & 0xFFFF, body

    def round_trip(self) -> None:
        """``wl_display.sync``. Its id is used again: the compositor has said delete_id by then."""
        callback = self.new_id()
        self.send("wl_display.sync", 1, callback)
        while True:
            object_id, opcode, body = self.next()
            if (object_id, opcode) == (1, 0):
                raise ConnectionResetError(body)
            if (object_id, opcode) == (REGISTRY, 0):
                name, length = struct.unpack_from("=II", body)
                interface = body[8 : 8 + length - 1].decode()
                self.globals[interface] = (name, struct.unpack_from("=I", body, 8 + length + -length % 4)[0])
            if (object_id, opcode) == (1, 1) and struct.unpack("=I", body)[0] == callback:
                self._last_id = callback - 1
                return

    def meet(self) -> None:
        """Learns the globals."""
        self.send("wl_display.get_registry", 1, REGISTRY)
        self.round_trip()

    def bind(self, interface: str, version: int = 1) -> int:
        name, newest = self.globals[interface]
        object_id = self.new_id()
        self.send("wl_registry.bind", REGISTRY, name, interface.encode(), min(version, newest), object_id)
        return object_id

    def pool(self, size_bytes: int, *, file_bytes: int | None = None) -> tuple[int, int]:
        """A wl_shm_pool and its memfd, which is the caller's to close."""
        shm = self.bind("wl_shm")
        fd = os.memfd_create("hostile", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, size_bytes if file_bytes is None else file_bytes)
        pool = self.new_id()
        self.send("wl_shm.create_pool", shm, pool, "fd", size_bytes, fds=(fd,))
        return pool, fd

    def window(self, width: int = 64, height: int = 64) -> Window:
        return Window(self, width, height)

    def close(self) -> None:
        self.sock.close()


class Window:
    """A toplevel with one buffer of its own pool, shown once."""

    def __init__(self, client: RawClient, width: int, height: int) -> None:
        self.client = client
        compositor, shell = client.bind("wl_compositor", 4), client.bind("xdg_wm_base", 1)
        self.surface, self.xdg_surface, self.toplevel = (client.new_id() for _ in range(3))
        client.send("wl_compositor.create_surface", compositor, self.surface)
        client.send("xdg_wm_base.get_xdg_surface", shell, self.xdg_surface, self.surface)
        client.send("xdg_surface.get_toplevel", self.xdg_surface, self.toplevel)
        client.send("wl_surface.commit", self.surface)
        while True:
            object_id, opcode, body = client.next()
            if (object_id, opcode) == (self.xdg_surface, 0):
                break
        client.send("xdg_surface.ack_configure", self.xdg_surface, struct.unpack("=I", body)[0])
        self.pool, self.fd = client.pool(width * height * 4)
        self.buffer = client.new_id()
        client.send("wl_shm_pool.create_buffer", self.pool, self.buffer, 0, width, height, width * 4, 0)
        self.show()
        client.round_trip()

    def show(self) -> None:
        self.client.send("wl_surface.attach", self.surface, self.buffer, 0, 0)
        self.client.send("wl_surface.damage", self.surface, 0, 0, 1 << 20, 1 << 20)
        self.client.send("wl_surface.commit", self.surface)
