"""What the targets that run a relay stand on: its loop, turned by hand, compositors that answer, and descriptors of all kinds."""

from __future__ import annotations

import array
import fcntl
import functools
import os
import select
import socket
import struct
from collections.abc import Callable

from tests.fuzz.inputs import Input
from waylend.relay.loop import Loop
from waylend.wire.codec import encode
from waylend.wire.spec import ArgType, InterfaceSpec, MessageSpec
from waylend.wire.tables import load_tables

TABLES = load_tables()
GLOBALS = tuple(
    enumerate(
        """wl_compositor wl_shm wl_seat wl_output wl_data_device_manager wl_subcompositor xdg_wm_base wp_viewporter
        zwp_primary_selection_device_manager_v1 zwp_linux_dmabuf_v1 wp_linux_drm_syncobj_manager_v1 wp_color_manager_v1
        zwp_linux_explicit_synchronization_v1 xdg_toplevel_icon_manager_v1 wl_drm""".split(),
        1,
    )
)
_SEALS = 1033, 0x1 | 0x2 | 0x4  # F_ADD_SEALS: seal, shrink, grow


class TurnedLoop(Loop):
    def turn_all(self, turns: int = 3) -> None:
        """Handles what is there, and what comes of that."""
        for _ in range(turns):
            self.turn(0.0)


class FakeCompositor:
    """Announces ``GLOBALS`` to every registry, answers every sync, and takes the rest without a word."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._arrived = b""

    def turn(self) -> None:
        try:
            octets, ancillary, _, _ = self.sock.recvmsg(1 << 18, socket.CMSG_SPACE(1024))
        except OSError:
            return
        for _, _, content in ancillary:
            for fd in array.array("i", content[: len(content) - len(content) % 4]):
                os.close(fd)
        self._arrived += octets
        while len(self._arrived) >= 12:
            object_id, word, new_id = struct.unpack_from("=III", self._arrived)
            size = max(word >> 16, 8)
            if len(self._arrived) < size:
                return
            self._arrived = self._arrived[size:]
            if object_id == 1 and word & 0xFFFF == 0:
                self.say(event("wl_callback.done", new_id, 1) + event("wl_display.delete_id", 1, new_id))
            elif object_id == 1:
                self.say(
                    b"".join(
                        event("wl_registry.global", new_id, name, interface.encode(), TABLES[interface].version)
                        for name, interface in GLOBALS
                    )
                )

    def say(self, octets: bytes, fds: list[int] | None = None) -> None:
        try:
            socket.send_fds(self.sock, [octets], fds or [])
        except OSError:
            pass  # it doesn't read, or has gone

    def close(self) -> None:
        self.sock.close()


def event(name: str, object_id: int, *args: object) -> bytes:
    interface, message = name.split(".")
    return encode(next(one for one in TABLES[interface].events if one.name == message), object_id, args)[0]


def request(name: str, object_id: int, *args: object) -> bytes:
    interface, message = name.split(".")
    return encode(next(one for one in TABLES[interface].requests if one.name == message), object_id, args)[0]


def message(choices: Input, specs: tuple[MessageSpec, ...], object_id: int, ids: list[int], fresh: int) -> bytes:
    """A message of one of these, with arguments of the kinds that it has."""
    spec = choices.choice(specs)
    args: list[object] = []
    for arg in spec.args:
        if arg.type is ArgType.NEW_ID and arg.interface is None:
            name, interface = choices.choice(GLOBALS)
            version = 1 + choices.number(TABLES[interface].version)
            if spec.full_name == "wl_registry.bind":
                args[-1] = name
            args += [interface.encode(), version]
        if arg.type is ArgType.NEW_ID:
            args.append(choices.word() if choices.number(8) == 7 else fresh)
        elif arg.type is ArgType.OBJECT:
            args.append(choices.choice(ids))
        elif arg.type in (ArgType.STRING, ArgType.ARRAY):
            length = 5000 if choices.number(16) == 15 else choices.number(12)
            args.append(choices.octets(length).replace(b"\0", b"?"))
        elif arg.type is ArgType.FD:
            args.append("fd")
        else:
            word = choices.word()
            args.append(
                word
                if arg.type is ArgType.UINT
                else (word - (word >> 31 << 32)) / (256 if arg.type is ArgType.FIXED else 1)
            )
            if arg.type is ArgType.INT:
                args[-1] = int(args[-1])  # type: ignore[call-overload]
    try:
        return encode(spec, object_id, args)[0]
    except ValueError:
        return b""


def specs_of(interface: InterfaceSpec, *, events: bool) -> tuple[MessageSpec, ...]:
    return interface.events if events else interface.requests


def _memfd(size_bytes: int, *, sealed: bool = False) -> int:
    fd = os.memfd_create("fuzz", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.ftruncate(fd, size_bytes)
    if sealed:
        fcntl.fcntl(fd, *_SEALS)
    return fd


def _file(folder: str) -> int:
    return os.open(folder, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)


def _pipe(end: int) -> int:
    pipe = os.pipe()
    os.close(pipe[1 - end])
    return pipe[end]


def _socket(family: int, kind: int) -> int:
    return socket.socket(family, kind).detach()


def _epoll() -> int:
    with select.epoll() as poll:
        return os.dup(poll.fileno())


#: So many of the first of these are files.
FILES = 5
#: Descriptors of all kinds that cost nothing: opened once, and sent as often as one likes.
KINDS: dict[str, Callable[[], int]] = {
    "memfd": lambda: _memfd(1 << 16),
    "sealed memfd": lambda: _memfd(1 << 16, sealed=True),
    "empty memfd": lambda: _memfd(0),
    "file on a tmpfs": lambda: _file("/dev/shm"),
    "file on a disk": lambda: _file("/var/tmp"),
    "reading end of a pipe": lambda: _pipe(0),
    "writing end of a pipe": lambda: _pipe(1),
    "unix socket": lambda: _socket(socket.AF_UNIX, socket.SOCK_STREAM),
    "datagram socket": lambda: _socket(socket.AF_UNIX, socket.SOCK_DGRAM),
    "TCP socket": lambda: _socket(socket.AF_INET, socket.SOCK_STREAM),
    "folder": lambda: os.open("/", os.O_RDONLY | os.O_CLOEXEC),
    "path": lambda: os.open("/etc/passwd", os.O_PATH | os.O_CLOEXEC),
    "file opened for reading": lambda: os.open("/etc/passwd", os.O_RDONLY | os.O_CLOEXEC),
    "/dev/null": lambda: os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC),
    "/dev/zero": lambda: os.open("/dev/zero", os.O_RDWR | os.O_CLOEXEC),
    "own memory": lambda: os.open("/proc/self/mem", os.O_RDONLY | os.O_CLOEXEC),
    "eventfd": lambda: os.eventfd(0, os.EFD_CLOEXEC),
    "epoll": _epoll,
    "pidfd": lambda: os.pidfd_open(os.getpid()),
}


@functools.cache
def descriptors() -> tuple[int, ...]:
    """One of each kind."""
    return tuple(make() for make in KINDS.values())
