"""The epoll loop of the data path: one thread, level-triggered, with timers and calls from other threads. No Wayland here."""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable

logger = logging.getLogger(__name__)

EPOLLIN = select.EPOLLIN
EPOLLOUT = select.EPOLLOUT

Handler = Callable[[int], None]


class Timer:
    """A call that is to come; ``cancel`` it, and it doesn't."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[[], None]) -> None:
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None


class Loop:
    """Runs in one thread (``run``), or is turned by hand (``turn``). Only ``call`` and ``stop`` may be used from others."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._count = itertools.count()
        self._calls: deque[Callable[[], None]] = deque()
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._running = True
        self._lock = threading.Lock()
        self._closed = False
        self.add(self._wake_fd, EPOLLIN, self._on_wake)

    def add(self, fd: int, mask: int, handler: Handler) -> None:
        """Calls ``handler(events)`` whenever ``fd`` has any of ``mask``, an error or a hang-up."""
        self._epoll.register(fd, mask)
        self._handlers[fd] = handler

    def modify(self, fd: int, mask: int) -> None:
        self._epoll.modify(fd, mask)

    def remove(self, fd: int) -> None:
        """Before the fd is closed. Nothing happens if it isn't there."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def call_later(self, delay_s: float, call: Callable[[], None]) -> Timer:
        timer = Timer(call)
        heapq.heappush(self._timers, (time.monotonic() + delay_s, next(self._count), timer))
        return timer

    def call(self, call: Callable[[], None]) -> None:
        """Runs ``call`` in the loop's thread, soon. From any thread; does nothing once the loop has closed."""
        with self._lock:
            if not self._closed:
                self._calls.append(call)
                os.eventfd_write(self._wake_fd, 1)

    def stop(self) -> None:
        """Ends ``run`` after the calls that came before."""
        self.call(self._stop)

    def _stop(self) -> None:
        self._running = False

    def run(self) -> None:
        """Turns until ``stop``."""
        turn = self.turn
        while self._running:
            turn()

    def turn(self, wait_s: float | None = None) -> bool:
        """Waits up to ``wait_s`` (None: for as long as it takes), and handles what is there. Returns whether anything was.

        What a handler, a timer or a call raises is our bug: it is logged, and the loop goes on for the others.
        """
        timers = self._timers
        # A wait without a timer costs the kernel less.
        events = self._epoll.poll(self._timeout_s(wait_s) if timers else wait_s)
        handlers = self._handlers
        for fd, mask in events:
            # A handler of the same batch may have removed it.
            handler = handlers.get(fd)
            if handler is not None:
                try:
                    handler(mask)
                except Exception as error:
                    self.failed("a handler", error)
        return (self._run_timers() if timers else False) or bool(events)

    def failed(self, what: str, error: Exception) -> None:
        """``what`` raised ``error``: it is logged."""
        logger.error("%s failed", what, exc_info=error)

    def _timeout_s(self, wait_s: float | None) -> float | None:
        while self._timers and self._timers[0][2].call is None:
            heapq.heappop(self._timers)
        if not self._timers:
            return wait_s
        left_s = max(0.0, self._timers[0][0] - time.monotonic())
        return left_s if wait_s is None else min(left_s, wait_s)

    def _run_timers(self) -> bool:
        now = time.monotonic()
        ran = False
        while self._timers and self._timers[0][0] <= now:
            call = heapq.heappop(self._timers)[2].call
            if call is not None:
                ran = True
                try:
                    call()
                except Exception as error:
                    self.failed("a timer", error)
        return ran

    def _on_wake(self, _events: int) -> None:
        os.eventfd_read(self._wake_fd)
        # Those that come meanwhile have their turn after the others' events.
        for _ in range(len(self._calls)):
            try:
                self._calls.popleft()()
            except Exception as error:
                self.failed("a call from another thread", error)

    def close(self) -> None:
        """After ``run`` has returned. Idempotent."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._epoll.close()
                os.close(self._wake_fd)
