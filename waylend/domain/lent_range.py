"""LentRange: a lease and the backing that it stands on, and how bytes go from one to the other, to the lease's last byte."""

from __future__ import annotations

import logging

from waylend.backing.base import Backing
from waylend.errors import BackingLost
from waylend.lending.lease import Lease
from waylend.lending.p2m import EventLog, LendingEventKind
from waylend.lending.pages import PAGE_SHIFT, PAGE_SIZE, PageRange, page_count_of

logger = logging.getLogger(__name__)


class LentRange:
    """What a domain keeps of a lease besides the book's entry; each mechanism adds its own."""

    __slots__ = ("_unstored", "_whole", "backing", "lease")

    def __init__(self, lease: Lease, backing: Backing) -> None:
        self.lease = lease
        self.backing = backing
        self._whole = lease.size_bytes % PAGE_SIZE == 0
        self._unstored: BackingLost | None = None

    def fetch(self, pages: PageRange) -> bytes:
        """The content of ``pages`` of the backing, and nothing beyond the lease's last byte. Raises BackingLost."""
        try:
            content = self.backing.read(pages)
        except BackingLost:
            raise
        except Exception as error:  # a bug of the backing; the borrower must not stand still for it
            logger.exception("lease %d: reading its backing", self.lease.lease_id)
            raise BackingLost(f"reading the backing: {error}") from error
        if self._whole:
            return content
        lent_bytes = self.lease.size_bytes - ((pages.start - self.lease.backing_start) << PAGE_SHIFT)
        return content if lent_bytes >= len(content) else content[:lent_bytes].ljust(len(content), b"\0")

    def store(self, offset_bytes: int, content: bytes | memoryview) -> None:
        """Hands what the borrower wrote, ``offset_bytes`` from the lease's start, to the backing. Raises BackingLost.

        Of the pages that are not wholly written the rest is read first. What lies behind the lease's last byte is dropped.
        """
        kept: bytes | memoryview = memoryview(content)[: max(0, self.lease.size_bytes - offset_bytes)]
        if not kept:
            return
        end_bytes = offset_bytes + len(kept)
        pages = self.lease.to_backing(PageRange(offset_bytes >> PAGE_SHIFT, page_count_of(end_bytes)))
        ahead, behind = offset_bytes % PAGE_SIZE, -end_bytes % PAGE_SIZE
        if ahead or behind:
            head = self.backing.read(PageRange(pages.start, pages.start + 1))[:ahead] if ahead else b""
            tail = self.backing.read(PageRange(pages.end - 1, pages.end))[PAGE_SIZE - behind :] if behind else b""
            kept = b"".join((head, kept, tail))
        self.backing.write(pages, kept)

    def hand_over(self, events: EventLog, offset_bytes: int, content: bytes | memoryview) -> list[PageRange]:
        """``store``, page by page where the backing doesn't take it as a whole.

        What can't be stored is lost, and said to be. Returns those pages of the lease, in order and merged.
        """
        try:
            self.store(offset_bytes, content)
        except BackingLost as error:
            reason = self._unstored = error
        else:
            return []
        lost: list[PageRange] = []
        view = memoryview(content)
        at = 0
        while at < len(view):
            page = (offset_bytes + at) >> PAGE_SHIFT
            end = min(((page + 1) << PAGE_SHIFT) - offset_bytes, len(view))
            try:
                self.store(offset_bytes + at, view[at:end])
            except BackingLost:
                first = lost.pop().start if lost and lost[-1].end == page else page
                lost.append(PageRange(first, page + 1))
                events.emit(LendingEventKind.LOST, self.lease, PageRange(page, page + 1))
            at = end
        lease = self.lease
        for pages in lost:
            logger.error(
                "domain %s, lease %d: what was written to pages %d to %d is lost: %s",
                lease.domain_name,
                lease.lease_id,
                pages.start,
                pages.end - 1,
                reason,
            )
        return lost

    def check_stored(self) -> None:
        """Raises BackingLost, once, when something that was handed over since the last call is lost."""
        unstored, self._unstored = self._unstored, None
        if unstored is not None:
            raise BackingLost(f"what the borrower wrote is lost: {unstored}")
