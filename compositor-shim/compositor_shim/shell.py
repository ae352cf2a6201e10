"""xdg-shell: toplevels and popups, with their handshakes, and the decorations protocol that goes with it.

The strictness is xdg-shell's own: no buffer before the first configure is acknowledged, one role for a surface's whole life,
popups end from the topmost down.
"""

from __future__ import annotations

import struct
from typing import Protocol

from pywayland.protocol.xdg_decoration_unstable_v1 import ZxdgDecorationManagerV1, ZxdgToplevelDecorationV1
from pywayland.protocol.xdg_shell import XdgPopup, XdgPositioner, XdgSurface, XdgToplevel, XdgWmBase

from compositor_shim.resource import Resource
from compositor_shim.surface import State, Surface


class Desk(Protocol):
    """The compositor, as windows see it."""

    size: tuple[int, int]

    def next_serial(self) -> int: ...
    def window_mapped(self, window: Toplevel) -> None: ...
    def window_unmapped(self, window: Toplevel) -> None: ...
    def popup_changed(self, popup: Popup) -> None: ...
    def is_focused(self, window: Toplevel) -> bool: ...


class WmBase(Resource):
    WIRE = XdgWmBase.resource_class
    desk: Desk

    def create_positioner(self, object_id: int) -> None:
        Positioner(self, object_id)

    def get_xdg_surface(self, object_id: int, surface: Surface) -> None:
        if surface.role is not None:
            raise self.violate(XdgWmBase.error.role.value, f"{surface.name} is a {surface.role.role_name} already")
        if surface.picture is not None or surface.pending.buffer is not None:
            raise self.violate(XdgWmBase.error.invalid_surface_state.value, f"{surface.name} has a buffer already")
        Shell(self, object_id, surface, self.desk)

    def destroy(self) -> None:
        if any(shell.base is self for shell in self.connection.all(Shell)):
            raise self.violate(XdgWmBase.error.defunct_surfaces.value, "destroyed before its surfaces")


class Positioner(Resource):
    """Where a popup goes: a rectangle of its parent, an edge of that, a direction, an offset."""

    WIRE = XdgPositioner.resource_class

    def __init__(self, parent: Resource, object_id: int) -> None:
        super().__init__(parent, object_id)
        self.size = (0, 0)
        self.anchor_rect: tuple[int, int, int, int] | None = None
        self.anchor = self.gravity = self.adjustment = 0
        self.offset = (0, 0)

    def set_size(self, width: int, height: int) -> None:
        if width < 1 or height < 1:
            raise self.violate(XdgPositioner.error.invalid_input.value, f"size {width}x{height}")
        self.size = (width, height)

    def set_anchor_rect(self, x: int, y: int, width: int, height: int) -> None:
        if width < 0 or height < 0:
            raise self.violate(XdgPositioner.error.invalid_input.value, f"anchor rectangle {width}x{height}")
        self.anchor_rect = (x, y, width, height)

    def set_anchor(self, anchor: int) -> None:
        self.anchor = anchor

    def set_gravity(self, gravity: int) -> None:
        self.gravity = gravity

    def set_constraint_adjustment(self, adjustment: int) -> None:
        self.adjustment = adjustment

    def set_offset(self, x: int, y: int) -> None:
        self.offset = (x, y)

    def place(self, parent_at: tuple[int, int], screen: tuple[int, int]) -> tuple[int, int]:
        """The popup's position relative to its parent, slid onto the screen where that is allowed."""
        assert self.anchor_rect is not None
        x, y, width, height = self.anchor_rect
        left = x + _share(self.anchor, _LEFT, _RIGHT, width) + self.offset[0]
        top = y + _share(self.anchor, _TOP, _BOTTOM, height) + self.offset[1]
        left -= self.size[0] - _share(self.gravity, _LEFT, _RIGHT, self.size[0])
        top -= self.size[1] - _share(self.gravity, _TOP, _BOTTOM, self.size[1])
        if self.adjustment & (1 | 4):  # slide_x, flip_x
            left = max(-parent_at[0], min(left, screen[0] - parent_at[0] - self.size[0]))
        if self.adjustment & (2 | 8):  # slide_y, flip_y
            top = max(-parent_at[1], min(top, screen[1] - parent_at[1] - self.size[1]))
        return left, top


# xdg_positioner.anchor and gravity: 0 none, 1 top, 2 bottom, 3 left, 4 right, then the corners.
_TOP, _BOTTOM, _LEFT, _RIGHT = {1, 5, 7}, {2, 6, 8}, {3, 5, 6}, {4, 7, 8}


