"""Closes descriptors that strangers sent, without waiting for any.

close(2) may wait for as long as a stranger likes: a socket with SO_LINGER for its peer, a FUSE file for its daemon's answer to
FLUSH. For the latter the kernel waits *uninterruptibly*, so that not even SIGKILL ends the process whose thread it is
(``fuse_flush``, FR_FORCE). So each such close is made by a process of its own, which shares our table of descriptors and does
nothing else (``linux.process_that_closes``). The number is free at once; if it hangs, it hangs there, and this program can
end: a table that somebody else has, too, isn't closed with us.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import queue
import select
import signal
import socket
import termios
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from waylend import linux
from waylend.foreign.kinds import Descriptor, DescriptorKind, look_at, name_of

logger = logging.getLogger(__name__)

#: How long a close may take before it is interrupted (a socket's is over then).
_GRACE_S = 0.25
#: How many may hang at a time: of files, which a stranger's daemon may serve, and of all else, which doesn't wait for these.
_MOST_FILES, _MOST_OTHERS = 48, 16
#: So many wait to be closed that no more clients are to be taken in.
_MOST_WAITING = 1024


@dataclass
class _Close:
    pid: int
    stack: object
    pidfd: int
    begun: float
    hangs: bool = False


class _Lane:
    """Descriptors of one sort: those that wait, and the processes that close some."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.waiting: deque[int] = deque()
        self.running: list[_Close] = []


class Closer:
    """A thread that has descriptors closed. One for the whole process (``close_all``); starts when it is first needed."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._files = _Lane(_MOST_FILES)
        self._others = _Lane(_MOST_OTHERS)
        self._lock = threading.Lock()
        self._left = 0  # neither closed nor known to hang
        self._idle = threading.Condition(self._lock)
        self._wake_fd = -1
        self._pid = 0
        self._told = False

    def add(self, fds: Iterable[int]) -> None:
        """Owns ``fds``. From any thread; never waits."""
        fds = [int(fd) for fd in fds if fd >= 0]
        if not fds:
            return
        self.start()
        with self._lock:
            self._left += len(fds)
        for fd in fds:
            self._queue.put(fd)
        os.eventfd_write(self._wake_fd, 1)

    def start(self) -> None:
        """Has its thread from now on, and its two descriptors. Idempotent; after a fork it is begun anew."""
        with self._lock:
            if self._pid != os.getpid():
                self._pid = os.getpid()
                self._left = 0
                self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
                name_of(self._wake_fd)
                threading.Thread(target=self._run, name="closing", daemon=True).start()

    @property
    def overloaded(self) -> bool:
        """So much hangs that whoever brings more is to be turned away."""
        return self._left > _MOST_WAITING

    def settle(self, deadline_s: float) -> bool:
        """Waits until each has been closed or hangs in a process of its own; returns whether that is so."""
        with self._idle:
            return self._idle.wait_for(lambda: not self._left, deadline_s)

    def _run(self) -> None:
        # What closes has our memory and our handlers, but our signals are not its own.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while True:
            poll = select.poll()
            poll.register(self._wake_fd, select.POLLIN)
            running = [*self._files.running, *self._others.running]
            for one in running:
                if one.pidfd >= 0:
                    poll.register(one.pidfd, select.POLLIN)
            poll.poll(_GRACE_S * 1000 if running else None)
            # What closes has our thread's errno, too: of a read that finds nothing, the error may be the one of a close.
            with contextlib.suppress(OSError):
                os.eventfd_read(self._wake_fd)
            while not self._queue.empty():
                fd = self._queue.get()
                (self._files if _is_file(fd) else self._others).waiting.append(fd)
            for lane in (self._files, self._others):
                self._reap(lane)
                while lane.waiting and len(lane.running) < lane.most:
                    self._close(lane, lane.waiting.popleft())

    def _close(self, lane: _Lane, fd: int) -> None:
        try:
            pid, stack = linux.process_that_closes(fd)
        except OSError as error:
            logger.warning("a descriptor is closed here, which may wait: %s", error)
            with contextlib.suppress(OSError):
                os.close(fd)
            self._done()
            return
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:  # no descriptors left: then it is looked for now and again
            pidfd = -1
        lane.running.append(_Close(pid, stack, pidfd, time.monotonic()))

    def _reap(self, lane: _Lane) -> None:
        for one in list(lane.running):
            # Its end makes no signal: who wants to know has to ask.
            if os.waitpid(one.pid, os.WNOHANG | linux.WALL)[0]:
                lane.running.remove(one)
                if one.pidfd >= 0:
                    os.close(one.pidfd)
                if not one.hangs:
                    self._done()
            elif not one.hangs and time.monotonic() - one.begun > _GRACE_S:
                os.kill(one.pid, signal.SIGKILL)
                one.hangs = True
                self._done()
                if not self._told:
                    self._told = True
                    logger.warning(
                        "a client's descriptor does not let itself be closed: process %d waits for it", one.pid
                    )

    def _done(self) -> None:
        with self._idle:
            self._left -= 1
            self._idle.notify_all()


_closer = Closer()


def start() -> None:
    """To be called where clients are served, before there is anything to be closed: what is open then is all that stays."""
    _closer.start()


def close_all(fds: Iterable[int]) -> None:
    """Closes descriptors that nobody vouches for. Owns them; returns at once, whatever they are."""
    _closer.add(fds)


def looked_at(fds: Iterable[int]) -> list[Descriptor]:
    """What came with a stranger's bytes. What may make whoever closes it wait is closed at once: it is -1 in the answer."""
    return [_kept_or_closed(look_at(fd)) for fd in fds]


def _kept_or_closed(descriptor: Descriptor) -> Descriptor:
    if descriptor.kind is not DescriptorKind.OTHER:
        return descriptor
    _closer.add((descriptor,))
    return Descriptor(-1, descriptor.kind, descriptor.what)


def close_sent(fds: Iterable[int]) -> None:
    """Closes descriptors that the kernel has passed on to somebody: at once, where that waits for nobody."""
    for fd in fds:
        if isinstance(fd, Descriptor) or look_at(fd).kind is not DescriptorKind.OTHER:
            with contextlib.suppress(OSError):  # it is closed all the same, close(2)
                os.close(fd)
        else:
            _closer.add((fd,))


def close_socket(sock: socket.socket) -> None:
    """Closes a connected socket: its peer sees the end at once, and what was never received of it can't hold us up."""
    with contextlib.suppress(OSError):
        # From here on nothing more can come.
        sock.shutdown(socket.SHUT_RDWR)
    unread = bytearray(4)
    try:
        fcntl.ioctl(sock, termios.FIONREAD, unread)
    except OSError:
        unread[0] = 1
    if any(unread):
        _closer.add((sock.detach(),))
    else:
        sock.close()


def overloaded() -> bool:
    """So many descriptors of strangers can't be closed that no more are to be taken."""
    return _closer.overloaded


def settle(deadline_s: float = 1.0) -> bool:
    """To be called before the program ends: no descriptor that could hang is this process's to close any more."""
    return _closer.settle(deadline_s)


def _is_file(fd: int) -> bool:
    try:
        return name_of(fd).startswith("/")
    except OSError:
        return True
