"""The last resort of a FUSE domain: what cuts its aperture off when a revocation is late, or when its lender is killed.

The second case needs somebody else. A lender that is killed while it unmaps pages may have a thread that waits, in the
kernel and not to be killed, for a fault which only the lender could have answered: its descriptors stay open, the
connection lives on, and the borrower hangs with it. So a shell stands by that waits for the death of the watchdog's
thread (PR_SET_PDEATHSIG, prctl(2): sent when that thread is gone, whatever the others do), and then aborts the connection.
"""

from __future__ import annotations

import logging
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from waylend.domain.fuse import mounts

logger = logging.getLogger(__name__)

_LOOK_S = 0.05
#: Its stdout is the connection's abort file. A line on stdin lets it go; the signal, or the end of stdin, has it abort. Signals
#: that are meant for a whole group of processes are not for it: a lender that ends in good order needs its connection.
_STANDING_BY = "trap '' HUP INT TERM; trap 'echo 1; exit' USR1; read line || echo 1"


class Armed:
    """One deadline that the watchdog watches. ``missed`` once it has passed."""

    __slots__ = ("deadline", "missed")

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.missed = False


class Watchdog:
    """Calls ``cut_off`` when an armed deadline passes. Arming costs no wake-up as a rule: the thread looks by itself.

    ``connection`` is the FUSE connection that is aborted when this process is killed. ``in_thread`` is called in the thread once
    somebody stands by for that.
    """

    def __init__(
        self, name: str, cut_off: Callable[[], None], *, connection: int, in_thread: Callable[[], None] | None = None
    ) -> None:
        self._name = name
        self._cut_off = cut_off
        self._connection = connection
        self._in_thread = in_thread
        self._armed: set[Armed] = set()
        self._wanted = threading.Event()
        self._cutting = threading.Lock()
        self._closed = False
        self._stands = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"{name}-watchdog", daemon=True)
        self._thread.start()
        # Not later: a process that forks holds up its serving threads until the child has closed what is open here, which must
        # not be files that they serve.
        self._stands.wait()

    @contextmanager
    def armed(self, deadline_s: float) -> Iterator[Armed]:
        armed = Armed(time.monotonic() + deadline_s)
        self._armed.add(armed)
        if not self._wanted.is_set():
            self._wanted.set()
        try:
            yield armed
        finally:
            self._armed.discard(armed)
            if armed.missed:
                with self._cutting:  # not before all is cut off
                    pass

    def close(self) -> None:
        self._closed = True
        self._wanted.set()
        self._thread.join()

    def _watch(self) -> None:
        try:
            standing_by = self._stand_by()
        finally:
            self._stands.set()
        if self._in_thread is not None:
            self._in_thread()
        quiet_looks = 0
        while not self._closed:
            self._wanted.wait()
            time.sleep(_LOOK_S)
            armed = list(self._armed)
            missed = [each for each in armed if time.monotonic() > each.deadline and not each.missed]
            if missed:
                with self._cutting:
                    for each in missed:
                        each.missed = True
                    self._cut_off()
            quiet_looks = 0 if armed else quiet_looks + 1
            if quiet_looks > 20 and not self._closed:
                self._wanted.clear()
                quiet_looks = 0
                if self._armed:  # armed in between
                    self._wanted.set()
        if standing_by is not None:
            standing_by.communicate(b"\n")

    def _stand_by(self) -> subprocess.Popen[bytes] | None:
        """The shell that acts when this very thread dies without having let it go."""
        try:
            with open(mounts.open_abort(self._connection), "wb", buffering=0) as abort:
                return subprocess.Popen(
                    ["setpriv", "--pdeathsig", "USR1", "sh", "-c", _STANDING_BY],
                    stdin=subprocess.PIPE,
                    stdout=abort,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
        except OSError as error:
            logger.info("domain %s: if this process is killed, its borrowers may hang: %s", self._name, error)
            return None
