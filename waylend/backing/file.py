"""FileBacking: the pages of an ordinary file descriptor, whatever file system it is on.

A memfd, tmpfs, hugetlbfs or a regular file on a disk. Read and written with preadv and pwrite, never mapped: a file
that is cut short under our feet is a short count here, not SIGBUS.
"""

from __future__ import annotations

import fcntl
import os
import stat
import threading
from collections.abc import Callable, Hashable

from waylend import linux
from waylend.backing.base import Invalidate, Subscribers
from waylend.errors import BackingLost
from waylend.lending.pages import PAGE_SHIFT, PageRange, page_count_of


class FileBacking:
    """Pages of ``fd``, which it owns from now on, even when the constructor raises.

    ``size_bytes`` of it, from its start; by default all that it has now. Raises ValueError, saying why, for a
    descriptor that can't be lent: not a regular file (a pipe, a socket, a directory, a device), empty, shorter than
    ``size_bytes``, not open for reading, or not for writing where ``writable`` asks for that.
    """

    def __init__(self, fd: int, *, size_bytes: int | None = None, writable: bool = False) -> None:
        self._fd = fd
        self._lock = threading.Lock()
        self._subscribers = Subscribers()
        try:
            status = os.fstat(fd)
            self._size_bytes = self._checked_size(status, size_bytes, writable)
        except BaseException:
            os.close(fd)
            self._fd = -1
            raise
        self._writable = writable
        #: Less than ``_size_bytes`` once the file has been cut off.
        self._readable_bytes = self._size_bytes
        # The same inode with the same status-change time has the same content; a file that was written to since is lent
        # anew, as its pages may be cached with the old content.
        self._key = ("file", status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns, self._size_bytes)

    def _checked_size(self, status: os.stat_result, size_bytes: int | None, writable: bool) -> int:
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"can't lend {_kind(status.st_mode)}: only a file with pages can be lent")
        access = fcntl.fcntl(self._fd, fcntl.F_GETFL) & os.O_ACCMODE
        if access == os.O_WRONLY:
            raise ValueError("can't lend a file that isn't open for reading")
        if writable and access != os.O_RDWR:
            raise ValueError("can't lend a file for writing that isn't open for writing")
        if writable and _seals(self._fd) & linux.F_SEAL_WRITE:
            raise ValueError("can't lend a file for writing that is sealed against it")
        if writable:
            try:
                os.pwrite(self._fd, b"", 0)
            except OSError as error:  # hugetlbfs: EINVAL, it can be written through a mapping only
                raise ValueError(f"can't lend a file for writing that takes no pwrite: {error}") from error
        wanted_bytes = status.st_size if size_bytes is None else size_bytes
        if wanted_bytes < 1:
            raise ValueError(f"can't lend {wanted_bytes} bytes")
        if wanted_bytes > status.st_size:
            raise ValueError(f"can't lend {wanted_bytes} bytes of a file of {status.st_size}")
        return wanted_bytes

    @property
    def key(self) -> Hashable:
        """Device, inode, size, status-change time: equal when the same unchanged file is handed out again."""
        return self._key

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    def fileno(self) -> int:
        """The descriptor, to pass on. It stays this backing's own."""
        return self._fd

    @property
    def writable(self) -> bool:
        return self._writable

    def read(self, pages: PageRange) -> bytes:
        """See Backing. Bytes after ``size_bytes`` are zeros. Raises BackingLost where the file ends before that."""
        offset_bytes = pages.start << PAGE_SHIFT
        length_bytes = (pages.end - pages.start) << PAGE_SHIFT
        try:
            content = os.pread(self._fd, length_bytes, offset_bytes)
        except OSError as error:
            raise BackingLost(f"reading the backing file: {error}") from error
        if len(content) == length_bytes and offset_bytes + length_bytes <= self._readable_bytes:
            return content
        return self._completed(content, offset_bytes, length_bytes)

    def _completed(self, content: bytes, offset_bytes: int, length_bytes: int) -> bytes:
        """Reads on after a short count, until the range, ``size_bytes`` or the file ends."""
        wanted_bytes = min(length_bytes, self._size_bytes - offset_bytes)
        if wanted_bytes < 1:
            raise BackingLost("the range lies beyond the backing")
        if offset_bytes + wanted_bytes > self._readable_bytes:
            raise BackingLost("the backing file was cut short")
        while len(content) < wanted_bytes:
            try:
                more = os.pread(self._fd, wanted_bytes - len(content), offset_bytes + len(content))
            except OSError as error:
                raise BackingLost(f"reading the backing file: {error}") from error
            if not more:
                raise BackingLost("the backing file was cut short")
            content += more
        return content[:wanted_bytes].ljust(length_bytes, b"\0")

    def write(self, pages: PageRange, content: bytes | memoryview) -> None:
        """See Backing. ``content`` beyond ``size_bytes`` is dropped; a file that was cut short isn't grown again."""
        offset_bytes = pages.start << PAGE_SHIFT
        rest = memoryview(content)[: max(0, self._size_bytes - offset_bytes)]
        try:
            if not self._writable:
                raise BackingLost("the backing file was not opened for writing back")
            if os.fstat(self._fd).st_size < offset_bytes + len(rest):
                raise BackingLost("the backing file was cut short")
            while rest:
                written = os.pwrite(self._fd, rest, offset_bytes)
                offset_bytes += written
                rest = rest[written:]
        except OSError as error:
            raise BackingLost(f"writing the backing file: {error}") from error

    def sync(self) -> None:
        """fdatasync(2). Raises BackingLost."""
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise BackingLost(f"syncing the backing file: {error}") from error

    def discard(self) -> None:
        """Gives the content up: all of it reads as zeros, and takes no memory. Raises BackingLost."""
        try:
            linux.punch_hole(self._fd, 0, self._size_bytes)
        except OSError as error:
            raise BackingLost(f"discarding the backing file: {error}") from error

    def subscribe(self, invalidate: Invalidate) -> Callable[[], None]:
        """See Backing. A file's kernel tells nobody when it changes: only ``invalidate`` below calls the subscribers."""
        return self._subscribers.add(invalidate)

    def invalidate(self, pages: PageRange | None = None) -> None:
        """The file's owner is about to change or cut off ``pages`` (by default all): every borrower loses them first."""
        self._subscribers.invalidate(PageRange(0, page_count_of(self._size_bytes)) if pages is None else pages)

    def truncate(self, size_bytes: int) -> None:
        """Cuts the file off as its owner should: no fault gets those pages any more, the borrowers lose them, the file ends."""
        first_lost, end = size_bytes >> PAGE_SHIFT, page_count_of(self._size_bytes)
        self._readable_bytes = min(self._readable_bytes, size_bytes)
        if first_lost < end:
            self.invalidate(PageRange(first_lost, end))
        os.ftruncate(self._fd, size_bytes)

    def close(self) -> None:
        with self._lock:
            fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _seals(fd: int) -> int:
    try:
        return linux.seals_of(fd)
    except OSError:  # not a memfd
        return 0


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFDIR: "a directory",
        stat.S_IFCHR: "a character device",
        stat.S_IFBLK: "a block device",
        stat.S_IFLNK: "a symbolic link",
    }
    return kinds.get(stat.S_IFMT(mode), "an anonymous descriptor")
