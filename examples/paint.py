#!/usr/bin/env python3
"""A small Wayland client: draws, lets you paint, and shows what keymap it was given.

    paint.py                paint with the pointer, type, end with Escape or by closing the window
    paint.py --frames 60    end by itself after so many frames

It is what ``make demo`` runs through waylend. The keymap is the point: the compositor handed a file of its own to
waylend, and this client maps lent memory; the checksum says that it reads the very same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import mmap
import os
from collections.abc import Iterator
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from pywayland.client.display import Display
from pywayland.protocol.wayland import WlCompositor, WlKeyboard, WlPointer, WlSeat, WlShm
from pywayland.protocol.xdg_shell import XdgWmBase

KEY_ESCAPE = 1  # linux/input-event-codes.h
TOP, BOTTOM = (18, 28, 58), (92, 42, 96)
INK = [(255, 214, 102), (120, 220, 232), (255, 120, 150), (170, 230, 140)]


class Canvas:
    """The picture: a sky, some light in it, what the pointer painted, and two lines of text."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        self.strokes: list[list[tuple[float, float]]] = []
        self.title = "lent memory, borrowed pixels"
        self.lines: list[str] = []
        self._backdrop = self._sky()

    def _sky(self) -> Image.Image:
        width, height = self.size
        column = Image.new("RGB", (1, height))
        for y in range(height):
            share = y / max(height - 1, 1)
            column.putpixel((0, y), tuple(round(a + (b - a) * share) for a, b in zip(TOP, BOTTOM, strict=True)))
        sky = column.resize(self.size)
        glow = Image.new("RGBA", self.size)
        draw = ImageDraw.Draw(glow)
        for n in range(28):
            # Spread without a pattern, and the same each time.
            centre_x, centre_y = (n * 0.7549 % 1) * width, (n * 0.5698 % 1) * height
            radius = 6 + n * 7 % 34
            box = (centre_x - radius, centre_y - radius, centre_x + radius, centre_y + radius)
            draw.ellipse(box, fill=(*INK[n % 4], 22))
        sky.paste(glow, mask=glow)
        return sky

    def render(self, frame: int) -> bytes:
        """The picture as wl_shm's xrgb8888, little-endian: B, G, R, unused."""
        width, height = self.size
        picture = self._backdrop.copy()
        draw = ImageDraw.Draw(picture)
        for n, colour in enumerate(INK):
            wave = [
                (x, height * (0.56 + 0.05 * n) + 24 * math.sin(x / (70 + 13 * n) + frame / 9 + n))
                for x in range(0, width + 8, 8)
            ]
            draw.line(wave, fill=colour, width=3, joint="curve")
        for n, stroke in enumerate(self.strokes):
            if len(stroke) > 1:
                draw.line(stroke, fill=INK[n % 4], width=6, joint="curve")
        draw.text((28, 22), self.title, font=ImageFont.load_default(30), fill=(240, 240, 250))
        for n, line in enumerate(self.lines):
            draw.text((30, 68 + 24 * n), line, font=ImageFont.load_default(17), fill=(190, 200, 225))
        return picture.tobytes("raw", "BGRX")


