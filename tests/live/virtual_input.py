"""A keyboard and a pointer for sway's seat: a client of virtual-keyboard-unstable-v1 and wlr-virtual-pointer-unstable-v1.

It writes the few messages that it needs by hand and uses nothing of waylend, so that a fault there can't hide from the
tests here. Its keyboard stays: wlroots gives a client that arrives after a virtual keyboard went away no keymap at all.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from pathlib import Path

# In the order in which they are made: libwayland takes no gap.
_DISPLAY, _REGISTRY, _CALLBACK, _SEAT, _POINTERS, _KEYBOARDS, _POINTER, _KEYBOARD = range(1, 9)

LEFT_BUTTON = 0x110  # BTN_LEFT of linux/input-event-codes.h

#: The compositor includes what is named here and hands out the whole, some 60 KiB.
_KEYMAP = """xkb_keymap {
    xkb_keycodes { include "evdev+aliases(qwerty)" };
    xkb_types { include "complete" };
    xkb_compat { include "complete" };
    xkb_symbols { include "pc+%s+inet(evdev)" };
};\0"""

# First key code of linux/input-event-codes.h -> what it and those after it type, without and with shift.
_ROWS = {
    2: ("1234567890-=", "!@#$%^&*()_+"),
    16: ("qwertyuiop[]", "QWERTYUIOP{}"),
    30: ("asdfghjkl;'`", 'ASDFGHJKL:"~'),
    43: ("\\zxcvbnm,./", "|ZXCVBNM<>?"),
    57: (" ", " "),
}
_KEYS = {
    character: (first + place, shifted)
    for first, row in _ROWS.items()
    for shifted in (True, False)
    for place, character in enumerate(row[shifted])
}
_NAMED_KEYS = {"Escape": 1, "BackSpace": 14, "Tab": 15, "Return": 28}
_SHIFT = 1  # bit 0 of the modifiers: every keymap has Shift there


class VirtualInput:
    """A keyboard and a pointer that moves over ``size`` pixels. They exist as long as this object is open."""

    def __init__(self, compositor: Path, size: tuple[int, int]) -> None:
        self._size = size
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(10)
        self._socket.connect(str(compositor))
        self._unread = b""
        self._send(_DISPLAY, 1, _word(_REGISTRY))  # wl_display.get_registry
        self._send(_DISPLAY, 0, _word(_CALLBACK))  # wl_display.sync
        globals_ = self._globals()
        for interface, object_id in (
            ("wl_seat", _SEAT),
            ("zwlr_virtual_pointer_manager_v1", _POINTERS),
            ("zwp_virtual_keyboard_manager_v1", _KEYBOARDS),
        ):
            self._send(
                _REGISTRY, 0, _word(globals_[interface]) + _text(interface) + _word(1) + _word(object_id)
            )  # bind
        self._send(_POINTERS, 0, _word(_SEAT) + _word(_POINTER))  # create_virtual_pointer
        self._send(_KEYBOARDS, 0, _word(_SEAT) + _word(_KEYBOARD))  # create_virtual_keyboard
        self.use_layout("us")

    # --- the keyboard -------------------------------------------------------------------------------------------------

    def use_layout(self, name: str) -> None:
        """Uploads the keymap of a layout, as programs that type for others do before each piece of text."""
        keymap = (_KEYMAP % name).encode()
        keymap_fd = os.memfd_create("keymap")
        os.write(keymap_fd, keymap)
        xkb_v1 = 1
        self._send(_KEYBOARD, 0, struct.pack("=2I", xkb_v1, len(keymap)), keymap_fd)  # keymap
        os.close(keymap_fd)

    def type_text(self, text: str) -> None:
        for character in text:
            key, shifted = _KEYS[character]
            if shifted:
                self._modifiers(_SHIFT)
            self._stroke(key)
            if shifted:
                self._modifiers(0)

    def press_key(self, name: str) -> None:
        self._stroke(_NAMED_KEYS[name])

    def _stroke(self, key: int) -> None:
        for pressed in (1, 0):
            self._send(_KEYBOARD, 1, struct.pack("=3I", _now_ms(), key, pressed))

    def _modifiers(self, depressed: int) -> None:
        self._send(_KEYBOARD, 2, struct.pack("=4I", depressed, 0, 0, 0))

    # --- the pointer --------------------------------------------------------------------------------------------------

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

    def _button(self, button: int, pressed: int) -> None:
        self._send(_POINTER, 2, struct.pack("=3I", _now_ms(), button, pressed))
        self._frame()

    def _frame(self) -> None:
        self._send(_POINTER, 4, b"")

    # --- the connection -----------------------------------------------------------------------------------------------

    def close(self) -> None:
        self._socket.close()

    def _send(self, object_id: int, opcode: int, arguments: bytes, *fds: int) -> None:
        message = struct.pack("=II", object_id, (8 + len(arguments)) << 16 | opcode) + arguments
        if socket.send_fds(self._socket, [message], fds) != len(message):
            raise OSError("the compositor reads no input")

    def _globals(self) -> dict[str, int]:
        """Interface -> its global's name."""
        found = {}
        while True:
            object_id, opcode, arguments = self._receive()
            if object_id == _REGISTRY and opcode == 0:  # global: name, interface, version
                name, length = struct.unpack_from("=II", arguments)
                found[arguments[8 : 8 + length - 1].decode()] = int(name)
            elif object_id == _CALLBACK:
                return found

    def _receive(self) -> tuple[int, int, bytes]:
        object_id, size_and_opcode = struct.unpack("=II", self._exactly(8))
        return object_id, size_and_opcode & 0xFFFF, self._exactly((size_and_opcode >> 16) - 8)

    def _exactly(self, size_bytes: int) -> bytes:
        while len(self._unread) < size_bytes:
            chunk = self._socket.recv(4096)
            assert chunk, "the compositor hung up"
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
