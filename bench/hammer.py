"""Real concurrency on lent memory: borrowers in other processes touch pages without a pause while their owners take them away.

Every page carries its generation. An owner writes a newer one, takes the page away, and only when that is acknowledged enters the
generation into a book that the borrowers share. A borrower looks into the book first and at the page then: what
it finds there may never be older than what the book said. Tests run this for seconds, the soak for a million faults.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from waylend.backing.base import Backing
from waylend.backing.file import FileBacking
from waylend.domain.base import Domain
from waylend.errors import NoSpace
from waylend.lending.lease import Lease
from waylend.lending.pages import PAGE_SIZE, PageRange
from waylend.models.vram import VramBuffer, VramHeap

PAGE_COUNT = 256
_WORD = struct.Struct("=Q")

#: Arguments: the lent descriptor, the book's, a seed. Ends when the word behind the book's pages is set; prints its touches.
_BORROWER = r"""
import mmap, os, random, struct, sys
lent_fd, book_fd, seed = (int(x) for x in sys.argv[1:4])
size = os.fstat(lent_fd).st_size
lent = mmap.mmap(lent_fd, size, mmap.MAP_SHARED, mmap.PROT_READ)
count = size // 4096
book = memoryview(mmap.mmap(book_fd, (count + 1) * 8)).cast("Q")
pages = memoryview(lent).cast("Q")
chance = random.Random(seed)
touches = 0
print("ready", flush=True)
while not book[count]:
    for page in chance.choices(range(count), k=256):
        oldest = book[page]
        first, last = pages[page * 512], pages[page * 512 + 511]
        touches += 1
        if first < oldest or last < oldest:
            print(f"page {page} is of generation {first} to {last}, but {oldest} was acknowledged", flush=True)
            sys.exit(1)
print(touches, flush=True)
"""


class Owner(Protocol):
    """Whoever may change a backing's pages. Called from a thread of its own, never one that serves faults."""

    @property
    def backing(self) -> Backing: ...

    def change(self, pages: PageRange, content: bytes) -> None:
        """Puts new pages in the place of the old ones; when it returns, nobody reaches the old ones."""

    def disturb(self) -> None:
        """Takes pages away without changing what they hold: moves, evicts."""

    def close(self) -> None: ...


class FileOwner:
    def __init__(self) -> None:
        fd = os.memfd_create("hammer", os.MFD_CLOEXEC)
        os.ftruncate(fd, PAGE_COUNT * PAGE_SIZE)
        self._fd = os.dup(fd)
        self.backing = FileBacking(fd)

    def change(self, pages: PageRange, content: bytes) -> None:
        os.pwrite(self._fd, content, pages.start * PAGE_SIZE)
        self.backing.invalidate(pages)

    def disturb(self) -> None:
        start = random.randrange(PAGE_COUNT)
        self.backing.invalidate(PageRange(start, min(start + 16, PAGE_COUNT)))

    def close(self) -> None:
        os.close(self._fd)


