"""How a lent page comes and goes: the fault / invalidate protocol, and what of it a domain must supply.

The race that matters: a fault fetches a page while its owner takes it away. The cure is KVM's (``mmu_invalidate_seq``
and ``mmu_invalidate_in_progress``): a fault samples the lease's sequence counter, fetches without a lock, and
installs under the lock only if the counter stands still and no invalidation of that range is in progress; else it
starts again. An invalidation raises in-progress, unmaps, waits until the unmap is visible, bumps the counter and
lowers in-progress.

Two kinds of domains use it. Where a fault can simply be left waiting (kvm, xen_model), ``P2M.fault`` is the whole
protocol. Where the unmapping itself waits for faults that are under way (fuse: INVAL_INODE takes each page's lock,
which a READ holds until we answer it), the domain calls ``begin`` and ``settle``, and an ``Invalidation`` says which
faults to answer meanwhile, which to leave waiting, and which pages must be unmapped once more.

No system call lives here; the only waiting is that of ``P2M.fault`` for an invalidation, never for a borrower.
"""

from __future__ import annotations

import enum
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

from waylend.errors import BackingLost, LeaseEnded
from waylend.lending.lease import ABSENT, LOST, PRESENT, RESOLVING, Lease, LeaseState, LossPolicy
from waylend.lending.pages import PAGE_SIZE, PageRange


class LendingEventKind(enum.Enum):
    LENT = "lent"
    FAULTED = "faulted"
    SERVED = "served"
    REVOKED = "revoked"
    LOST = "lost"
    ENDED = "ended"


logger = logging.getLogger(__name__)

#: What is told only to those who watch faults.
FAULTS = (LendingEventKind.FAULTED, LendingEventKind.SERVED)


class LendingEvent(NamedTuple):
    """One thing that happened to ``page_count`` pages of a lease from ``page`` on (from 0). ``time_ns`` is monotonic."""

    kind: LendingEventKind
    time_ns: int
    domain_name: str
    lease_id: int
    page: int
    page_count: int


Observer = Callable[[LendingEvent], None]

#: What an invalidation makes of a page's state. Whoever resolves a page finds out by the sequence counter that he must start
#: again; were the page absent meanwhile, a second fault would resolve it at the same time.
_TAKEN = bytes(RESOLVING if state == RESOLVING else ABSENT for state in range(256))


class EventLog:
    """The last events of a domain, and those who watch them.

    Faulted and served events are made only while somebody watches; they are counted on the lease in any case.
    Observers are called on the thread that did the work, so they must be quick, must call no domain, and must never touch
    lent memory.
    """

    def __init__(self, keep: int = 1024, *, on_watched: Callable[[bool], None] | None = None) -> None:
        """``on_watched`` is called whenever ``watched`` has changed."""
        self._recent: deque[LendingEvent] = deque(maxlen=keep)
        self._observers: tuple[tuple[Observer, bool], ...] = ()
        self._on_watched = on_watched
        #: Read by hot paths: is anybody watching faults?
        self.watched = False

    def watch(self, observer: Observer, *, faults: bool = True) -> Callable[[], None]:
        """Calls ``observer`` with every event from now on, without ``faults`` all but those. Returns the way to end that."""
        watcher = (observer, faults)
        self._set_observers((*self._observers, watcher))
        return lambda: self._set_observers(tuple(other for other in self._observers if other is not watcher))

    def _set_observers(self, observers: tuple[tuple[Observer, bool], ...]) -> None:
        self._observers = observers
        watched = any(wants_faults for _, wants_faults in observers)
        if watched != self.watched:
            self.watched = watched
            if self._on_watched is not None:
                self._on_watched(watched)

    def emit(self, kind: LendingEventKind, lease: Lease, pages: PageRange) -> None:
        """Something has happened, now."""
        self.tell(
            LendingEvent(
                kind, time.monotonic_ns(), lease.domain_name, lease.lease_id, pages.start, pages.end - pages.start
            )
        )

    def tell(self, event: LendingEvent) -> None:
        """Something has happened. An observer that raises ends nothing but its call."""
        self._recent.append(event)
        is_fault = event.kind in FAULTS
        for observer, wants_faults in self._observers:
            if wants_faults or not is_fault:
                try:
                    observer(event)
                except Exception:
                    logger.exception("an observer of %s", event)

    def recent(self) -> list[LendingEvent]:
        return list(self._recent)


class Verdict(enum.Enum):
    """What to do with a fault whose content has been fetched."""

    INSTALL = "install"
    #: An invalidation came between: fetch again.
    AGAIN = "again"
    #: An invalidation of these pages is in progress and holds the fault back: it is in ``Invalidation.parked`` now.
    PARKED = "parked"


class Parked(Protocol):
    """A fault that waits for an invalidation's end. Called to be served from its beginning."""

    def __call__(self) -> None: ...


