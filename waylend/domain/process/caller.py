"""ProcessDomain: a FuseDomain that lives in a process of its own, so that serving faults never waits for our interpreter lock.

A busy Python thread gives the lock up only every few milliseconds, and a fault needs it several times. Where the lender also
relays messages, its domain should be one of these. The process has next to no imports and ends when the socket to it does,
however its lender ends; what it holds ends with it, as a detached mount does. What can be lent is what can be sent: files.

Each request is a length, JSON and maybe descriptors beside it, and has one answer; the requests are the methods of ``Domain``.
Answers come in any order, so nobody waits for another's borrower; and each has a deadline, so nobody waits for ever.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from waylend.backing.base import Backing
from waylend.backing.file import FileBacking
from waylend.domain.base import DomainStats, LeaseStats, check_range, pages_of, revoke_each
from waylend.domain.process.leases import ProcessLease, SharedBacking, Wish
from waylend.domain.process.messages import LOST_ALL, Message
from waylend.domain.process.serving import ServingProcess
from waylend.errors import LeaseEnded, LendingError, Unavailable
from waylend.lending.lease import Lease, LeaseState, LossPolicy, Protection
from waylend.lending.p2m import EventLog, LendingEvent, LendingEventKind
from waylend.lending.pages import PAGE_SHIFT, PageRange

logger = logging.getLogger(__name__)

T = TypeVar("T")


class _LenderSide:
    """What is kept of a lease: who serves it, and the backing, whose owner may take pages away on this side."""

    __slots__ = ("lease", "serving", "shared")

    def __init__(self, lease: ProcessLease, serving: ServingProcess, shared: SharedBacking) -> None:
        self.lease = lease
        self.serving = serving
        self.shared = shared

    @property
    def backing(self) -> FileBacking:
        return self.shared.backing


class ProcessDomain:
    """See ``Domain``, and FuseDomain for the options. Raises what FuseDomain raises, and Unavailable if no process comes up.

    Calls wait for the other process, ``answer_deadline_s`` at most, never for a borrower; ``lend_later``, ``open_lease_later``,
    ``end_later`` and ``end_when_unused`` don't even wait for that. Should the process die, miss that deadline or be cut off,
    borrowers get errors, its leases are over, and ``on_lost`` is called with the reason; ``lend`` starts another. ``on_lost``
    and observers of events are called on a thread of the domain: they must not wait for it.
    """

    mechanism = "fuse"

    def __init__(
        self,
        name: str,
        *,
        aperture_pages: int = (256 << 20) >> PAGE_SHIFT,
        read_only: bool = False,
        lease_limit: int = 1024,
        page_limit: int | None = None,
        deadline_s: float = 1.0,
        read_ahead_pages: int = 32,
        thread_count: int = 2,
        mount_path: str | None = None,
        gap_zeros: bool = False,
        answer_deadline_s: float = 10.0,
        on_lost: Callable[[str], None] | None = None,
    ) -> None:
        self.name = name
        self.events = EventLog(on_watched=self._watch_faults)
        self.on_lost = on_lost
        self._options = {
            "aperture_pages": aperture_pages,
            "read_only": read_only,
            "lease_limit": lease_limit,
            "page_limit": page_limit,
            "deadline_s": deadline_s,
            "read_ahead_pages": read_ahead_pages,
            "thread_count": thread_count,
            "mount_path": mount_path,
            "gap_zeros": gap_zeros,
        }
        self._answer_deadline_s = answer_deadline_s
        # Guards what follows; nothing waits while it is held.
        self._lock = threading.Lock()
        self._borrowed: dict[int, _LenderSide] = {}
        self._shared: dict[int, SharedBacking] = {}  # by id(backing)
        self._next_backing = 1
        self._closed = False
        #: The aperture was cut off, for this reason: its process is about to end.
        self._lost: str | None = None
        self._starting: threading.Thread | None = None
        self._waiting: list[Callable[[ServingProcess | Exception], None]] = []
        self._serving = self._start()

    def _start(self) -> ServingProcess:
        return ServingProcess(
            self.name,
            self._options,
            deadline_s=self._answer_deadline_s,
            on_events=self._on_events,
            on_over=self._on_over,
        )

    @property
    def pid(self) -> int:
        """The process that serves the faults."""
        return self._serving.pid

    @property
    def bar_path(self) -> str:
        """Where processes that may see into that process's descriptors (proc(5)) find the file ``bar``."""
        return f"/proc/{self.pid}/fd/{self._serving.root_fd}/bar"

    # -- lending

    def lend(
        self,
        backing: Backing,
        *,
        offset_bytes: int = 0,
        size_bytes: int | None = None,
        protection: Protection = Protection.READ,
        loss: LossPolicy = LossPolicy.FAULT,
        name: str = "",
        redrawn: bool = False,
    ) -> Lease:
        """See FuseDomain."""
        return self._waited(
            self.lend_later(
                backing,
                offset_bytes=offset_bytes,
                size_bytes=size_bytes,
                protection=protection,
                loss=loss,
                name=name,
                redrawn=redrawn,
            )
        )

    def lend_later(
        self,
        backing: Backing,
        *,
        offset_bytes: int = 0,
        size_bytes: int | None = None,
        protection: Protection = Protection.READ,
        loss: LossPolicy = LossPolicy.FAULT,
        name: str = "",
        redrawn: bool = False,
    ) -> Future[Lease]:
        """``lend`` for those who must not wait. The future has the lease, or raises what ``lend`` does.

        ``backing`` is the domain's from now on, and the caller's again if the future raises. Callbacks of the future are called
        on a thread of the domain. Raises ValueError at once, and LeaseEnded where the domain is closed.
        """
        if not isinstance(backing, FileBacking):
            raise ValueError("only files can be lent from a process of its own")
        if size_bytes is None:
            size_bytes = backing.size_bytes - offset_bytes
        check_range(backing, offset_bytes, size_bytes)
        wish = Wish(backing, offset_bytes, size_bytes, protection, loss, name, redrawn, Future())
        wish.lent.set_running_or_notify_cancel()  # it can't be cancelled any more
        self._when_serving(functools.partial(self._lend, wish))
        return wish.lent

    def _lend(self, wish: Wish, serving: ServingProcess | Exception) -> None:
        if isinstance(serving, Exception):
            wish.lent.set_exception(serving)
            return
        shared = self._hold(wish.backing)

        def granted(answer: Message) -> Lease:
            lease = wish.granted(self.name, answer["lease_id"], answer["gfn"])
            self._enter(lease, serving, shared)
            return lease

        def answered(answer: Future[Lease]) -> None:
            error = answer.exception()
            if error is None:
                wish.lent.set_result(answer.result())
            else:
                self._let_go(shared, closing=False)
                wish.lent.set_exception(error)

        try:
            answer = serving.ask(
                "lend", (wish.backing.fileno(),), then=granted, backing=shared.number, **wish.message()
            )
        except Exception as error:
            self._let_go(shared, closing=False)
            wish.lent.set_exception(error)
        else:
            answer.add_done_callback(answered)

    def _enter(self, lease: ProcessLease, serving: ServingProcess, shared: SharedBacking) -> None:
        """On the thread that reads the answers, so before anything is told about the lease."""
        with self._lock:
            self._borrowed[lease.lease_id] = _LenderSide(lease, serving, shared)
        lease.refresh = functools.partial(self._refresh, lease)
        self.events.emit(LendingEventKind.LENT, lease, PageRange(0, lease.page_count))

    def _hold(self, backing: FileBacking) -> SharedBacking:
        """One more lease stands on it, or is about to."""
        with self._lock:
            shared = self._shared.get(id(backing))
            if shared is None:
                shared = self._shared[id(backing)] = SharedBacking(self._next_backing, backing)
                self._next_backing += 1
                shared.unsubscribe = backing.subscribe(functools.partial(self._invalidate, shared))
            shared.lease_count += 1
        return shared

    def _let_go(self, shared: SharedBacking, *, closing: bool) -> None:
        """One lease less stands on it. The last one closes it, unless it came to nothing: then it is its owner's."""
        with self._lock:
            shared.lease_count -= 1
            if shared.lease_count:
                return
            del self._shared[id(shared.backing)]
        shared.unsubscribe()
        if closing:
            shared.backing.close()

    def open_lease(self, lease: Lease) -> int:
        """See ``Domain``."""
        return self._waited(self.open_lease_later(lease))

    def open_lease_later(self, lease: Lease) -> Future[int]:
        """``open_lease`` for those who must not wait; the descriptor is the caller's. Raises LeaseEnded, or the future does."""
        return self._ask_of(lease, "open_lease", then=lambda answer: int(answer["fds"][0]))

    def open_bar(self, *, writable: bool = False) -> int:
        """See FuseDomain."""
        return self._waited(self._serving.ask("open_bar", then=lambda answer: int(answer["fds"][0]), writable=writable))

    # -- taking pages back

    def revoke(self, lease: Lease, pages: PageRange | None = None) -> int:
        """See ``Domain``."""
        pages = pages_of(lease, pages)
        return self._waited(self._ask_of(lease, "revoke", then=lambda answer: int(answer["taken"]), pages=pages))

    def revoke_all(self) -> int:
        """See ``Domain``."""
        with self._lock:
            leases = [borrowed.lease for borrowed in self._borrowed.values()]
        taken = revoke_each(self.revoke, leases)
        with contextlib.suppress(LeaseEnded):  # then nothing is left of it
            self._waited(self._serving.ask("drop_gaps", then=_nothing, patient=True))
        return taken

    def sync(self, lease: Lease) -> None:
        """See ``Domain``."""
        self._waited(self._ask_of(lease, "sync", then=_nothing, patient=True))

    def end(self, lease: Lease) -> None:
        """See ``Domain``."""
        with contextlib.suppress(LeaseEnded):
            self._waited(self.end_later(lease))

    def end_later(self, lease: Lease) -> Future[None]:
        """``end`` for those who must not wait. Raises LeaseEnded where it is over already, or the future does."""
        return self._ask_of(lease, "end", then=_nothing)

    def end_when_unused(self, lease: Lease) -> None:
        """See ``Domain``. Doesn't wait."""
        with contextlib.suppress(LeaseEnded):
            self._ask_of(lease, "end_when_unused", then=_nothing)
            if lease.state is LeaseState.ACTIVE:
                lease.state = LeaseState.ENDING

    def _invalidate(self, shared: SharedBacking, pages: PageRange) -> None:
        """The owner of a backing takes pages away: of all leases at once."""
        with contextlib.suppress(LeaseEnded):
            self._waited(self._serving.ask("invalidate", then=_nothing, backing=shared.number, pages=pages))

    # -- what there is

    def lease(self, lease_id: int) -> Lease | None:
        """See ``Domain``."""
        borrowed = self._borrowed.get(lease_id)
        return None if borrowed is None else borrowed.lease

    def stats(self) -> DomainStats:
        """See ``Domain``."""
        leases: list[dict[str, Any]] = []
        with contextlib.suppress(LeaseEnded):  # the process has gone, and its leases
            leases = self._waited(self._serving.ask("stats", then=lambda answer: answer["leases"]))
        return DomainStats(
            self.name, self.mechanism, self._serving.aperture_pages, tuple(LeaseStats(**figures) for figures in leases)
        )

    def _refresh(self, lease: ProcessLease) -> None:
        if lease.state is LeaseState.ENDED or self._serving.is_here():
            return
        with contextlib.suppress(LendingError):
            lease.count(*self._waited(self._ask_of(lease, "counters", then=lambda answer: answer["counters"])))

    def close(self) -> None:
        """See ``Domain``."""
        with self._lock:
            self._closed = True
            starting = self._starting
        if starting is not None:
            starting.join()
        self._serving.close()

    # -- asking

    def _ask_of(
        self, lease: Lease, request: str, *, then: Callable[[Message], T], patient: bool = False, **arguments: object
    ) -> Future[T]:
        """A request about a lease, to whoever serves it: a process that was started since may have another of its number."""
        with self._lock:
            borrowed = self._borrowed.get(lease.lease_id)
        if borrowed is None or borrowed.lease is not lease:
            raise LeaseEnded(f"lease {lease.lease_id} of domain {self.name} is over")
        return borrowed.serving.ask(request, then=then, patient=patient, lease_id=lease.lease_id, **arguments)

    def _waited(self, future: Future[T]) -> T:
        if self._serving.is_here() and not future.done():
            raise RuntimeError("an observer, or a callback, must not wait for its domain")
        return future.result()

    def _watch_faults(self, wanted: bool) -> None:
        with contextlib.suppress(LendingError):
            told = self._serving.ask("watch", then=_nothing, wanted=wanted)
            if not self._serving.is_here():
                told.result()  # from then on every fault is told

    def _when_serving(self, go_on: Callable[[ServingProcess | Exception], None]) -> None:
        """Calls ``go_on`` with the process that serves: now, or when another has been started, or with why there is none."""
        with self._lock:
            if self._closed:
                raise LeaseEnded(f"domain {self.name} is closed")
            serving = self._serving
            restarting = serving.over or self._lost is not None
            if restarting:
                self._waiting.append(go_on)
                if self._starting is None:
                    logger.warning("domain %s: its process was lost, and is started again", self.name)
                    self._starting = threading.Thread(target=self._start_again, name=f"{self.name}-start", daemon=True)
                    self._starting.start()
        if not restarting:
            go_on(serving)

    def _start_again(self) -> None:
        started: ServingProcess | Exception
        self._serving.close()  # all of its leases are over by then
        try:
            started = self._start()
        except Unavailable as error:
            started = error
        with self._lock:
            if isinstance(started, ServingProcess):
                self._serving, self._lost = started, None
            self._starting = None
            waiting, self._waiting = self._waiting, []
        if self.events.watched:
            self._watch_faults(True)
        for go_on in waiting:
            go_on(started)

    # -- what the process says; on the thread that reads its answers

    def _on_events(self, events: list[list[Any]]) -> None:
        for kind, *rest in events:
            if kind == LOST_ALL:
                self._lost = rest[0]
                self._serving.expire(rest[0])
                continue
            time_ns, lease_id, page, page_count, *counters = rest
            event = LendingEvent(LendingEventKind(kind), time_ns, self.name, lease_id, page, page_count)
            if event.kind is LendingEventKind.ENDED:
                self._ended(event, counters)
            else:
                self.events.tell(event)

    def _ended(self, event: LendingEvent, counters: list[int]) -> None:
        """Over there a lease has ended: so the backing can go here, too."""
        with self._lock:
            borrowed = self._borrowed.pop(event.lease_id, None)
        if borrowed is None:
            return
        borrowed.lease.state = LeaseState.ENDED
        if counters:
            borrowed.lease.count(*counters)
        self._let_go(borrowed.shared, closing=True)
        self.events.tell(event)

    def _on_over(self, serving: ServingProcess, reason: str) -> None:
        """The process is gone, and every lease with it."""
        with self._lock:
            over = [borrowed for borrowed in self._borrowed.values() if borrowed.serving is serving]
            for borrowed in over:
                del self._borrowed[borrowed.lease.lease_id]
            closed = self._closed
        for borrowed in over:
            borrowed.lease.state = LeaseState.ENDED
            self._let_go(borrowed.shared, closing=True)
            self.events.emit(LendingEventKind.ENDED, borrowed.lease, PageRange(0, borrowed.lease.page_count))
        if closed:
            return
        logger.critical("domain %s: all that it lent is cut off: %s", self.name, reason)
        if self.on_lost is not None:
            self.on_lost(reason)


def _nothing(_: Message) -> None:
    """The answer says only that it is done."""