class Paint:
    """One window, two buffers in one pool, a keyboard and a pointer."""

    def __init__(self, display: Display, size: tuple[int, int], frames: int | None) -> None:
        self.size = size
        self.canvas = Canvas(size)
        self.frames_left = frames
        self.frame = 0
        self.typed = ""
        self.painting = False
        self.running = True
        self.globals: dict[str, Any] = {}
        self.display = display
        registry = self.display.get_registry()
        registry.dispatcher["global"] = self.on_global
        self.display.roundtrip()
        for needed in ("wl_compositor", "wl_shm", "xdg_wm_base"):
            if needed not in self.globals:
                raise SystemExit(f"paint: the compositor offers no {needed}")
        self.make_window()
        if "wl_seat" in self.globals:
            self.globals["wl_seat"].dispatcher["capabilities"] = self.on_capabilities

    def on_global(self, registry: Any, name: int, interface: str, version: int) -> None:
        wanted = {
            "wl_compositor": (WlCompositor, 4),
            "wl_shm": (WlShm, 1),
            "wl_seat": (WlSeat, 5),
            "xdg_wm_base": (XdgWmBase, 1),
        }
        if interface in wanted:
            kind, known = wanted[interface]
            self.globals[interface] = registry.bind(name, kind, min(version, known))

    # The window

    def make_window(self) -> None:
        wm_base = self.globals["xdg_wm_base"]
        wm_base.dispatcher["ping"] = lambda base, serial: base.pong(serial)
        self.surface = self.globals["wl_compositor"].create_surface()
        self.xdg_surface = wm_base.get_xdg_surface(self.surface)
        self.xdg_surface.dispatcher["configure"] = self.on_configure
        self.toplevel = self.xdg_surface.get_toplevel()
        self.toplevel.dispatcher["close"] = lambda _: self.end()
        self.toplevel.set_title("paint")
        self.toplevel.set_app_id("org.waylend.paint")
        self.buffers = self.make_buffers()
        self.surface.commit()

    def make_buffers(self) -> Iterator[tuple[int, Any]]:
        """Two buffers, in turn, as (offset in the pool, wl_buffer)."""
        width, height = self.size
        size_bytes = width * height * 4
        fd = os.memfd_create("paint", os.MFD_CLOEXEC)
        os.ftruncate(fd, 2 * size_bytes)
        self.pixels = mmap.mmap(fd, 2 * size_bytes)
        pool = self.globals["wl_shm"].create_pool(fd, 2 * size_bytes)
        os.close(fd)
        made = [
            (offset, pool.create_buffer(offset, width, height, width * 4, WlShm.format.xrgb8888.value))
            for offset in (0, size_bytes)
        ]
        while True:
            yield from made

    def on_configure(self, xdg_surface: Any, serial: int) -> None:
        xdg_surface.ack_configure(serial)
        if self.frame == 0:
            self.draw()

    def draw(self) -> None:
        offset, buffer = next(self.buffers)
        picture = self.canvas.render(self.frame)
        self.pixels[offset : offset + len(picture)] = picture
        self.surface.attach(buffer, 0, 0)
        self.surface.damage_buffer(0, 0, *self.size)
        self.callback = self.surface.frame()
        self.callback.dispatcher["done"] = self.on_frame
        self.surface.commit()
        self.frame += 1

    def on_frame(self, _callback: object, _time: int) -> None:
        if self.frames_left is not None and self.frame >= self.frames_left:
            self.end()
        else:
            self.draw()

    def end(self) -> None:
        self.running = False

    # The seat

    def on_capabilities(self, seat: Any, capabilities: int) -> None:
        if capabilities & WlSeat.capability.keyboard.value and not hasattr(self, "keyboard"):
            self.keyboard = seat.get_keyboard()
            self.keyboard.dispatcher["keymap"] = self.on_keymap
            self.keyboard.dispatcher["key"] = self.on_key
        if capabilities & WlSeat.capability.pointer.value and not hasattr(self, "pointer"):
            self.pointer = seat.get_pointer()
            self.pointer.dispatcher["motion"] = self.on_motion
            self.pointer.dispatcher["button"] = self.on_button

    def on_keymap(self, _keyboard: object, keymap_format: int, fd: int, size_bytes: int) -> None:
        if keymap_format != WlKeyboard.keymap_format.xkb_v1.value or not size_bytes:
            os.close(fd)
            return
        # As the protocol asks since version 7: a private mapping of the fd, whatever it is.
        with mmap.mmap(fd, size_bytes, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ) as keymap:
            checksum = hashlib.sha256(keymap).hexdigest()
        os.close(fd)
        self.canvas.lines = [f"keymap: {size_bytes} bytes, sha256 {checksum[:16]}", ""]
        print(f"keymap {size_bytes} {checksum}", flush=True)

    def on_key(self, _keyboard: object, _serial: int, _time: int, key: int, state: int) -> None:
        if state != WlKeyboard.key_state.pressed.value:
            return
        print(f"key {key}", flush=True)
        self.typed = f"{self.typed} {key}"[-40:]
        self.canvas.lines[1:] = [f"keys: {self.typed}"]
        if key == KEY_ESCAPE:
            self.end()

    def on_button(self, _pointer: object, _serial: int, _time: int, _button: int, state: int) -> None:
        self.painting = state == WlPointer.button_state.pressed.value
        if self.painting:
            self.canvas.strokes.append([])

    def on_motion(self, _pointer: object, _time: int, x: float, y: float) -> None:
        if self.painting:
            self.canvas.strokes[-1].append((x, y))

    def run(self) -> None:
        while self.running:
            self.display.flush()
            try:
                self.display.dispatch(block=True)
            except RuntimeError:
                raise SystemExit("paint: the compositor ended the connection") from None


def size_of(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"{text!r} is no size like 720x450")
    return int(width), int(height)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, help="end after so many frames")
    parser.add_argument("--size", type=size_of, default=(720, 450), help="of the window, WIDTHxHEIGHT [720x450]")
    options = parser.parse_args()
    display = Display()
    try:
        display.connect()
    except ValueError:
        name = os.environ.get("WAYLAND_DISPLAY", "wayland-0")
        raise SystemExit(f"paint: no compositor at {name}; try `waylend run --compositor shim`") from None
    try:
        Paint(display, options.size, options.frames).run()
    finally:
        # Before the objects on it go with the program, which must not find it gone.
        display.disconnect()


if __name__ == "__main__":
    main()