class Invalidation:
    """One invalidation of ``pages`` of a lease, while it is in progress. Guarded by the P2M's lock.

    The unmapping walks over the pages, one stretch after the other, and may wait for any fault on the stretch that it is
    at. So a fault *ahead* of the walk is answered with the content that is still valid, as its pages are yet to be
    unmapped; one *behind* it is parked until the end, as its pages have been unmapped for the last time. One on the
    *current* stretch is answered too, and noted as late: the walk may have passed its page just before. Late pages are
    walked over again, and in that round faults on the current stretch are parked, unless the unmapping turns out to
    wait for them.

    To begin with, all pages are the current stretch: a domain that unmaps in one go need not plan anything.
    """

    __slots__ = ("admitted", "ahead", "current", "entered_at", "holding", "late", "pages", "parked")

    def __init__(self, pages: PageRange) -> None:
        self.pages = pages
        self.current: PageRange | None = pages
        self.holding = False
        #: The number of the last fault that had begun when the walk came to the current stretch.
        self.entered_at = 0
        self.ahead: list[PageRange] = []
        self.late: list[PageRange] = []
        #: Faults that are answered although they should wait: something waits for them.
        self.admitted: list[PageRange] = []
        self.parked: list[tuple[PageRange, Parked]] = []

    def answers(self, pages: PageRange, fault: int) -> bool:
        """Whether fault number ``fault``, on ``pages``, is answered now; notes it as late where that is needed."""
        if self.current is not None and self.current.overlaps(pages):
            if fault <= self.entered_at and self.current.contains(pages):
                return True  # it began before the unmapping of its pages, which waits for it
            if self.holding and pages not in self.admitted:
                return False
            self.late.append(pages)
            return True
        if any(ahead.contains(pages) for ahead in self.ahead):
            return True
        if pages in self.admitted or any(ahead.overlaps(pages) for ahead in self.ahead):
            self.late.append(pages)
            return True
        return False

    def plan(self, stretches: list[PageRange]) -> None:
        """The walk will go over ``stretches``: all of them are ahead."""
        self.current = None
        self.ahead = list(stretches)

    def waiting_on(self, pages: PageRange) -> list[Parked]:
        """Takes out the parked faults on ``pages``, for which an unmapping of them would wait: to be served now."""
        waiting = [fault for range_, fault in self.parked if range_.overlaps(pages)]
        self.parked = [(range_, fault) for range_, fault in self.parked if not range_.overlaps(pages)]
        return waiting

    def enter(self, pages: PageRange, faults_begun: int, *, holding: bool) -> None:
        """The walk comes to ``pages``, one of those that were ahead. ``holding``: faults that begin from now on are parked."""
        self.entered_at = faults_begun
        self.ahead.remove(pages)
        self.current = pages
        self.holding = holding
        self.admitted = []

    def let_through(self) -> list[Parked]:
        """An unmapping, this one or another, seems to wait for parked faults: all of them, to be served now, as late ones.

        Faults that come after them are still parked, so each round has fewer late pages than the one before.
        """
        waiting, self.parked = self.parked, []
        self.admitted += [range_ for range_, _ in waiting]
        return [again for _, again in waiting]

    def leave(self) -> None:
        """The current stretch is unmapped."""
        self.current = None

    def next_round(self) -> list[PageRange]:
        """What must be walked over again, merged and in order. Nothing: all is unmapped, and whatever comes is parked."""
        again, self.late = _merged(self.late), []
        return again


def _merged(ranges: list[PageRange]) -> list[PageRange]:
    merged: list[PageRange] = []
    for pages in sorted(ranges):
        if merged and pages.start <= merged[-1].end:
            merged[-1] = PageRange(merged[-1].start, max(merged[-1].end, pages.end))
        else:
            merged.append(pages)
    return merged


