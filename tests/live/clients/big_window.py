"""A window of 3840x2160 pixels with three buffers, each of one colour, shown in turn; then shows the last until it is ended.

usage: big_window.py FRAMES RED GREEN BLUE     the colour of the last frame
"""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Callable
from typing import Any

from pywayland.client.display import Display
from pywayland.protocol.wayland import WlCompositor, WlShm
from pywayland.protocol.xdg_shell import XdgWmBase

WIDTH, HEIGHT, BUFFERS = 3840, 2160, 3
SIZE = WIDTH * HEIGHT * 4


def main(frames: int, colour: tuple[int, int, int]) -> None:
    display = Display()
    display.connect()
    found: dict[str, Any] = {}
    registry = display.get_registry()
    wanted = {cls.name: cls for cls in (WlCompositor, WlShm, XdgWmBase)}

    def on_global(registry: Any, name: int, interface: str, version: int) -> None:
        if interface in wanted:
            found[interface] = registry.bind(name, wanted[interface], min(version, wanted[interface].version, 4))

    def wait(condition: Callable[[], object]) -> None:
        while not condition():
            if display.dispatch(block=True) < 0:
                raise SystemExit("the connection is gone")

    registry.dispatcher["global"] = on_global
    display.roundtrip()
    found["xdg_wm_base"].dispatcher["ping"] = lambda base, serial: base.pong(serial)
    surface = found["wl_compositor"].create_surface()
    xdg_surface = found["xdg_wm_base"].get_xdg_surface(surface)
    configured: list[int] = []

    def on_configure(xdg_surface: Any, serial: int) -> None:
        xdg_surface.ack_configure(serial)
        configured.append(serial)

    xdg_surface.dispatcher["configure"] = on_configure
    toplevel = xdg_surface.get_toplevel()
    toplevel.set_app_id("big")
    toplevel.set_title(f"{colour}")
    surface.commit()
    wait(lambda: configured)

    fd = os.memfd_create("big", os.MFD_CLOEXEC)
    os.ftruncate(fd, SIZE * BUFFERS)
    pool = found["wl_shm"].create_pool(fd, SIZE * BUFFERS)
    made = [pool.create_buffer(n * SIZE, WIDTH, HEIGHT, WIDTH * 4, WlShm.format.xrgb8888.value) for n in range(BUFFERS)]
    busy = set()
    for n, buffer in enumerate(made):
        buffer.dispatcher["release"] = lambda _buffer, n=n: busy.discard(n)
    with mmap.mmap(fd, SIZE * BUFFERS) as memory:
        for frame in range(frames):
            n = frame % BUFFERS
            wait(lambda n=n: n not in busy)  # type: ignore[misc]
            shade = colour if frame == frames - 1 else (frame * 40 % 256, 90, 30)
            memory[n * SIZE : (n + 1) * SIZE] = bytes((shade[2], shade[1], shade[0], 255)) * (WIDTH * HEIGHT)
            busy.add(n)
            surface.attach(made[n], 0, 0)
            surface.damage_buffer(0, 0, WIDTH, HEIGHT)
            done: list[int] = []
            callback = surface.frame()
            callback.dispatcher["done"] = lambda _callback, time, done=done: done.append(time)
            surface.commit()
            wait(lambda done=done: done)  # type: ignore[misc]
    print("done", flush=True)
    while display.dispatch(block=True) >= 0:
        pass
    raise SystemExit("the connection is gone")


main(int(sys.argv[1]), (int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
