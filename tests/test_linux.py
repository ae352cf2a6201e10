"""The system calls that Python lacks: each does what its page says, and its error names it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from waylend import linux

PAGE = 4096


@pytest.fixture
def memfd() -> int:
    fd = os.memfd_create("linux", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.pwrite(fd, b"x" * 2 * PAGE, 0)
    return fd


def test_seals(memfd: int) -> None:
    assert linux.seals_of(memfd) == 0
    linux.add_seals(memfd, linux.F_SEAL_SHRINK | linux.F_SEAL_SEAL)
    assert linux.seals_of(memfd) == linux.F_SEAL_SHRINK | linux.F_SEAL_SEAL
    with pytest.raises(PermissionError, match="F_ADD_SEALS"):
        linux.add_seals(memfd, linux.F_SEAL_WRITE)
    os.close(memfd)


def test_a_hole_is_zeros_and_the_file_keeps_its_size(memfd: int) -> None:
    linux.punch_hole(memfd, PAGE, PAGE)
    assert os.pread(memfd, 3 * PAGE, 0) == b"x" * PAGE + bytes(PAGE)
    os.close(memfd)


def test_a_mapping_of_addresses(memfd: int) -> None:
    address = linux.map_shared(memfd, 2 * PAGE, linux.PROT_NONE)
    linux.protect(address, PAGE, linux.PROT_READ)
    linux.advise(address, PAGE, linux.MADV_POPULATE_READ)
    with pytest.raises(OSError, match="madvise") as refused:
        linux.advise(address + PAGE, PAGE, linux.MADV_POPULATE_READ)
    assert refused.value.errno == errno.EINVAL, "it may not be touched"
    linux.unmap(address, 2 * PAGE)
    os.close(memfd)


def test_the_file_system_of_a_file() -> None:
    with open("/proc/self/stat", "rb") as file:
        assert linux.file_system_of(file.fileno()) == 0x9FA0  # PROC_SUPER_MAGIC


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("fstatfs", lambda: linux.file_system_of(-1)),
        ("fallocate", lambda: linux.punch_hole(-1, 0, PAGE)),
        ("sync_file_range", lambda: linux.sync_file_range(-1, 0, PAGE)),
        ("umount2", lambda: linux.unmount_lazily("/nowhere/at/all")),
        ("mmap", lambda: linux.map_shared(-1, PAGE, linux.PROT_READ)),
        ("mprotect", lambda: linux.protect(1, PAGE, linux.PROT_READ)),
        ("munmap", lambda: linux.unmap(1, PAGE)),
        ("F_GET_SEALS", lambda: linux.seals_of(0x7FFFFFFF)),
        ("TCGETS", lambda: linux.ioctl(-1, 0x5401, bytes(64), "TCGETS")),
        ("fsopen", lambda: linux.system_call("fsopen", 430, b"no such file system", 0)),
    ],
)
def test_every_error_names_its_call(name: str, call: Callable[[], object]) -> None:
    with pytest.raises(OSError, match=f"{name}: "):
        call()
