"""A backing that misbehaves on purpose."""

from __future__ import annotations

import threading

from tests.domain.borrowers import DEADLINE_S, file_backing_fd
from waylend.backing.file import FileBacking
from waylend.lending.pages import PageRange

PAGES = 40


class HangingBacking(FileBacking):
    """PAGES pages. Neither reads nor takes writes until it is told to go on."""

    def __init__(self) -> None:
        super().__init__(file_backing_fd(PAGES), writable=True)
        self.hangs = True
        self.asked = threading.Event()
        self.go_on = threading.Event()

    def _hang(self) -> None:
        if self.hangs:
            self.asked.set()
            assert self.go_on.wait(DEADLINE_S)

    def read(self, pages: PageRange) -> bytes:
        self._hang()
        return super().read(pages)

    def write(self, pages: PageRange, content: bytes | memoryview) -> None:
        self._hang()
        super().write(pages, content)
