"""What surfaces show, and which pixels of it have changed: the state of wl_surface and wp_viewport, as far as that needs it.

Pure: no file, no socket, no object map. Every step costs the same however many surfaces and contents there are, since a
content knows who shows it and who follows it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from waylend.guest_half.damage import Damage, ViewportState

#: Contents of one surface whose damage is followed; one more, and the oldest counts as changed everywhere.
MAX_FOLLOWED = 8
#: Rectangles that one commit may have; with more of them everything has changed.
_MAX_DAMAGE = 64

Box = tuple[int, int, int, int]


class SurfaceContent:
    """A buffer of ``width`` x ``height`` pixels, as surfaces know it.

    ``stale`` is what was drawn since it was last copied. ``busy``: the compositor may look at it, from the commit that showed
    it to its release. Invariants: ``shown_by`` counts the surfaces whose current content it is; it is in ``followed`` of
    ``follower`` and of no other surface; what is destroyed has no follower.
    """

    __slots__ = ("busy", "destroyed", "follower", "height", "shown_by", "stale", "width")

    def __init__(self, width: int, height: int) -> None:
        self.width = width
        self.height = height
        self.stale = Damage(width, height, whole=True)
        self.busy = False
        self.destroyed = False
        self.shown_by = 0
        self.follower: _Surface[Any] | None = None

    def copied(self) -> None:
        """Nothing of it is stale any more."""
        self.stale = Damage(self.width, self.height)

    def destroy(self) -> None:
        """The client has no name for it any more; a surface may show it still. Whoever has it pending gets nothing."""
        self.destroyed = True
        if self.follower is not None:
            self.follower.followed.remove(self)
            self.follower = None


C = TypeVar("C", bound=SurfaceContent)


class _Surface(Generic[C]):
    """A surface's pending and current state. At most MAX_FOLLOWED contents are ``followed``, the oldest first."""

    __slots__ = (
        "attached",
        "buffer_damage",
        "current",
        "damage_everywhere",
        "followed",
        "geometry",
        "pending",
        "scale",
        "surface_damage",
        "transform",
        "viewport",
    )

    def __init__(self) -> None:
        self.pending: C | None = None
        self.attached = False
        self.current: C | None = None
        self.followed: list[C] = []
        self.surface_damage: list[Box] = []
        self.buffer_damage: list[Box] = []
        self.damage_everywhere = False
        self.scale = 1
        self.transform = 0
        self.viewport = ViewportState()
        self.geometry: tuple[object, ...] = ()

    def note(self, damage: list[Box], box: Box) -> None:
        if len(damage) < _MAX_DAMAGE:
            damage.append(box)
        else:
            self.damage_everywhere = True

    def follow(self, content: C) -> None:
        """What changes on this surface is stale in that content from now on; in it, everything is at first."""
        if content.follower is self:
            return
        if content.follower is not None:
            content.follower.followed.remove(content)
        content.follower = self
        content.stale.add_all()
        self.followed.append(content)
        if len(self.followed) > MAX_FOLLOWED:
            self._forget(self.followed.pop(0))

    def forget_all(self) -> None:
        for content in self.followed:
            self._forget(content)
        self.followed.clear()

    @staticmethod
    def _forget(content: SurfaceContent) -> None:
        content.follower = None
        content.stale.add_all()

    def spread_damage(self) -> None:
        """What this commit says has changed is stale in all contents that are followed."""
        content = self.current
        geometry: tuple[object, ...] = ()
        if content is not None:
            geometry = (content.width, content.height, self.scale, self.transform, self.viewport)
        if geometry != self.geometry or self.damage_everywhere or content is None:
            self.geometry = geometry
            for followed in self.followed:
                followed.stale.add_all()
        else:
            damage = Damage(content.width, content.height)
            for x, y, width, height in self.buffer_damage:
                damage.add(x, y, x + width, y + height)
            for x, y, width, height in self.surface_damage:
                damage.add_from_surface(
                    x, y, width, height, scale=self.scale, transform=self.transform, viewport=self.viewport
                )
            if damage:
                for followed in self.followed:
                    if (followed.width, followed.height) == (content.width, content.height):
                        followed.stale.add_damage(damage)
                    else:
                        followed.stale.add_all()
        self.surface_damage.clear()
        self.buffer_damage.clear()
        self.damage_everywhere = False


