"""Draws boxes, frame by frame, the ways that are hard on a proxy that copies; then shows the last frame until it is ended.

usage: boxes.py MODE FRAMES

Every frame repaints as little as the protocol allows, so that pixels which were not copied show. MODE is

- ``buffer``: two buffers of one pool; each frame repaints what changed since that buffer was shown, and damages, in the
  buffer's coordinates, only what changed since the last frame;
- ``surface``: the same, with wl_surface.damage and a buffer scale of 2;
- ``viewport``: the same, with a cut-out source that is shown at another size;
- ``pools``: each frame in a new pool that is destroyed before its buffer is shown, with ids used again and again;
- ``grow``: one pool that grows for each frame, whose buffer is at its end;
- ``subsurface``: the boxes are on a synchronised sub-surface, shown by the parent's commit;
- ``cut``: after FRAMES frames the pool's file is cut short, and another frame is damaged.
"""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Callable
from typing import Any

from pywayland.client.display import Display
from pywayland.protocol.viewporter import WpViewporter
from pywayland.protocol.wayland import WlCompositor, WlShm, WlSubcompositor
from pywayland.protocol.xdg_shell import XdgWmBase

WIDTH, HEIGHT, SIDE = 320, 240, 40
STRIDE = WIDTH * 4
SIZE = STRIDE * HEIGHT
Box = tuple[int, int]


def colour_of(frame: int) -> bytes:
    return bytes((40 + frame * 7 % 200, 40 + frame * 13 % 200, 40 + frame * 29 % 200, 255))


def place_of(frame: int) -> Box:
    return (frame * 53) % (WIDTH - SIDE), (frame * 31) % (HEIGHT - SIDE)


class Canvas:
    """A buffer's memory, and which frame was drawn into it last."""

    def __init__(self, memory: mmap.mmap, offset: int) -> None:
        self.memory = memory
        self.offset = offset
        self.frame = -1

    def draw_up_to(self, frame: int) -> None:
        """Draws the boxes since the frame that is there; a fresh one is filled first."""
        if self.frame < 0:
            self.memory[self.offset : self.offset + SIZE] = bytes((90, 60, 30, 255)) * (WIDTH * HEIGHT)
        for each in range(self.frame + 1, frame + 1):
            x, y = place_of(each)
            for row in range(y, y + SIDE):
                at = self.offset + row * STRIDE + x * 4
                self.memory[at : at + SIDE * 4] = colour_of(each) * SIDE
        self.frame = frame


