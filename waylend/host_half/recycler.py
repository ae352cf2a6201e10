"""Leases that clients gave back, and the thread that ends them, since that waits for write-backs."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque

from waylend.domain.process.caller import ProcessDomain
from waylend.errors import LendingError
from waylend.lending.lease import Lease

logger = logging.getLogger(__name__)

#: A lease that was given back is nobody else's for so long: the compositor may be about to look at it once more.
_LINGER_S = 0.25
#: How long one is kept for the next client that asks, and how much may be.
_KEPT_S = 2.0
_MAX_KEPT_BYTES = 64 << 20


class LeaseRecycler:
    """Leases that clients gave back: each is kept for the next client that asks for about as much, and ends when none does.

    Its pages are there already, in the guest and in the compositor, which is most of what a new buffer costs. What was in them
    stays the same guest's, whose half overwrites it before it is shown. Leases end on a thread of their own: that waits for
    write-backs, which the relay must not.
    """

    def __init__(self, domain: ProcessDomain) -> None:
        self._domain = domain
        self._changed = threading.Condition()
        self._leases: deque[tuple[float, Lease]] = deque()  # each with when it was given back, the oldest first
        self._bytes = 0
        self._ending: deque[Lease] = deque()  # they are over, and the first may just be ending
        self._kept_s = _KEPT_S
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="retirer", daemon=True)
        self._thread.start()

    def add(self, lease: Lease) -> None:
        with self._changed:
            self._leases.append((time.monotonic(), lease))
            self._bytes += lease.size_bytes
            self._changed.notify()

    def end(self, lease: Lease) -> None:
        """That one is of use to nobody."""
        with self._changed:
            self._ending.append(lease)
            self._changed.notify()

    def keep(self, kept: bool) -> None:
        """Without a guest half nobody will ask for them."""
        with self._changed:
            self._kept_s = _KEPT_S if kept else _LINGER_S
            self._changed.notify()

    def take(self, page_count: int) -> Lease | None:
        """One of at least so many pages, and not many more, that nobody looks at any longer."""
        until = time.monotonic() - _LINGER_S
        with self._changed:
            for entry in self._leases:
                since, lease = entry
                if since > until:
                    break
                if page_count <= lease.page_count <= page_count + page_count // 4:
                    self._leases.remove(entry)
                    self._bytes -= lease.size_bytes
                    return lease
        return None

    def end_all(self) -> bool:
        """Makes room: all end now, on the thread. Returns whether any is on its way out."""
        with self._changed:
            self._ending += [lease for _, lease in self._leases]
            self._leases.clear()
            self._bytes = 0
            self._changed.notify()
            return bool(self._ending)

    def _end(self, lease: Lease) -> None:
        try:
            self._domain.end(lease)
        except LendingError as error:
            logger.error("ending lease %d: %s", lease.lease_id, error)

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._closing:
                    return
                left_s = self._look()
                if not self._ending:
                    self._changed.wait(left_s)
                    continue
                lease = self._ending[0]
            self._end(lease)
            with self._changed:
                self._ending.popleft()

    def _look(self) -> float | None:
        """Has end what is due; returns how long it is to the next, in seconds."""
        while self._leases:
            since, lease = self._leases[0]
            due = since + (_LINGER_S if self._bytes > _MAX_KEPT_BYTES else self._kept_s)
            left_s = due - time.monotonic()
            if left_s > 0:
                return left_s
            self._leases.popleft()
            self._bytes -= lease.size_bytes
            self._ending.append(lease)
        return None

    def close(self) -> None:
        """Ends the thread. The leases end with their domain."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
