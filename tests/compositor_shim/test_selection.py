"""Clipboard, primary selection and drag and drop, between clients and the shim itself."""

from __future__ import annotations

import os
import threading

import pytest

from compositor_shim import Shim, ShimError
from tests.compositor_shim.player import Player

DEVICES = {
    "clipboard": (
        "wl_data_device_manager",
        "get_data_device",
        "wl_data_device",
        "create_data_source",
        "wl_data_source",
    ),
    "primary": (
        "zwp_primary_selection_device_manager_v1",
        "get_device",
        "zwp_primary_selection_device_v1",
        "create_source",
        "zwp_primary_selection_source_v1",
    ),
}
TEXT = "text/plain"


@pytest.mark.parametrize("which", DEVICES)
def test_client_reads_what_the_shim_holds(shim: Shim, player: Player, which: str) -> None:
    content = bytes(range(256)) * 4096
    manager, get, device, _, _ = DEVICES[which]
    player.make(player.bind(manager), get, device, player.bind("wl_seat"))
    player.window((10, 10))
    shim.set_selection({TEXT: content}, which=which)
    (offer,) = player.wait_for(f"{device}.data_offer")
    player.round_trip()
    reading, writing = os.pipe()
    player.send(offer, "receive", TEXT.encode(), fds=(writing,))
    os.close(writing)
    with open(reading, "rb") as pipe:
        assert pipe.read() == content
    shim.set_selection({}, which=which)
    assert shim.selection_types(which=which) == []


@pytest.mark.parametrize("which", DEVICES)
def test_shim_reads_what_a_client_holds(shim: Shim, player: Player, which: str) -> None:
    manager, get, device_kind, create, source_kind = DEVICES[which]
    bound = player.bind(manager)
    device = player.make(bound, get, device_kind, player.bind("wl_seat"))
    player.window((10, 10))
    source = player.make(bound, create, source_kind)
    player.send(source, "offer", TEXT.encode())
    player.send(device, "set_selection", source, 1)
    player.round_trip()
    assert shim.selection_types(which=which) == [TEXT]
    with pytest.raises(ShimError, match="image/png"):
        shim.selection("image/png", which=which)

    def write() -> None:
        assert player.wait_for(f"{source_kind}.send", source)[0] == TEXT.encode()
        with open(player.peer.fds.pop(), "wb") as pipe:
            for _ in range(1000):
                pipe.write(b"piece")
                pipe.flush()

    writer = threading.Thread(target=write)
    writer.start()
    assert shim.selection(TEXT, which=which) == b"piece" * 1000
    writer.join()
    shim.set_selection({TEXT: b""}, which=which)
    player.wait_for(f"{source_kind}.cancelled", source)
    shim.set_selection({}, which=which)


def test_drag_and_drop_within_a_client(shim: Shim, player: Player) -> None:
    manager = player.bind("wl_data_device_manager")
    device = player.make(manager, "get_data_device", "wl_data_device", player.bind("wl_seat"))
    player.make(player.bind("wl_seat"), "get_pointer", "wl_pointer")
    surface, _, _ = player.window((100, 60))
    left, top = shim.wait_for_window().position
    shim.move_to(left + 5, top + 5)
    shim.button(pressed=True)
    source = player.make(manager, "create_data_source", "wl_data_source")
    player.send(source, "offer", TEXT.encode())
    player.send(device, "start_drag", source, surface, None, 1)
    player.round_trip()
    shim.move_to(left + 50, top + 30)
    assert player.wait_for("wl_data_device.enter", device)[1:4] == [surface, 50, 30]
    shim.button(pressed=False)
    player.wait_for("wl_data_device.drop", device)
    player.wait_for("wl_data_source.dnd_drop_performed", source)
