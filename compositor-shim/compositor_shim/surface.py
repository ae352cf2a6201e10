"""wl_surface and what belongs to it: pending and current state, subsurfaces, viewports, frame callbacks.

A commit applies everything at once, as the protocol wants it; a synchronised subsurface keeps its commit until its parent's.
Which pixels end up where on the screen is ``scene``'s business; what a toplevel or popup is, ``shell``'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

from pywayland.protocol.presentation_time import WpPresentation, WpPresentationFeedback
from pywayland.protocol.viewporter import WpViewport, WpViewporter
from pywayland.protocol.wayland import (
    WlCallback,
    WlCompositor,
    WlRegion,
    WlSubcompositor,
    WlSubsurface,
    WlSurface,
)

from compositor_shim.resource import Resource
from compositor_shim.shm import Buffer, Picture

Rectangle = tuple[float, float, float, float]


class Stage(Protocol):
    """The compositor, as surfaces see it."""

    def committed(self, surface: Surface) -> None:
        """Something may look different now."""

    def surface_gone(self, surface: Surface) -> None: ...


class Role(Protocol):
    """What a surface is for. Only one for its whole life."""

    role_name: str

    def before_commit(self, _surface: Surface, state: State) -> None:
        """May raise ProtocolViolation."""

    def after_commit(self, _surface: Surface) -> None: ...


class Callback(Resource):
    WIRE = WlCallback.resource_class


class Feedback(Resource):
    WIRE = WpPresentationFeedback.resource_class


@dataclass
class State:
    """What a commit applies. ``attached``: whether there was an attach since the last one."""

    attached: bool = False
    buffer: Buffer | None = None
    scale: int = 1
    transform: int = 0
    source: Rectangle | None = None
    destination: tuple[int, int] | None = None
    input_boxes: list[tuple[bool, Rectangle]] | None = None
    callbacks: list[Callback] = field(default_factory=list)
    feedbacks: list[Feedback] = field(default_factory=list)

    def next(self) -> State:
        """What is pending after a commit: values stay, attachments and callbacks are used up."""
        return replace(self, attached=False, buffer=None, callbacks=[], feedbacks=[])


class CompositorGlobal(Resource):
    WIRE = WlCompositor.resource_class
    stage: Stage

    def create_surface(self, object_id: int) -> None:
        Surface(self, object_id, self.stage)

    def create_region(self, object_id: int) -> None:
        Region(self, object_id)


class Region(Resource):
    WIRE = WlRegion.resource_class

    def __init__(self, parent: Resource, object_id: int) -> None:
        super().__init__(parent, object_id)
        self.boxes: list[tuple[bool, Rectangle]] = []

    def add(self, x: int, y: int, width: int, height: int) -> None:
        self.boxes.append((True, (x, y, width, height)))

    def subtract(self, x: int, y: int, width: int, height: int) -> None:
        self.boxes.append((False, (x, y, width, height)))


class Surface(Resource):
    """``picture`` is what its current buffer showed at the commit, or None: then it isn't mapped."""

    WIRE = WlSurface.resource_class

    def __init__(self, parent: Resource, object_id: int, stage: Stage) -> None:
        super().__init__(parent, object_id)
        self.stage = stage
        self.pending = State()
        self.current = State()
        self.cached: State | None = None
        self.picture: Picture | None = None
        self.role: Role | None = None
        self.role_object: Resource | None = None
        self.viewport: Viewport | None = None
        #: Bottom to top; the surface itself stands among its children.
        self.stack: list[Surface] = [self]
        self.entered = False

    # Requests

    def attach(self, buffer: Buffer | None, x: int, y: int) -> None:
        if self.version >= 5 and (x or y):
            raise self.violate(WlSurface.error.invalid_offset.value, "attach with an offset, since version 5")
        self.pending.attached = True
        self.pending.buffer = buffer

    def frame(self, object_id: int) -> None:
        self.pending.callbacks.append(Callback(self, object_id))

    def set_input_region(self, region: Region | None) -> None:
        self.pending.input_boxes = None if region is None else list(region.boxes)

    def set_buffer_scale(self, scale: int) -> None:
        if scale < 1:
            raise self.violate(WlSurface.error.invalid_scale.value, f"buffer scale {scale}")
        self.pending.scale = scale

    def set_buffer_transform(self, transform: int) -> None:
        if not 0 <= transform <= 7:
            raise self.violate(WlSurface.error.invalid_transform.value, f"buffer transform {transform}")
        self.pending.transform = transform

    def commit(self) -> None:
        self._check(self.pending)
        state, self.pending = self.pending, self.pending.next()
        if self.cached is not None:
            # What an earlier commit left undone goes with this one.
            state.callbacks[:0] = self.cached.callbacks
            state.feedbacks[:0] = self.cached.feedbacks
            if not state.attached and self.cached.attached:
                state.attached, state.buffer = True, self.cached.buffer
            self.cached = None
        if isinstance(self.role, Subsurface) and self.role.is_synchronised():
            self.cached = state
        else:
            self.apply(state)

    def destroy(self) -> None:
        if self.role_object is not None and self.role_object.alive and not isinstance(self.role, Subsurface):
            code = WlSurface.error.defunct_role_object.value if self.version >= 6 else 0
            if code:
                raise self.violate(code, f"destroyed before its {self.role_object.name}")

    # State

    def _check(self, state: State) -> None:
        if state.attached and state.buffer is not None and state.buffer.alive:
            width, height = state.buffer.size
            if self.version >= 6 and (width % state.scale or height % state.scale):
                raise self.violate(
                    WlSurface.error.invalid_size.value, f"a buffer of {width}x{height} at scale {state.scale}"
                )
        if self.role is not None:
            self.role.before_commit(self, state)

    def apply(self, state: State) -> None:
        """The state becomes current, with the pixels that the buffer has now."""
        old = self.current
        old_callbacks = old.callbacks
        self.current = state
        state.callbacks = [*old_callbacks, *state.callbacks]
        for feedback in old.feedbacks:
            feedback.send("discarded")
            feedback.end()
        if state.attached:
            buffer = state.buffer
            if buffer is None or not buffer.alive:
                self.picture = None
            else:
                self.picture = buffer.copy()
                buffer.send("release")
        if self.viewport is not None:
            self.viewport.check(state)
        if self.role is not None:
            self.role.after_commit(self)
        for child in self.stack:
            if child is not self and isinstance(child.role, Subsurface):
                child.role.parent_applied()
        self.stage.committed(self)

    def size(self) -> tuple[int, int]:
        """In surface coordinates; (0, 0) without content."""
        if self.picture is None:
            return (0, 0)
        state = self.current
        if state.destination is not None:
            return state.destination
        if state.source is not None:
            return (int(state.source[2]), int(state.source[3]))
        width, height = self.picture.size
        if state.transform % 2:
            width, height = height, width
        return (width // state.scale, height // state.scale)

    def takes_input_at(self, x: float, y: float) -> bool:
        width, height = self.size()
        if not (0 <= x < width and 0 <= y < height):
            return False
        boxes = self.current.input_boxes
        inside = boxes is None
        for adds, (left, top, box_width, box_height) in boxes or ():
            if left <= x < left + box_width and top <= y < top + box_height:
                inside = adds
        return inside

    def tree(self, x: float = 0, y: float = 0) -> Iterator[tuple[Surface, float, float]]:
        """This surface and its mapped subsurfaces, bottom to top, with where each is."""
        if self.picture is None:
            return
        for surface in self.stack:
            if surface is self:
                yield self, x, y
            elif isinstance(surface.role, Subsurface):
                left, top = surface.role.position
                yield from surface.tree(x + left, y + top)

    def gone(self) -> None:
        for state in (self.pending, self.current, self.cached):
            for callback in state.callbacks if state else ():
                callback.end()
        if isinstance(self.role, Subsurface):
            self.role.leave()
        self.picture = None
        self.stage.surface_gone(self)


class Subcompositor(Resource):
    WIRE = WlSubcompositor.resource_class

    def get_subsurface(self, object_id: int, surface: Surface, parent: Surface) -> None:
        if surface.role is not None:
            raise self.violate(WlSubcompositor.error.bad_surface.value, f"{surface.name} has a role already")
        above: Surface | None = parent
        while above is not None:
            if above is surface:
                raise self.violate(WlSubcompositor.error.bad_surface.value, "a surface can't be its own parent")
            above = above.role.parent if isinstance(above.role, Subsurface) else None
        Subsurface(self, object_id, surface, parent)


class Subsurface(Resource):
    WIRE = WlSubsurface.resource_class
    role_name = "wl_subsurface"

    def __init__(self, parent_resource: Resource, object_id: int, surface: Surface, parent: Surface) -> None:
        super().__init__(parent_resource, object_id)
        self.surface = surface
        self.parent: Surface | None = parent
        self.position = (0, 0)
        self._next_position: tuple[int, int] | None = None
        self._next_stack: list[Surface] | None = None
        self.synchronised = True
        surface.role = self
        surface.role_object = self
        parent.stack = [*parent.stack, surface]

    def is_synchronised(self) -> bool:
        parent_role = self.parent.role if self.parent else None
        above = isinstance(parent_role, Subsurface) and parent_role.is_synchronised()
        return self.synchronised or above

    def set_position(self, x: int, y: int) -> None:
        self._next_position = (x, y)

    def place_above(self, sibling: Surface) -> None:
        self._place(sibling, 1)

    def place_below(self, sibling: Surface) -> None:
        self._place(sibling, 0)

    def _place(self, sibling: Surface, step: int) -> None:
        if self.parent is None:
            return
        stack = list(self._next_stack or self.parent.stack)
        if sibling is self.surface or sibling not in stack:
            raise self.violate(WlSubsurface.error.bad_surface.value, f"{sibling.name} is no sibling and not the parent")
        stack.remove(self.surface)
        stack.insert(stack.index(sibling) + step, self.surface)
        self._next_stack = stack

    def set_sync(self) -> None:
        self.synchronised = True

    def set_desync(self) -> None:
        self.synchronised = False
        if not self.is_synchronised():
            self._apply_cached()

    def parent_applied(self) -> None:
        """The parent's state was applied: position and order take effect, and what was kept back."""
        if self._next_position is not None:
            self.position, self._next_position = self._next_position, None
        if self._next_stack is not None and self.parent is not None:
            self.parent.stack, self._next_stack = self._next_stack, None
        if self.is_synchronised():
            self._apply_cached()

    def _apply_cached(self) -> None:
        if self.surface.cached is not None:
            state, self.surface.cached = self.surface.cached, None
            self.surface.apply(state)

    def before_commit(self, _surface: Surface, state: State) -> None:
        pass

    def after_commit(self, _surface: Surface) -> None:
        pass

    def leave(self) -> None:
        if self.parent is not None:
            self.parent.stack = [child for child in self.parent.stack if child is not self.surface]
            self.parent = None

    def gone(self) -> None:
        self.leave()
        self.surface.picture = None


class Viewporter(Resource):
    WIRE = WpViewporter.resource_class

    def get_viewport(self, object_id: int, surface: Surface) -> None:
        if surface.viewport is not None:
            raise self.violate(WpViewporter.error.viewport_exists.value, f"{surface.name} has a viewport already")
        Viewport(self, object_id, surface)


class Viewport(Resource):
    WIRE = WpViewport.resource_class

    def __init__(self, parent: Resource, object_id: int, surface: Surface) -> None:
        super().__init__(parent, object_id)
        self.surface = surface
        surface.viewport = self

    def set_source(self, x: float, y: float, width: float, height: float) -> None:
        if (x, y, width, height) == (-1, -1, -1, -1):
            self.surface.pending.source = None
        elif x < 0 or y < 0 or width <= 0 or height <= 0:
            raise self.violate(WpViewport.error.bad_value.value, f"source {x},{y} {width}x{height}")
        else:
            self.surface.pending.source = (x, y, width, height)

    def set_destination(self, width: int, height: int) -> None:
        if (width, height) == (-1, -1):
            self.surface.pending.destination = None
        elif width <= 0 or height <= 0:
            raise self.violate(WpViewport.error.bad_value.value, f"destination {width}x{height}")
        else:
            self.surface.pending.destination = (width, height)

    def check(self, state: State) -> None:
        """What can only be seen when the buffer is known."""
        picture = self.surface.picture
        if picture is None or state.source is None or not self.alive:
            return
        width, height = picture.size
        if state.transform % 2:
            width, height = height, width
        x, y, source_width, source_height = state.source
        if x + source_width > width / state.scale or y + source_height > height / state.scale:
            raise self.violate(WpViewport.error.out_of_buffer.value, "the source rectangle is outside of the buffer")
        if state.destination is None and (source_width % 1 or source_height % 1):
            raise self.violate(WpViewport.error.bad_size.value, "a source size that isn't whole needs a destination")

    def gone(self) -> None:
        self.surface.viewport = None
        self.surface.pending.source = self.surface.pending.destination = None


class Presentation(Resource):
    WIRE = WpPresentation.resource_class

    def feedback(self, surface: Surface, object_id: int) -> None:
        surface.pending.feedbacks.append(Feedback(self, object_id))
