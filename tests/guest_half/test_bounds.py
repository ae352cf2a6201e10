"""What a client of the guest half may not: make pools and buffers that are none, or without number."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.guest_half.drawing import AT, BUFFER, HEIGHT, POOL, SHM, SIZE_BYTES, SURFACE, WIDTH, Drawing, message
from tests.relay.between import open_fds
from waylend.errors import LimitExceeded, ProtocolError
from waylend.guest_half import pools
from waylend.lending.pages import PAGE_SIZE


@pytest.fixture
def drawing() -> Iterator[Drawing]:
    """A pool of a page with one buffer in it."""
    before = open_fds()
    made = Drawing()
    yield made
    made.close()
    assert open_fds() == before


def test_a_pool_does_not_shrink(drawing: Drawing) -> None:
    drawing.pools.resize(message("wl_shm_pool.resize", POOL, 2 * PAGE_SIZE))
    with pytest.raises(ProtocolError, match="can't shrink"):
        drawing.pools.resize(message("wl_shm_pool.resize", POOL, 2 * PAGE_SIZE - 1))


@pytest.mark.parametrize(
    ("offset", "width", "height", "stride"),
    [
        (-1, WIDTH, HEIGHT, WIDTH * 4),
        (0, 0, HEIGHT, WIDTH * 4),
        (0, WIDTH, 0, WIDTH * 4),
        (0, WIDTH, HEIGHT, WIDTH - 1),
        (PAGE_SIZE - SIZE_BYTES + 1, WIDTH, HEIGHT, WIDTH * 4),
        (0, 1, 2, 0x7FFFFFFF),
    ],
)
def test_a_buffer_lies_in_its_pool(drawing: Drawing, offset: int, width: int, height: int, stride: int) -> None:
    create = message("wl_shm_pool.create_buffer", POOL, 20, offset, width, height, stride, 0)
    with pytest.raises(ProtocolError, match="isn't in a pool"):
        drawing.pools.create_buffer(create)


@pytest.mark.parametrize("size_bytes", [0, -1])
def test_a_pool_has_a_size(drawing: Drawing, size_bytes: int) -> None:
    with pytest.raises(ProtocolError, match="size"):
        drawing.pools.create_pool(message("wl_shm.create_pool", SHM, 20, size_bytes, fd=drawing.fd))


def test_pools_have_a_limit(drawing: Drawing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "_MAX_POOLS", 3)
    for object_id in (20, 21):
        drawing.pools.create_pool(message("wl_shm.create_pool", SHM, object_id, PAGE_SIZE, fd=drawing.fd))
    with pytest.raises(LimitExceeded, match="limit pools"):
        drawing.pools.create_pool(message("wl_shm.create_pool", SHM, 22, PAGE_SIZE, fd=drawing.fd))


def test_a_destroyed_buffer_keeps_its_memory_while_it_may_be_on_the_screen(drawing: Drawing) -> None:
    """The compositor looks at it until it has shown another."""
    drawing.draw(1)
    drawing.commits.attach(message("wl_surface.attach", SURFACE, BUFFER, 0, 0))
    drawing.commits.commit(message("wl_surface.commit", SURFACE))
    drawing.pools.destroy(message("wl_buffer.destroy", BUFFER))
    other = 20
    create = message("wl_shm_pool.create_buffer", POOL, other, AT, WIDTH, HEIGHT, WIDTH * 4, 0)
    drawing.pools.create_buffer(create)
    drawing.draw(2)
    drawing.commits.attach(message("wl_surface.attach", SURFACE, other, 0, 0))
    assert drawing.shown == b"\1" * SIZE_BYTES, "still what it was"
    drawing.commits.commit(message("wl_surface.commit", SURFACE))
    assert drawing.shown == b"\1" * SIZE_BYTES, "the other one is elsewhere in lent memory"
    assert drawing.memory.later, "it is freed a moment later"
