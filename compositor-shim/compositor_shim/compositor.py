"""The compositor: all globals together, the windows in their order, who has the focus, and the picture of it all."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from pywayland.protocol.presentation_time import WpPresentationFeedback

from compositor_shim import output, scene, security, selection, shell, shm, surface
from compositor_shim.output import Screen
from compositor_shim.resource import Resource
from compositor_shim.seat import CursorShapeManager, Seat, SeatState
from compositor_shim.server import Server, now_ms

BACKGROUND = (32, 64, 96)
_PERIOD_S = 1 / output.REFRESH_HZ


class Compositor:
    """What is on the screen. ``windows`` are the mapped toplevels, bottom to top; the topmost has the keyboard."""

    def __init__(self, server: Server, screen: Screen, *, keymap_from: str = "memfd") -> None:
        self.server = server
        self.screen = screen
        self.size = screen.size
        self.windows: list[shell.Toplevel] = []
        self.popups: list[shell.Popup] = []
        self.surfaces: list[surface.Surface] = []
        self.frames = 0
        self._frame_is_due = False
        self._last_shown: list[scene.Layer] = []
        self._window_numbers = 0
        self._serial = 0
        self.seat = SeatState(self, keymap_from)
        self.clipboard = selection.Board(selection.DataDevice)
        self.primary = selection.Board(selection.PrimaryDevice)
        self.drag = selection.Drag()
        server.on_leave = lambda _: self.remember()
        self._announce()

    def _announce(self) -> None:
        def compositor(bound: Resource) -> None:
            assert isinstance(bound, surface.CompositorGlobal)
            bound.stage = self

        def wm_base(bound: Resource) -> None:
            assert isinstance(bound, shell.WmBase)
            bound.desk = self

        def seat(bound: Resource) -> None:
            assert isinstance(bound, Seat)
            bound.state = self.seat
            bound.greet()

        def screen(bound: Resource) -> None:
            assert isinstance(bound, output.Output)
            bound.screen = self.screen
            bound.greet()

        def devices(bound: Resource) -> None:
            assert isinstance(bound, selection.DeviceManager)
            is_clipboard = isinstance(bound, selection.DataDeviceManager)
            bound.seat, bound.drag = self.seat, self.drag
            bound.board = self.clipboard if is_clipboard else self.primary

        def contexts(bound: Resource) -> None:
            assert isinstance(bound, security.SecurityContextManager)
            bound.server = self.server

        announce = self.server.announce
        announce(shm.Shm, 1, lambda bound: bound.announce_formats())  # type: ignore[attr-defined]
        announce(surface.CompositorGlobal, 6, compositor)
        announce(surface.Subcompositor, 1)
        announce(shell.WmBase, 5, wm_base)
        announce(Seat, 8, seat)
        announce(output.Output, 4, screen)
        announce(selection.DataDeviceManager, 3, devices)
        announce(selection.PrimaryDeviceManager, 1, devices)
        announce(surface.Viewporter, 1)
        announce(surface.Presentation, 1, lambda bound: bound.send("clock_id", 1))  # CLOCK_MONOTONIC
        announce(shell.DecorationManager, 1)
        announce(output.XdgOutputManager, 3)
        announce(shm.SinglePixelManager, 1)
        announce(CursorShapeManager, 1)
        announce(security.SecurityContextManager, 1, contexts)

    def next_serial(self) -> int:
        self._serial += 1
        return self._serial

    # Frames

    def committed(self, changed: surface.Surface) -> None:
        if changed not in self.surfaces:
            self.surfaces.append(changed)
        if not changed.entered and changed.picture is not None:
            changed.entered = True
            for screen in changed.connection.all(output.Output):
                changed.send("enter", screen)
        if not self._frame_is_due:
            self._frame_is_due = True
            self.server.after(_PERIOD_S, self._frame)

    def _frame(self) -> None:
        self._frame_is_due = False
        self.frames += 1
        self.remember()
        now = now_ms()
        for one in list(self.surfaces):
            callbacks, one.current.callbacks = one.current.callbacks, []
            for callback in callbacks:
                callback.send("done", now)
                callback.end()
            feedbacks, one.current.feedbacks = one.current.feedbacks, []
            for feedback in feedbacks:
                self._presented(one, feedback)

    def _presented(self, one: surface.Surface, feedback: surface.Feedback) -> None:
        for screen in one.connection.all(output.Output):
            feedback.send("sync_output", screen)
        seconds, milliseconds = divmod(now_ms(), 1000)
        flags = WpPresentationFeedback.kind.vsync.value
        feedback.send(
            "presented", 0, seconds, milliseconds * 1_000_000, 10**9 // output.REFRESH_HZ, 0, self.frames, flags
        )
        feedback.end()

    def surface_gone(self, gone: surface.Surface) -> None:
        if gone in self.surfaces:
            self.surfaces.remove(gone)
        self.seat.surface_gone(gone)

    # Windows

    def is_focused(self, window: shell.Toplevel) -> bool:
        return not self.windows or self.windows[-1] is window or not window.mapped

    def window_mapped(self, window: shell.Toplevel) -> None:
        width, height = window.shell.box()[2:]
        offset = 24 * (len(self.windows) % 8)
        window.position = tuple(  # type: ignore[assignment]
            max(0, (whole - part) // 2 + offset) for whole, part in zip(self.size, (width, height), strict=True)
        )
        self._window_numbers += 1
        window.number = self._window_numbers
        self.windows.append(window)
        self._focus_topmost()

    def window_unmapped(self, window: shell.Toplevel) -> None:
        if window in self.windows:
            self.windows.remove(window)
        self._focus_topmost()

    def popup_changed(self, popup: shell.Popup) -> None:
        if popup in self.popups:
            self.popups.remove(popup)
        if popup.mapped:
            self.popups.append(popup)

    def raise_window(self, window: shell.Toplevel) -> None:
        if window in self.windows and self.windows[-1] is not window:
            self.windows.remove(window)
            self.windows.append(window)
            self._focus_topmost()

    def _focus_topmost(self) -> None:
        target = self.windows[-1].surface if self.windows else None
        old = self.seat.keyboard_focus
        if target is old:
            return
        self.seat.focus_keyboard(target)
        self.clipboard.announce(target)
        self.primary.announce(target)
        for window in self.windows:
            if window.surface in (old, target) and window.alive:
                window.configure()

    def layers(self) -> list[tuple[surface.Surface, int, int]]:
        """Toplevels and popups with where their surfaces begin, bottom to top."""
        found = []
        for window in self.windows:
            left, top = window.position
            x, y = window.shell.box()[:2]
            found.append((window.surface, left - x, top - y))
        for popup in self.popups:
            left, top = popup.parent_position()
            x, y = popup.shell.box()[:2]
            found.append((popup.surface, left + popup.position[0] - x, top + popup.position[1] - y))
        return found

    def surface_at(self, x: float, y: float) -> tuple[surface.Surface | None, tuple[float, float]]:
        """The topmost surface that takes input there, and where on it that is."""
        for base, left, top in reversed(self.layers()):
            for part, part_left, part_top in reversed(list(base.tree(left, top))):
                local = (x - part_left, y - part_top)
                if part.takes_input_at(*local):
                    return part, local
        return None, (0.0, 0.0)

    # Input

    def move_pointer(self, x: float, y: float) -> None:
        target, local = self.surface_at(x, y)
        if self.drag.source is not None:
            self.seat.pointer_at = (x, y)
            self.drag.move(target, local, self.next_serial(), now_ms())
        else:
            self.seat.move_pointer((x, y), target, local)

    def button(self, code: int, pressed: bool) -> None:
        target, _ = self.surface_at(*self.seat.pointer_at)
        if pressed:
            self._dismiss_popups_unless_in(target)
            for window in self.windows:
                if target is not None and target in [part for part, _, _ in window.surface.tree()]:
                    self.raise_window(window)
                    break
        elif self.drag.source is not None:
            self.drag.drop()
            return
        self.seat.button(code, pressed)

    def _dismiss_popups_unless_in(self, target: surface.Surface | None) -> None:
        grabbing = [popup for popup in self.popups if popup.grabs]
        inside = any(target in [part for part, _, _ in popup.surface.tree()] for popup in grabbing)
        if not inside:
            for popup in reversed(grabbing):
                popup.dismiss()

    def touch_down(self, finger: int, x: float, y: float) -> None:
        target, local = self.surface_at(x, y)
        if target is not None:
            self.seat.touch_down(finger, target, local)

    def touch_move(self, finger: int, x: float, y: float) -> None:
        touched = self.seat.touches.get(finger)
        for base, left, top in self.layers():
            for part, part_left, part_top in base.tree(left, top):
                if part is touched:
                    self.seat.touch_move(finger, (x - part_left, y - part_top))

    # The picture

    def shown(self) -> list[scene.Layer]:
        """What is on the screen, bottom to top."""
        found = [layer for base, left, top in self.layers() for layer in scene.layers(base, left, top)]
        if self.seat.cursor is not None:
            shape, hot_x, hot_y = self.seat.cursor
            x, y = self.seat.pointer_at
            found += scene.layers(shape, x - hot_x, y - hot_y)
        return found

    def picture(self, shown: list[scene.Layer] | None = None) -> Image.Image:
        """What the screen shows, RGB."""
        screen = Image.new("RGB", self.screen.mode, BACKGROUND)
        scene.paint(screen, self.shown() if shown is None else shown, self.screen.scale)
        return screen

    def save_last(self, path: Path) -> None:
        """Writes the screen as it was when it last showed a window: at the end, its clients are gone already."""
        self.remember()
        self.picture(self._last_shown).save(path, "PNG")

    def remember(self) -> None:
        if self.windows:
            self._last_shown = self.shown()

    def close(self) -> None:
        self.server.close()
        self.seat.keymap.close()
