"""The process that serves: a FuseDomain, asked by messages. It has next to no imports, and ends with the socket to it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from typing import Any

from waylend.backing.file import FileBacking
from waylend.domain.fuse.domain import FuseDomain
from waylend.domain.process.messages import receive, send
from waylend.errors import LeaseEnded, Unavailable
from waylend.lending.lease import Lease, LeaseState, LossPolicy, Protection
from waylend.lending.p2m import LendingEvent, LendingEventKind
from waylend.lending.pages import PageRange


def serve(fd: int, notices_fd: int) -> None:
    """What runs over there: requests from the socket ``fd``, until it ends. A byte to ``notices_fd``: a lease has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the lender, whose end is ours
    connection = socket.socket(fileno=fd)
    server: _Server | None = None
    try:
        while (message := receive(connection)) is not None:
            fds: list[int] = []
            try:
                if server is None:
                    server = _Server(message["name"], message["options"], notices_fd)
                    aperture_pages = server.domain.stats().aperture_pages
                    answer: dict[str, Any] = {"aperture_pages": aperture_pages, "root_fd": server.domain.root_fd}
                else:
                    answer, fds = server.answer(message)
            except Unavailable as error:
                answer = {"error": "Unavailable", "arguments": [error.reason, error.remedy]}
            except Exception as error:
                answer = {"error": type(error).__name__, "arguments": [str(error)]}
            if server is not None:
                answer["ended"] = server.ended()
            send(connection, answer, fds)
            for passed in fds:
                os.close(passed)
            if message["request"] == "close":
                break
    except OSError:
        pass  # the lender is gone
    finally:
        if server is not None:
            server.domain.close()


class _Server:
    """The real domain, asked by messages."""

    def __init__(self, name: str, options: dict[str, Any], notices_fd: int) -> None:
        self.domain = FuseDomain(name, **options)
        self._leases: dict[int, Lease] = {}
        self._notices = socket.socket(fileno=notices_fd)
        self.domain.events.watch(self._tell, faults=False)

    def _tell(self, event: LendingEvent) -> None:
        if event.kind is LendingEventKind.ENDED:
            # Never waits: where there are notices that nobody has read yet, one more changes nothing.
            with contextlib.suppress(OSError):
                self._notices.send(b"!", socket.MSG_DONTWAIT)

    def ended(self) -> list[int]:
        """Leases that have ended since the last call."""
        over = [lease_id for lease_id, lease in self._leases.items() if lease.state is LeaseState.ENDED]
        for lease_id in over:
            del self._leases[lease_id]
        return over

    def answer(self, message: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
        """An answer and the descriptors that go with it, which are closed after sending."""
        request = message["request"]
        if request == "lend":
            return self._lend(message), []
        if request == "ended":
            return {}, []
        if request == "stats":
            return {"leases": [vars(stats) for stats in self.domain.stats().leases]}, []
        if request == "close":
            self.domain.close()
            return {}, []
        if request == "drop_gaps":
            self.domain.drop_gaps()
            return {}, []
        if request == "open_bar":
            return {}, [self.domain.open_bar(writable=message["writable"])]
        lease = self._leases.get(message["lease_id"])
        if lease is None:
            raise LeaseEnded(f"lease {message['lease_id']} of domain {self.domain.name} is over")
        if request == "open_lease":
            return {}, [self.domain.open_lease(lease)]
        pages = PageRange(*message["pages"]) if message.get("pages") else None
        if request == "revoke":
            return {"taken": self.domain.revoke(lease, pages)}, []
        if request == "invalidate":
            self.domain.revoke(lease, pages)
            lease.revocations -= 1
        elif request == "sync":
            self.domain.sync(lease)
        elif request == "end":
            self.domain.end(lease)
        elif request == "end_when_unused":
            self.domain.end_when_unused(lease)
        else:
            raise ValueError(f"no request {request!r}")
        return {}, []

    def _lend(self, message: dict[str, Any]) -> dict[str, Any]:
        backing = FileBacking(message["fds"][0], size_bytes=message["backing_bytes"], writable=message["writable"])
        try:
            lease = self.domain.lend(
                backing,
                offset_bytes=message["offset_bytes"],
                size_bytes=message["size_bytes"],
                protection=Protection(message["protection"]),
                loss=LossPolicy(message["loss"]),
                name=message["name"],
                redrawn=message["redrawn"],
            )
        except BaseException:
            backing.close()
            raise
        self._leases[lease.lease_id] = lease
        return {"lease_id": lease.lease_id, "gfn": lease.gfns.start}
