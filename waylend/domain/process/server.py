"""The process that serves: a FuseDomain, asked by messages. It has next to no imports, and ends with the socket to it.

Requests are worked off side by side, so that none waits for a borrower of another: ending a lease that was written to takes its
time. What happens is told in the order in which it happened, with the next answer or by a thread of its own; serving threads
never wait for the lender to listen.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from waylend.backing.file import FileBacking
from waylend.domain.fuse.domain import FuseDomain
from waylend.domain.process.messages import LOST_ALL, Message, close_all, failed, receive, send
from waylend.errors import LeaseEnded, NoSpace, QuotaExceeded
from waylend.jail import profiles
from waylend.jail.profiles import Profile, serving
from waylend.lending.lease import Lease, LossPolicy, Protection
from waylend.lending.p2m import FAULTS, LendingEvent, LendingEventKind
from waylend.lending.pages import PageRange

logger = logging.getLogger(__name__)

#: How many requests are worked off at a time.
_SIDE_BY_SIDE = 32
#: Events that are kept for a lender that doesn't listen; but that leases have ended is never dropped.
_MAX_EVENTS = 65536
#: Beside those of leases, which are the backing's and a borrower's.
_OTHER_DESCRIPTORS = 1024


def serve(fd: int, stderr_fd: int, jailed: bool = True) -> None:
    """What runs over there: requests from the socket ``fd``, until it ends. ``stderr_fd`` is stderr once the domain is up.

    By then it is in jail, with all its threads: it can open nothing but files of its mount, and connect to nothing. Not so where
    it has to unmount a folder in the end.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the lender, whose end is ours
    connection = socket.socket(fileno=fd)
    opening = receive(connection)
    if opening is None:
        return
    told = _Told(connection)
    try:
        options = opening["options"]
        jailed = jailed and not options.get("mount_path")
        descriptors = 2 * options.get("lease_limit", 0) + _OTHER_DESCRIPTORS

        def profile(root_fd: int) -> Profile:
            return serving(root_fd, descriptors=descriptors)

        entered = threading.Semaphore(0)

        def enter_thread(root_fd: int) -> None:
            profiles.enter_thread(profile(root_fd))
            entered.release()

        domain = FuseDomain(
            opening["name"], **options, on_lost=told.tell_lost, in_each_thread=enter_thread if jailed else None
        )
        if jailed:
            for _ in range(threading.active_count() - 1):  # then no thread can take that step any more
                entered.acquire()
            profiles.enter(profile(domain.root_fd))
    except Exception as error:
        told.answer(opening["id"], failed(error))
        return
    told.watch(domain)
    told.answer(opening["id"], {"aperture_pages": domain.stats().aperture_pages, "root_fd": domain.root_fd})
    os.dup2(stderr_fd, 2)
    os.close(stderr_fd)
    server = _Server(domain, told)
    try:
        while (message := receive(connection)) is not None:
            server.take(message)
    except OSError:
        pass  # the lender is gone
    finally:
        domain.close()
        logging.shutdown()
        sys.stderr.flush()
        os._exit(0)  # whatever a request under way still waits for