def _share(side: int, low: set[int], high: set[int], length: int) -> int:
    return 0 if side in low else length if side in high else length // 2


class Shell(Resource):
    """xdg_surface."""

    WIRE = XdgSurface.resource_class

    def __init__(self, base: WmBase, object_id: int, surface: Surface, desk: Desk) -> None:
        super().__init__(base, object_id)
        self.base = base
        self.surface = surface
        self.desk = desk
        self.window: Toplevel | Popup | None = None
        self.serials: list[int] = []
        self.acknowledged = False
        self.initial_commit_done = False
        self.geometry: tuple[int, int, int, int] | None = None

    def get_toplevel(self, object_id: int) -> None:
        self._check_unused()
        Toplevel(self, object_id)

    def get_popup(self, object_id: int, parent: Shell | None, positioner: Positioner) -> None:
        self._check_unused()
        if not positioner.size[0] or positioner.anchor_rect is None:
            raise self.base.violate(
                XdgWmBase.error.invalid_positioner.value, "the positioner lacks a size or a rectangle"
            )
        if parent is None or parent.window is None:
            raise self.base.violate(XdgWmBase.error.invalid_popup_parent.value, "the popup's parent is no window")
        Popup(self, object_id, parent, positioner)

    def _check_unused(self) -> None:
        if self.surface.role is not None:
            raise self.violate(XdgSurface.error.already_constructed.value, f"{self.surface.name} has a role already")

    def set_window_geometry(self, x: int, y: int, width: int, height: int) -> None:
        if width < 1 or height < 1:
            raise self.violate(XdgSurface.error.invalid_size.value, f"window geometry {width}x{height}")
        self.geometry = (x, y, width, height)

    def ack_configure(self, serial: int) -> None:
        if serial not in self.serials:
            raise self.violate(XdgSurface.error.invalid_serial.value, f"serial {serial} is of no configure")
        self.serials = self.serials[self.serials.index(serial) + 1 :]
        self.acknowledged = True

    def configure(self) -> None:
        serial = self.desk.next_serial()
        self.serials.append(serial)
        self.send("configure", serial)

    def destroy(self) -> None:
        if self.window is not None and self.window.alive:
            raise self.violate(XdgSurface.error.defunct_role_object.value, f"destroyed before {self.window.name}")

    def before_commit(self, state: State) -> None:
        if state.attached and state.buffer is not None and not self.acknowledged:
            raise self.violate(
                XdgSurface.error.unconfigured_buffer.value, "a buffer before the configure is acknowledged"
            )

    def box(self) -> tuple[int, int, int, int]:
        """The window geometry in surface coordinates: what the user thinks of as the window."""
        width, height = self.surface.size()
        return self.geometry or (0, 0, width, height)


class _Window(Resource):
    """What toplevels and popups share."""

    role_name = "xdg_surface"

    def __init__(self, shell: Shell, object_id: int) -> None:
        super().__init__(shell, object_id)
        self.shell = shell
        self.surface = shell.surface
        self.mapped = False
        shell.window = self  # type: ignore[assignment]
        self.surface.role = self
        self.surface.role_object = shell

    def before_commit(self, _surface: Surface, state: State) -> None:
        self.shell.before_commit(state)

    def after_commit(self, surface: Surface) -> None:
        if not self.shell.initial_commit_done:
            self.shell.initial_commit_done = True
            self.configure()
        mapped = surface.picture is not None
        if mapped != self.mapped and self.alive:
            self.mapped = mapped
            self.changed()

    def configure(self) -> None:
        raise NotImplementedError

    def changed(self) -> None:
        raise NotImplementedError

    def gone(self) -> None:
        if self.mapped:
            self.mapped = False
            self.changed()
        self.surface.picture = None
        self.shell.acknowledged = self.shell.initial_commit_done = False


