"""ProcessDomain: a FuseDomain that lives in a process of its own, so that serving faults never waits for our interpreter lock.

A busy Python thread gives the lock up only every few milliseconds, and a fault needs it several times. Where the lender also
relays messages, its domain should be one of these. The process has next to no imports and ends when the socket to it does,
however its lender ends; what it holds ends with it, as a detached mount does. What can be lent is what can be sent: files.

Each request is a length, JSON and maybe descriptors beside it, and has one answer; the requests are the methods of ``Domain``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import sortedcontainers

from waylend import errors
from waylend.backing.base import Backing
from waylend.backing.file import FileBacking
from waylend.domain.base import DomainStats, LeaseStats, check_range, revoke_each
from waylend.domain.process.messages import receive, revived, send
from waylend.errors import LeaseEnded, LendingError
from waylend.lending.lease import Lease, LeaseState, LossPolicy, Protection
from waylend.lending.p2m import EventLog, LendingEventKind
from waylend.lending.pages import PAGE_SHIFT, PageRange, page_count_of

logger = logging.getLogger(__name__)

_ENDING_S = 5.0


def _module_path() -> list[str]:
    """Where the serving process finds our modules, and the one library that the lender's book needs: wherever they are here.

    It looks nowhere else (``python -I -S``), not in what the user's environment or the current directory may hold.
    """
    folders = (
        os.path.dirname(os.path.dirname(os.path.abspath(f"{each.__file__}"))) for each in (errors, sortedcontainers)
    )
    return list(dict.fromkeys(folders))


class _LenderSide:
    """What the lender's side keeps of a lease: the backing, whose owner may take pages away on this side."""

    def __init__(self, lease: Lease, backing: Backing, unsubscribe: Callable[[], None]) -> None:
        self.lease = lease
        self.backing = backing
        self.unsubscribe = unsubscribe


