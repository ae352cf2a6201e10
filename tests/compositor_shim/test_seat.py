"""Input goes to the client that has the focus, in the order that the protocol asks for."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from compositor_shim import Shim, ShimError
from compositor_shim.keymap import keymap_text
from tests.compositor_shim.player import Player


def test_typed_text_arrives_as_keys(shim: Shim, player: Player) -> None:
    keyboard = player.make(player.bind("wl_seat"), "get_keyboard", "wl_keyboard")
    surface, _, _ = player.window((10, 10))
    _, entered, keys = player.wait_for("wl_keyboard.enter", keyboard)
    assert (entered, keys) == (surface, b"")
    shim.type_text("aB\n")
    player.round_trip()
    heard = [(args[2], args[3]) for _, name, args in player.heard if name == "wl_keyboard.key"]
    assert heard == [(30, 1), (30, 0), (42, 1), (48, 1), (48, 0), (42, 0), (28, 1), (28, 0)]


def test_what_has_no_key_is_refused(shim: Shim) -> None:
    with pytest.raises(ShimError, match="no key for 'é'"):
        shim.type_text("é")


def test_focus_moves_from_one_client_to_the_next(shim: Shim, connect: Callable[[], Player]) -> None:
    first, second = connect(), connect()
    for player in (first, second):
        player.make(player.bind("wl_seat"), "get_keyboard", "wl_keyboard")
    first.window((10, 10))
    first.wait_for("wl_keyboard.enter")
    second.window((10, 10))
    second.wait_for("wl_keyboard.enter")
    first.wait_for("wl_keyboard.leave")
    shim.type_text("x")
    first.round_trip()
    second.round_trip()
    assert not [name for _, name, _ in first.heard if name == "wl_keyboard.key"]
    assert [args[2] for _, name, args in second.heard if name == "wl_keyboard.key"] == [45, 45]


def test_pointer_enters_moves_clicks_and_leaves(shim: Shim, player: Player) -> None:
    pointer = player.make(player.bind("wl_seat"), "get_pointer", "wl_pointer")
    surface, _, _ = player.window((100, 60))
    left, top = shim.wait_for_window().position
    shim.move_to(left + 7, top + 9)
    shim.click(left + 8, top + 9)
    shim.scroll(2)
    shim.move_to(0, 0)
    _, entered, x, y = player.wait_for("wl_pointer.enter", pointer)
    assert (entered, x, y) == (surface, 7, 9)
    assert player.wait_for("wl_pointer.motion")[1:] == [8, 9]
    assert player.wait_for("wl_pointer.button")[2:] == [0x110, 1]
    assert player.wait_for("wl_pointer.button")[2:] == [0x110, 0]
    assert player.wait_for("wl_pointer.axis_value120") == [0, 240]
    assert player.wait_for("wl_pointer.leave")[1] == surface


def test_input_region_lets_the_pointer_through(shim: Shim, player: Player) -> None:
    surface, _, _ = player.toplevel()
    region = player.make(player.bind("wl_compositor"), "create_region", "wl_region")
    player.send(region, "add", 10, 0, 5, 5)
    player.send(surface, "set_input_region", region)
    player.commit(surface, player.buffer((20, 20)))
    player.make(player.bind("wl_seat"), "get_pointer", "wl_pointer")
    player.round_trip()
    left, top = shim.wait_for_window().position
    shim.move_to(left + 1, top + 1)
    shim.move_to(left + 11, top + 1)
    assert player.wait_for("wl_pointer.enter")[2:] == [11, 1]


def test_touch_stays_with_the_surface_that_it_began_on(shim: Shim, player: Player) -> None:
    player.make(player.bind("wl_seat"), "get_touch", "wl_touch")
    surface, _, _ = player.window((100, 60))
    left, top = shim.wait_for_window().position
    shim.touch("down", left + 5, top + 5)
    shim.touch("move", left + 200, top + 5)
    shim.touch("up")
    assert player.wait_for("wl_touch.down")[2:] == [surface, 0, 5, 5]
    assert player.wait_for("wl_touch.motion")[1:] == [0, 200, 5]
    player.wait_for("wl_touch.up")


@pytest.mark.parametrize("source", ["memfd", "file"])
def test_keymap_comes_from_where_it_is_told(source: str) -> None:
    with Shim(keymap_from=source) as shim:
        player = Player(shim.socket)
        player.make(player.bind("wl_seat"), "get_keyboard", "wl_keyboard")
        form, _, size = player.wait_for("wl_keyboard.keymap")
        (fd,) = player.peer.fds
        assert form == 1
        assert os.pread(fd, size, 0) == keymap_text().encode() + b"\0"
        target = os.readlink(f"/proc/self/fd/{fd}")
        assert target.startswith("/memfd:") == (source == "memfd")
        with pytest.raises(OSError, match=r"."):
            os.pwrite(fd, b"x", 0)
        player.close()
    assert source == "memfd" or not os.path.exists(target)


def test_close_and_resize_are_asked_for(shim: Shim, player: Player) -> None:
    _, shell, window = player.window((10, 10))
    player.heard.clear()
    shown = shim.wait_for_window()
    shim.resize(shown, 30, 20)
    assert player.wait_for("xdg_toplevel.configure", window)[:2] == [30, 20]
    player.acknowledge(shell)
    shim.close_window(shown)
    player.wait_for("xdg_toplevel.close", window)
