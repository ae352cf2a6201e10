"""GuestRange: a range of this process's addresses in which the pages of one aperture appear, for guests to map.

Its pages are those of a memfd that nobody else has: they can be read back with pread, and taken out with a punched hole,
whatever a guest does meanwhile. MMU notifiers carry every change into second-stage tables before the call returns.
This process must never touch the range through the mapping: it would fault like a guest, holding the interpreter lock.
"""

from __future__ import annotations

import os

from waylend import linux
from waylend.lending.pages import PAGE_SHIFT, PAGE_SIZE, PageRange


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
            self.address = linux.map_shared(self._memfd, self.size_bytes, linux.PROT_NONE)
            # A child of fork would have the pages without anybody who serves its faults.
            linux.advise(self.address, self.size_bytes, linux.MADV_DONTFORK)
            linux.advise(self.address, self.size_bytes, linux.MADV_DONTDUMP)
            linux.protect(self.doorbell, PAGE_SIZE, linux.PROT_READ)
        except BaseException:
            self.close()
            raise

    @property
    def doorbell(self) -> int:
        return self.address + (self.page_count << PAGE_SHIFT)

    def address_of(self, gfn: int) -> int:
        return self.address + (gfn << PAGE_SHIFT)

    def permit(self, gfns: PageRange, protection: int) -> None:
        """What guests may do there, one of ``linux``'s PROT_NONE, PROT_READ and PROT_READ_WRITE. When it returns, no access goes
        beyond that; what does is an error at once.
        """
        linux.protect(self.address_of(gfns.start), gfns.page_count << PAGE_SHIFT, protection)

    def read(self, gfns: PageRange) -> bytes:
        """What is in the pages; zeros where there is none. Never faults."""
        content = os.pread(self._memfd, gfns.page_count << PAGE_SHIFT, gfns.start << PAGE_SHIFT)
        assert len(content) == gfns.page_count << PAGE_SHIFT, "the window's memfd was cut short"
        return content

    def punch(self, gfns: PageRange) -> None:
        """Unmaps the pages everywhere and frees them: the next access faults. When it returns, none reaches the old page."""
        linux.punch_hole(self._memfd, gfns.start << PAGE_SHIFT, gfns.page_count << PAGE_SHIFT)

    def drop_marks(self, gfns: PageRange) -> None:
        """Forgets which pages are poisoned there, which a punched hole does not."""
        linux.advise(self.address_of(gfns.start), gfns.page_count << PAGE_SHIFT, linux.MADV_DONTNEED)

    def close(self) -> None:
        """Gives the addresses up: not while a guest has them mapped. Idempotent."""
        address, self.address = self.address, 0
        memfd, self._memfd = self._memfd, -1
        if address:
            linux.unmap(address, self.size_bytes)
        if memfd >= 0:
            os.close(memfd)