class _Told:
    """What goes to the lender: answers, and what has happened. Any thread may call it; only answers wait for room."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._events: deque[list[Any]] = deque()
        self._happened = threading.Event()
        self._unwatch_faults: Callable[[], None] | None = None
        #: All that is lent.
        self.leases: dict[int, Lease] = {}

    def watch(self, domain: FuseDomain) -> None:
        """Tells what happens in the domain, but no faults."""
        threading.Thread(target=self._tell_events, name="events", daemon=True).start()
        domain.events.watch(self._tell, faults=False)

    def watch_faults(self, domain: FuseDomain, wanted: bool) -> None:
        """Tells faults too, from now on, or not any more."""
        if wanted and self._unwatch_faults is None:
            self._unwatch_faults = domain.events.watch(self._tell_fault)
        elif not wanted and self._unwatch_faults is not None:
            self._unwatch_faults()
            self._unwatch_faults = None

    def _tell_fault(self, event: LendingEvent) -> None:
        if event.kind in FAULTS:
            self._tell(event)

    def _tell(self, event: LendingEvent) -> None:
        kind = event.kind
        told = [kind.value, event.time_ns, event.lease_id, event.page, event.page_count]
        if kind is LendingEventKind.ENDED:  # which is never left out
            lease = self.leases.pop(event.lease_id, None)
            if lease is not None:
                told += [lease.faults_served, lease.revocations]
        elif kind is LendingEventKind.LENT or len(self._events) >= _MAX_EVENTS:
            return  # what it has lent the lender knows
        self._events.append(told)
        self._happened.set()

    def tell_lost(self, reason: str) -> None:
        """The domain has been cut off. The lender will end this process, which may be beyond doing so itself."""
        self._events.append([LOST_ALL, reason])
        self._happened.set()

    def answer(self, request_id: int, answer: Message, fds: tuple[int, ...] = ()) -> None:
        """With what has happened before it. The descriptors are closed here."""
        try:
            self._send({**answer, "id": request_id}, fds)
        finally:
            close_all(fds)

    def _tell_events(self) -> None:
        while True:
            self._happened.wait()
            self._happened.clear()
            if self._events:
                self._send({}, ())

    def _send(self, message: Message, fds: tuple[int, ...]) -> None:
        with self._sending, contextlib.suppress(OSError):  # the lender is gone
            events = [self._events.popleft() for _ in range(len(self._events))]
            if events:
                message["events"] = events
            send(self._connection, message, fds)


class _Server:
    """The real domain, asked by messages."""

    def __init__(self, domain: FuseDomain, told: _Told) -> None:
        self._domain = domain
        self._told = told
        self._pool = ThreadPoolExecutor(_SIDE_BY_SIDE, "request")
        self._requests: dict[str, Callable[[Message], object]] = {
            "lend": self._lend,
            "open_lease": lambda message: {"fds": (domain.open_lease(self._lease(message)),)},
            "open_bar": lambda message: {"fds": (domain.open_bar(writable=message["writable"]),)},
            "revoke": lambda message: {"taken": domain.revoke(self._lease(message), PageRange(*message["pages"]))},
            "invalidate": self._invalidate,
            "sync": self._of_lease(domain.sync),
            "end": self._of_lease(domain.end),
            "drop_gaps": _of_nothing(domain.drop_gaps),
            "stats": _of_nothing(lambda: {"leases": [vars(stats) for stats in domain.stats().leases]}),
            "close": _of_nothing(domain.close),
        }
        #: What waits for nothing, and takes effect before any later request.
        self._at_once: dict[str, Callable[[Message], object]] = {
            "ping": _of_nothing(dict),
            "counters": self._of_lease(
                lambda lease: {"counters": [lease.faults_served, lease.revocations, lease.pages_present]}
            ),
            "watch": self._watch,
            "end_when_unused": self._of_lease(domain.end_when_unused),
        }

    def take(self, message: Message) -> None:
        """Answers a request: at once, or when it has been worked off."""
        request = self._at_once.get(message["request"])
        if request is not None:
            self._answer(request, message)
        else:
            self._pool.submit(self._answer, self._requests[message["request"]], message)

    def _answer(self, request: Callable[[Message], object], message: Message) -> None:
        """A request returns its answer, descriptors among ``fds``, or nothing."""
        try:
            done = request(message)
        except Exception as error:
            done = failed(error)
        answer = done if isinstance(done, dict) else {}
        self._told.answer(message["id"], answer, answer.pop("fds", ()))

    def _of_lease(self, call: Callable[[Lease], object]) -> Callable[[Message], object]:
        return lambda message: call(self._lease(message))

    def _lease(self, message: Message) -> Lease:
        lease = self._domain.lease(message["lease_id"])
        if lease is None:
            raise LeaseEnded(f"lease {message['lease_id']} of domain {self._domain.name} is over")
        return lease

    def _lend(self, message: Message) -> Message:
        backing = _PassedFile(message)
        try:
            try:
                lease = self._lend_now(backing, message)
            except (QuotaExceeded, NoSpace):
                self._domain.wait_for_unused()  # of which the lender has been told nothing yet
                lease = self._lend_now(backing, message)
        except BaseException:
            backing.close()
            raise
        self._told.leases[lease.lease_id] = lease
        return {"lease_id": lease.lease_id, "gfn": lease.gfns.start}

    def _lend_now(self, backing: FileBacking, message: Message) -> Lease:
        return self._domain.lend(
            backing,
            offset_bytes=message["offset_bytes"],
            size_bytes=message["size_bytes"],
            protection=Protection(message["protection"]),
            loss=LossPolicy(message["loss"]),
            name=message["name"],
            redrawn=message["redrawn"],
        )

    def _invalidate(self, message: Message) -> None:
        self._domain.invalidate(_key_of(message), PageRange(*message["pages"]))

    def _watch(self, message: Message) -> None:
        self._told.watch_faults(self._domain, message["wanted"])


def _of_nothing(call: Callable[[], object]) -> Callable[[Message], object]:
    return lambda _: call()


class _PassedFile(FileBacking):
    """A file of the lender's. Its key is the lender's number for the backing, whatever has become of the file meanwhile."""

    def __init__(self, message: Message) -> None:
        super().__init__(message["fds"][0], size_bytes=message["backing_bytes"], writable=message["writable"])
        self._passed_as = _key_of(message)

    @property
    def key(self) -> Hashable:
        return self._passed_as


def _key_of(message: Message) -> tuple[str, int]:
    return ("passed", message["backing"])