class Surfaces(Generic[C]):
    """One client's surfaces and viewports, by object id. ``on_hidden(content)``: no surface shows it any more.

    Raises KeyError for a surface that isn't there: the scan has refused what names one.
    """

    def __init__(self, on_hidden: Callable[[C], None]) -> None:
        self._on_hidden = on_hidden
        self._surfaces: dict[int, _Surface[C]] = {}
        #: The surface of each viewport, which may be gone.
        self._viewports: dict[int, _Surface[C]] = {}

    def create(self, surface_id: int) -> None:
        self._surfaces[surface_id] = _Surface()

    def attach(self, surface_id: int, content: C | None) -> None:
        """None: nothing, or something that needs no copying."""
        surface = self._surfaces[surface_id]
        surface.pending = content
        surface.attached = True

    def takes_damage(self, surface_id: int) -> bool:
        """Whether another rectangle means anything: not when everything has changed already."""
        return not self._surfaces[surface_id].damage_everywhere

    def damage(self, surface_id: int, box: Box) -> None:
        """(x, y, width, height) in the surface's coordinates."""
        surface = self._surfaces[surface_id]
        surface.note(surface.surface_damage, box)

    def damage_buffer(self, surface_id: int, box: Box) -> None:
        """(x, y, width, height) in the buffer's pixels."""
        surface = self._surfaces[surface_id]
        surface.note(surface.buffer_damage, box)

    def set_scale(self, surface_id: int, scale: int) -> None:
        self._surfaces[surface_id].scale = scale

    def set_transform(self, surface_id: int, transform: int) -> None:
        self._surfaces[surface_id].transform = transform

    def commit(self, surface_id: int) -> C | None:
        """Returns what the surface shows from now on; it is to be copied where it is stale."""
        surface = self._surfaces[surface_id]
        if surface.attached:
            content = surface.pending
            if content is not None and content.destroyed:
                content = None
            surface.attached = False
            surface.pending = None
            if content is not surface.current:
                if content is not None:
                    content.shown_by += 1
                self._show_instead(surface, content)
            if content is not None:
                content.busy = True
        if surface.current is not None and not surface.current.destroyed:
            # Without an attach, too: another surface may have shown it in between.
            surface.follow(surface.current)
        surface.spread_damage()
        return surface.current

    def _show_instead(self, surface: _Surface[C], content: C | None) -> None:
        previous, surface.current = surface.current, content
        if previous is not None:
            previous.shown_by -= 1
            if not previous.shown_by:
                self._on_hidden(previous)

    def destroy(self, surface_id: int) -> None:
        surface = self._surfaces.pop(surface_id)
        surface.forget_all()
        self._show_instead(surface, None)

    # Viewports

    def create_viewport(self, viewport_id: int, surface_id: int) -> None:
        surface = self._surfaces.get(surface_id)
        if surface is not None:
            self._viewports[viewport_id] = surface

    def set_source(self, viewport_id: int, source: tuple[float, float, float, float] | None) -> None:
        surface = self._viewports.get(viewport_id)
        if surface is not None:
            surface.viewport = surface.viewport._replace(source=source)

    def set_destination(self, viewport_id: int, destination: tuple[int, int] | None) -> None:
        surface = self._viewports.get(viewport_id)
        if surface is not None:
            surface.viewport = surface.viewport._replace(destination=destination)

    def destroy_viewport(self, viewport_id: int) -> None:
        surface = self._viewports.pop(viewport_id, None)
        if surface is not None:
            surface.viewport = ViewportState()

    def clear(self) -> None:
        """The client is gone."""
        self._surfaces.clear()
        self._viewports.clear()

    def check(self) -> None:
        """Walks the invariants; raises AssertionError."""
        shown: dict[SurfaceContent, int] = {}
        for surface in self._surfaces.values():
            assert len(surface.followed) <= MAX_FOLLOWED
            assert len(set(surface.followed)) == len(surface.followed)
            for content in surface.followed:
                assert content.follower is surface
                assert not content.destroyed
            if surface.current is not None:
                shown[surface.current] = shown.get(surface.current, 0) + 1
        for one, count in shown.items():
            assert one.shown_by == count
