"""Connections to a compositor that has the aperture mapped, and the thread that closes them, since that waits for write-backs."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from waylend.domain.process.caller import ProcessDomain
from waylend.errors import LendingError
from waylend.relay.endpoint import Endpoint

logger = logging.getLogger(__name__)

#: How long the compositor may have to wait for a write-back, and how often that is tried.
_CALM_S = 0.01
_WRITE_BACKS = 3


class _Departing(NamedTuple):
    sock: socket.socket
    after: Sequence[Callable[[], None]]


class CompositorEnd(Endpoint):
    """A connection to the compositor. Once that has mapped the aperture it is not closed here, but given to ``close_later``."""

    __slots__ = ("_after", "_close_later", "maps_aperture")

    def __init__(
        self, sock: socket.socket, close_later: Callable[[socket.socket, Sequence[Callable[[], None]]], None]
    ) -> None:
        super().__init__(sock)
        self.maps_aperture = False
        self._close_later = close_later
        self._after: list[Callable[[], None]] = []

    def after_close(self, call: Callable[[], None]) -> None:
        """Once it is closed, when the compositor can't look at the aperture for it any more: on any thread."""
        self._after.append(call)

    def close(self) -> None:
        """See ``Endpoint``."""
        if self.maps_aperture and not self._closed:
            self._closed = True
            self.drop_queue()
            self._close_later(self.sock, self._after)
        elif not self._closed:
            super().close()
            for call in self._after:
                call()


class ClosingThread:
    """Closes connections to a compositor that has the aperture mapped: each when what is dirty has been written back.

    The compositor unmaps the aperture then, and the kernel has it wait for the write-back of whatever is dirty at that time.
    So a guest that stores faster than that is written back has all its pages taken first: each store costs it a fault then.
    """

    def __init__(self, bar_fd: int, domain: ProcessDomain) -> None:
        self._bar_fd = bar_fd
        self._domain = domain
        self._queue: queue.SimpleQueue[_Departing | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._waiting = 0
        self._thread = threading.Thread(target=self._run, name="departures", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many connections there still are: each is a client for its compositor."""
        return self._waiting

    def close_later(self, sock: socket.socket, after: Sequence[Callable[[], None]] = ()) -> None:
        """Owns ``sock``. ``after`` is called on the thread, once it is closed."""
        with self._lock:
            self._waiting += 1
        self._queue.put(_Departing(sock, after))

    def _run(self) -> None:
        going_on = True
        while going_on:
            # All that wait go at once: a guest half that is gone may have had many clients.
            departing = [self._queue.get()]
            while not self._queue.empty():
                departing.append(self._queue.get())
            going_on = None not in departing
            connections = [connection for connection in departing if connection is not None]
            if connections:
                with contextlib.suppress(OSError, LendingError):  # cut off: then nothing is dirty any more
                    self._settle()
            for connection in connections:
                connection.sock.close()
                with self._lock:
                    self._waiting -= 1
                for call in connection.after:
                    call()

    def _settle(self) -> None:
        """Returns when whoever unmaps the aperture will not wait for long."""
        for _ in range(_WRITE_BACKS):
            begun = time.monotonic()
            os.fdatasync(self._bar_fd)
            if time.monotonic() - begun < _CALM_S:
                return
        logger.info("the guest stores faster than that can be written back: its pages are taken")
        self._domain.revoke_all()

    def close(self) -> None:
        """Returns when all are closed."""
        self._queue.put(None)
        self._thread.join()
