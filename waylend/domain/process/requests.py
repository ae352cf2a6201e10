"""Requests: what a ProcessDomain has asked its process, and one thread that reads the answers.

Whoever asks gets a Future, and never waits while asking, not even for a process that reads nothing. Each request has a deadline:
a process that misses it is given up as a whole, so that nothing hangs. Nothing about leases lives here.
"""

from __future__ import annotations

import array
import contextlib
import logging
import os
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from waylend.domain.process.messages import Message, close_all, packed, receive, revived
from waylend.errors import LeaseEnded, QuotaExceeded

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: How many requests may be under way.
_MAX_UNDER_WAY = 4096
#: How long the rest of a message may take to come after its beginning.
_REST_S = 2
#: How long what is under way may still be answered by a process that is about to be given up.
_LAST_ANSWERS_S = 0.5
#: How often in a deadline somebody looks whether it has passed.
_LOOKS = 8


class _Asked:
    """One request under way. ``then`` makes the result of its answer. ``patient``: it may take longer than the deadline, as long
    as the process answers others.
    """

    __slots__ = ("deadline", "limit_s", "name", "patient", "result", "then")

    def __init__(self, name: str, then: Callable[[Message], Any], limit_s: float, *, patient: bool) -> None:
        self.name = name
        self.then = then
        self.limit_s = limit_s
        self.deadline = time.monotonic() + limit_s
        self.patient = patient
        self.result: Future[Any] = Future()
        self.result.set_running_or_notify_cancel()  # it can't be cancelled any more


