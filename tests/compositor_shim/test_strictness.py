"""What a client does wrong ends it with the error that the protocol names, is written down, and touches nobody else."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

import pytest

from compositor_shim import Shim
from tests.compositor_shim.player import Player


def buffer_before_configure(player: Player) -> None:
    surface = player.surface()
    shell = player.make(player.bind("xdg_wm_base"), "get_xdg_surface", "xdg_surface", surface)
    player.make(shell, "get_toplevel", "xdg_toplevel")
    player.commit(surface, player.buffer((4, 4)))


def acknowledgement_of_nothing(player: Player) -> None:
    _, shell, _ = player.toplevel()
    player.send(shell, "ack_configure", 12345678)


def two_roles(player: Player) -> None:
    surface, _, _ = player.toplevel()
    other = player.surface()
    player.make(player.bind("wl_subcompositor"), "get_subsurface", "wl_subsurface", surface, other)


def own_parent(player: Player) -> None:
    surface = player.surface()
    player.make(player.bind("wl_subcompositor"), "get_subsurface", "wl_subsurface", surface, surface)


def window_destroyed_too_late(player: Player) -> None:
    _, shell, _ = player.toplevel()
    player.send(shell, "destroy")


def surface_destroyed_too_early(player: Player) -> None:
    surface, _, _ = player.toplevel()
    player.send(surface, "destroy")


def shell_destroyed_too_early(player: Player) -> None:
    wm_base = player.bind("xdg_wm_base")
    player.make(wm_base, "get_xdg_surface", "xdg_surface", player.surface())
    player.send(wm_base, "destroy")


def popup_without_a_size(player: Player) -> None:
    _, parent, _ = player.toplevel()
    wm_base = player.bind("xdg_wm_base")
    shell = player.make(wm_base, "get_xdg_surface", "xdg_surface", player.surface())
    positioner = player.make(wm_base, "create_positioner", "xdg_positioner")
    player.make(shell, "get_popup", "xdg_popup", parent, positioner)


def geometry_of_nothing(player: Player) -> None:
    _, shell, _ = player.toplevel()
    player.send(shell, "set_window_geometry", 0, 0, 0, 10)


def pool_of_no_size(player: Player) -> None:
    fd = os.memfd_create("pool")
    player.make(player.bind("wl_shm"), "create_pool", "wl_shm_pool", 0, fds=(fd,))
    os.close(fd)


def pool_in_a_pipe(player: Player) -> None:
    reading, writing = os.pipe()
    player.make(player.bind("wl_shm"), "create_pool", "wl_shm_pool", 4096, fds=(reading,))
    os.close(reading)
    os.close(writing)


def _pool(player: Player, size_bytes: int = 4096) -> int:
    fd = os.memfd_create("pool")
    os.truncate(fd, size_bytes)
    pool = player.make(player.bind("wl_shm"), "create_pool", "wl_shm_pool", size_bytes, fds=(fd,))
    os.close(fd)
    return pool


def buffer_outside_of_its_pool(player: Player) -> None:
    player.make(_pool(player), "create_buffer", "wl_buffer", 4, 32, 32, 128, 0)


def buffer_with_a_short_stride(player: Player) -> None:
    player.make(_pool(player), "create_buffer", "wl_buffer", 0, 32, 1, 127, 0)


def buffer_of_an_unknown_format(player: Player) -> None:
    player.make(_pool(player), "create_buffer", "wl_buffer", 0, 1, 1, 4, 0x20203843)


def pool_that_shrinks(player: Player) -> None:
    player.send(_pool(player), "resize", 4000)


def file_cut_short(player: Player) -> None:
    surface, _, _ = player.toplevel()
    fd = os.memfd_create("pool")
    os.truncate(fd, 4096)
    pool = player.make(player.bind("wl_shm"), "create_pool", "wl_shm_pool", 4096, fds=(fd,))
    buffer = player.make(pool, "create_buffer", "wl_buffer", 0, 32, 32, 128, 0)
    player.round_trip()
    os.truncate(fd, 100)
    os.close(fd)
    player.commit(surface, buffer)


def scale_of_nothing(player: Player) -> None:
    player.send(player.surface(), "set_buffer_scale", 0)


def transform_that_is_none(player: Player) -> None:
    player.send(player.surface(), "set_buffer_transform", 8)


def size_that_the_scale_does_not_divide(player: Player) -> None:
    surface, _, _ = player.toplevel()
    player.send(surface, "set_buffer_scale", 2)
    player.commit(surface, player.buffer((5, 4)))


def attach_with_an_offset(player: Player) -> None:
    player.send(player.surface(), "attach", player.buffer((4, 4)), 1, 0)


def two_viewports(player: Player) -> None:
    viewporter, surface = player.bind("wp_viewporter"), player.surface()
    player.make(viewporter, "get_viewport", "wp_viewport", surface)
    player.make(viewporter, "get_viewport", "wp_viewport", surface)


def source_outside_of_the_buffer(player: Player) -> None:
    surface, _, _ = player.toplevel()
    viewport = player.make(player.bind("wp_viewporter"), "get_viewport", "wp_viewport", surface)
    player.send(viewport, "set_source", 2.0, 2.0, 4.0, 1.0)
    player.commit(surface, player.buffer((4, 4)))


def cursor_that_is_a_window(player: Player) -> None:
    surface, _, _ = player.toplevel()
    pointer = player.make(player.bind("wl_seat"), "get_pointer", "wl_pointer")
    player.send(pointer, "set_cursor", 0, surface, 0, 0)


def shape_that_is_none(player: Player) -> None:
    pointer = player.make(player.bind("wl_seat"), "get_pointer", "wl_pointer")
    device = player.make(player.bind("wp_cursor_shape_manager_v1"), "get_pointer", "wp_cursor_shape_device_v1", pointer)
    player.send(device, "set_shape", 0, 999)


def context_on_a_socket_that_does_not_listen(player: Player) -> None:
    ours, theirs = socket.socketpair()
    manager = player.bind("wp_security_context_manager_v1")
    player.make(manager, "create_listener", "wp_security_context_v1", fds=(ours.fileno(), theirs.fileno()))
    ours.close()
    theirs.close()


def version_of_tomorrow(player: Player) -> None:
    player.bind("wl_compositor", 99)


def unknown_object(player: Player) -> None:
    player.interfaces[77] = "wl_surface"
    player.send(77, "commit")


WRONG: list[tuple[Callable[[Player], None], str, int]] = [
    (buffer_before_configure, "xdg_surface", 3),
    (acknowledgement_of_nothing, "xdg_surface", 4),
    (two_roles, "wl_subcompositor", 0),
    (own_parent, "wl_subcompositor", 0),
    (window_destroyed_too_late, "xdg_surface", 6),
    (surface_destroyed_too_early, "wl_surface", 4),
    (shell_destroyed_too_early, "xdg_wm_base", 1),
    (popup_without_a_size, "xdg_wm_base", 5),
    (geometry_of_nothing, "xdg_surface", 5),
    (pool_of_no_size, "wl_shm", 1),
    (pool_in_a_pipe, "wl_shm", 2),
    (buffer_outside_of_its_pool, "wl_shm_pool", 1),
    (buffer_with_a_short_stride, "wl_shm_pool", 1),
    (buffer_of_an_unknown_format, "wl_shm_pool", 0),
    (pool_that_shrinks, "wl_shm_pool", 2),
    (file_cut_short, "wl_buffer", 2),
    (scale_of_nothing, "wl_surface", 0),
    (transform_that_is_none, "wl_surface", 1),
    (size_that_the_scale_does_not_divide, "wl_surface", 2),
    (attach_with_an_offset, "wl_surface", 3),
    (two_viewports, "wp_viewporter", 0),
    (source_outside_of_the_buffer, "wp_viewport", 2),
    (cursor_that_is_a_window, "wl_pointer", 0),
    (shape_that_is_none, "wp_cursor_shape_device_v1", 1),
    (context_on_a_socket_that_does_not_listen, "wp_security_context_manager_v1", 1),
]


@pytest.mark.parametrize(("wrong", "interface", "code"), WRONG, ids=[case[0].__name__ for case in WRONG])
def test_client_is_told_what_it_did(
    shim: Shim,
    connect: Callable[[], Player],
    wrong: Callable[[Player], None],
    interface: str,
    code: int,
) -> None:
    player, other = connect(), connect()
    wrong(player)
    player.round_trip()
    assert player.error is not None, "it was not noticed"
    object_id, told, text = player.error
    assert (player.interfaces[object_id], told) == (interface, code), text

    last = shim.protocol_errors()[-1]
    assert last["object"] == f"{interface}#{object_id}"
    assert last["code"] == code
    assert text.endswith(last["message"])

    other.window((10, 10))
    assert other.error is None


@pytest.mark.parametrize("wrong", [version_of_tomorrow, unknown_object])
def test_what_the_library_checks_is_refused_too(player: Player, wrong: Callable[[Player], None]) -> None:
    wrong(player)
    player.round_trip()
    assert player.error is not None