class App:
    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.display = Display()
        self.display.connect()
        self.globals: dict[str, Any] = {}
        registry = self.display.get_registry()
        wanted = {cls.name: cls for cls in (WlCompositor, WlShm, WlSubcompositor, XdgWmBase, WpViewporter)}

        def on_global(registry: Any, name: int, interface: str, version: int) -> None:
            if interface in wanted:
                cls = wanted[interface]
                self.globals[interface] = registry.bind(name, cls, min(version, cls.version, 5))

        registry.dispatcher["global"] = on_global
        self.display.roundtrip()
        self.shm = self.globals["wl_shm"]
        self.surface = self.globals["wl_compositor"].create_surface()
        self.globals["xdg_wm_base"].dispatcher["ping"] = lambda base, serial: base.pong(serial)
        xdg_surface = self.globals["xdg_wm_base"].get_xdg_surface(self.surface)
        self.configured = False

        def on_configure(xdg_surface: Any, serial: int) -> None:
            xdg_surface.ack_configure(serial)
            self.configured = True

        xdg_surface.dispatcher["configure"] = on_configure
        self.toplevel = xdg_surface.get_toplevel()
        self.toplevel.set_app_id(f"boxes-{mode}")
        self.surface.commit()
        self._keep = [xdg_surface, registry]
        self.wait(lambda: self.configured)
        self.fd = -1
        self.shown = self.surface

    def wait(self, condition: Callable[[], bool]) -> None:
        while not condition():
            if self.display.dispatch(block=True) < 0:
                raise SystemExit("the connection is gone")

    def memory(self, size: int) -> mmap.mmap:
        self.fd = os.memfd_create("boxes", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, size)
        return mmap.mmap(self.fd, size)

    def buffer(self, pool: Any, offset: int) -> Any:
        buffer = pool.create_buffer(offset, WIDTH, HEIGHT, STRIDE, WlShm.format.xrgb8888.value)
        buffer.busy = False
        buffer.dispatcher["release"] = lambda buffer: setattr(buffer, "busy", False)
        return buffer

    def show(self, buffer: Any, frame: int, *, everything: bool = False) -> None:
        """Commits a frame, and waits until it is time for the next."""
        x, y = place_of(frame)
        self.shown.attach(buffer, 0, 0)
        buffer.busy = True
        if everything:
            self.shown.damage_buffer(0, 0, WIDTH, HEIGHT)
        elif self.mode == "surface":
            self.shown.damage(x // 2, y // 2, SIDE // 2 + 1, SIDE // 2 + 1)
        elif self.mode == "viewport":
            # Source (20, 10, 240, 180) is shown as 480 x 360.
            self.shown.damage((x - 20) * 2, (y - 10) * 2, SIDE * 2, SIDE * 2)
            self.shown.damage(0, 0, 1, 1)  # a frame that shows nothing new has no end to wait for
        else:
            self.shown.damage_buffer(x, y, SIDE, SIDE)
        done = []
        callback = self.surface.frame()
        callback.dispatcher["done"] = lambda callback, time: done.append(time)
        self.shown.commit()
        if self.shown is not self.surface:
            self.surface.commit()
        self.wait(lambda: bool(done))

    def run(self, frames: int) -> None:
        if self.mode == "surface":
            self.surface.set_buffer_scale(2)
        if self.mode == "viewport":
            viewport = self.globals["wp_viewporter"].get_viewport(self.surface)
            viewport.set_source(20, 10, 240, 180)
            viewport.set_destination(480, 360)
            self._keep.append(viewport)
        if self.mode == "subsurface":
            self.below()
        if self.mode == "pools":
            self.new_pools(frames)
        elif self.mode == "grow":
            self.growing_pool(frames)
        else:
            self.two_buffers(frames)
        if self.mode == "cut":
            os.ftruncate(self.fd, 0)
            self.surface.damage_buffer(0, 0, WIDTH, HEIGHT)
            self.surface.commit()
        print("done", flush=True)
        while self.display.dispatch(block=True) >= 0:
            pass
        raise SystemExit("the connection is gone")

    def below(self) -> None:
        """The toplevel gets one still picture; what follows is on a sub-surface."""
        memory = self.memory(SIZE)
        pool = self.shm.create_pool(self.fd, SIZE)
        memory[:] = bytes((10, 90, 200, 255)) * (WIDTH * HEIGHT)
        self.surface.attach(self.buffer(pool, 0), 0, 0)
        self.surface.damage_buffer(0, 0, WIDTH, HEIGHT)
        self.shown = self.globals["wl_compositor"].create_surface()
        subsurface = self.globals["wl_subcompositor"].get_subsurface(self.shown, self.surface)
        subsurface.set_position(20, 30)
        self._keep += [subsurface, pool, memory]

    def two_buffers(self, frames: int) -> None:
        memory = self.memory(2 * SIZE)
        pool = self.shm.create_pool(self.fd, 2 * SIZE)
        canvases = [(self.buffer(pool, offset), Canvas(memory, offset)) for offset in (0, SIZE)]
        for frame in range(frames):
            buffer, canvas = canvases[frame % 2]
            self.wait(lambda buffer=buffer: not buffer.busy)  # type: ignore[misc]
            canvas.draw_up_to(frame)
            self.show(buffer, frame, everything=frame == 0)
        self._keep += [pool, memory]

    def new_pools(self, frames: int) -> None:
        old = None
        for frame in range(frames):
            memory = self.memory(SIZE)
            pool = self.shm.create_pool(self.fd, SIZE)
            buffer = self.buffer(pool, 0)
            pool.destroy()
            os.close(self.fd)
            Canvas(memory, 0).draw_up_to(frame)
            self.show(buffer, frame)
            if old is not None:
                old.destroy()
            old = buffer
            memory.close()
        self._keep.append(old)

    def growing_pool(self, frames: int) -> None:
        self.memory(SIZE).close()
        pool = self.shm.create_pool(self.fd, SIZE)
        old = None
        for frame in range(frames):
            size = (frame + 1) * SIZE
            os.ftruncate(self.fd, size)
            if frame:
                pool.resize(size)
            buffer = self.buffer(pool, frame * SIZE)
            with mmap.mmap(self.fd, size) as memory:
                Canvas(memory, frame * SIZE).draw_up_to(frame)
            self.show(buffer, frame)
            if old is not None:
                old.destroy()
            old = buffer
        self._keep += [old, pool]


App(sys.argv[1]).run(int(sys.argv[2]))