class Requests:
    """The asking end of ``connection``, which it owns. Callbacks are called on its thread, so they must not wait for an answer.

    ``on_events`` gets events in the order in which they happened, before any later answer. ``on_over`` is called once, with the
    reason, and whether the other end is still there, but missed a deadline. Requests under way raise LeaseEnded after it.
    """

    def __init__(
        self,
        connection: socket.socket,
        *,
        name: str,
        deadline_s: float,
        on_events: Callable[[list[list[Any]]], None],
        on_over: Callable[[str, bool], None],
    ) -> None:
        self._connection = connection
        # What has begun to come comes to its end, or its sender has stopped.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", _REST_S, 0))
        self._name = name
        self._deadline_s = deadline_s
        self._on_events = on_events
        self._on_over = on_over
        self._lock = threading.Lock()
        self._under_way: dict[int, _Asked] = {}
        self._next_id = 1
        self._over: str | None = None
        #: When to give the process up, and why.
        self._expiry: tuple[float, str] | None = None
        #: What the socket had no room for, with descriptors of our own.
        self._unsent: deque[tuple[bytes, list[int]]] = deque()
        #: Rings for the thread: there is something to send, or a deadline to watch.
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._asleep = False
        self._thread = threading.Thread(target=self._run, name=f"{name}-answers", daemon=True)
        self._thread.start()

    @property
    def over(self) -> bool:
        return self._over is not None

    def is_here(self) -> bool:
        """Whether the caller is on the thread that reads the answers, and so can't wait for one."""
        return threading.current_thread() is self._thread

    def ask(
        self,
        name: str,
        fds: Sequence[int] = (),
        limit_s: float | None = None,
        /,
        *,
        then: Callable[[Message], T],
        patient: bool = False,
        **arguments: object,
    ) -> Future[T]:
        """Asks, and doesn't wait. The future has what ``then`` makes of the answer, or raises what was raised over there.

        ``limit_s`` is another deadline than that of all. ``then`` is called on the thread that reads the answers; descriptors
        under ``fds`` are its own. Raises LeaseEnded if the process has gone, QuotaExceeded.
        """
        request = _Asked(name, then, self._deadline_s if limit_s is None else limit_s, patient=patient)
        with self._lock:
            if self._over is not None:
                raise LeaseEnded(f"domain {self._name} is over: {self._over}")
            if len(self._under_way) >= _MAX_UNDER_WAY:
                raise QuotaExceeded(f"domain {self._name} has {_MAX_UNDER_WAY} requests under way")
            request_id = self._next_id
            self._next_id += 1
            try:
                self._send(packed({"id": request_id, "request": name, **arguments}), fds)
            except OSError as error:  # too many descriptors, here or on their way
                raise QuotaExceeded(f"domain {self._name} can't be asked: {error.strerror}") from error
            self._under_way[request_id] = request
            if self._asleep or self._unsent:
                self._asleep = False
                os.eventfd_write(self._bell, 1)
        return request.result

    def expire(self, reason: str) -> None:
        """The process is of no use any more: it is given up, once it has had the time for answers that are due. On its thread."""
        self._expiry = (time.monotonic() + _LAST_ANSWERS_S, reason)

    def close(self) -> None:
        """Ends the connection and the thread, unless it is called on that. Idempotent."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        if not self.is_here():
            self._thread.join()

    def _send(self, packet: bytes, fds: Sequence[int]) -> None:
        """Under the lock. What the socket has no room for goes out when it has."""
        if not self._unsent:
            sent = self._sent(packet, fds)
            if sent == len(packet):
                return
            packet, fds = packet[sent:], () if sent else fds
        self._unsent.append((packet, [os.dup(fd) for fd in fds]))

    def _sent(self, packet: bytes, fds: Sequence[int]) -> int:
        try:
            # Not socket.send_fds, which forgets the flags.
            passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            return self._connection.sendmsg([packet], passed, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0
        except ConnectionError:  # it has gone, which the thread finds out
            return len(packet)

    # -- on the thread

    def _run(self) -> None:
        reason, missed = "its answers couldn't be read", True
        try:
            reason, missed = self._listen()
        except Exception:
            logger.exception("domain %s: reading answers", self._name)
        with self._lock:
            self._over = reason
            requests = list(self._under_way.values())
            self._under_way.clear()
            for _, fds in self._unsent:
                close_all(fds)
            self._unsent.clear()
            self._connection.close()
            os.close(self._bell)
        try:
            self._on_over(reason, missed)
        except Exception:
            logger.exception("domain %s: after its process had gone", self._name)
        for request in requests:
            request.result.set_exception(LeaseEnded(f"domain {self._name} is over: {reason}"))

    def _listen(self) -> tuple[str, bool]:
        """Until there is nobody to listen to; the reason, and whether that is a deadline that was missed."""
        poll = select.poll()
        poll.register(self._bell, select.POLLIN)
        look_s = self._deadline_s / _LOOKS
        look_at = time.monotonic() + look_s
        while True:
            with self._lock:
                poll.register(self._connection, select.POLLIN | (select.POLLOUT if self._unsent else 0))
                asleep = self._asleep
            if self._expiry is not None:
                look_at = min(look_at, self._expiry[0])
            wait_s = None if asleep and self._expiry is None else max(0.0, look_at - time.monotonic())
            for fd, events in poll.poll(None if wait_s is None else wait_s * 1000 + 1):
                if fd == self._bell:
                    os.eventfd_read(self._bell)
                    look_at = time.monotonic() + look_s
                    continue
                if events & select.POLLOUT:
                    self._send_more()
                if events & ~select.POLLOUT and not self._receive():
                    return "its process has ended", False
            if time.monotonic() >= look_at:
                look_at = time.monotonic() + look_s
                if self._expiry is not None and time.monotonic() >= self._expiry[0]:
                    return self._expiry[1], True
                missed = self._missed()
                if missed is not None:
                    return f"its process did not answer {missed.name!r} within {missed.limit_s:g} s", True

    def _receive(self) -> bool:
        try:
            message = receive(self._connection)
        except OSError as error:
            logger.error("domain %s: %s", self._name, error)
            return False
        if message is None:
            return False
        if "events" in message:
            self._on_events(message["events"])
        if "id" not in message:
            return True
        with self._lock:
            request = self._under_way.pop(message["id"])
        if "error" in message:
            request.result.set_exception(revived(message["error"], message["arguments"]))
            return True
        try:
            result = request.then(message)
        except Exception as error:
            close_all(message["fds"])
            request.result.set_exception(error)
        else:
            request.result.set_result(result)
        return True

    def _send_more(self) -> None:
        with self._lock:
            while self._unsent:
                packet, fds = self._unsent[0]
                sent = self._sent(packet, fds)
                if not sent:
                    return
                self._unsent.popleft()
                close_all(fds)
                if sent < len(packet):
                    self._unsent.appendleft((packet[sent:], []))

    def _missed(self) -> _Asked | None:
        """A request whose deadline has passed. Goes to sleep where there is none to watch."""
        now = time.monotonic()
        asking = False
        with self._lock:
            self._asleep = not self._under_way
            for request in self._under_way.values():
                if now < request.deadline:
                    continue
                if not request.patient:
                    return request
                request.deadline = now + request.limit_s
                asking = True
        if asking:  # it may take its time, if only the process lives
            with contextlib.suppress(QuotaExceeded):  # others have deadlines then
                self.ask("ping", then=lambda _: None)
        return None
