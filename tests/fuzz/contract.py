"""What each fuzz target holds waylend to: no error in the log that nobody foresaw, no descriptor that stays."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

#: Some descriptors are closed on a thread that may hang, so a moment later.
DEADLINE_S = 5.0


class Unforeseen(AssertionError):
    """waylend did what its contract has no place for."""


class _Errors(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@contextmanager
def nothing_stays(fd_count: int | None = None) -> Iterator[None]:
    """Raises Unforeseen where something in the context logged an error, or left a descriptor open.

    ``fd_count``: as many may be open afterwards; by default those that were open before.
    """
    logger = logging.getLogger("waylend")
    errors = _Errors()
    logger.addHandler(errors)
    before = open_fd_count() if fd_count is None else fd_count
    try:
        yield
    finally:
        logger.removeHandler(errors)
    if errors.lines:
        raise Unforeseen("\n".join(errors.lines))
    end = time.monotonic() + DEADLINE_S
    while (count := open_fd_count()) > before:
        if time.monotonic() > end:
            raise Unforeseen(f"{count - before} descriptors stay: {sorted(_fds())}")
        time.sleep(0.001)


def open_fd_count() -> int:
    return len(os.listdir("/proc/self/fd"))


def _fds() -> Iterator[str]:
    for name in os.listdir("/proc/self/fd"):
        try:
            yield f"{name} {os.readlink(f'/proc/self/fd/{name}')}"
        except FileNotFoundError:
            continue
