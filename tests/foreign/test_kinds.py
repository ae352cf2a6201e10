"""What a descriptor is, told without asking whoever serves it."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.foreign.strange import fuse_file, lingering_socket
from waylend import linux
from waylend.foreign import kinds
from waylend.foreign.kinds import DescriptorKind, look_at


@contextlib.contextmanager
def closed_after(*fds: int) -> Iterator[int]:
    """The first of ``fds``."""
    try:
        yield fds[0]
    finally:
        for fd in fds:
            os.close(fd)


def named_pipe(folder: Path) -> int:
    os.mkfifo(folder / "pipe")
    return os.open(folder / "pipe", os.O_RDWR)


def epoll() -> int:
    made = select.epoll()
    fd = os.dup(made.fileno())
    made.close()
    return fd


KINDS: list[tuple[str, Callable[[Path], int], DescriptorKind, str]] = [
    ("memfd", lambda _: os.memfd_create("m"), DescriptorKind.SHARED_MEMORY, "shared memory"),
    ("tmpfs", lambda _: os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR), DescriptorKind.SHARED_MEMORY, "shared memory"),
    ("null", lambda _: os.open(os.devnull, os.O_RDWR), DescriptorKind.LOCAL_DEVICE, "a terminal or a device"),
    ("named pipe", named_pipe, DescriptorKind.PIPE, "a pipe"),
    ("folder", lambda folder: os.open(folder, os.O_RDONLY), DescriptorKind.OTHER, "a folder"),
    ("device", lambda _: os.open("/dev/urandom", os.O_RDONLY), DescriptorKind.OTHER, "a device"),
    ("unix socket", lambda _: socket.socket(socket.AF_UNIX).detach(), DescriptorKind.OTHER, "a socket"),
    ("eventfd", lambda _: os.eventfd(0), DescriptorKind.OTHER, "no file (anon_inode:[eventfd])"),
    ("epoll", lambda _: epoll(), DescriptorKind.OTHER, "no file (anon_inode:[eventpoll])"),
]


@pytest.mark.parametrize(("make", "kind", "what"), [case[1:] for case in KINDS], ids=[case[0] for case in KINDS])
def test_what_it_is(make: Callable[[Path], int], kind: DescriptorKind, what: str, tmp_path: Path) -> None:
    with closed_after(make(tmp_path)) as fd:
        seen = look_at(fd)
        assert (seen, seen.kind) == (fd, kind)
        assert seen.what == what


def test_both_ends_of_a_pipe() -> None:
    reading, writing = os.pipe()
    with closed_after(reading, writing):
        assert look_at(reading).kind is DescriptorKind.PIPE
        assert look_at(writing).kind is DescriptorKind.PIPE


def test_a_terminal() -> None:
    with closed_after(*reversed(pty.openpty())) as fd:
        assert look_at(fd).kind is DescriptorKind.LOCAL_DEVICE


def test_a_file_on_a_disk_of_our_own_view() -> None:
    """Where the checkout lies on tmpfs it is shared memory, and on a network it is neither."""
    fd = os.open(__file__, os.O_RDONLY)
    with closed_after(fd):
        assert look_at(fd).kind in (DescriptorKind.LOCAL_FILE, DescriptorKind.SHARED_MEMORY)


def test_a_file_that_a_stranger_serves() -> None:
    with fuse_file("none") as fd:
        assert os.readlink(f"/proc/self/fd/{fd}") == "/file"  # its path is its maker's to choose
        seen = look_at(fd)
        assert seen.kind is DescriptorKind.OTHER
        assert "whoever serves it could make others wait" in seen.what


def test_a_socket_that_lingers() -> None:
    with lingering_socket() as fd:
        assert look_at(fd).what == "a socket"


def test_none_at_all() -> None:
    assert look_at(1 << 20).kind is DescriptorKind.OTHER


def test_a_file_named_like_a_dmabuf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    with closed_after(fd), monkeypatch.context() as patch:
        patch.setattr(kinds, "name_of", lambda _fd: "/dmabuf:")
        assert look_at(fd).kind is not DescriptorKind.DMABUF


@pytest.mark.parametrize("file_system", ["fuse.sshfs", "fuse", "nfs4", "cifs", "9p", "virtiofs", "autofs"])
def test_a_file_of_a_served_file_system_in_our_own_view(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_system: str
) -> None:
    """It is mounted here by somebody who may, but who answers for it is a process or a machine that may not."""
    (tmp_path / "file").touch()
    monkeypatch.setattr(kinds, "_file_system_of_mount", lambda _mount_id: file_system)
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    with closed_after(fd), monkeypatch.context() as patch:
        patch.setattr(linux, "can_have_seals", lambda _fd: False)  # on tmpfs it would be shared memory
        seen = look_at(fd)
        assert (seen.kind, seen.what) == (
            DescriptorKind.OTHER,
            f"a file that somebody serves ({file_system}): it could make others wait",
        )
