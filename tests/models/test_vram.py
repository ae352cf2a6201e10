"""The model of GPU memory: where buffers are, who must make room, and what is lost when."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from waylend.errors import BackingLost, NoSpace
from waylend.lending.pages import PAGE_SIZE, PageRange
from waylend.models.vram import VramBuffer, VramHeap

FIRST, SECOND = PageRange(0, 1), PageRange(1, 2)


@pytest.fixture
def heap() -> Iterator[VramHeap]:
    heap = VramHeap(vram_pages=8, visible_pages=4, system_pages=8)
    buffers: list[VramBuffer] = []
    allocate = heap.allocate

    def kept(*args: int, **options: bool) -> VramBuffer:
        buffers.append(allocate(*args, **options))
        return buffers[-1]

    heap.allocate = kept  # type: ignore[method-assign, assignment]
    yield heap
    for buffer in buffers:
        buffer.close()
    heap.close()


def page(fill: int) -> bytes:
    return bytes((fill,)) * PAGE_SIZE


def watched(buffer: VramBuffer) -> list[PageRange]:
    taken: list[PageRange] = []
    buffer.subscribe(taken.append)
    return taken


def test_new_buffer_is_zeros_even_in_frames_that_others_had(heap: VramHeap) -> None:
    first = heap.allocate(8)
    first.write(PageRange(0, 8), page(7) * 8)
    first.close()
    assert heap.allocate(8).read(PageRange(0, 8)) == bytes(8 * PAGE_SIZE)


def test_content_moves_with_the_buffer_and_borrowers_lose_it(heap: VramHeap) -> None:
    buffer = heap.allocate(2)
    taken = watched(buffer)
    buffer.write(SECOND, page(2))
    for move in (lambda: heap.evict(buffer), lambda: heap.bring_back(buffer), lambda: heap.shuffle(buffer)):
        taken.clear()
        before = (buffer.place, buffer.frames)
        move()
        assert (buffer.place, buffer.frames) != before
        assert taken == [PageRange(0, 2)]
        assert buffer.read(PageRange(0, 2)) == page(0) + page(2)


def test_faults_during_a_move_get_the_new_place_and_writes_go_there(heap: VramHeap) -> None:
    buffer = heap.allocate(2)
    buffer.write(FIRST, page(1))
    old = buffer.frames
    seen = []

    def on_invalidate(_: PageRange) -> None:
        seen.append((buffer.place is heap.system, buffer.read(FIRST)))
        buffer.write(SECOND, page(9))  # what a borrower had written

    buffer.subscribe(on_invalidate)
    heap.evict(buffer)
    assert seen == [(True, page(1))]
    assert buffer.read(SECOND) == page(9)
    assert heap.vram.read(PageRange(*old)) == page(0xDE) * 2, "the old frames were not given up"


def test_least_recently_used_makes_room(heap: VramHeap) -> None:
    old, used = heap.allocate(4), heap.allocate(4)
    old.read(FIRST)
    used.read(FIRST)
    heap.allocate(4)
    assert old.place is heap.system
    assert used.place is heap.vram
    assert (heap.stats.vram_pages, heap.stats.system_pages, heap.stats.evictions) == (8, 4, 1)


def test_window_of_the_cpu_is_smaller_than_the_memory(heap: VramHeap) -> None:
    seen, unseen = heap.allocate(4), heap.allocate(4)
    assert (seen.in_window, unseen.in_window) == (True, False)
    seen.read(FIRST)
    assert heap.stats.copy_engine_pages == 0
    unseen.read(PageRange(0, 4))
    assert heap.stats.copy_engine_pages == 4
    heap.bring_back(unseen, in_window=True)
    assert unseen.in_window
    assert seen.place is heap.system


def test_only_what_is_in_the_window_makes_room_there(heap: VramHeap) -> None:
    in_the_way, used, outside = heap.allocate(2), heap.allocate(2), heap.allocate(4)
    for buffer in (outside, in_the_way, used):
        buffer.read(FIRST)
    assert heap.allocate(2, in_window=True).in_window
    assert in_the_way.place is heap.system
    assert (outside.place, used.place) == (heap.vram, heap.vram)


def test_no_room_is_said(heap: VramHeap) -> None:
    with pytest.raises(NoSpace, match="no 9 pages of VRAM"):
        heap.allocate(9)
    heap.allocate(8)
    heap.allocate(8)
    with pytest.raises(NoSpace, match="system memory"):
        heap.allocate(1)


def test_reset_takes_pages_for_a_while_and_loses_nothing(heap: VramHeap) -> None:
    buffer = heap.allocate(1)
    taken = watched(buffer)
    buffer.write(FIRST, page(5))
    heap.suspend()
    assert taken
    with pytest.raises(BackingLost, match="reset"):
        buffer.read(FIRST)
    taken.clear()
    heap.resume()
    assert taken == [FIRST]
    assert buffer.read(FIRST) == page(5)


def test_what_is_written_while_a_reset_begins_is_taken(heap: VramHeap) -> None:
    buffer = heap.allocate(1)
    buffer.write(FIRST, page(1))
    out_of_reach = []

    def on_invalidate(_: PageRange) -> None:
        out_of_reach.append(heap.out_of_reach is not None)
        buffer.write(FIRST, page(2 + len(out_of_reach)))  # what a borrower had written

    unsubscribe = buffer.subscribe(on_invalidate)
    heap.suspend()
    unsubscribe()
    assert out_of_reach == [False, True]
    with pytest.raises(BackingLost, match="reset"):
        buffer.write(FIRST, page(9))
    heap.resume()
    assert buffer.read(FIRST) == page(4)


def test_freed_buffer_has_nothing_and_takes_nothing(heap: VramHeap) -> None:
    buffer = heap.allocate(8)
    buffer.close()
    buffer.close()
    for access in (lambda: buffer.read(FIRST), lambda: buffer.write(FIRST, page(1))):
        with pytest.raises(BackingLost, match="freed"):
            access()
    heap.allocate(8)
    assert heap.stats.evictions == 0, "its frames are free"


def test_unplugging_loses_all_for_good(heap: VramHeap) -> None:
    buffer = heap.allocate(1)
    taken = watched(buffer)
    heap.unplug()
    assert taken == [FIRST]
    heap.resume()
    with pytest.raises(BackingLost, match="unplugged"):
        buffer.read(FIRST)
    with pytest.raises(BackingLost, match="unplugged"):
        buffer.write(FIRST, page(1))
    with pytest.raises(BackingLost, match="unplugged"):
        heap.allocate(1)


def test_pages_outside_are_refused(heap: VramHeap) -> None:
    with pytest.raises(ValueError, match="pages 0 to 2 of a buffer of 1"):
        heap.allocate(1).read(PageRange(0, 2))
