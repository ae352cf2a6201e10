"""Where lent pages come from, seen from those who lend them.

Nothing above this interface knows what kind of backing it has; a backing knows nothing of domains, leases or gfns. It
delivers pages, takes dirty ones back, and says when its owner takes pages away.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Hashable
from typing import Protocol

from waylend.lending.pages import PageRange

#: Called with a page range of the backing that its owner takes away. It returns only when no borrower can reach the old
#: pages any more, and dirty content has been handed to ``Backing.write`` (an MMU notifier; docs/lending.md, "Invalidate").
#: Faults go on after it, so the owner sees to it first that ``Backing.read`` delivers the new pages, or BackingLost. Raises
#: RevokeTimeout when a borrower had to be cut off for it: then it has nothing any more, either.
Invalidate = Callable[[PageRange], None]


class Backing(Protocol):
    """A source of pages, which a lender hands to ``Domain.lend``. Whoever has pages of another kind implements this.

    Page indices count from the backing's start, ranges are half-open, a page has PAGE_SIZE bytes. Methods are called from any
    thread, also side by side, and from those that serve faults: a borrower stands still until ``read`` returns, and a domain
    that misses its deadline in ``write`` is cut off. What they raise beside BackingLost counts as that, and is logged.

    A domain owns the backing from ``lend`` on and closes it with its last lease there; one object may be lent many times to one
    domain. ``Subscribers`` keeps what ``subscribe`` is given::

        class Pictures:
            def __init__(self, picture: bytes) -> None:
                self._picture, self._subscribers = picture, Subscribers()

            def replace(self, picture: bytes) -> None:
                self._picture = picture
                self._subscribers.invalidate(PageRange(0, page_count_of(len(picture))))  # every borrower faults anew
    """

    @property
    def key(self) -> Hashable:
        """Equal for two backings exactly when they are the same pages (the same file handed out again). It never changes."""

    @property
    def size_bytes(self) -> int:
        """How much there is, at least 1; the rest of the last page reads as zeros. It never changes."""

    @property
    def writable(self) -> bool:
        """Whether ``write`` takes anything: else only leases for reading can be had."""

    def read(self, pages: PageRange) -> bytes:
        """The content of ``pages``, exactly ``pages.page_count * PAGE_SIZE`` bytes. Never through a mapping.

        Raises BackingLost when it can't be delivered, now or ever: the borrower gets what the lease's loss policy says.
        """

    def write(self, pages: PageRange, content: bytes | memoryview) -> None:
        """Takes back what a borrower wrote: whole pages, as many bytes as ``read`` delivers. ``content`` is void afterwards.

        What lies beyond ``size_bytes`` is dropped. Takes all of it or raises BackingLost: then a domain tries page by page, and
        says which are lost.
        """

    def sync(self) -> None:
        """Makes what was written durable where the backing has such a thing. Raises BackingLost."""

    def subscribe(self, invalidate: Invalidate) -> Callable[[], None]:
        """From now on calls ``invalidate`` before pages go away. Returns the way to end that, which is idempotent."""

    def close(self) -> None:
        """Gives up the pages; further reads raise BackingLost. Idempotent."""


class Subscribers:
    """Who must hear of an invalidation: what every backing keeps."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._all: list[Invalidate] = []

    def add(self, invalidate: Invalidate) -> Callable[[], None]:
        """Returns the way to end that. Idempotent."""
        with self._lock:
            self._all.append(invalidate)

        def remove() -> None:
            with self._lock, contextlib.suppress(ValueError):
                self._all.remove(invalidate)

        return remove

    def invalidate(self, pages: PageRange) -> None:
        """Calls all of them, one after the other; when it returns, no borrower reaches the old pages any more."""
        with self._lock:
            subscribers = list(self._all)
        for subscriber in subscribers:
            subscriber(pages)
