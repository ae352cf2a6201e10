"""A client that the tests play by hand: it sends what it is told, right or wrong, and keeps what it hears."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from pathlib import Path
from typing import Any

from PIL import Image

from tests.relay.between import DEADLINE_S, TABLES, Peer, spec_of
from waylend.wire.codec import decode
from waylend.wire.spec import HEADER_BYTES, ArgType

DISPLAY = 1
ARGB, XRGB = 0, 1


class Player:
    """``heard``: every event as (object id, interface.event, arguments). ``error``: (object, code, text) of wl_display."""

    def __init__(self, path: Path) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(os.fspath(path))
        self.peer = Peer(sock)
        self.interfaces = {DISPLAY: "wl_display"}
        self.heard: list[tuple[int, str, list[Any]]] = []
        self.error: tuple[int, int, str] | None = None
        self._last_id = 1
        self.registry = self.new("wl_registry")
        self.send(DISPLAY, "get_registry", self.registry)
        self.round_trip()
        self.globals = {
            args[1].decode(): (args[0], args[2]) for _, name, args in self.heard if name == "wl_registry.global"
        }

    def close(self) -> None:
        self.peer.close()

    def new(self, interface: str) -> int:
        self._last_id += 1
        self.interfaces[self._last_id] = interface
        return self._last_id

    def send(self, object_id: int, request: str, *args: object, fds: tuple[int, ...] = ()) -> None:
        """``args`` without the fds, which travel beside the bytes; None is a null object."""
        name = f"{self.interfaces[object_id]}.{request}"
        given, beside = iter(0 if value is None else value for value in args), iter(fds)
        values = [next(beside) if argument.type is ArgType.FD else next(given) for argument in spec_of(name).args]
        self.peer.send(name, object_id, *values, fds=fds)

    def make(self, object_id: int, request: str, interface: str, *rest: object, fds: tuple[int, ...] = ()) -> int:
        """A request whose first argument is a new id, which is returned."""
        new_id = self.new(interface)
        self.send(object_id, request, new_id, *rest, fds=fds)
        return new_id

    def bind(self, interface: str, version: int | None = None) -> int:
        name, announced = self.globals[interface]
        new_id = self.new(interface)
        self.peer.send("wl_registry.bind", self.registry, name, interface.encode(), version or announced, new_id)
        return new_id

    def receive(self) -> None:
        """One event. Raises EOFError when the compositor hung up."""
        object_id, word = struct.unpack("=II", self.peer.read(HEADER_BYTES))
        body = self.peer.read((word >> 16) - HEADER_BYTES)
        spec = TABLES[self.interfaces[object_id]].events[word & 0xFFFF]
        args = decode(spec, body, ["fd"] * 4)
        for argument, value in zip(spec.args, args, strict=True):
            if argument.type is ArgType.NEW_ID and argument.interface is not None:
                assert isinstance(value, int)
                self.interfaces[value] = argument.interface
        name = f"{self.interfaces[object_id]}.{spec.name}"
        self.heard.append((object_id, name, args))
        if name == "wl_display.error":
            object_id, code, text = args
            assert isinstance(object_id, int)
            assert isinstance(code, int)
            assert isinstance(text, bytes)
            self.error = (object_id, code, text.decode())

    def round_trip(self) -> None:
        """Everything that the compositor has to say so far. Ends at an error."""
        callback = self.new("wl_callback")
        # One that has hung up already may have told why before.
        with contextlib.suppress(BrokenPipeError):
            self.send(DISPLAY, "sync", callback)
        try:
            while not any(object_id == callback for object_id, _, _ in self.heard):
                self.receive()
                if self.error:
                    return
        except (EOFError, ConnectionError):
            assert self.error, "the compositor hung up without an error"

    def wait_for(self, name: str, object_id: int | None = None) -> list[Any]:
        """The arguments of the next such event, of those that weren't waited for yet."""
        while True:
            for n, (heard_id, heard, args) in enumerate(self.heard):
                if heard == name and object_id in (None, heard_id):
                    del self.heard[: n + 1]
                    return args
            self.receive()

    # What most clients do

    def buffer(self, size: tuple[int, int], colour: tuple[int, ...] = (255, 0, 0, 255), format_: int = ARGB) -> int:
        """A wl_buffer of one colour (RGBA, premultiplied)."""
        return self.buffer_of(Image.new("RGBA", size, colour), format_)

    def buffer_of(self, picture: Image.Image, format_: int = ARGB) -> int:
        width, height = picture.size
        content = picture.convert("RGBA").tobytes("raw", "BGRA")
        fd = os.memfd_create("pool", os.MFD_CLOEXEC)
        try:
            os.write(fd, content)
            pool = self.make(self.bind("wl_shm"), "create_pool", "wl_shm_pool", len(content), fds=(fd,))
        finally:
            os.close(fd)
        return self.make(pool, "create_buffer", "wl_buffer", 0, width, height, width * 4, format_)

    def surface(self) -> int:
        return self.make(self.bind("wl_compositor"), "create_surface", "wl_surface")

    def commit(self, surface: int, buffer: int | None = None) -> None:
        if buffer is not None:
            self.send(surface, "attach", buffer, 0, 0)
            self.send(surface, "damage_buffer", 0, 0, 1 << 30, 1 << 30)
        self.send(surface, "commit")

    def toplevel(self, title: str = "window") -> tuple[int, int, int]:
        """wl_surface, xdg_surface, xdg_toplevel, the first configure acknowledged."""
        surface = self.surface()
        shell = self.make(self.bind("xdg_wm_base"), "get_xdg_surface", "xdg_surface", surface)
        window = self.make(shell, "get_toplevel", "xdg_toplevel")
        self.send(window, "set_title", title.encode())
        self.commit(surface)
        self.acknowledge(shell)
        return surface, shell, window

    def acknowledge(self, shell: int) -> None:
        (serial,) = self.wait_for("xdg_surface.configure", shell)
        self.send(shell, "ack_configure", serial)

    def window(self, size: tuple[int, int], colour: tuple[int, ...] = (255, 0, 0, 255)) -> tuple[int, int, int]:
        """A mapped toplevel of one colour."""
        made = self.toplevel()
        self.commit(made[0], self.buffer(size, colour))
        self.round_trip()
        return made


__all__ = ["ARGB", "DEADLINE_S", "DISPLAY", "XRGB", "Player", "spec_of"]
