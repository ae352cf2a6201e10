"""A compositor that shows nothing and answers at once: the other end of every measurement of the relay.

    python -m bench.sink SOCKET

Plain sockets and precomputed answers, one thread: what is measured between a client and this is the way, not the ends.
Each commit of a buffer reads all its pixels from the client's pool (as a compositor without a GPU would), then releases
the buffer and fires the frame callback. ``wl_pointer.release`` asks for a flood of motion and frame events.
"""

from __future__ import annotations

import os
import selectors
import socket
import struct
import sys
import zlib
from collections.abc import Callable

from waylend.wire.codec import encode
from waylend.wire.tables import load_tables

TABLES = load_tables()
GLOBALS = {1: ("wl_compositor", 4), 2: ("wl_shm", 1), 3: ("wl_seat", 7)}
KEYMAP_BYTES = 65536
FLOOD_PAIRS = 20_000


def event(name: str, object_id: int, *args: object) -> bytes:
    interface, message = name.split(".")
    return encode(next(spec for spec in TABLES[interface].events if spec.name == message), object_id, args)[0]


def make_keymap() -> int:
    fd = os.memfd_create("keymap", os.MFD_CLOEXEC)
    os.write(fd, bytes(32 + n % 95 for n in range(KEYMAP_BYTES - 1)) + b"\0")
    return fd


class Guest:
    """One client: what its objects are, and its pools."""

    def __init__(self, sock: socket.socket, keymap: int) -> None:
        self.sock = sock
        self.keymap = keymap
        self.rest = b""
        self.fds: list[int] = []
        self.kinds = {1: "wl_display"}
        self.pools: dict[int, int] = {}
        self.buffers: dict[int, tuple[int, int, int]] = {}
        self.attached = 0
        self.callbacks: list[int] = []
        self.answers: dict[tuple[str, int], Callable[[int, tuple[int, ...], bytes], bytes]] = {
            ("wl_display", 0): lambda _, args, __: self._done(args[0]),
            ("wl_display", 1): self._registry,
            ("wl_registry", 0): self._bind,
            ("wl_compositor", 0): lambda _, args, __: self._new(args[0], "wl_surface"),
            ("wl_shm", 0): self._pool,
            ("wl_shm_pool", 0): self._buffer,
            ("wl_surface", 1): self._attach,
            ("wl_surface", 3): lambda _, args, __: self.callbacks.append(args[0]) or b"",  # type: ignore[func-returns-value]
            ("wl_surface", 6): self._commit,
            ("wl_seat", 0): lambda _, args, __: self._new(args[0], "wl_pointer"),
            ("wl_seat", 1): self._keyboard,
            ("wl_keyboard", 0): lambda object_id, _, __: event("wl_display.delete_id", 1, object_id),
            ("wl_pointer", 1): self._flood,
        }

    def read(self) -> bool:
        """Takes what has come and answers it; False at the end."""
        octets, fds, _, _ = socket.recv_fds(self.sock, 1 << 16, 64)
        self.fds += fds
        if not octets:
            return False
        octets = self.rest + octets
        at, end = 0, len(octets)
        answer = b""
        while end - at >= 8:
            object_id, word = struct.unpack_from("=II", octets, at)
            if at + (word >> 16) > end:
                break
            handler = self.answers.get((self.kinds[object_id], word & 0xFFFF))
            if handler is not None:
                body = octets[at + 8 : at + (word >> 16)]
                answer += handler(object_id, struct.unpack(f"={len(body) // 4}I", body), body)
            at += word >> 16
        self.rest = octets[at:]
        if answer:
            self.sock.sendall(answer)
        return True

    def close(self) -> None:
        for fd in (*self.pools.values(), *self.fds):
            os.close(fd)
        self.sock.close()

    def _new(self, object_id: int, kind: str) -> bytes:
        self.kinds[object_id] = kind
        return b""

    def _done(self, callback: int) -> bytes:
        return struct.pack("=6I", callback, 12 << 16, 0, 1, 12 << 16 | 1, callback)

    def _registry(self, _id: int, args: tuple[int, ...], _body: bytes) -> bytes:
        self._new(args[0], "wl_registry")
        return b"".join(
            event("wl_registry.global", args[0], name, kind.encode(), version)
            for name, (kind, version) in GLOBALS.items()
        )

    def _bind(self, _id: int, args: tuple[int, ...], _body: bytes) -> bytes:
        return self._new(args[-1], GLOBALS[args[0]][0])

    def _pool(self, _id: int, args: tuple[int, ...], _body: bytes) -> bytes:
        self.pools[args[0]] = self.fds.pop(0)
        return self._new(args[0], "wl_shm_pool")

    def _buffer(self, pool: int, args: tuple[int, ...], _body: bytes) -> bytes:
        buffer, offset, _, height, stride, _ = args
        self.buffers[buffer] = (self.pools[pool], offset, stride * height)
        return self._new(buffer, "wl_buffer")

    def _attach(self, _id: int, args: tuple[int, ...], _body: bytes) -> bytes:
        self.attached = args[0]
        return b""

    def _commit(self, _id: int, _args: tuple[int, ...], _body: bytes) -> bytes:
        answer = b""
        if self.attached:
            fd, offset, size_bytes = self.buffers[self.attached]
            checksum = zlib.adler32(os.pread(fd, size_bytes, offset))
            answer = event("wl_buffer.release", self.attached)
            self.attached = 0
            for callback in self.callbacks:
                # The frame callback's time carries the checksum: the client compares it with its own.
                answer += struct.pack("=6I", callback, 12 << 16, checksum, 1, 12 << 16 | 1, callback)
            self.callbacks.clear()
        return answer

    def _keyboard(self, _id: int, args: tuple[int, ...], _body: bytes) -> bytes:
        self._new(args[0], "wl_keyboard")
        socket.send_fds(self.sock, [event("wl_keyboard.keymap", args[0], 1, "", KEYMAP_BYTES)], [self.keymap])
        return b""

    def _flood(self, pointer: int, _args: tuple[int, ...], _body: bytes) -> bytes:
        pair = event("wl_pointer.motion", pointer, 1, 2.0, 3.0) + event("wl_pointer.frame", pointer)
        for _ in range(FLOOD_PAIRS // 200):
            self.sock.sendall(pair * 200)
        return event("wl_display.delete_id", 1, pointer)


def main(path: str) -> None:
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen(128)
    keymap = make_keymap()
    selector = selectors.EpollSelector()
    selector.register(listening, selectors.EVENT_READ, None)
    while True:
        for key, _ in selector.select():
            guest: Guest | None = key.data
            if guest is None:
                sock, _ = listening.accept()
                selector.register(sock, selectors.EVENT_READ, Guest(sock, keymap))
                continue
            try:
                alive = guest.read()
            except OSError:
                alive = False
            if not alive:
                selector.unregister(guest.sock)
                guest.close()


if __name__ == "__main__":
    main(sys.argv[1])
