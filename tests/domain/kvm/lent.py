"""What the tests of the KVM domain lend, and how they look at it."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable

from waylend.backing.file import FileBacking
from waylend.domain.kvm.domain import KvmDomain
from waylend.lending.lease import Lease, LossPolicy, Protection
from waylend.lending.pages import PAGE_SIZE, PageRange

PAGES = 16


class WatchedBacking(FileBacking):
    """A file backing that says which pages it was asked for and given, and waits where the test wants it to."""

    def __init__(self, fd: int, *, writable: bool = True) -> None:
        super().__init__(fd, writable=writable)
        self.reads: list[int] = []
        self.writes: list[int] = []
        self.before_read: Callable[[int], None] = lambda page: None
        self.before_write: Callable[[int], None] = lambda page: None

    def read(self, pages: PageRange) -> bytes:
        self.reads += range(*pages)
        self.before_read(pages.start)
        return super().read(pages)

    def write(self, pages: PageRange, content: bytes | memoryview) -> None:
        self.before_write(pages.start)
        super().write(pages, content)
        self.writes += range(*pages)


class Stopper:
    """Something slow: who comes waits until the test lets go."""

    def __init__(self) -> None:
        self.reached, self._go = threading.Event(), threading.Event()

    def __call__(self, page: int) -> None:
        self.reached.set()
        assert self._go.wait(30)

    def let_go(self) -> None:
        self._go.set()


def lend(
    domain: KvmDomain, owner_fd: int, *, writable: bool = True, loss: LossPolicy = LossPolicy.FAULT
) -> tuple[Lease, WatchedBacking]:
    """All of the file."""
    backing = WatchedBacking(os.dup(owner_fd), writable=writable)
    protection = Protection.READ_WRITE if writable else Protection.READ
    return domain.lend(backing, protection=protection, loss=loss), backing


def states(domain: KvmDomain, lease: Lease) -> list[int]:
    """The lease's pages as the book has them; a guest that has its page may go on before that is written down."""
    domain.stats()  # waits for who is writing
    return list(lease.pages)


def word_in(fd: int, page: int) -> int:
    value: int = struct.unpack("<I", os.pread(fd, 4, page * PAGE_SIZE))[0]
    return value
