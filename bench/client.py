"""The clients of the measurements of the relay: each mode prints one number.

    python -m bench.client SOCKET MODE

``rtt`` and ``connect`` and ``keymap`` are medians in microseconds; ``storm``, ``objects`` and ``events`` are messages a
second; ``frames`` is 1080p frames a second, with the pixels' checksum compared.
"""

from __future__ import annotations

import mmap
import os
import socket
import statistics
import struct
import sys
import time
import zlib
from collections.abc import Callable

from bench.sink import FLOOD_PAIRS, KEYMAP_BYTES
from waylend.wire.codec import encode
from waylend.wire.tables import load_tables

TABLES = load_tables()
REGISTRY, COMPOSITOR, SHM, SEAT, SURFACE, FREE = 2, 3, 4, 5, 6, 10


def request(name: str, object_id: int, *args: object) -> bytes:
    interface, message = name.split(".")
    return encode(next(spec for spec in TABLES[interface].requests if spec.name == message), object_id, args)[0]


class Client:
    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(path)
        self.rest = b""
        self.fds: list[int] = []

    def until(self, object_id: int, opcode: int) -> bytes:
        """Reads events up to one; its body."""
        while True:
            at = 0
            while len(self.rest) - at >= 8:
                sender, word = struct.unpack_from("=II", self.rest, at)
                end = at + (word >> 16)
                if end > len(self.rest):
                    break
                if sender == 1 and word & 0xFFFF == 0:
                    raise SystemExit(f"protocol error: {self.rest[at:end]!r}")
                if (sender, word & 0xFFFF) == (object_id, opcode):
                    body, self.rest = self.rest[at + 8 : end], self.rest[end:]
                    return body
                at = end
            self.rest = self.rest[at:]
            octets, fds, _, _ = socket.recv_fds(self.sock, 1 << 16, 64)
            self.fds += fds
            if not octets:
                raise SystemExit("the connection ended")
            self.rest += octets

    def roundtrip(self, callback: int) -> None:
        self.sock.sendall(struct.pack("=3I", 1, 12 << 16, callback))
        self.until(1, 1)  # delete_id: only now may the id be used again

    def setup(self) -> None:
        octets = request("wl_display.get_registry", 1, REGISTRY)
        self.sock.sendall(octets)
        self.roundtrip(FREE)
        for name, interface, version, object_id in (
            (1, b"wl_compositor", 4, COMPOSITOR),
            (2, b"wl_shm", 1, SHM),
            (3, b"wl_seat", 7, SEAT),
        ):
            self.sock.sendall(request("wl_registry.bind", REGISTRY, name, interface, version, object_id))
        self.sock.sendall(request("wl_compositor.create_surface", COMPOSITOR, SURFACE))
        self.roundtrip(FREE)


def median_us(call: Callable[[], None], count: int) -> float:
    times = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6


def rtt(client: Client) -> float:
    return median_us(lambda: client.roundtrip(FREE), 1500)


def storm(client: Client) -> float:
    batch = request("wl_surface.damage", SURFACE, 1, 2, 3, 4) * 150
    start = time.perf_counter()
    for _ in range(200):
        client.sock.sendall(batch)
    client.roundtrip(FREE)
    return 30_000 / (time.perf_counter() - start)


def objects(client: Client) -> float:
    batch = b"".join(request("wl_display.sync", 1, FREE + n) for n in range(50))
    start = time.perf_counter()
    for _ in range(200):
        client.sock.sendall(batch)
        for n in range(50):
            client.until(FREE + n, 0)
    return 200 * 50 * 3 / (time.perf_counter() - start)


def events(client: Client) -> float:
    client.sock.sendall(request("wl_seat.get_pointer", SEAT, FREE))
    client.roundtrip(FREE + 1)
    start = time.perf_counter()
    client.sock.sendall(request("wl_pointer.release", FREE))
    client.until(1, 1)
    return 2 * FLOOD_PAIRS / (time.perf_counter() - start)


def keymap(client: Client) -> float:
    def one() -> None:
        client.sock.sendall(request("wl_seat.get_keyboard", SEAT, FREE))
        client.until(FREE, 0)
        fd = client.fds.pop()
        with mmap.mmap(fd, KEYMAP_BYTES, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ) as content:
            zlib.adler32(content)
        os.close(fd)
        client.sock.sendall(request("wl_keyboard.release", FREE))
        client.until(1, 1)

    one()
    return median_us(one, 100)


def frames(client: Client) -> float:
    width, height = 1920, 1080
    size_bytes = width * height * 4
    fd = os.memfd_create("pool", os.MFD_CLOEXEC)
    os.ftruncate(fd, size_bytes)
    pixels = mmap.mmap(fd, size_bytes)
    socket.send_fds(client.sock, [request("wl_shm.create_pool", SHM, FREE, "", size_bytes)], [fd])
    client.sock.sendall(request("wl_shm_pool.create_buffer", FREE, FREE + 1, 0, width, height, width * 4, 1))
    rows = [bytes([n]) * size_bytes for n in range(4)]
    checksums = [zlib.adler32(row) for row in rows]
    count = 40
    start = time.perf_counter()
    for n in range(count):
        pixels[:] = rows[n % 4]
        client.sock.sendall(
            request("wl_surface.attach", SURFACE, FREE + 1, 0, 0)
            + request("wl_surface.damage", SURFACE, 0, 0, width, height)
            + request("wl_surface.frame", SURFACE, FREE + 2)
            + request("wl_surface.commit", SURFACE)
        )
        (checksum,) = struct.unpack("=I", client.until(FREE + 2, 0))
        if checksum != checksums[n % 4]:
            raise SystemExit("the compositor saw other pixels")
        client.until(1, 1)
    return count / (time.perf_counter() - start)


def connect(path: str) -> float:
    def one() -> None:
        client = Client(path)
        client.sock.sendall(request("wl_display.get_registry", 1, REGISTRY))
        client.roundtrip(FREE)
        client.sock.close()

    return median_us(one, 60)


MODES: dict[str, Callable[[Client], float]] = {
    "rtt": rtt,
    "storm": storm,
    "objects": objects,
    "events": events,
    "keymap": keymap,
    "frames": frames,
}


def main(path: str, mode: str) -> None:
    if mode == "connect":
        print(connect(path))
        return
    client = Client(path)
    client.setup()
    print(MODES[mode](client))


if __name__ == "__main__":
    main(*sys.argv[1:])
