"""A pointer for sway's seat: a client of wlr-virtual-pointer-unstable-v1 that writes the few messages it needs by hand.

It uses nothing of waylend, so that a fault there can't hide from the tests here.
"""

from __future__ import annotations

import socket
import struct
import time
from pathlib import Path

_DISPLAY, _REGISTRY, _CALLBACK, _VIRTUAL_POINTERS, _POINTER = 1, 2, 3, 4, 5
_INTERFACE = "zwlr_virtual_pointer_manager_v1"
LEFT_BUTTON = 0x110  # BTN_LEFT of linux/input-event-codes.h


class VirtualPointer:
    """A pointer that moves over ``size`` pixels. It exists as long as this object is open."""

    def __init__(self, compositor: Path, size: tuple[int, int]) -> None:
        self._size = size
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(10)
        self._socket.connect(str(compositor))
        self._unread = b""
        self._send(_DISPLAY, 1, _word(_REGISTRY))  # wl_display.get_registry
        self._send(_DISPLAY, 0, _word(_CALLBACK))  # wl_display.sync
        name = self._global_name()
        self._send(_REGISTRY, 0, _word(name) + _text(_INTERFACE) + _word(1) + _word(_VIRTUAL_POINTERS))  # bind
        self._send(_VIRTUAL_POINTERS, 0, _word(0) + _word(_POINTER))  # create_virtual_pointer, of no particular seat

    def move(self, x: int, y: int) -> None:
        width, height = self._size
        self._send(_POINTER, 1, struct.pack("=5I", _now_ms(), x, y, width, height))  # motion_absolute
        self._frame()

    def press(self, x: int, y: int, button: int = LEFT_BUTTON) -> None:
        self.move(x, y)
        self._button(button, 1)

    def release(self, button: int = LEFT_BUTTON) -> None:
        self._button(button, 0)

    def click(self, x: int, y: int, button: int = LEFT_BUTTON) -> None:
        self.press(x, y, button)
        self.release(button)

    def close(self) -> None:
        self._socket.close()

    def _button(self, button: int, pressed: int) -> None:
        self._send(_POINTER, 2, struct.pack("=3I", _now_ms(), button, pressed))
        self._frame()

    def _frame(self) -> None:
        self._send(_POINTER, 4, b"")

    def _send(self, object_id: int, opcode: int, arguments: bytes) -> None:
        self._socket.sendall(struct.pack("=II", object_id, (8 + len(arguments)) << 16 | opcode) + arguments)

    def _global_name(self) -> int:
        found = None
        while True:
            object_id, opcode, arguments = self._receive()
            if object_id == _REGISTRY and opcode == 0:  # global: name, interface, version
                name, length = struct.unpack_from("=II", arguments)
                if arguments[8 : 8 + length - 1] == _INTERFACE.encode():
                    found = int(name)
            elif object_id == _CALLBACK:
                assert found is not None, f"the compositor has no {_INTERFACE}"
                return found

    def _receive(self) -> tuple[int, int, bytes]:
        header = self._exactly(8)
        object_id, size_and_opcode = struct.unpack("=II", header)
        return object_id, size_and_opcode & 0xFFFF, self._exactly((size_and_opcode >> 16) - 8)

    def _exactly(self, size_bytes: int) -> bytes:
        while len(self._unread) < size_bytes:
            chunk = self._socket.recv(4096)
            assert chunk, "the compositor hung up on the virtual pointer"
            self._unread += chunk
        taken, self._unread = self._unread[:size_bytes], self._unread[size_bytes:]
        return taken


def _word(value: int) -> bytes:
    return struct.pack("=I", value)


def _text(value: str) -> bytes:
    encoded = value.encode() + b"\0"
    return _word(len(encoded)) + encoded + b"\0" * (-len(encoded) % 4)


def _now_ms() -> int:
    return int(time.monotonic() * 1000) & 0xFFFFFFFF