class P2M:
    """The protocol for the leases of one domain. ``lock`` also guards the domain's LeaseTable; no step holds it for long."""

    def __init__(self, events: EventLog | None = None) -> None:
        self.lock = threading.Lock()
        self.events = EventLog() if events is None else events
        self._changed = threading.Condition(self.lock)
        self._waiting = 0  # faults that wait for ``_changed``
        self._in_progress: dict[Lease, list[Invalidation]] = {}

    # -- faults, step by step: for domains whose unmapping waits for faults

    def begin(self, lease: Lease) -> tuple[int, int]:
        """A fault on ``lease`` begins: the sequence counter as it stands, and the fault's number. ``settle`` wants both.

        The lease's backing stays open until then.

        Raises LeaseEnded.
        """
        with self.lock:
            if lease.state is LeaseState.ENDED:
                raise LeaseEnded(f"lease {lease.lease_id} is over")
            lease.faults_in_flight += 1
            lease.faults_begun += 1
            return lease.sequence, lease.faults_begun

    def settle(
        self, lease: Lease, pages: PageRange, begun: tuple[int, int], again: Parked, page_state: int = PRESENT
    ) -> Verdict:
        """The content of ``pages`` has been fetched since ``begin``: may it be installed?

        Where the answer is PARKED, ``again`` will be called when the invalidation is over. In any case the fault is
        no longer in flight; after AGAIN, ``begin`` anew. Installing must follow at once, without waiting.
        """
        with self.lock:
            lease.faults_in_flight -= 1
            if lease.on_idle is not None and not lease.faults_in_flight:
                lease.on_idle()
            sequence, fault = begun
            if lease.sequence != sequence:
                return Verdict.AGAIN
            if lease.in_progress:
                for invalidation in self._in_progress[lease]:
                    if invalidation.pages.overlaps(pages) and not invalidation.answers(pages, fault):
                        invalidation.parked.append((pages, again))
                        return Verdict.PARKED
            lease.faults_served += 1
            start, end = pages
            if end - start == 1:
                lease.pages[start] = page_state
            else:
                lease.pages[start:end] = bytes((page_state,)) * (end - start)
            return Verdict.INSTALL

    # -- faults, whole: for domains that can leave a fault waiting

    def fault(
        self,
        lease: Lease,
        page: int,
        fetch: Callable[[PageRange], bytes],
        install: Callable[[bytes], None],
        *,
        present_state: int = PRESENT,
    ) -> bool:
        """Resolves a fault on page ``page`` of ``lease`` (from 0): fetches its content and installs it.

        Faults on one page resolve once: the others wait and find it present. ``fetch`` is called without the lock,
        ``install`` with it, so it must be quick and must not wait. Where the backing can't deliver, installs zeros, or
        raises BackingLost, as the lease's loss policy says. Returns False where another fault had resolved the page
        already. Raises LeaseEnded.
        """
        pages = PageRange(page, page + 1)
        self._watch(LendingEventKind.FAULTED, lease, pages)
        while True:
            sequence = self._begin_resolving(lease, page)
            if sequence is None:
                return False
            fetched = False
            try:
                content, lost = self._fetch(fetch, lease, pages)
                fetched = True
            finally:
                with self.lock:
                    lease.faults_in_flight -= 1
                    if lease.on_idle is not None and not lease.faults_in_flight:
                        lease.on_idle()
                    # Nobody else has resolved it meanwhile: an invalidation leaves a page that is being resolved alone.
                    lease.pages[page] = ABSENT
                    if self._waiting:
                        self._changed.notify_all()
                    stale = lease.sequence != sequence or _is_taken(lease, pages)
                    if fetched and not stale:
                        if content is not None:
                            install(content)
                        lease.pages[page] = LOST if lost is not None else present_state
                        lease.faults_served += 1
            if stale:
                continue
            if lost is not None:
                self.events.emit(LendingEventKind.LOST, lease, pages)
                if content is None:
                    raise lost
            self._watch(LendingEventKind.SERVED, lease, pages)
            return True

    def _begin_resolving(self, lease: Lease, page: int) -> int | None:
        """Waits until nobody else resolves the page, or takes it away; the sequence counter then. None where it is there already.

        Raises LeaseEnded.
        """
        pages = PageRange(page, page + 1)
        with self.lock:
            while lease.state is not LeaseState.ENDED and (lease.pages[page] == RESOLVING or _is_taken(lease, pages)):
                self._waiting += 1
                self._changed.wait()
                self._waiting -= 1
            if lease.state is LeaseState.ENDED:
                raise LeaseEnded(f"lease {lease.lease_id} is over")
            if lease.pages[page] != ABSENT:
                return None
            lease.pages[page] = RESOLVING
            lease.faults_in_flight += 1
            return lease.sequence

    @staticmethod
    def _fetch(
        fetch: Callable[[PageRange], bytes], lease: Lease, pages: PageRange
    ) -> tuple[bytes | None, BackingLost | None]:
        try:
            return fetch(lease.to_backing(pages)), None
        except BackingLost as lost:
            return (bytes(PAGE_SIZE) if lease.loss is LossPolicy.ZERO else None), lost

    # -- invalidations

    def invalidate(self, lease: Lease, pages: PageRange, unmap: Callable[[Invalidation], None]) -> int:
        """Takes ``pages`` of ``lease`` (from 0) away; how many the borrower may have had.

        ``unmap`` is called once, without the lock. When it returns no access of the borrower reaches the old pages
        any more, and dirty content has been handed to the backing. Invalidations may overlap and run at the same
        time. What ``unmap`` raises goes on, after the invalidation has been closed in good order.
        """
        invalidation = Invalidation(pages)
        with self.lock:
            lease.in_progress.append(pages)
            self._in_progress.setdefault(lease, []).append(invalidation)
        try:
            unmap(invalidation)
        finally:
            with self.lock:
                states = lease.pages[pages.start : pages.end]
                taken = len(states) - states.count(ABSENT) - states.count(RESOLVING)
                lease.pages[pages.start : pages.end] = states.translate(_TAKEN)
                lease.sequence += 1
                lease.in_progress.remove(pages)
                self._in_progress[lease].remove(invalidation)
                if not lease.in_progress:
                    del self._in_progress[lease]
                self._changed.notify_all()
            for _, again in invalidation.parked:
                again()
        return taken

    def _watch(self, kind: LendingEventKind, lease: Lease, pages: PageRange) -> None:
        if self.events.watched:
            self.events.emit(kind, lease, pages)


def _is_taken(lease: Lease, pages: PageRange) -> bool:
    """Whether an invalidation of any of ``pages`` is in progress. Under the lock."""
    return bool(lease.in_progress) and any(range_.overlaps(pages) for range_ in lease.in_progress)
