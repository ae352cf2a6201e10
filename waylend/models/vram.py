"""A model of GPU memory, for machines without a GPU: VRAM of which the CPU sees only a part, and buffers that move.

It behaves as the kernel's TTM does (Documentation/gpu/drm-mm.rst): a buffer lives in VRAM or in system memory, is evicted when
VRAM is short, is moved at any time, may be out of reach for a while (a reset), and is gone when the card is unplugged. Pages
that the CPU doesn't see are read and written by the card's copy engine.

A buffer that moves is copied first, from then on read at its new place, then taken away from its borrowers; only after that
its old frames are others'. So what a borrower wrote meanwhile goes to the new place, and no fault gets an old page. No lock
is held while borrowers lose pages: taking them away waits for faults, and those read the buffer.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from waylend.backing.base import Invalidate, Subscribers
from waylend.errors import BackingLost, NoSpace
from waylend.lending.intervals import IntervalMap
from waylend.lending.pages import PAGE_SHIFT, PAGE_SIZE, PageRange

#: What freed frames hold, so that whoever still reads them is found out.
POISON = b"\xde" * PAGE_SIZE


class _Memory:
    """Frames of one kind of memory: contiguous pieces, first fit. Guarded by the heap's lock."""

    def __init__(self, name: str, page_count: int) -> None:
        self.name = name
        self.page_count = page_count
        self._fd = os.memfd_create(name, os.MFD_CLOEXEC)
        os.ftruncate(self._fd, page_count << PAGE_SHIFT)
        self._pieces: IntervalMap[object] = IntervalMap()

    def allocate(self, page_count: int, *, below: int | None = None) -> PageRange | None:
        """Free frames, all of them under ``below``; None if there are none in one piece."""
        start = self._pieces.first_fit(0, self.page_count if below is None else below, page_count)
        if start is None:
            return None
        self._pieces.insert(start, start + page_count, None)
        return PageRange(start, start + page_count)

    def free(self, frames: PageRange) -> None:
        self._pieces.remove(frames.start)
        os.pwrite(self._fd, POISON * frames.page_count, frames.start << PAGE_SHIFT)

    def read(self, frames: PageRange) -> bytes:
        return os.pread(self._fd, frames.page_count << PAGE_SHIFT, frames.start << PAGE_SHIFT)

    def write(self, frames: PageRange, content: bytes | memoryview) -> None:
        os.pwrite(self._fd, content, frames.start << PAGE_SHIFT)

    def close(self) -> None:
        os.close(self._fd)


@dataclass
class HeapStats:
    """Counts since the heap was made, and where its buffers are now. Pages, except for the counts of events."""

    evictions: int = 0
    moves: int = 0
    copy_engine_pages: int = 0
    vram_pages: int = 0
    system_pages: int = 0


