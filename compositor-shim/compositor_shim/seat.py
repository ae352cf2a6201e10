"""wl_seat: one keyboard, one pointer and one touch screen, moved by whoever drives the shim.

Events go to the focused client only, in the order that the protocol asks for: enter before anything else, frames at the end of
what belongs together.
"""

from __future__ import annotations

import fcntl
import os
import struct
import tempfile
from typing import Protocol, TypeVar

from pywayland.protocol.cursor_shape_v1 import WpCursorShapeDeviceV1, WpCursorShapeManagerV1
from pywayland.protocol.wayland import WlKeyboard, WlPointer, WlSeat, WlTouch

from compositor_shim import keymap
from compositor_shim.resource import Resource
from compositor_shim.server import now_ms
from compositor_shim.surface import State, Surface

# fcntl(2): a client must be able to map the keymap, and nothing else.
_F_ADD_SEALS = 1033
_SEALS = 1 | 2 | 4 | 8  # seal, shrink, grow, write
_SHIFT_MASK = 1
_REPEAT = (25, 600)

Device = TypeVar("Device", bound=Resource)


class Serials(Protocol):
    def next_serial(self) -> int: ...


class KeymapFile:
    """Where the keymap that clients get comes from: a sealed memfd, or a file on disk. Both are handed out read-only."""

    def __init__(self, text: str, source: str) -> None:
        content = text.encode() + b"\0"
        self.size_bytes = len(content)
        self.path: str | None = None
        if source == "file":
            # On a real disk where there is one: what is handed out need not be anonymous memory.
            fd, self.path = tempfile.mkstemp(prefix="compositor-shim-keymap-", dir="/var/tmp")
            os.write(fd, content)
            os.close(fd)
            self.fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        else:
            self.fd = os.memfd_create("keymap", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.write(self.fd, content)
            fcntl.fcntl(self.fd, _F_ADD_SEALS, _SEALS)

    def close(self) -> None:
        os.close(self.fd)
        if self.path is not None:
            os.unlink(self.path)


class Cursor:
    role_name = "cursor"

    def before_commit(self, _surface: Surface, _state: State) -> None:
        pass

    def after_commit(self, _surface: Surface) -> None:
        pass


class SeatState:
    """The one seat, shared by all the wl_seat objects of all clients."""

    def __init__(self, serials: Serials, keymap_from: str) -> None:
        self.serials = serials
        self.keymap_from = keymap_from
        self.keymap = KeymapFile(keymap.keymap_text(), keymap_from)
        self.keyboard_focus: Surface | None = None
        self.pointer_focus: Surface | None = None
        self.pointer_at = (0.0, 0.0)
        self.cursor: tuple[Surface, int, int] | None = None
        self.pressed: list[int] = []
        self.touches: dict[int, Surface] = {}

    def of(self, surface: Surface | None, kind: type[Device]) -> list[Device]:
        return surface.connection.all(kind) if surface is not None and surface.alive else []

    # Keyboard

    def set_keymap(self, comment: str) -> None:
        """A new keymap: all keyboards are told."""
        old, self.keymap = self.keymap, KeymapFile(keymap.keymap_text(comment), self.keymap_from)
        old.close()

    def focus_keyboard(self, surface: Surface | None) -> None:
        if surface is self.keyboard_focus:
            return
        for keyboard in self.of(self.keyboard_focus, Keyboard):
            keyboard.send("leave", self.serials.next_serial(), self.keyboard_focus)
        self.keyboard_focus = surface
        for keyboard in self.of(surface, Keyboard):
            keyboard.enter()

    def key(self, code: int, pressed: bool) -> None:
        if pressed:
            self.pressed.append(code)
        elif code in self.pressed:
            self.pressed.remove(code)
        for keyboard in self.of(self.keyboard_focus, Keyboard):
            keyboard.send("key", self.serials.next_serial(), now_ms(), code, int(pressed))
            if code == keymap.SHIFT:
                keyboard.send_modifiers()

    def type_text(self, text: str) -> None:
        for code, shifted in keymap.keys_for(text):
            if shifted:
                self.key(keymap.SHIFT, True)
            self.key(code, True)
            self.key(code, False)
            if shifted:
                self.key(keymap.SHIFT, False)

    # Pointer

    def move_pointer(self, at: tuple[float, float], surface: Surface | None, local: tuple[float, float]) -> None:
        self.pointer_at = at
        if surface is not self.pointer_focus:
            for pointer in self.of(self.pointer_focus, Pointer):
                pointer.send("leave", self.serials.next_serial(), self.pointer_focus)
                pointer.send("frame")
            self.pointer_focus = surface
            self.cursor = None
            for pointer in self.of(surface, Pointer):
                pointer.entered_with = self.serials.next_serial()
                pointer.send("enter", pointer.entered_with, surface, *local)
                pointer.send("frame")
            return
        for pointer in self.of(surface, Pointer):
            pointer.send("motion", now_ms(), *local)
            pointer.send("frame")

    def button(self, code: int, pressed: bool) -> int:
        serial = self.serials.next_serial()
        for pointer in self.of(self.pointer_focus, Pointer):
            pointer.send("button", serial, now_ms(), code, int(pressed))
            pointer.send("frame")
        return serial

    def scroll(self, steps: int, *, horizontal: bool) -> None:
        axis = int(horizontal)
        for pointer in self.of(self.pointer_focus, Pointer):
            pointer.send("axis_source", WlPointer.axis_source.wheel.value)
            if pointer.version >= 8:
                pointer.send("axis_value120", axis, steps * 120)
            else:
                pointer.send("axis_discrete", axis, steps)
            pointer.send("axis", now_ms(), axis, steps * 15.0)
            pointer.send("frame")

    # Touch

    def touch_down(self, number: int, surface: Surface, local: tuple[float, float]) -> None:
        self.touches[number] = surface
        for touch in self.of(surface, Touch):
            touch.send("down", self.serials.next_serial(), now_ms(), surface, number, *local)
            touch.send("frame")

    def touch_move(self, number: int, local: tuple[float, float]) -> None:
        for touch in self.of(self.touches.get(number), Touch):
            touch.send("motion", now_ms(), number, *local)
            touch.send("frame")

    def touch_up(self, number: int) -> None:
        for touch in self.of(self.touches.pop(number, None), Touch):
            touch.send("up", self.serials.next_serial(), now_ms(), number)
            touch.send("frame")

    def surface_gone(self, surface: Surface) -> None:
        if surface is self.keyboard_focus:
            self.keyboard_focus = None
        if surface is self.pointer_focus:
            self.pointer_focus = None
        if self.cursor is not None and surface is self.cursor[0]:
            self.cursor = None
        self.touches = {number: touched for number, touched in self.touches.items() if touched is not surface}


class Seat(Resource):
    WIRE = WlSeat.resource_class
    state: SeatState

    def greet(self) -> None:
        kinds = WlSeat.capability
        self.send("capabilities", kinds.pointer.value | kinds.keyboard.value | kinds.touch.value)
        self.send("name", "seat0")

    def get_keyboard(self, object_id: int) -> None:
        keyboard = Keyboard(self, object_id)
        keyboard.state = self.state
        keyboard.greet()

    def get_pointer(self, object_id: int) -> None:
        Pointer(self, object_id).state = self.state

    def get_touch(self, object_id: int) -> None:
        Touch(self, object_id)


class Keyboard(Resource):
    WIRE = WlKeyboard.resource_class
    state: SeatState

    def greet(self) -> None:
        self.send_keymap()
        self.send("repeat_info", *_REPEAT)
        focus = self.state.keyboard_focus
        if focus is not None and focus.connection is self.connection:
            self.enter()

    def send_keymap(self) -> None:
        file = self.state.keymap
        self.send("keymap", WlKeyboard.keymap_format.xkb_v1.value, file.fd, file.size_bytes)

    def enter(self) -> None:
        keys = self.state.pressed
        content = struct.pack(f"={len(keys)}I", *keys)
        self.send("enter", self.state.serials.next_serial(), self.state.keyboard_focus, content)
        self.send_modifiers()

    def send_modifiers(self) -> None:
        depressed = _SHIFT_MASK if keymap.SHIFT in self.state.pressed else 0
        self.send("modifiers", self.state.serials.next_serial(), depressed, 0, 0, 0)


class Pointer(Resource):
    WIRE = WlPointer.resource_class
    state: SeatState
    entered_with = 0

    def set_cursor(self, serial: int, surface: Surface | None, x: int, y: int) -> None:
        if surface is not None:
            if surface.role is not None and not isinstance(surface.role, Cursor):
                raise self.violate(WlPointer.error.role.value, f"{surface.name} is a {surface.role.role_name} already")
            surface.role = surface.role or Cursor()
        focus = self.state.pointer_focus
        if serial == self.entered_with and focus is not None and focus.connection is self.connection:
            self.state.cursor = None if surface is None else (surface, x, y)


class Touch(Resource):
    WIRE = WlTouch.resource_class


class CursorShapeManager(Resource):
    WIRE = WpCursorShapeManagerV1.resource_class

    def get_pointer(self, object_id: int, pointer: Pointer) -> None:
        CursorShapeDevice(self, object_id).pointer = pointer


class CursorShapeDevice(Resource):
    """Shapes are checked; the screen has no theme to show them from."""

    WIRE = WpCursorShapeDeviceV1.resource_class
    pointer: Pointer

    def set_shape(self, serial: int, shape: int) -> None:
        if not 1 <= shape <= max(member.value for member in WpCursorShapeDeviceV1.shape):
            raise self.violate(WpCursorShapeDeviceV1.error.invalid_shape.value, f"shape {shape}")
        if serial == self.pointer.entered_with:
            self.pointer.state.cursor = None
