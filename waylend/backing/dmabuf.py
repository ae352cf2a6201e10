"""DmabufBacking: the pages of a dma-buf, the kernel's descriptor of a buffer that devices share.

After Documentation/driver-api/dma-buf.rst and linux/dma-buf.h of the kernel: the size is where ``lseek`` finds the end; the CPU
accesses it through a mapping, between DMA_BUF_IOCTL_SYNC start and end, so that caches are in order; ``poll`` tells when the
devices are done with it. ``create_dumb`` makes such a buffer on a DRM node, one without any acceleration (drm-kms.rst,
"Dumb Buffer Objects").
"""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import select
import struct
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from waylend import linux
from waylend.backing.base import Invalidate, Subscribers
from waylend.backing.mapped import MappedMemory
from waylend.errors import BackingLost, Unavailable
from waylend.lending.pages import PAGE_SHIFT, PageRange, page_count_of

#: The file system of all dma-bufs, by which one can be told from other descriptors (linux/magic.h).
DMA_BUF_MAGIC = 0x444D4142
#: struct dma_buf_sync { __u64 flags; } (linux/dma-buf.h).
DMA_BUF_IOCTL_SYNC = 0x40086200
SYNC_READ, SYNC_WRITE, SYNC_START, SYNC_END = 1, 2, 0, 4
#: drm/drm.h and drm/drm_mode.h; the structures stand beside their numbers.
DRM_IOCTL_GET_CAP = 0xC010640C
DRM_IOCTL_MODE_CREATE_DUMB = 0xC02064B2
DRM_IOCTL_MODE_DESTROY_DUMB = 0xC00464B4
DRM_IOCTL_PRIME_HANDLE_TO_FD = 0xC00C642D
_CAP = struct.Struct("=QQ")  # capability, value
_CREATE_DUMB = struct.Struct("=IIIIIIQ")  # height, width, bits per pixel, flags, handle, pitch, size
_DESTROY_DUMB = struct.Struct("=I")  # handle
_PRIME_HANDLE = struct.Struct("=IIi")  # handle, flags, fd
_CAP_PRIME, _PRIME_EXPORT = 5, 2
#: What a node answers that can't: a driver without dumb buffers, a render node.
_NO_DUMB = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTTY, errno.EACCES)


class DmabufBacking:
    """Pages of the dma-buf ``fd``, which it owns from now on, even when the constructor raises.

    ``writable`` maps it for writing too. ``ready_timeout_s`` is how long a fault waits for devices that are still at work on
    the buffer: after that the page counts as lost, so that a hung GPU can't hold a borrower for ever. Raises ValueError,
    saying why, for a descriptor that is no dma-buf, or that can't be mapped so.
    """

    def __init__(self, fd: int, *, writable: bool = False, ready_timeout_s: float = 0.5) -> None:
        self._fd = fd
        self._lock = threading.Lock()
        self._subscribers = Subscribers()
        self._writable = writable
        self._ready_timeout_s = ready_timeout_s
        try:
            if not is_dmabuf(fd):
                raise ValueError("can't lend this descriptor as a dma-buf: it is none")
            self._size_bytes = os.lseek(fd, 0, os.SEEK_END)
            if self._size_bytes < 1:
                raise ValueError(f"can't lend a dma-buf of {self._size_bytes} bytes")
            self._memory = _mapped(fd, self._size_bytes, writable)
            status = os.fstat(fd)
        except BaseException:
            os.close(fd)
            self._fd = -1
            raise
        self._key = ("dmabuf", status.st_dev, status.st_ino)

    @property
    def key(self) -> Hashable:
        """Its inode: one for each dma-buf, however often it is handed on. What devices draw into it doesn't change that."""
        return self._key

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    @property
    def writable(self) -> bool:
        return self._writable

    def fileno(self) -> int:
        """The descriptor, to pass on. It stays this backing's own."""
        return self._fd

    def read(self, pages: PageRange) -> bytes:
        """See Backing."""
        offset_bytes = pages.start << PAGE_SHIFT
        length_bytes = pages.page_count << PAGE_SHIFT
        wanted_bytes = min(length_bytes, self._size_bytes - offset_bytes)
        if wanted_bytes < 1:
            raise BackingLost("the range lies beyond the dma-buf")
        try:
            with self._cpu_access(SYNC_READ, select.POLLIN) as memory:
                content = memory.read(offset_bytes, wanted_bytes)
        except OSError as error:
            raise BackingLost(f"reading the dma-buf: {error}") from error
        return content.ljust(length_bytes, b"\0")

    def write(self, pages: PageRange, content: bytes | memoryview) -> None:
        """See Backing. ``content`` beyond ``size_bytes`` is dropped."""
        offset_bytes = pages.start << PAGE_SHIFT
        kept = memoryview(content)[: max(0, self._size_bytes - offset_bytes)]
        if not self._writable:
            raise BackingLost("the dma-buf was not mapped for writing back")
        try:
            with self._cpu_access(SYNC_WRITE, select.POLLOUT) as memory:
                memory.write(offset_bytes, kept)
        except OSError as error:
            raise BackingLost(f"writing the dma-buf: {error}") from error

    def sync(self) -> None:
        """Nothing to do: what was written is in the buffer, and in order for devices since its DMA_BUF_IOCTL_SYNC."""

    def subscribe(self, invalidate: Invalidate) -> Callable[[], None]:
        """See Backing. The kernel tells only devices when a dma-buf moves: only ``invalidate`` below calls the subscribers."""
        return self._subscribers.add(invalidate)

    def invalidate(self, pages: PageRange | None = None) -> None:
        """The buffer's owner has new content in ``pages`` (by default all), or wants them back: every borrower loses them."""
        self._subscribers.invalidate(PageRange(0, page_count_of(self._size_bytes)) if pages is None else pages)

    def close(self) -> None:
        with self._lock:
            fd, self._fd = self._fd, -1
        if fd >= 0:
            self._memory.close()
            os.close(fd)

    @contextmanager
    def _cpu_access(self, direction: int, ready: int) -> Iterator[MappedMemory]:
        """Waits for the devices, at most ``ready_timeout_s``, and has the caches in order for the block. Raises OSError."""
        # A number of our own: another thread may close the backing, and the number may become another file's.
        with self._lock:
            if self._fd < 0:
                raise OSError(errno.EBADF, "it is closed")
            fd = os.dup(self._fd)
        try:
            waiting = select.poll()
            waiting.register(fd, ready)
            if not waiting.poll(self._ready_timeout_s * 1000):
                raise OSError(errno.ETIMEDOUT, f"its devices are still at work after {self._ready_timeout_s} s")
            _sync(fd, SYNC_START | direction)
            try:
                yield self._memory
            finally:
                _sync(fd, SYNC_END | direction)
        finally:
            os.close(fd)


