"""Copies a file to the clipboard and serves it as the worst of senders: in small pieces, with pauses between them.

usage: slow_copy.py FILE PIECE_BYTES PAUSE_EVERY

Prints `copied` once the compositor has the offer, and ends when the clipboard is somebody else's. After each
PAUSE_EVERY pieces it sleeps a millisecond, so that a reader sees short reads and an empty pipe again and again.
"""

from __future__ import annotations

import mmap
import os
import sys
import time
from pathlib import Path
from typing import Any

from pywayland.client.display import Display
from pywayland.protocol.wayland import WlCompositor, WlDataDeviceManager, WlSeat, WlShm
from pywayland.protocol.xdg_shell import XdgWmBase

WIDTH, HEIGHT = 200, 100


class SlowCopy:
    def __init__(self, content: bytes, piece_bytes: int, pause_every: int) -> None:
        self.content, self.piece_bytes, self.pause_every = content, piece_bytes, pause_every
        self.ended = False
        self.offered = False
        self.display = Display()
        self.display.connect()
        self.globals: dict[str, Any] = {}
        registry = self.display.get_registry()
        registry.dispatcher["global"] = self._global
        self.display.roundtrip()
        self._show_window()
        # The clipboard is for those who have the focus, and can show an input event's serial.
        self.keyboard = self.globals["wl_seat"].get_keyboard()
        self.keyboard.dispatcher["enter"] = self._offer
        self.keyboard.dispatcher["keymap"] = lambda keyboard, kind, fd, size: os.close(fd)

    def _global(self, registry: Any, name: int, interface: str, version: int) -> None:
        for wanted, most in ((WlCompositor, 4), (WlShm, 1), (WlSeat, 5), (WlDataDeviceManager, 3), (XdgWmBase, 1)):
            if interface == wanted.name:
                self.globals[interface] = registry.bind(name, wanted, min(version, most))

    def _show_window(self) -> None:
        wm_base = self.globals["xdg_wm_base"]
        wm_base.dispatcher["ping"] = lambda base, serial: base.pong(serial)
        self.surface = self.globals["wl_compositor"].create_surface()
        self.xdg_surface = wm_base.get_xdg_surface(self.surface)
        self.toplevel = self.xdg_surface.get_toplevel()
        self.toplevel.set_app_id("slow-copy")
        self.xdg_surface.dispatcher["configure"] = self._draw
        self.surface.commit()

    def _draw(self, xdg_surface: Any, serial: int) -> None:
        xdg_surface.ack_configure(serial)
        size_bytes = WIDTH * HEIGHT * 4
        fd = os.memfd_create("slow-copy")
        os.truncate(fd, size_bytes)
        with mmap.mmap(fd, size_bytes) as pixels:
            pixels[:] = b"\x20\xc0\xf0\x00" * (WIDTH * HEIGHT)
        pool = self.globals["wl_shm"].create_pool(fd, size_bytes)
        self.buffer = pool.create_buffer(0, WIDTH, HEIGHT, WIDTH * 4, WlShm.format.xrgb8888)
        pool.destroy()
        os.close(fd)
        self.surface.attach(self.buffer, 0, 0)
        self.surface.commit()

    def _offer(self, keyboard: Any, serial: int, surface: Any, keys: Any) -> None:
        if self.offered:
            return
        self.offered = True
        devices = self.globals["wl_data_device_manager"]
        self.source = devices.create_data_source()
        self.source.dispatcher["send"] = self._send
        self.source.dispatcher["cancelled"] = self._cancelled
        self.source.offer("application/octet-stream")
        self.device = devices.get_data_device(self.globals["wl_seat"])
        self.device.set_selection(self.source, serial)
        self.display.flush()
        print("copied", flush=True)

    def _send(self, source: Any, mime_type: str, fd: int) -> None:
        with os.fdopen(fd, "wb", buffering=0) as pipe:
            for piece, start in enumerate(range(0, len(self.content), self.piece_bytes)):
                view = memoryview(self.content)[start : start + self.piece_bytes]
                while view:
                    view = view[pipe.write(view) :]
                if piece % self.pause_every == 0:
                    time.sleep(0.001)
        print("sent", flush=True)

    def _cancelled(self, source: Any) -> None:
        self.ended = True


def main() -> None:
    path, piece_bytes, pause_every = sys.argv[1:]
    client = SlowCopy(Path(path).read_bytes(), int(piece_bytes), int(pause_every))
    while not client.ended and client.display.dispatch(block=True) >= 0:
        client.display.flush()
    client.display.disconnect()


if __name__ == "__main__":
    main()