class Toplevel(_Window):
    WIRE = XdgToplevel.resource_class

    def __init__(self, shell: Shell, object_id: int) -> None:
        super().__init__(shell, object_id)
        self.number = 0
        self.title = ""
        self.app_id = ""
        self.position = (0, 0)
        self.wanted_size = (0, 0)
        self.states: set[int] = set()
        self.decoration: Decoration | None = None

    def set_title(self, title: str) -> None:
        self.title = title

    def set_app_id(self, app_id: str) -> None:
        self.app_id = app_id

    def set_parent(self, parent: Toplevel | None) -> None:
        if parent is self:
            raise self.violate(XdgToplevel.error.invalid_parent.value, "a window can't be its own parent")

    def set_max_size(self, width: int, height: int) -> None:
        self._check_size(width, height)

    def set_min_size(self, width: int, height: int) -> None:
        self._check_size(width, height)

    def _check_size(self, width: int, height: int) -> None:
        if width < 0 or height < 0:
            raise self.violate(XdgToplevel.error.invalid_size.value, f"size limit {width}x{height}")

    def set_maximized(self) -> None:
        self._fill(XdgToplevel.state.maximized.value)

    def set_fullscreen(self, _output: Resource | None) -> None:
        self._fill(XdgToplevel.state.fullscreen.value)

    def unset_maximized(self) -> None:
        self._unfill(XdgToplevel.state.maximized.value)

    def unset_fullscreen(self) -> None:
        self._unfill(XdgToplevel.state.fullscreen.value)

    def _fill(self, state: int) -> None:
        self.states.add(state)
        self.resize(*self.shell.desk.size)

    def _unfill(self, state: int) -> None:
        self.states.discard(state)
        self.resize(0, 0)

    def resize(self, width: int, height: int) -> None:
        """Asks the client for a size; 0, 0 leaves it to the client."""
        self.wanted_size = (width, height)
        if self.shell.initial_commit_done:
            self.configure()

    def configure(self) -> None:
        states = set(self.states)
        if self.shell.desk.is_focused(self):
            states.add(XdgToplevel.state.activated.value)
        self.send("configure", *self.wanted_size, struct.pack(f"={len(states)}I", *sorted(states)))
        if self.decoration is not None:
            self.decoration.send("configure", ZxdgToplevelDecorationV1.mode.server_side.value)
        self.shell.configure()

    def changed(self) -> None:
        if self.mapped:
            self.shell.desk.window_mapped(self)
        else:
            self.shell.desk.window_unmapped(self)


class Popup(_Window):
    WIRE = XdgPopup.resource_class

    def __init__(self, shell: Shell, object_id: int, parent: Shell, positioner: Positioner) -> None:
        super().__init__(shell, object_id)
        self.parent = parent
        self.grabs = False
        self.size = positioner.size
        self.position = self._place(positioner)

    def _place(self, positioner: Positioner) -> tuple[int, int]:
        return positioner.place(self.parent_position(), self.shell.desk.size)

    def parent_position(self) -> tuple[int, int]:
        """Where the parent's window geometry begins on the screen."""
        window = self.parent.window
        if isinstance(window, Popup):
            left, top = window.parent_position()
            return left + window.position[0], top + window.position[1]
        return window.position if window is not None else (0, 0)

    def grab(self, _seat: Resource, _serial: int) -> None:
        if self.mapped:
            raise self.violate(XdgPopup.error.invalid_grab.value, "a grab after the popup was mapped")
        self.grabs = True

    def reposition(self, positioner: Positioner, token: int) -> None:
        self.size = positioner.size
        self.position = self._place(positioner)
        self.send("repositioned", token)
        self.configure()
        self.shell.desk.popup_changed(self)

    def configure(self) -> None:
        self.send("configure", *self.position, *self.size)
        self.shell.configure()

    def dismiss(self) -> None:
        self.send("popup_done")

    def destroy(self) -> None:
        if any(popup.parent is self.shell and popup.mapped for popup in self.connection.all(Popup)):
            base = self.shell.base
            raise base.violate(XdgWmBase.error.not_the_topmost_popup.value, f"{self.name} has a popup of its own")

    def changed(self) -> None:
        self.shell.desk.popup_changed(self)


class DecorationManager(Resource):
    WIRE = ZxdgDecorationManagerV1.resource_class

    def get_toplevel_decoration(self, object_id: int, toplevel: Toplevel) -> None:
        if toplevel.decoration is not None:
            raise self.violate(
                ZxdgToplevelDecorationV1.error.already_constructed.value, f"{toplevel.name} has one already"
            )
        Decoration(self, object_id, toplevel)


class Decoration(Resource):
    """The screen shows no decorations, so they are always the server's: windows look the same everywhere."""

    WIRE = ZxdgToplevelDecorationV1.resource_class

    def __init__(self, parent: Resource, object_id: int, toplevel: Toplevel) -> None:
        super().__init__(parent, object_id)
        self.toplevel = toplevel
        toplevel.decoration = self
        if toplevel.shell.initial_commit_done:
            toplevel.configure()

    def set_mode(self, _mode: int) -> None:
        if self.toplevel.shell.initial_commit_done:
            self.toplevel.configure()

    def unset_mode(self) -> None:
        self.set_mode(0)

    def gone(self) -> None:
        self.toplevel.decoration = None
