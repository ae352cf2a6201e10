"""wl_shm in a guest half: what is drawn is in lent memory before the compositor hears of it, and when that was taken away."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.guest_half.drawing import BUFFER, HEIGHT, POOL, SIZE_BYTES, SURFACE, WIDTH, Drawing, message
from tests.guest_half.work import lines_run
from tests.relay.between import open_fds
from waylend.errors import ProtocolError


@pytest.fixture
def drawing() -> Iterator[Drawing]:
    before = open_fds()
    drawing = Drawing()
    yield drawing
    drawing.close()
    assert open_fds() == before


def commit(drawing: Drawing, damaged_width: int, damaged_height: int) -> None:
    drawing.commits.attach(message("wl_surface.attach", SURFACE, BUFFER, 0, 0))
    drawing.commits.damage_buffer(message("wl_surface.damage_buffer", SURFACE, 0, 0, damaged_width, damaged_height))
    drawing.commits.commit(message("wl_surface.commit", SURFACE))


def show(drawing: Drawing, octet: int) -> None:
    """Draws the buffer and commits it whole."""
    drawing.draw(octet)
    commit(drawing, WIDTH, HEIGHT)


def test_a_commit_copies_what_was_drawn(drawing: Drawing) -> None:
    show(drawing, 1)
    assert drawing.shown == b"\1" * SIZE_BYTES


def test_what_may_be_on_the_screen_is_copied_again_when_it_is_lost(drawing: Drawing) -> None:
    show(drawing, 1)
    drawing.memory.lose()
    assert drawing.shown == b"\1" * SIZE_BYTES


def test_what_was_released_is_copied_whole_at_its_next_use(drawing: Drawing) -> None:
    show(drawing, 1)
    drawing.pools.release(message("wl_buffer.release", BUFFER))
    drawing.memory.lose()
    assert drawing.shown == bytes(SIZE_BYTES)
    commit(drawing, 1, 1)
    assert drawing.shown == b"\1" * SIZE_BYTES


def test_a_destroyed_buffer_is_copied_again_for_as_long_as_it_may_be_on_the_screen(drawing: Drawing) -> None:
    show(drawing, 1)
    drawing.pools.destroy(message("wl_buffer.destroy", BUFFER))
    drawing.pools.destroy(message("wl_shm_pool.destroy", POOL))
    drawing.memory.lose()
    assert drawing.shown == b"\1" * SIZE_BYTES
    fds = open_fds()
    drawing.commits.destroy(message("wl_surface.destroy", SURFACE))
    for call in drawing.memory.later:
        call()
    assert len(open_fds()) == len(fds) - 1, "nobody needs the pool's file any more"
    drawing.memory.lose()
    assert drawing.shown == bytes(SIZE_BYTES)


def test_a_client_that_ends_in_between_leaves_nothing(drawing: Drawing) -> None:
    show(drawing, 1)
    drawing.pools.destroy(message("wl_buffer.destroy", BUFFER))
    drawing.commits.destroy(message("wl_surface.destroy", SURFACE))
    drawing.pools.close()
    for call in drawing.memory.later:
        call()


def test_a_pool_that_was_cut_short_when_memory_is_lost_ends_its_client_at_its_next_use(drawing: Drawing) -> None:
    show(drawing, 1)
    os.ftruncate(drawing.fd, 0)
    drawing.memory.fails = "the pool's file was cut short"
    drawing.memory.lose()
    with pytest.raises(ProtocolError, match="cut short") as raised:
        drawing.commits.commit(message("wl_surface.commit", SURFACE))
    # wl_shm.error.invalid_fd, of the buffer: a 2 of the surface would be invalid_size.
    assert (raised.value.object_id, raised.value.code) == (BUFFER, 2)


def work_of(count: int) -> int:
    """Of ``count`` buffers: each made, shown on a surface of its own, and destroyed; then the surfaces, and the timers."""
    drawing = Drawing()

    def run() -> None:
        for number in range(100, 100 + count):
            drawing.pools.create_buffer(
                message("wl_shm_pool.create_buffer", POOL, number, 0, WIDTH, HEIGHT, WIDTH * 4, 0)
            )
            drawing.commits.create_surface(message("wl_compositor.create_surface", 9, 10_000 + number))
            drawing.commits.attach(message("wl_surface.attach", 10_000 + number, number, 0, 0))
            drawing.commits.commit(message("wl_surface.commit", 10_000 + number))
        for number in range(100, 100 + count):
            drawing.pools.destroy(message("wl_buffer.destroy", number))
        for number in range(100, 100 + count):
            drawing.commits.destroy(message("wl_surface.destroy", 10_000 + number))
        for call in drawing.memory.later:
            call()

    work = lines_run(run)
    drawing.close()
    return work


def test_the_work_of_many_buffers_hardly_grows_with_their_number() -> None:
    """One client's would hold up all the others': 8,000 buffers took seconds once."""
    assert work_of(2000) <= 12 * work_of(200)
