"""Clipboard, primary selection, and drag and drop.

Content goes from client to client through a pipe that the shim only passes on; where the shim itself offers or asks (for
tests), a thread of its own does the reading or writing, so that a client that dawdles holds up nobody.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from typing import ClassVar, Protocol

from pywayland.protocol.wayland import WlDataDevice, WlDataDeviceManager, WlDataOffer, WlDataSource
from pywayland.protocol.wp_primary_selection_unstable_v1 import (
    ZwpPrimarySelectionDeviceManagerV1,
    ZwpPrimarySelectionDeviceV1,
    ZwpPrimarySelectionOfferV1,
    ZwpPrimarySelectionSourceV1,
)

from compositor_shim.resource import Resource
from compositor_shim.surface import State, Surface


class Content(Protocol):
    """What a selection holds: types, and a way to have one of them written to a pipe (whose end is then closed)."""

    types: list[str]

    def write_to(self, mime_type: str, fd: int) -> None: ...
    def cancel(self) -> None: ...


class OwnContent:
    """A selection that the shim itself holds."""

    def __init__(self, content: Mapping[str, bytes]) -> None:
        self.content = content
        self.types = list(content)

    def write_to(self, mime_type: str, fd: int) -> None:
        content = self.content.get(mime_type, b"")

        def write() -> None:
            with open(fd, "wb", closefd=True) as pipe:
                try:
                    pipe.write(content)
                except BrokenPipeError:
                    pass

        threading.Thread(target=write, daemon=True).start()

    def cancel(self) -> None:
        pass


class Source(Resource):
    """A client's offer of content, for either kind of selection."""

    def __init__(self, parent: Resource, object_id: int) -> None:
        super().__init__(parent, object_id)
        self.types: list[str] = []
        self.on_gone: Callable[[], None] | None = None

    def offer(self, mime_type: str) -> None:
        self.types.append(mime_type)

    def write_to(self, mime_type: str, fd: int) -> None:
        self.send("send", mime_type, fd)
        os.close(fd)

    def cancel(self) -> None:
        self.send("cancelled")

    def gone(self) -> None:
        if self.on_gone is not None:
            self.on_gone()


class DataSource(Source):
    WIRE = WlDataSource.resource_class


class PrimarySource(Source):
    WIRE = ZwpPrimarySelectionSourceV1.resource_class


class Offer(Resource):
    """Content as a client that may take it sees it."""

    content: Content

    def receive(self, mime_type: str, fd: int) -> None:
        if mime_type in self.content.types:
            self.content.write_to(mime_type, fd)
        else:
            os.close(fd)


class DataOffer(Offer):
    WIRE = WlDataOffer.resource_class

    def finish(self) -> None:
        if isinstance(self.content, DataSource):
            self.content.send("dnd_finished")


class PrimaryOffer(Offer):
    WIRE = ZwpPrimarySelectionOfferV1.resource_class


class Board:
    """One selection: its content, and the devices that hear of it while their client has the keyboard's focus."""

    def __init__(self, device_kind: type[Device]) -> None:
        self.device_kind = device_kind
        self.content: Content | None = None

    def set(self, content: Content | None, focus: Surface | None) -> None:
        if self.content is not None and self.content is not content:
            self.content.cancel()
        self.content = content
        if isinstance(content, Source):
            content.on_gone = lambda: self._source_gone(content, focus)
        self.announce(focus)

    def _source_gone(self, source: Source, focus: Surface | None) -> None:
        if self.content is source:
            self.content = None
            self.announce(focus)

    def announce(self, focus: Surface | None) -> None:
        """To the client that has the focus."""
        if focus is not None and focus.alive:
            for device in focus.connection.all(self.device_kind):
                device.announce(self.content)


class Device(Resource):
    OFFER: ClassVar[type[Offer]]
    board: Board
    seat: Focus

    def announce(self, content: Content | None) -> None:
        self.send("selection", None if content is None else self.offer(content))

    def offer(self, content: Content) -> Offer:
        offer = self.OFFER(self)
        offer.content = content
        self.send("data_offer", offer)
        for mime_type in content.types:
            offer.send("offer", mime_type)
        return offer

    def set_selection(self, source: Source | None, _serial: int) -> None:
        self.board.set(source, self.seat.keyboard_focus)


class Focus(Protocol):
    keyboard_focus: Surface | None


class Icon:
    role_name = "drag icon"

    def before_commit(self, _surface: Surface, _state: State) -> None:
        pass

    def after_commit(self, _surface: Surface) -> None:
        pass


class DataDevice(Device):
    WIRE = WlDataDevice.resource_class
    OFFER = DataOffer
    drag: Drag

    def start_drag(self, source: DataSource | None, _origin: Surface, icon: Surface | None, _serial: int) -> None:
        if icon is not None:
            if icon.role is not None and not isinstance(icon.role, Icon):
                raise self.violate(WlDataDevice.error.role.value, f"{icon.name} is a {icon.role.role_name} already")
            icon.role = icon.role or Icon()
        if source is not None:
            self.drag.begin(source)


class Drag:
    """A drag and drop that is under way, if any."""

    def __init__(self) -> None:
        self.source: DataSource | None = None
        self.over: Surface | None = None

    def begin(self, source: DataSource) -> None:
        self.source = source
        self.over = None

    def move(self, surface: Surface | None, local: tuple[float, float], serial: int, time_ms: int) -> None:
        if self.source is None or not self.source.alive:
            self.source = None
            return
        if surface is not self.over:
            for device in self._devices(self.over):
                device.send("leave")
            self.over = surface
            for device in self._devices(surface):
                offer = device.offer(self.source)
                device.send("enter", serial, surface, *local, offer)
                offer.send("source_actions", WlDataDeviceManager.dnd_action.copy.value)
                offer.send("action", WlDataDeviceManager.dnd_action.copy.value)
                self.source.send("action", WlDataDeviceManager.dnd_action.copy.value)
        else:
            for device in self._devices(surface):
                device.send("motion", time_ms, *local)

    def drop(self) -> None:
        devices = self._devices(self.over)
        for device in devices:
            device.send("drop")
        if self.source is not None:
            if devices:
                self.source.send("dnd_drop_performed")
            else:
                self.source.cancel()
        self.source = self.over = None

    @staticmethod
    def _devices(surface: Surface | None) -> list[DataDevice]:
        return surface.connection.all(DataDevice) if surface is not None and surface.alive else []


class PrimaryDevice(Device):
    WIRE = ZwpPrimarySelectionDeviceV1.resource_class
    OFFER = PrimaryOffer


class DeviceManager(Resource):
    """What both kinds of managers do; ``seat``, ``board`` and ``drag`` are set when a client binds one."""

    seat: Focus
    board: Board
    drag: Drag

    def _add(self, device: Device) -> None:
        device.board, device.seat = self.board, self.seat
        focus = self.seat.keyboard_focus
        if focus is not None and focus.connection is self.connection:
            device.announce(self.board.content)


class DataDeviceManager(DeviceManager):
    WIRE = WlDataDeviceManager.resource_class

    def create_data_source(self, object_id: int) -> None:
        DataSource(self, object_id)

    def get_data_device(self, object_id: int, _seat: Resource) -> None:
        device = DataDevice(self, object_id)
        device.drag = self.drag
        self._add(device)


class PrimaryDeviceManager(DeviceManager):
    WIRE = ZwpPrimarySelectionDeviceManagerV1.resource_class

    def create_source(self, object_id: int) -> None:
        PrimarySource(self, object_id)

    def get_device(self, object_id: int, _seat: Resource) -> None:
        self._add(PrimaryDevice(self, object_id))