@dataclass(frozen=True)
class DumbBuffer:
    """``fd`` is a dma-buf, the caller's; ``pitch_bytes`` from one row to the next."""

    fd: int
    width: int
    height: int
    pitch_bytes: int
    size_bytes: int


def create_dumb(width: int, height: int, *, bits_per_pixel: int = 32, node: str | None = None) -> DumbBuffer:
    """A new buffer of zeros on the DRM node ``node``, by default the first primary one in /dev/dri that makes such buffers.

    Raises Unavailable, with reason and remedy, where there is no such node; OSError if the node refuses this buffer.
    """
    remedy = "a GPU's driver, or the module vgem: modprobe vgem"
    nodes = sorted(glob.glob("/dev/dri/card*")) if node is None else [node]
    if not nodes:
        raise Unavailable("no DRM node in /dev/dri", remedy)
    reasons = []
    for path in nodes:
        try:
            drm = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            reasons.append(f"{path}: {error.strerror}")
            continue
        try:
            if _exports(drm):
                return _created(drm, width, height, bits_per_pixel)
            reasons.append(f"{path} exports no buffers")
        except OSError as error:
            if error.errno not in _NO_DUMB:
                raise
            reasons.append(f"{path} makes no dumb buffers: {error.strerror}")
        finally:
            os.close(drm)
    raise Unavailable("; ".join(reasons), remedy)


def is_dmabuf(fd: int) -> bool:
    """Whether the descriptor is a dma-buf (fstatfs(2)). Raises OSError."""
    return linux.file_system_of(fd) == DMA_BUF_MAGIC


def _created(drm: int, width: int, height: int, bits_per_pixel: int) -> DumbBuffer:
    answer = _ioctl(
        drm, DRM_IOCTL_MODE_CREATE_DUMB, _CREATE_DUMB.pack(height, width, bits_per_pixel, 0, 0, 0, 0), "CREATE_DUMB"
    )
    *_, handle, pitch_bytes, size_bytes = _CREATE_DUMB.unpack(answer)
    try:
        exported = _PRIME_HANDLE.pack(handle, os.O_CLOEXEC | os.O_RDWR, -1)
        _, _, fd = _PRIME_HANDLE.unpack(_ioctl(drm, DRM_IOCTL_PRIME_HANDLE_TO_FD, exported, "PRIME_HANDLE_TO_FD"))
    finally:  # the descriptor alone keeps the buffer
        _ioctl(drm, DRM_IOCTL_MODE_DESTROY_DUMB, _DESTROY_DUMB.pack(handle), "DESTROY_DUMB")
    return DumbBuffer(fd, width, height, pitch_bytes, size_bytes)


def _exports(drm: int) -> bool:
    """Whether the node has PRIME export. (DRM_CAP_DUMB_BUFFER would say more, but nodes without mode setting don't know it.)"""
    try:
        answer = _ioctl(drm, DRM_IOCTL_GET_CAP, _CAP.pack(_CAP_PRIME, 0), "GET_CAP")
    except OSError:  # not a DRM node at all
        return False
    return bool(_CAP.unpack(answer)[1] & _PRIME_EXPORT)


def _mapped(fd: int, size_bytes: int, writable: bool) -> MappedMemory:
    if writable and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDWR:
        raise ValueError("can't lend a dma-buf for writing that isn't open for writing")
    try:
        return MappedMemory(fd, size_bytes, writable=writable)
    except OSError as error:
        raise ValueError(f"can't lend a dma-buf that the CPU can't map: {error}") from error


def _sync(fd: int, flags: int) -> None:
    _ioctl(fd, DMA_BUF_IOCTL_SYNC, flags.to_bytes(8, "little"), "DMA_BUF_IOCTL_SYNC")


def _ioctl(fd: int, request: int, argument: bytes, name: str) -> bytes:
    """The argument as the kernel leaves it. Raises OSError, naming the call.

    A sync may wait for devices. Both dma-buf.rst and libdrm's drmIoctl say to try again after EAGAIN and EINTR, which this does,
    but not for ever.
    """
    for _ in range(999):
        try:
            return linux.ioctl(fd, request, argument, name)
        except (InterruptedError, BlockingIOError):
            pass
    return linux.ioctl(fd, request, argument, name)