class ProcessDomain:
    """See ``Domain``. Takes the options of FuseDomain that are numbers, strings or flags. Raises what FuseDomain raises.

    Calls are served one after the other; each waits for the other process, never for a borrower. Should that process
    die, borrowers get errors and its leases are over; ``lend`` starts another.
    """

    mechanism = "fuse"

    def __init__(self, name: str, **options: object) -> None:
        self.name = name
        self.events = EventLog()
        self._lock = threading.RLock()
        self._borrowed: dict[int, _LenderSide] = {}
        self._closed = False
        self._options = options
        self._running = False
        try:
            with self._lock:
                self._start()
        except BaseException:
            self._listener.join()
            raise

    def _start(self) -> None:
        """Starts the process. Raises Unavailable."""
        self._socket, theirs = socket.socketpair()
        notices, its_notices = socket.socketpair()
        program = (
            f"import sys; sys.path[:] = {_module_path()!r} + sys.path;"
            f"from waylend.domain.process.server import serve; serve({theirs.fileno()}, {its_notices.fileno()})"
        )
        with theirs, its_notices:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", program],
                pass_fds=[theirs.fileno(), its_notices.fileno()],
                stdin=subprocess.DEVNULL,
            )
        self._running = True
        self._listener = threading.Thread(
            target=self._listen, args=(notices,), name=f"{self.name}-notices", daemon=True
        )
        self._listener.start()
        try:
            answer = self._ask("open", name=self.name, options=self._options)
            self._aperture_pages: int = answer["aperture_pages"]
            self._root_fd: int = answer["root_fd"]
        except BaseException:
            self._finish()
            raise

    @property
    def pid(self) -> int:
        """The process that serves the faults."""
        return self._process.pid

    @property
    def bar_path(self) -> str:
        """Where processes that may see into that process's descriptors (proc(5)) find the file ``bar``."""
        return f"/proc/{self.pid}/fd/{self._root_fd}/bar"

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
        if not isinstance(backing, FileBacking):
            raise ValueError("only files can be lent from a process of its own")
        if size_bytes is None:
            size_bytes = backing.size_bytes - offset_bytes
        check_range(backing, offset_bytes, size_bytes)
        with self._lock:
            if not self._running and not self._closed:
                logger.warning("domain %s: its process was lost, and is started again", self.name)
                self._start()
            answer = self._ask(
                "lend",
                [backing.fileno()],
                backing_bytes=backing.size_bytes,
                writable=backing.writable,
                offset_bytes=offset_bytes,
                size_bytes=size_bytes,
                protection=protection.value,
                loss=loss.value,
                name=name,
                redrawn=redrawn,
            )
            gfn = answer["gfn"]
            lease = Lease(
                answer["lease_id"],
                name,
                self.name,
                PageRange(gfn, gfn + page_count_of(size_bytes)),
                size_bytes,
                backing.key,
                offset_bytes >> PAGE_SHIFT,
                protection,
                loss,
            )
            unsubscribe = backing.subscribe(lambda pages: self._on_invalidate(lease, pages))
            self._borrowed[lease.lease_id] = _LenderSide(lease, backing, unsubscribe)
        self.events.emit(LendingEventKind.LENT, lease, PageRange(0, lease.page_count))
        return lease

    def open_lease(self, lease: Lease) -> int:
        fd: int = self._ask_of(lease, "open_lease")["fds"][0]
        return fd

    def open_bar(self, *, writable: bool = False) -> int:
        """See FuseDomain."""
        fd: int = self._ask("open_bar", writable=writable)["fds"][0]
        return fd

    def revoke(self, lease: Lease, pages: PageRange | None = None) -> int:
        """See ``Domain``. ``pages`` (from 0) takes only a part. Raises LeaseEnded, RevokeTimeout."""
        taken: int = self._ask_of(lease, "revoke", pages=pages)["taken"]
        self.events.emit(LendingEventKind.REVOKED, lease, PageRange(0, lease.page_count) if pages is None else pages)
        return taken

    def revoke_all(self) -> int:
        """See ``Domain``."""
        with self._lock:
            leases = [borrowed.lease for borrowed in self._borrowed.values()]
        taken = revoke_each(self.revoke, leases)
        with contextlib.suppress(LeaseEnded):  # then nothing is left of it
            self._ask("drop_gaps")
        return taken

    def sync(self, lease: Lease) -> None:
        """What the borrower has written so far is in the backing, and durable there where the backing has such a thing."""
        self._ask_of(lease, "sync")

    def end(self, lease: Lease) -> None:
        if lease.state is not LeaseState.ENDED:
            with contextlib.suppress(LeaseEnded):
                self._ask_of(lease, "end")

    def end_when_unused(self, lease: Lease) -> None:
        if lease.state is not LeaseState.ENDED:
            lease.state = LeaseState.ENDING
            with contextlib.suppress(LeaseEnded):
                self._ask_of(lease, "end_when_unused")

    def lease(self, lease_id: int) -> Lease | None:
        """The lease with that id, while it isn't over."""
        borrowed = self._borrowed.get(lease_id)
        return None if borrowed is None else borrowed.lease

    def stats(self) -> DomainStats:
        leases = self._ask("stats")["leases"] if self._running else []
        return DomainStats(
            self.name, self.mechanism, self._aperture_pages, tuple(LeaseStats(**figures) for figures in leases)
        )

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._running:
                with contextlib.suppress(LendingError):
                    self._ask("close")
            if self._running:
                self._finish()
        self._listener.join()

    def _finish(self) -> None:
        """The process is gone, or goes now, and every lease with it."""
        self._running = False
        self._socket.close()
        try:
            self._process.wait(_ENDING_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._over(list(self._borrowed))

    def _on_invalidate(self, lease: Lease, pages: PageRange) -> None:
        mine = lease.from_backing(pages)
        if mine.page_count:
            with contextlib.suppress(LeaseEnded):
                self._ask_of(lease, "invalidate", pages=mine)

    def _listen(self, notices: socket.socket) -> None:
        """Over there a lease has ended by itself, or everything has: so the backing can go here, too."""
        with notices:
            while notices.recv(64):
                with contextlib.suppress(LendingError):
                    self._ask("ended")
        with contextlib.suppress(LendingError):
            self._ask("ended")

    def _over(self, lease_ids: list[int]) -> None:
        """These leases have ended over there: closes their backings here."""
        for lease_id in lease_ids:
            borrowed = self._borrowed.pop(lease_id, None)
            if borrowed is not None:
                borrowed.lease.state = LeaseState.ENDED
                borrowed.unsubscribe()
                if all(other.backing is not borrowed.backing for other in self._borrowed.values()):
                    borrowed.backing.close()
                self.events.emit(LendingEventKind.ENDED, borrowed.lease, PageRange(0, borrowed.lease.page_count))

    def _ask_of(self, lease: Lease, request: str, **arguments: object) -> dict[str, Any]:
        """A request about a lease, which a process that was started since doesn't have: its number may be another's."""
        with self._lock:
            borrowed = self._borrowed.get(lease.lease_id)
            if self._running and (borrowed is None or borrowed.lease is not lease):
                raise LeaseEnded(f"lease {lease.lease_id} of domain {self.name} is over")
            return self._ask(request, lease_id=lease.lease_id, **arguments)

    def _ask(self, request: str, fds: Sequence[int] = (), /, **arguments: object) -> dict[str, Any]:
        """One request and its answer; raises what was raised over there."""
        with self._lock:
            if not self._running:
                raise LeaseEnded(f"domain {self.name} is closed")
            try:
                send(self._socket, {"request": request, **arguments}, fds)
                answer = receive(self._socket)
            except OSError as error:
                answer = None
                logger.error("domain %s: %s", self.name, error)
            if answer is None:
                self._finish()
                raise LeaseEnded(f"domain {self.name}: the process that served it is gone")
            self._over(answer.get("ended", []))
            if "error" in answer:
                raise revived(answer["error"], answer["arguments"])
            return answer
