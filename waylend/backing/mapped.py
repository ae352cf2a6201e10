"""MappedMemory: memory that can be reached through a mapping only, as its bytes, without its faults.

A dma-buf has no read(2). Whoever touches its mapping may fault, with the interpreter lock in hand, and dies of SIGBUS when the
pages behind it are gone. So the kernel touches it for us: write(2) of a view of the mapping into a memfd, and read(2) from
there. Then the lock is free meanwhile, and pages that are gone are EFAULT or a short count.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os


class MappedMemory:
    """``size_bytes`` from the start of what ``fd`` maps; the descriptor stays the caller's. Raises OSError.

    ``read`` and ``write`` may be called from any thread, also while another closes it: what is under way ends first.
    """

    def __init__(self, fd: int, size_bytes: int, *, writable: bool) -> None:
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        # No name but this view keeps the mapping: the last one to let go of it unmaps.
        self._view: memoryview | None = memoryview(mmap.mmap(fd, size_bytes, mmap.MAP_SHARED, protection))
        #: Files to copy by, one for each thread that is at it.
        self._idle: list[int] = []

    def read(self, offset_bytes: int, size_bytes: int) -> bytes:
        """Raises OSError: EFAULT for pages that are gone, EBADF when it is closed."""
        view = self._piece(offset_bytes, size_bytes)
        between = self._take()
        try:
            if os.pwrite(between, view, 0) != len(view):
                raise OSError(errno.EFAULT, "the mapped pages are gone")
            return os.pread(between, size_bytes, 0)
        finally:
            self._put(between)

    def write(self, offset_bytes: int, content: bytes | memoryview) -> None:
        """Raises OSError: EFAULT for pages that are gone, EBADF when it is closed."""
        view = self._piece(offset_bytes, len(content))
        between = self._take()
        try:
            os.pwrite(between, content, 0)
            if os.preadv(between, [view], 0) != len(view):
                raise OSError(errno.EFAULT, "the mapped pages are gone")
        finally:
            self._put(between)

    def close(self) -> None:
        """Idempotent."""
        self._view = None
        with contextlib.suppress(IndexError):
            while True:
                os.close(self._idle.pop())

    def _piece(self, offset_bytes: int, size_bytes: int) -> memoryview:
        view = self._view
        if view is None:
            raise OSError(errno.EBADF, "the mapping is closed")
        if not 0 <= offset_bytes <= offset_bytes + size_bytes <= len(view):
            raise ValueError(f"{size_bytes} bytes at {offset_bytes} of {len(view)}")
        return view[offset_bytes : offset_bytes + size_bytes]

    def _take(self) -> int:
        try:
            return self._idle.pop()
        except IndexError:
            return os.memfd_create("between", os.MFD_CLOEXEC)

    def _put(self, between: int) -> None:
        self._idle.append(between)
        if self._view is None:  # closed meanwhile
            self.close()
