"""Memory behind a mapping: bytes in and out, and no fault of it ever reaches this process."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from waylend.backing.mapped import MappedMemory

PAGE = 4096
GONE = r"are gone|Bad address"
CONTENT = random.Random(1).randbytes(3 * PAGE + 100)


@pytest.fixture
def fd() -> Iterator[int]:
    before = sorted(os.listdir("/proc/self/fd"))
    fd = os.memfd_create("mapped")
    os.write(fd, CONTENT)
    yield fd
    os.close(fd)
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_what_is_read_and_written_is_what_is_mapped(fd: int) -> None:
    memory = MappedMemory(fd, len(CONTENT), writable=True)
    assert memory.read(0, len(CONTENT)) == CONTENT
    assert memory.read(PAGE - 1, 2) == CONTENT[PAGE - 1 : PAGE + 1]
    memory.write(PAGE - 2, b"over")
    assert os.pread(fd, 6, PAGE - 3) == CONTENT[PAGE - 3 : PAGE - 2] + b"over" + CONTENT[PAGE + 2 : PAGE + 3]
    assert memory.read(0, 0) == b""
    memory.close()


@pytest.mark.parametrize(("offset", "size"), [(-1, 1), (0, len(CONTENT) + 1), (len(CONTENT), 1), (5, -1)])
def test_nothing_beyond_it(fd: int, offset: int, size: int) -> None:
    memory = MappedMemory(fd, len(CONTENT), writable=True)
    with pytest.raises(ValueError, match="bytes at"):
        memory.read(offset, size)
    if size > 0:
        with pytest.raises(ValueError, match="bytes at"):
            memory.write(offset, bytes(size))
    memory.close()


def test_pages_that_are_gone_are_an_error_and_no_signal(fd: int) -> None:
    memory = MappedMemory(fd, len(CONTENT), writable=True)
    os.ftruncate(fd, PAGE)
    assert memory.read(0, PAGE) == CONTENT[:PAGE]
    for offset, size in ((PAGE, PAGE), (0, 2 * PAGE), (2 * PAGE, 1)):
        with pytest.raises(OSError, match=GONE):
            memory.read(offset, size)
        with pytest.raises(OSError, match=GONE):
            memory.write(offset, bytes(size))
    memory.close()


def test_what_is_closed_has_nothing_any_more(fd: int) -> None:
    memory = MappedMemory(fd, PAGE, writable=False)
    memory.read(0, PAGE)
    memory.close()
    memory.close()
    with pytest.raises(OSError, match="closed"):
        memory.read(0, PAGE)
    assert "memfd:mapped" not in Path("/proc/self/maps").read_text()


def test_closing_while_others_read(fd: int) -> None:
    """Each of them gets the content or an error, and the last one to let go leaves nothing behind (the fixture looks)."""
    memory = MappedMemory(fd, len(CONTENT), writable=False)
    wrong: list[bytes] = []

    def read() -> None:
        try:
            while True:
                content = memory.read(0, len(CONTENT))
                if content != CONTENT:
                    wrong.append(content)
        except OSError:
            pass

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    memory.close()
    for reader in readers:
        reader.join()
    assert not wrong
