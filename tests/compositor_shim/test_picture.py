"""A screenshot shows the pixels that the clients committed, where and how their state says."""

from __future__ import annotations

import pytest
from PIL import Image

from compositor_shim import Shim
from tests.compositor_shim.player import XRGB, Player

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
BACKGROUND = (32, 64, 96)


def quarters() -> Image.Image:
    """4x2: red green / blue white, each 2x1."""
    picture = Image.new("RGBA", (4, 2))
    for n, colour in enumerate([RED, GREEN, BLUE, (255, 255, 255)]):
        picture.paste((*colour, 255), (n % 2 * 2, n // 2, n % 2 * 2 + 2, n // 2 + 1))
    return picture


def shown(shim: Shim) -> Image.Image:
    return shim.screenshot(shim.wait_for_window())


def test_window_stands_in_the_middle_with_exact_pixels(shim: Shim, player: Player) -> None:
    player.window((100, 60))
    window = shim.wait_for_window(title="window")
    assert (window.position, window.size, window.focused) == ((150, 120), (100, 60), True)
    picture = shim.screenshot()
    assert picture.size == (400, 300)
    assert picture.getcolors() == [(100 * 60, RED), (400 * 300 - 100 * 60, BACKGROUND)]
    assert shim.screenshot(window).getcolors() == [(100 * 60, RED)]


def test_nothing_shows_before_a_commit(shim: Shim, player: Player) -> None:
    surface, _, _ = player.window((10, 10))
    player.send(surface, "attach", player.buffer((10, 10), (0, 255, 0, 255)), 0, 0)
    player.round_trip()
    assert shown(shim).getcolors() == [(100, RED)]
    player.commit(surface)
    player.round_trip()
    assert shown(shim).getcolors() == [(100, GREEN)]


def test_null_buffer_unmaps(shim: Shim, player: Player) -> None:
    surface, _, _ = player.window((10, 10))
    player.send(surface, "attach", None, 0, 0)
    player.commit(surface)
    player.round_trip()
    assert shim.windows() == []
    assert shim.screenshot().getcolors() == [(400 * 300, BACKGROUND)]


def test_alpha_is_premultiplied(shim: Shim, player: Player) -> None:
    player.window((10, 10), (128, 0, 0, 128))
    colour = (128 + 32 * 127 // 255, 64 * 127 // 255, 96 * 127 // 255)
    assert shown(shim).getcolors() == [(100, colour)]


def test_xrgb_has_no_alpha(shim: Shim, player: Player) -> None:
    surface, _, _ = player.toplevel()
    player.commit(surface, player.buffer((10, 10), (255, 0, 0, 0), XRGB))
    player.round_trip()
    assert shown(shim).getcolors() == [(100, RED)]


@pytest.mark.parametrize(
    ("transform", "turned"),
    [
        (0, None),
        (1, Image.Transpose.ROTATE_270),
        (2, Image.Transpose.ROTATE_180),
        (3, Image.Transpose.ROTATE_90),
        (4, Image.Transpose.FLIP_LEFT_RIGHT),
        (6, Image.Transpose.FLIP_TOP_BOTTOM),
    ],
)
def test_buffer_transform_is_undone(shim: Shim, player: Player, transform: int, turned: Image.Transpose | None) -> None:
    """wl_output.transform counts counter-clockwise; the buffer's content was turned so, and is turned back."""
    surface, _, _ = player.toplevel()
    player.send(surface, "set_buffer_transform", transform)
    player.commit(surface, player.buffer_of(quarters()))
    player.round_trip()
    expected = quarters().convert("RGB")
    if turned is not None:
        expected = expected.transpose(turned)
    assert shown(shim).tobytes() == expected.tobytes()


def test_viewport_crops_and_scales(shim: Shim, player: Player) -> None:
    surface, _, _ = player.toplevel()
    viewport = player.make(player.bind("wp_viewporter"), "get_viewport", "wp_viewport", surface)
    player.send(viewport, "set_source", 2.0, 0.0, 2.0, 1.0)
    player.send(viewport, "set_destination", 20, 10)
    player.commit(surface, player.buffer_of(quarters()))
    player.round_trip()
    assert shim.wait_for_window().size == (20, 10)
    assert shown(shim).getcolors() == [(200, GREEN)]


def test_single_pixel_fills_its_viewport(shim: Shim, player: Player) -> None:
    surface, _, _ = player.toplevel()
    most = 0xFFFFFFFF
    pixels = player.bind("wp_single_pixel_buffer_manager_v1")
    buffer = player.make(pixels, "create_u32_rgba_buffer", "wl_buffer", 0, 0, most, most)
    viewport = player.make(player.bind("wp_viewporter"), "get_viewport", "wp_viewport", surface)
    player.send(viewport, "set_destination", 8, 8)
    player.commit(surface, buffer)
    player.round_trip()
    assert shown(shim).getcolors() == [(64, BLUE)]


def test_synchronised_subsurface_waits_for_its_parent(shim: Shim, player: Player) -> None:
    surface, _, _ = player.window((20, 20))
    child = player.surface()
    role = player.make(player.bind("wl_subcompositor"), "get_subsurface", "wl_subsurface", child, surface)
    player.send(role, "set_position", 5, 5)
    player.commit(child, player.buffer((10, 10), (0, 255, 0, 255)))
    player.round_trip()
    assert shown(shim).getcolors() == [(400, RED)]
    player.commit(surface)
    player.round_trip()
    assert sorted(shown(shim).getcolors() or []) == [(100, GREEN), (300, RED)]

    player.send(role, "set_desync")
    player.commit(child, player.buffer((10, 10), (0, 0, 255, 255)))
    player.round_trip()
    assert sorted(shown(shim).getcolors() or []) == [(100, BLUE), (300, RED)]

    player.send(role, "place_below", surface)
    player.commit(surface)
    player.round_trip()
    assert shown(shim).getcolors() == [(400, RED)]


def test_popup_stands_where_its_positioner_says(shim: Shim, player: Player) -> None:
    _, parent, _ = player.window((100, 60))
    wm_base, surface = player.bind("xdg_wm_base"), player.surface()
    shell = player.make(wm_base, "get_xdg_surface", "xdg_surface", surface)
    positioner = player.make(wm_base, "create_positioner", "xdg_positioner")
    player.send(positioner, "set_size", 10, 10)
    player.send(positioner, "set_anchor_rect", 0, 0, 20, 20)
    player.send(positioner, "set_anchor", 8)  # bottom right
    player.send(positioner, "set_gravity", 8)
    player.make(shell, "get_popup", "xdg_popup", parent, positioner)
    player.commit(surface)
    assert player.wait_for("xdg_popup.configure") == [20, 20, 10, 10]
    player.acknowledge(shell)
    player.commit(surface, player.buffer((10, 10), (0, 255, 0, 255)))
    player.round_trip()
    picture = shown(shim)
    assert picture.crop((20, 20, 30, 30)).getcolors() == [(100, GREEN)]
    assert picture.getcolors() == [(100, GREEN), (5900, RED)]


def test_frame_callbacks_and_feedback_come_with_the_frame(shim: Shim, player: Player) -> None:
    surface, _, _ = player.window((10, 10))
    frame = player.make(surface, "frame", "wl_callback")
    presentation = player.bind("wp_presentation")
    feedback = player.new("wp_presentation_feedback")
    player.send(presentation, "feedback", surface, feedback)
    player.commit(surface)
    player.wait_for("wl_callback.done", frame)
    player.wait_for("wp_presentation_feedback.presented", feedback)


def test_buffer_is_released_once_it_is_copied(shim: Shim, player: Player) -> None:
    surface, _, _ = player.toplevel()
    buffer = player.buffer((10, 10))
    player.commit(surface, buffer)
    player.wait_for("wl_buffer.release", buffer)


def test_hidpi_screen_has_more_pixels() -> None:
    with Shim(size=(100, 80), scale=2) as shim:
        player = Player(shim.socket)
        surface, _, _ = player.toplevel()
        player.send(surface, "set_buffer_scale", 2)
        player.commit(surface, player.buffer((40, 20)))
        player.round_trip()
        window = shim.wait_for_window()
        assert window.size == (20, 10)
        assert shim.screenshot().size == (200, 160)
        assert shim.screenshot(window).getcolors() == [(800, RED)]
        player.close()
