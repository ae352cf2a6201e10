"""What clients leave behind in a host half, and threads that see to it, since that waits for write-backs."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import socket
import threading
import time
from collections import deque
from collections.abc import Callable

from waylend.domain.process import ProcessDomain
from waylend.errors import LendingError
from waylend.lending.lease import Lease
from waylend.relay.endpoint import Endpoint

logger = logging.getLogger(__name__)

#: A lease that was given back is nobody else's for so long: the compositor may be about to look at it once more.
_LINGER_S = 0.25
#: How long one is kept for the next client that asks, and how much may be.
_KEPT_S = 2.0
_MAX_KEPT_BYTES = 64 << 20
#: How long the compositor may have to wait for a write-back, and how often that is tried.
_CALM_S = 0.01
_WRITE_BACKS = 3


class GivenBack:
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
        self._kept_s = _KEPT_S
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="retirer", daemon=True)
        self._thread.start()

    def add(self, lease: Lease) -> None:
        with self._changed:
            self._leases.append((time.monotonic(), lease))
            self._bytes += lease.size_bytes
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
        """Makes room: ends them now. Returns whether there were any."""
        with self._changed:
            leases = [lease for _, lease in self._leases]
            self._leases.clear()
            self._bytes = 0
        for lease in leases:
            self._end(lease)
        return bool(leases)

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
                if not self._leases:
                    self._changed.wait()
                    continue
                since, lease = self._leases[0]
                due = since + (_LINGER_S if self._bytes > _MAX_KEPT_BYTES else self._kept_s)
                left_s = due - time.monotonic()
                if left_s > 0:
                    self._changed.wait(left_s)
                    continue
                self._leases.popleft()
                self._bytes -= lease.size_bytes
            self._end(lease)

    def close(self) -> None:
        """Ends the thread. The leases end with their domain."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()


class CompositorEnd(Endpoint):
    """A connection to the compositor. Once that has mapped the aperture it is not closed here, but given to ``close_later``."""

    __slots__ = ("_close_later", "maps_aperture")

    def __init__(self, sock: socket.socket, close_later: Callable[[socket.socket], None]) -> None:
        super().__init__(sock)
        self.maps_aperture = False
        self._close_later = close_later

    def close(self) -> None:
        """See ``Endpoint``."""
        if self.maps_aperture and not self._closed:
            self._closed = True
            self.drop_queue()
            self._close_later(self.sock)
        else:
            super().close()


class Departures:
    """Closes connections to a compositor that has the aperture mapped: each when what is dirty has been written back.

    The compositor unmaps the aperture then, and the kernel has it wait for the write-back of whatever is dirty at that time.
    So a guest that stores faster than that is written back has all its pages taken first: each store costs it a fault then.
    """

    def __init__(self, bar_fd: int, domain: ProcessDomain) -> None:
        self._bar_fd = bar_fd
        self._domain = domain
        self._queue: queue.SimpleQueue[socket.socket | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="departures", daemon=True)
        self._thread.start()

    def close_later(self, sock: socket.socket) -> None:
        """Owns ``sock``."""
        self._queue.put(sock)

    def _run(self) -> None:
        going_on = True
        while going_on:
            # All that wait go at once: a guest half that is gone may have had many clients.
            departing = [self._queue.get()]
            while not self._queue.empty():
                departing.append(self._queue.get())
            going_on = None not in departing
            sockets = [sock for sock in departing if sock is not None]
            if sockets:
                with contextlib.suppress(OSError, LendingError):  # cut off: then nothing is dirty any more
                    self._settle()
            for sock in sockets:
                sock.close()

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
