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
#: Faults go on after it, so the owner sees to it first that ``Backing.read`` delivers the new pages, or BackingLost.
Invalidate = Callable[[PageRange], None]


class Backing(Protocol):
    """A source of pages. Page indices count from the backing's start; methods may be called from any thread."""

    @property
    def key(self) -> Hashable:
        """Equal for two backings exactly when they are the same pages (the same file handed out again)."""

    @property
    def size_bytes(self) -> int:
        """How much there is; the rest of the last page reads as zeros."""

    @property
    def writable(self) -> bool: ...

    def read(self, pages: PageRange) -> bytes:
        """The content of ``pages``, exactly ``pages.page_count * PAGE_SIZE`` bytes. Never through a mapping.

        Raises BackingLost when it can't be delivered, now or ever.
        """

    def write(self, pages: PageRange, content: bytes | memoryview) -> None:
        """Takes back what a borrower wrote. Raises BackingLost."""

    def sync(self) -> None:
        """Makes what was written durable where the backing has such a thing."""

    def subscribe(self, invalidate: Invalidate) -> Callable[[], None]:
        """From now on calls ``invalidate`` before pages go away. Returns the way to end that."""

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