class VramHeap:
    """One card's memory: ``vram_pages``, of which the CPU sees the first ``visible_pages``, and system memory to evict to.

    Sizes in pages. ``allocate`` makes buffers; what else happens to them is ``evict``, ``bring_back``, ``shuffle``,
    ``suspend``, ``resume`` and ``unplug``: each may be called at any time, from any thread but one that serves faults.
    """

    def __init__(self, *, vram_pages: int, visible_pages: int, system_pages: int) -> None:
        if not 0 < visible_pages <= vram_pages:
            raise ValueError(f"a window of {visible_pages} pages onto {vram_pages}")
        self.vram = _Memory("vram", vram_pages)
        self.system = _Memory("system", system_pages)
        self.visible_pages = visible_pages
        self.lock = threading.Lock()  # of the places and the content
        self._moving = threading.RLock()  # one move at a time
        self.stats = HeapStats()
        #: Why nothing can be read at the moment, or for good; and while that is so, whether what borrowers wrote is still taken.
        self.out_of_reach: str | None = None
        self.takes_writes = False
        self._unplugged = False
        self._buffers: dict[int, VramBuffer] = {}
        self._serials = itertools.count(1)
        self.clock = itertools.count(1)

    def allocate(self, page_count: int, *, in_window: bool = False) -> VramBuffer:
        """A buffer of zeros in VRAM (in the part that the CPU sees, if ``in_window``), where others may have to make room.

        Raises NoSpace when even eviction can't make room, BackingLost after ``unplug``.
        """
        with self._moving:
            self._check_plugged()
            frames = self._make_room(page_count, in_window=in_window, keep=None)
            with self.lock:
                self.vram.write(frames, bytes(page_count << PAGE_SHIFT))
                buffer = VramBuffer(self, next(self._serials), page_count, self.vram, frames)
                self._buffers[buffer.serial] = buffer
            self._count()
            return buffer

    def evict(self, buffer: VramBuffer) -> None:
        """Moves it to system memory. Raises NoSpace, BackingLost."""
        with self._moving:
            self._check_plugged()
            if buffer.place is self.system:
                return
            with self.lock:
                frames = self.system.allocate(buffer.page_count)
            if frames is None:
                raise NoSpace(f"no {buffer.page_count} pages of system memory to evict to")
            self._move(buffer, self.system, frames)
            self.stats.evictions += 1

    def bring_back(self, buffer: VramBuffer, *, in_window: bool = False) -> None:
        """Moves it to VRAM, where others may have to make room. Raises NoSpace, BackingLost."""
        with self._moving:
            self._check_plugged()
            if buffer.place is self.vram and (buffer.in_window or not in_window):
                return
            self._move(buffer, self.vram, self._make_room(buffer.page_count, in_window=in_window, keep=buffer))

    def shuffle(self, buffer: VramBuffer) -> bool:
        """Moves it elsewhere within VRAM, as defragmentation does. False if there is no other place."""
        with self._moving:
            self._check_plugged()
            with self.lock:
                frames = self.vram.allocate(buffer.page_count)
            if frames is None:
                return False
            self._move(buffer, self.vram, frames)
            return True

    def suspend(self) -> None:
        """Out of reach for a while, as in a reset: borrowers lose their pages (what they wrote is taken), faults get nothing."""
        with self._moving:
            self._check_plugged()
            self._invalidate_all()
            with self.lock:
                self.out_of_reach, self.takes_writes = "the card is being reset", True
            # Nobody gets a page any more; what was written to those that came between is taken, too.
            self._invalidate_all()
            with self.lock:
                self.takes_writes = False

    def resume(self) -> None:
        """In reach again: what borrowers got instead of their pages is taken away, and their pages are served again.

        Where a borrower wrote to a page of zeros that it got instead, that is the page's content from now on.
        """
        with self._moving:
            if not self._unplugged:
                with self.lock:
                    self.out_of_reach = None
                self._invalidate_all()

    def unplug(self) -> None:
        """The card is pulled out: all content is gone, for good."""
        with self._moving:
            self._unplugged = True
            with self.lock:
                self.out_of_reach, self.takes_writes = "the card was unplugged", False
            self._invalidate_all()

    def close(self) -> None:
        """Ends the heap, when all of its buffers are closed."""
        with self._moving:
            assert not self._buffers, "buffers are still there"
            self.vram.close()
            self.system.close()

    # -- within the heap; ``_moving`` is held

    def _check_plugged(self) -> None:
        if self._unplugged:
            raise BackingLost("the card was unplugged")

    def _make_room(self, page_count: int, *, in_window: bool, keep: VramBuffer | None) -> PageRange:
        """Frames of VRAM, after evicting whatever was used least recently of what is in the way, if it must be."""
        below = self.visible_pages if in_window else self.vram.page_count
        victims = sorted(
            (
                one
                for one in list(self._buffers.values())  # one may be freed meanwhile
                if one is not keep and one.place is self.vram and one.frames.start < below
            ),
            key=lambda one: one.last_used,
        )
        while True:
            with self.lock:
                frames = self.vram.allocate(page_count, below=below)
            if frames is not None:
                return frames
            if not victims:
                raise NoSpace(f"no {page_count} pages of VRAM{' that the CPU sees' if in_window else ''}")
            self.evict(victims.pop(0))

    def _move(self, buffer: VramBuffer, place: _Memory, frames: PageRange) -> None:
        with self.lock:
            if buffer.closed:
                place.free(frames)
                return
            old_place, old_frames = buffer.place, buffer.frames
            place.write(frames, old_place.read(old_frames))
            buffer.place, buffer.frames = place, frames
        buffer.subscribers.invalidate(PageRange(0, buffer.page_count))
        with self.lock:
            old_place.free(old_frames)
            self.stats.moves += 1
        self._count()

    def _invalidate_all(self) -> None:
        for buffer in list(self._buffers.values()):
            buffer.subscribers.invalidate(PageRange(0, buffer.page_count))

    def _count(self) -> None:
        places = [(one.place, one.page_count) for one in list(self._buffers.values())]
        self.stats.vram_pages = sum(count for place, count in places if place is self.vram)
        self.stats.system_pages = sum(count for place, count in places if place is self.system)

    def forget(self, buffer: VramBuffer) -> None:
        """The buffer is freed; under the lock. Not held up by a move of it, which may be waiting for whoever calls this."""
        del self._buffers[buffer.serial]
        buffer.place.free(buffer.frames)


