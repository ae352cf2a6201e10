"""GuestRange: a range of this process's addresses in which the pages of one aperture appear, for guests to map.

Its pages are those of a memfd that nobody else has: they can be read back with pread, and taken out with a punched hole,
whatever a guest does meanwhile. MMU notifiers carry every change into second-stage tables before the call returns.
This process must never touch the range through the mapping: it would fault like a guest, holding the interpreter lock.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

from waylend.backing.file import punch_hole
from waylend.lending.pages import PAGE_SHIFT, PAGE_SIZE, PageRange

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

#: What a guest may do with pages: nothing (an access is an error at once), read, read and write.
PROT_NONE: Final = 0
PROT_READ: Final = 1
PROT_READ_WRITE: Final = 3
_MAP_SHARED, _MAP_NORESERVE = 0x01, 0x4000
_MAP_FAILED: Final = ctypes.c_void_p(-1).value
_MADV_DONTNEED, _MADV_DONTFORK, _MADV_DONTDUMP = 4, 10, 16


class GuestRange:
    """``page_count`` pages, gfn 0 first, all forbidden and absent to begin with. Raises OSError, as all its methods do."""

    def __init__(self, page_count: int) -> None:
        self.page_count = page_count
        #: One page more, which is no guest's: the doorbell of a FaultServer.
        self.size_bytes = (page_count + 1) << PAGE_SHIFT
        self._memfd = os.memfd_create("waylend-window", os.MFD_CLOEXEC)
        self.address = 0
        try:
            os.ftruncate(self._memfd, self.size_bytes)
            mapped = _libc.mmap(None, self.size_bytes, PROT_NONE, _MAP_SHARED | _MAP_NORESERVE, self._memfd, 0)
            _check(-1 if mapped == _MAP_FAILED else 0, "mmap")
            self.address = mapped
            # A child of fork would have the pages without anybody who serves its faults.
            self._advise(self.address, self.size_bytes, _MADV_DONTFORK)
            self._advise(self.address, self.size_bytes, _MADV_DONTDUMP)
            _check(_libc.mprotect(self.doorbell, PAGE_SIZE, PROT_READ), "mprotect")
        except BaseException:
            self.close()
            raise

    @property
    def doorbell(self) -> int:
        return self.address + (self.page_count << PAGE_SHIFT)

    def address_of(self, gfn: int) -> int:
        return self.address + (gfn << PAGE_SHIFT)

    def permit(self, gfns: PageRange, protection: int) -> None:
        """What guests may do there. When it returns, no access goes beyond that; what does is an error at once."""
        _check(_libc.mprotect(self.address_of(gfns.start), gfns.page_count << PAGE_SHIFT, protection), "mprotect")

    def read(self, gfns: PageRange) -> bytes:
        """What is in the pages; zeros where there is none. Never faults."""
        content = os.pread(self._memfd, gfns.page_count << PAGE_SHIFT, gfns.start << PAGE_SHIFT)
        assert len(content) == gfns.page_count << PAGE_SHIFT, "the window's memfd was cut short"
        return content

    def punch(self, gfns: PageRange) -> None:
        """Unmaps the pages everywhere and frees them: the next access faults. When it returns, none reaches the old page."""
        punch_hole(self._memfd, gfns.start << PAGE_SHIFT, gfns.page_count << PAGE_SHIFT)

    def drop_marks(self, gfns: PageRange) -> None:
        """Forgets which pages are poisoned there, which a punched hole does not."""
        self._advise(self.address_of(gfns.start), gfns.page_count << PAGE_SHIFT, _MADV_DONTNEED)

    def close(self) -> None:
        """Gives the addresses up: not while a guest has them mapped. Idempotent."""
        address, self.address = self.address, 0
        memfd, self._memfd = self._memfd, -1
        if address:
            _libc.munmap(address, self.size_bytes)
        if memfd >= 0:
            os.close(memfd)

    @staticmethod
    def _advise(address: int, size_bytes: int, advice: int) -> None:
        _check(_libc.madvise(address, size_bytes, advice), "madvise")


def _check(result: int, call: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
