"""Linux's system calls and constants that Python 3.11 lacks, or that it can't call without the interpreter lock: each once.

Every function raises OSError that names its call. Nothing here knows what it is good for.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from typing import Final

#: Seals of memfds (fcntl(2), linux/fcntl.h). Not every build of Python's ``fcntl`` has them.
F_ADD_SEALS: Final = 1033
F_GET_SEALS: Final = 1034
F_SEAL_SEAL: Final = 0x0001
F_SEAL_SHRINK: Final = 0x0002
F_SEAL_GROW: Final = 0x0004
F_SEAL_WRITE: Final = 0x0008

#: Protections of mmap(2) and mprotect(2).
PROT_NONE: Final = 0
PROT_READ: Final = 1
PROT_READ_WRITE: Final = 3

#: Advice of madvise(2).
MADV_DONTNEED: Final = 4
MADV_DONTFORK: Final = 10
MADV_DONTDUMP: Final = 16
MADV_POPULATE_READ: Final = 22

#: What ``errno`` lacks: a page that hardware, or userfaultfd, has poisoned.
EHWPOISON: Final = 133

#: waitpid(2): for children that end without a signal, too (linux/wait.h).
WALL: Final = 0x40000000

_CLONE_VM, _CLONE_FILES = 0x100, 0x400
_STACK_BYTES = 1 << 14
_MAP_SHARED, _MAP_NORESERVE = 0x01, 0x4000
_MAP_FAILED: Final = ctypes.c_void_p(-1).value
_FALLOC_KEEP_SIZE, _FALLOC_PUNCH_HOLE = 0x01, 0x02
_MNT_DETACH = 2
_CLONE_FS = 0x200
_PR_SET_NO_NEW_PRIVS = 38
_SYNC_AND_WAIT = 1 | 2 | 4  # SYNC_FILE_RANGE_WAIT_BEFORE, _WRITE, _WAIT_AFTER

# Each call lets go of the interpreter lock (ctypes.CDLL), which some wait long for.
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_char_p)
_libc.fstatfs.argtypes = (ctypes.c_int, ctypes.c_char_p)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
_libc.prctl.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)
_libc.unshare.argtypes = (ctypes.c_int,)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.clone.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def system_call(name: str, number: int, *arguments: object) -> int:
    """The system call ``number``, which ``name`` is for the error. ``arguments`` are ints, bytes or None."""
    return _checked(int(_libc.syscall(number, *arguments)), name)


def ioctl(fd: int, request: int, argument: bytes, name: str) -> bytes:
    """ioctl(2) with a structure; what the kernel made of it. ``fcntl.ioctl`` holds the interpreter lock for small ones."""
    buffer = ctypes.create_string_buffer(argument, len(argument))
    _checked(_libc.ioctl(fd, request, buffer), name)
    return buffer.raw


def seals_of(fd: int) -> int:
    """F_GET_SEALS, which asks nobody. Raises OSError for all but memfds and files of tmpfs and hugetlbfs."""
    try:
        return fcntl.fcntl(fd, F_GET_SEALS)
    except OSError as error:
        raise _named(error.errno or errno.EINVAL, "F_GET_SEALS") from None


def can_have_seals(fd: int) -> bool:
    """Whether F_GET_SEALS succeeds: the file is a memfd, or of tmpfs or hugetlbfs. Asks nobody."""
    try:
        fcntl.fcntl(fd, F_GET_SEALS)
    except OSError:
        return False
    return True


def add_seals(fd: int, seals: int) -> None:
    """F_ADD_SEALS, for good."""
    try:
        fcntl.fcntl(fd, F_ADD_SEALS, seals)
    except OSError as error:
        raise _named(error.errno or errno.EINVAL, "F_ADD_SEALS") from None


def file_system_of(fd: int) -> int:
    """The magic number of the file's file system (fstatfs(2), linux/magic.h). Of a FUSE file this asks its daemon."""
    status = ctypes.create_string_buffer(256)  # struct statfs, which begins with f_type, a word
    _checked(_libc.fstatfs(fd, status), "fstatfs")
    return ctypes.c_ulong.from_buffer(status).value & 0xFFFFFFFF


def process_that_closes(fd: int) -> tuple[int, object]:
    """A new process that shares our memory and our table of descriptors, closes ``fd``, and is over (clone(2)).

    Returns its pid and its stack, which is to be kept until it has been reaped: with waitpid(2) and WALL, as its end makes no
    signal. It runs nothing but the C library's ``close``, and needs no lock. Call it with all signals blocked, as it has our
    handlers, too. 11 us where a copy of our memory takes 10 ms.
    """
    stack = ctypes.create_string_buffer(_STACK_BYTES)
    top = (ctypes.addressof(stack) + _STACK_BYTES) & ~15
    close = ctypes.cast(_libc.close, ctypes.c_void_p)
    return _checked(_libc.clone(close, top, _CLONE_VM | _CLONE_FILES, fd), "clone"), stack


def punch_hole(fd: int, offset_bytes: int, length_bytes: int) -> None:
    """Frees those pages of a file, which read as zeros then; whoever has mapped them has them no more (fallocate(2))."""
    _checked(_libc.fallocate(fd, _FALLOC_KEEP_SIZE | _FALLOC_PUNCH_HOLE, offset_bytes, length_bytes), "fallocate")


def sync_file_range(fd: int, offset_bytes: int, size_bytes: int) -> None:
    """Has the kernel write back what is dirty there, and waits for it (sync_file_range(2)). It says what failed since the
    file was opened.
    """
    _checked(_libc.sync_file_range(fd, offset_bytes, size_bytes, _SYNC_AND_WAIT), "sync_file_range")


def unmount_lazily(path: str) -> None:
    """umount2(2) with MNT_DETACH."""
    _checked(_libc.umount2(os.fsencode(path), _MNT_DETACH), "umount2")


def own_umask() -> None:
    """Gives the calling thread a umask and a current directory of its own, which others don't see (unshare(2), CLONE_FS)."""
    _checked(_libc.unshare(_CLONE_FS), "unshare")


def no_new_privileges() -> None:
    """The calling thread, and what it starts, never gets more rights by executing a program (PR_SET_NO_NEW_PRIVS)."""
    _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")


def map_shared(fd: int, size_bytes: int, protection: int) -> int:
    """The address of a new shared mapping of ``fd`` from its start, for which no memory is set aside (mmap(2))."""
    address = _libc.mmap(None, size_bytes, protection, _MAP_SHARED | _MAP_NORESERVE, fd, 0)
    _checked(-1 if address == _MAP_FAILED else 0, "mmap")
    return int(address)


def unmap(address: int, size_bytes: int) -> None:
    """munmap(2)."""
    _checked(_libc.munmap(address, size_bytes), "munmap")


def protect(address: int, size_bytes: int, protection: int) -> None:
    """mprotect(2)."""
    _checked(_libc.mprotect(address, size_bytes, protection), "mprotect")


def advise(address: int, size_bytes: int, advice: int) -> None:
    """madvise(2)."""
    _checked(_libc.madvise(address, size_bytes, advice), "madvise")


def _checked(result: int, name: str) -> int:
    if result < 0:
        raise _named(ctypes.get_errno(), name)
    return result


def _named(number: int, name: str) -> OSError:
    """OSError makes the class that fits the number of it: BlockingIOError, FileExistsError ..."""
    return OSError(number, f"{name}: {os.strerror(number)}")