class VramBuffer:
    """A buffer of a VramHeap, as a Backing. ``draw`` is how the card itself changes it."""

    writable = True

    def __init__(self, heap: VramHeap, serial: int, page_count: int, place: _Memory, frames: PageRange) -> None:
        self.heap = heap
        self.serial = serial
        self.page_count = page_count
        self.place = place
        self.frames = frames
        self.subscribers = Subscribers()
        self.closed = False
        self.last_used = 0

    @property
    def key(self) -> Hashable:
        return ("vram", id(self.heap), self.serial)

    @property
    def size_bytes(self) -> int:
        return self.page_count << PAGE_SHIFT

    @property
    def in_window(self) -> bool:
        """Whether the CPU can reach all of it without the copy engine."""
        return self.place is self.heap.system or self.frames.end <= self.heap.visible_pages

    def read(self, pages: PageRange) -> bytes:
        with self.heap.lock:
            return self.place.read(self._reached(pages))

    def write(self, pages: PageRange, content: bytes | memoryview) -> None:
        with self.heap.lock:
            self.place.write(self._reached(pages, writing=True), content)

    def draw(self, pages: PageRange, content: bytes) -> None:
        """The card writes ``content``; when this returns, no borrower sees what was there before. Raises BackingLost."""
        self.write(pages, content)
        self.subscribers.invalidate(pages)

    def _reached(self, pages: PageRange, *, writing: bool = False) -> PageRange:
        """The frames of ``pages``, where they are now. Under the heap's lock. Raises BackingLost."""
        if self.closed or (self.heap.out_of_reach and not (writing and self.heap.takes_writes)):
            raise BackingLost(self.heap.out_of_reach or "the buffer was freed")
        if not 0 <= pages.start <= pages.end <= self.page_count:
            raise ValueError(f"pages {pages.start} to {pages.end} of a buffer of {self.page_count}")
        self.last_used = next(self.heap.clock)
        frames = PageRange(self.frames.start + pages.start, self.frames.start + pages.end)
        if self.place is self.heap.vram:
            self.heap.stats.copy_engine_pages += max(0, frames.end - max(frames.start, self.heap.visible_pages))
        return frames

    def sync(self) -> None:
        """Nothing: what is written is where the card sees it."""

    def subscribe(self, invalidate: Invalidate) -> Callable[[], None]:
        return self.subscribers.add(invalidate)

    def close(self) -> None:
        with self.heap.lock:
            if not self.closed:
                self.closed = True
                self.heap.forget(self)
