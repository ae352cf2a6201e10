"""FileBacking: what can be lent, what is read and written, and what a loss is."""

from __future__ import annotations

import mmap
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from waylend.backing.file import FileBacking
from waylend.errors import BackingLost
from waylend.lending.pages import PAGE_SIZE, PageRange

CONTENT = b"".join(bytes((page + 1,)) * PAGE_SIZE for page in range(3)) + b"tail"


def memfd() -> int:
    fd = os.memfd_create("file", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.pwrite(fd, CONTENT, 0)
    return fd


def on_disk(tmp_path: Path) -> int:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    return os.open(path, os.O_RDWR | os.O_CLOEXEC)


def on_tmpfs() -> int:
    fd = os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    os.pwrite(fd, CONTENT, 0)
    return fd


@pytest.fixture(params=["memfd", "disk", "tmpfs"])
def fd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[int]:
    made = {"memfd": memfd, "disk": lambda: on_disk(tmp_path), "tmpfs": on_tmpfs}[request.param]()
    yield made
    os.close(made)


def test_pages_are_read_whole_with_zeros_behind_the_end(fd: int) -> None:
    backing = FileBacking(os.dup(fd))
    assert backing.size_bytes == 3 * PAGE_SIZE + 4
    assert backing.read(PageRange(1, 3)) == CONTENT[PAGE_SIZE : 3 * PAGE_SIZE]
    assert backing.read(PageRange(2, 4)) == CONTENT[2 * PAGE_SIZE :].ljust(2 * PAGE_SIZE, b"\0")
    backing.close()


def test_a_part_of_a_file_ends_where_it_is_said_to(fd: int) -> None:
    backing = FileBacking(os.dup(fd), size_bytes=PAGE_SIZE + 3)
    assert backing.read(PageRange(1, 2)) == b"\2\2\2".ljust(PAGE_SIZE, b"\0")
    with pytest.raises(BackingLost, match="beyond"):
        backing.read(PageRange(2, 3))
    backing.close()


def test_what_is_written_is_in_the_file_and_the_file_does_not_grow(fd: int) -> None:
    backing = FileBacking(os.dup(fd), writable=True)
    backing.write(PageRange(2, 4), b"w" * 2 * PAGE_SIZE)
    backing.sync()
    assert os.fstat(fd).st_size == len(CONTENT)
    assert os.pread(fd, PAGE_SIZE + 10, 2 * PAGE_SIZE) == b"w" * (PAGE_SIZE + 4)
    backing.close()


def test_a_read_only_backing_takes_nothing(fd: int) -> None:
    backing = FileBacking(os.dup(fd))
    assert not backing.writable
    with pytest.raises(BackingLost, match="not opened for writing"):
        backing.write(PageRange(0, 1), bytes(PAGE_SIZE))
    backing.close()


def test_a_file_cut_short_is_a_loss_of_what_was_cut_off(fd: int) -> None:
    backing = FileBacking(os.dup(fd), writable=True)
    os.ftruncate(fd, PAGE_SIZE + 1)
    assert backing.read(PageRange(0, 1)) == CONTENT[:PAGE_SIZE]
    for lost in (PageRange(0, 2), PageRange(1, 2), PageRange(2, 3)):
        with pytest.raises(BackingLost, match="cut short"):
            backing.read(lost)
    with pytest.raises(BackingLost, match="cut short"):
        backing.write(PageRange(2, 3), bytes(PAGE_SIZE))
    assert os.fstat(fd).st_size == PAGE_SIZE + 1, "it isn't grown again"
    backing.close()


def test_a_closed_backing_is_lost(fd: int) -> None:
    backing = FileBacking(os.dup(fd))
    backing.close()
    backing.close()
    with pytest.raises(BackingLost):
        backing.read(PageRange(0, 1))


def test_the_same_file_handed_out_again_is_the_same_backing(fd: int) -> None:
    reopened = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    first, again, part = FileBacking(os.dup(fd)), FileBacking(reopened), FileBacking(os.dup(fd), size_bytes=5)
    other = FileBacking(memfd())
    assert first.key == again.key
    assert len({first.key, part.key, other.key}) == 3
    os.ftruncate(fd, PAGE_SIZE)
    cut = FileBacking(os.dup(fd))
    assert cut.key != first.key, "it was changed since"
    for backing in (first, again, part, other, cut):
        backing.close()


def pipe_end() -> int:
    ours, theirs = os.pipe()
    os.close(theirs)
    return ours


def socket_end() -> int:
    ours, theirs = socket.socketpair()
    theirs.close()
    return ours.detach()


def write_only() -> int:
    fd = memfd()
    reopened = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_CLOEXEC)
    os.close(fd)
    return reopened


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (pipe_end, "a pipe"),
        (socket_end, "a socket"),
        (lambda: os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), "a directory"),
        (lambda: os.open("/dev/zero", os.O_RDONLY | os.O_CLOEXEC), "a character device"),
        (lambda: os.eventfd(0), "an anonymous descriptor"),
        (write_only, "isn't open for reading"),
        (lambda: os.memfd_create("empty"), "0 bytes"),
    ],
)
def test_what_cannot_be_lent_is_refused_with_a_reason_and_closed(make: Callable[[], int], says: str) -> None:
    fd = make()
    with pytest.raises(ValueError, match=says):
        FileBacking(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@pytest.mark.parametrize("size_bytes", [0, -1, len(CONTENT) + 1])
def test_no_more_than_there_is(size_bytes: int) -> None:
    with pytest.raises(ValueError, match="can't lend"):
        FileBacking(memfd(), size_bytes=size_bytes)


def test_writing_needs_a_descriptor_that_can() -> None:
    fd = memfd()
    with pytest.raises(ValueError, match="isn't open for writing"):
        FileBacking(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC), writable=True)
    os.close(fd)


def test_subscribers_hear_of_it_first_and_can_leave() -> None:
    backing = FileBacking(memfd(), writable=True)
    sizes: list[tuple[PageRange, int]] = []

    def invalidate(pages: PageRange) -> None:
        backing.write(PageRange(3, 4), bytes(PAGE_SIZE))  # what a borrower wrote still finds its place
        with pytest.raises(BackingLost, match="cut short"):
            backing.read(PageRange(1, 2))
        sizes.append((pages, os.fstat(backing.fileno()).st_size))

    unsubscribe = backing.subscribe(invalidate)
    backing.truncate(PAGE_SIZE)
    assert sizes == [((1, 4), len(CONTENT))], "the file was still whole"
    assert backing.read(PageRange(0, 1)) == CONTENT[:PAGE_SIZE]
    unsubscribe()
    unsubscribe()
    backing.invalidate()
    assert len(sizes) == 1
    backing.close()


def test_huge_pages() -> None:
    try:
        fd = os.memfd_create("huge", os.MFD_CLOEXEC | os.MFD_HUGETLB)
        os.ftruncate(fd, 2 << 20)
        view = mmap.mmap(fd, 2 << 20)
    except OSError as missing:
        pytest.skip(f"no huge pages here: {missing}")
    view[:3] = b"big"
    view.close()
    backing = FileBacking(fd)
    assert backing.read(PageRange(0, 1))[:4] == b"big\0"
    backing.close()