class VramOwner:
    """The buffer moves between the window, the rest of VRAM and system memory, and a second one pushes it out."""

    def __init__(self) -> None:
        self._heap = VramHeap(
            vram_pages=3 * PAGE_COUNT, visible_pages=PAGE_COUNT + PAGE_COUNT // 2, system_pages=3 * PAGE_COUNT
        )
        self.backing: VramBuffer = self._heap.allocate(PAGE_COUNT)
        self._moves: tuple[Callable[[], object], ...] = (
            lambda: self._heap.evict(self.backing),
            lambda: self._heap.bring_back(self.backing),
            lambda: self._heap.bring_back(self.backing, in_window=True),
            lambda: self._heap.shuffle(self.backing),
            self._press,
        )

    def _press(self) -> None:
        try:
            self._heap.allocate(5 * PAGE_COUNT // 2).close()
        except NoSpace:
            pass

    def change(self, pages: PageRange, content: bytes) -> None:
        self.backing.draw(pages, content)

    def disturb(self) -> None:
        random.choice(self._moves)()

    def close(self) -> None:
        self._heap.close()


@dataclass
class Hammered:
    """``stale`` names the first page that was older than it may be; empty if there was none."""

    faults: int = 0
    touches: int = 0
    changes: int = 0
    disturbances: int = 0
    seconds: float = 0.0
    stale: list[str] = field(default_factory=list)


@contextmanager
def _book() -> Iterator[tuple[int, memoryview]]:
    fd = os.memfd_create("book", os.MFD_CLOEXEC)
    os.ftruncate(fd, (PAGE_COUNT + 1) * _WORD.size)
    mapping = mmap.mmap(fd, 0)
    words = memoryview(mapping).cast("Q")
    try:
        yield fd, words
    finally:
        words.release()
        mapping.close()
        os.close(fd)


def hammer(
    make_domain: Callable[..., Domain],
    make_owner: Callable[[], Owner],
    *,
    faults: int,
    deadline_s: float,
    borrower_count: int = 2,
    look: Callable[[Hammered], None] = lambda _: None,
) -> Hammered:
    """Goes on until ``faults`` have been served, or ``deadline_s`` is over. Raises RuntimeError for a borrower that crashed."""
    result = Hammered()
    owner = make_owner()
    domain = make_domain("hammer", aperture_pages=4 * PAGE_COUNT)
    began = time.monotonic()
    over = threading.Event()
    try:
        lease = domain.lend(owner.backing)
        with _book() as (book_fd, book), contextlib.ExitStack() as started:
            borrowers = [
                started.enter_context(_borrower(domain, lease, book_fd, seed)) for seed in range(borrower_count)
            ]
            errors: list[BaseException] = []
            threads = [
                threading.Thread(target=_repeat, args=(over, errors, lambda: _change(owner, book, result))),
                threading.Thread(target=_repeat, args=(over, errors, lambda: _disturb(owner, result))),
            ]
            for thread in threads:
                thread.start()
            try:
                while result.faults < faults and time.monotonic() - began < deadline_s and not errors:
                    if any(borrower.poll() is not None for borrower in borrowers):
                        break
                    time.sleep(0.05)
                    result.faults = domain.stats().leases[0].faults_served
                    result.seconds = time.monotonic() - began
                    look(result)
            finally:
                over.set()
                for thread in threads:
                    thread.join()
                book[PAGE_COUNT] = 1
            _end(borrowers, result)
            if errors:
                raise errors[0]
    finally:
        domain.close()
        owner.close()
    return result


@contextmanager
def _borrower(domain: Domain, lease: Lease, book_fd: int, seed: int) -> Iterator[subprocess.Popen[str]]:
    fd = domain.open_lease(lease)
    argv = [sys.executable, "-c", _BORROWER, str(fd), str(book_fd), str(seed)]
    borrower = subprocess.Popen(argv, pass_fds=[fd, book_fd], stdout=subprocess.PIPE, text=True)
    os.close(fd)
    with borrower:
        try:
            assert borrower.stdout is not None
            borrower.stdout.readline()
            yield borrower
        finally:
            borrower.kill()


def _end(borrowers: list[subprocess.Popen[str]], result: Hammered) -> None:
    for borrower in borrowers:
        said, _ = borrower.communicate(timeout=30)
        if borrower.returncode == 0:
            result.touches += int(said)
        elif borrower.returncode == 1:
            result.stale.append(said.strip())
        else:
            raise RuntimeError(f"a borrower ended with status {borrower.returncode}")


def _repeat(over: threading.Event, errors: list[BaseException], act: Callable[[], None]) -> None:
    try:
        while not over.wait(0.0005):
            act()
    except BaseException as error:
        errors.append(error)


def _change(owner: Owner, book: memoryview, result: Hammered) -> None:
    start = random.randrange(PAGE_COUNT)
    pages = PageRange(start, min(start + random.choice((1, 1, 4, 64)), PAGE_COUNT))
    result.changes += 1
    owner.change(pages, _WORD.pack(result.changes) * (PAGE_SIZE // _WORD.size) * pages.page_count)
    for page in range(*pages):
        book[page] = result.changes


def _disturb(owner: Owner, result: Hammered) -> None:
    owner.disturb()
    result.disturbances += 1
