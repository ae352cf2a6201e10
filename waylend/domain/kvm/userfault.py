"""userfaultfd(2): page faults on a range of this process's memory, delivered to a thread that resolves them.

The kernel's interface and the loop that reads faults; what a fault means is its Handler's business. Addresses are of
this process, ranges whole pages. Ioctls and structures as in linux/userfaultfd.h, behaviour as in the kernel's
Documentation/admin-guide/mm/userfaultfd.rst.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import logging
import os
import platform
import struct
import threading
from typing import Final, Protocol

from waylend import linux
from waylend.errors import Unavailable
from waylend.lending.pages import PAGE_SIZE

logger = logging.getLogger(__name__)

_ioctl = fcntl.ioctl
_SYSCALLS = {"x86_64": 323, "aarch64": 282}
_USERFAULTFD_IOC_NEW = 0xAA00

_UFFDIO_API = 0xC018AA3F
_UFFDIO_REGISTER = 0xC020AA00
_UFFDIO_WAKE = 0x8010AA02
_UFFDIO_COPY = 0xC028AA03
_UFFDIO_WRITEPROTECT = 0xC018AA06
_UFFDIO_POISON = 0xC020AA08
_UFFD_API = 0xAA
_FEATURE_MISSING_SHMEM = 1 << 5
_FEATURE_WP_SHMEM = 1 << 12
_FEATURE_POISON = 1 << 14  # the youngest of what we need: Linux 6.6
_FEATURES = _FEATURE_MISSING_SHMEM | _FEATURE_WP_SHMEM | _FEATURE_POISON
_REGISTER_MISSING, _REGISTER_WP = 1, 2
_COPY_MODE_WP = 2
_WP_ON, _WP_OFF, _WP_DONTWAKE = 1, 0, 2

_API = struct.Struct("=QQQ")
_REGISTER = struct.Struct("=QQQQ")
_RANGE = struct.Struct("=QQ")
_RANGE_MODE = struct.Struct("=QQQ")
_POISON = struct.Struct("=QQQq")
_pack_copy = struct.Struct("=QQQQq").pack
#: struct uffd_msg of a page fault: event, flags, address.
_MESSAGE = struct.Struct("=B7xQQ8x")
_EVENT_PAGEFAULT = 0x12

#: Flags of a fault: it was a store; it was a store to a page that is present and write-protected.
FAULT_WRITE: Final = 1
FAULT_WP: Final = 2


def open_userfaultfd() -> int:
    """A userfaultfd that also gets the kernel's own faults, as KVM's are. Raises Unavailable."""
    try:
        device = os.open("/dev/userfaultfd", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        pass  # Linux before 6.1, or not for us: the system call has rules of its own
    else:
        try:
            return _ioctl(device, _USERFAULTFD_IOC_NEW, os.O_CLOEXEC)
        finally:
            os.close(device)
    number = _SYSCALLS.get(platform.machine())
    if number is None:
        raise Unavailable(f"userfaultfd on {platform.machine()} is only known by /dev/userfaultfd", "needs Linux 6.1")
    try:
        return linux.system_call("userfaultfd", number, os.O_CLOEXEC)
    except PermissionError as error:
        raise Unavailable(
            "userfaultfd is not allowed",
            "run as root, or give this user access to /dev/userfaultfd, or set sysctl vm.unprivileged_userfaultfd=1",
        ) from error
    except OSError as error:
        raise Unavailable(f"no userfaultfd: {error.strerror}", "needs Linux with CONFIG_USERFAULTFD") from error


class Userfault:
    """One userfaultfd and how its faults are resolved. Resolving wakes whoever faulted there."""

    def __init__(self) -> None:
        """Raises Unavailable where the kernel has no userfaultfd for shared memory with write protection and poison."""
        self.fd = open_userfaultfd()
        try:
            _ioctl(self.fd, _UFFDIO_API, bytearray(_API.pack(_UFFD_API, _FEATURES, 0)))
        except OSError as error:
            self.close()
            raise Unavailable(
                "this kernel's userfaultfd lacks write protection of shared memory, or poison", "needs Linux 6.6"
            ) from error
        self._staging = bytearray(PAGE_SIZE)
        self._pin = ctypes.c_char.from_buffer(self._staging)  # it can neither move nor change its size
        self._staging_address = ctypes.addressof(self._pin)

    def register(self, address: int, size_bytes: int) -> None:
        """From now on faults on missing and on write-protected pages of the range are delivered. Raises OSError."""
        request = bytearray(_REGISTER.pack(address, size_bytes, _REGISTER_MISSING | _REGISTER_WP, 0))
        _ioctl(self.fd, _UFFDIO_REGISTER, request)

    def copy(self, address: int, content: bytes, *, write_protected: bool = False) -> None:
        """Puts one page there. Callers take turns (one lock): the kernel copies from one staging page.

        Raises FileExistsError where there is one already, other OSErrors where the kernel has no memory.
        """
        self._staging[:] = content
        mode = _COPY_MODE_WP if write_protected else 0
        _ioctl(self.fd, _UFFDIO_COPY, _pack_copy(address, self._staging_address, PAGE_SIZE, mode, 0))

    def poison(self, address: int) -> None:
        """Every access to that page fails from now on, until the range is dropped (MADV_DONTNEED). Idempotent."""
        try:
            _ioctl(self.fd, _UFFDIO_POISON, _POISON.pack(address, PAGE_SIZE, 0, 0))
        except FileExistsError:  # for another fault, just before
            self.wake(address, PAGE_SIZE)

    def protect(self, address: int, size_bytes: int) -> None:
        """Stores to what is present there are faults from now on; when it returns, none is under way any more."""
        _ioctl(self.fd, _UFFDIO_WRITEPROTECT, _RANGE_MODE.pack(address, size_bytes, _WP_ON))

    def unprotect(self, address: int, size_bytes: int, *, waking: bool = True) -> None:
        """The end of that, also for pages that have gone since: their protection outlives them."""
        mode = _WP_OFF if waking else _WP_OFF | _WP_DONTWAKE
        _ioctl(self.fd, _UFFDIO_WRITEPROTECT, _RANGE_MODE.pack(address, size_bytes, mode))

    def wake(self, address: int, size_bytes: int) -> None:
        """Has every access that waits there tried again: it finds the page, or faults anew."""
        _ioctl(self.fd, _UFFDIO_WAKE, _RANGE.pack(address, size_bytes))

    def close(self) -> None:
        """Nothing is delivered any more; whoever waits tries again. Idempotent."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def _ring(doorbell: int) -> None:
    with contextlib.suppress(OSError):  # closed while it rang
        linux.advise(doorbell, PAGE_SIZE, linux.MADV_POPULATE_READ)


class Handler(Protocol):
    def __call__(self, address: int, flags: int) -> None:
        """A fault at ``address`` (exact to the page at least). Must not touch the range through a mapping."""


class FaultServer:
    """Threads that read faults and hand them to ``handler``. They block in read(2) alone, without poll: half the system calls.

    ``doorbell`` is a page of the registered range that nobody else touches: a fault there ends the serving.
    """

    def __init__(self, userfault: Userfault, doorbell: int, handler: Handler, *, name: str, thread_count: int) -> None:
        self._userfault = userfault
        self._doorbell = doorbell
        self._handler = handler
        self._threads = [
            threading.Thread(target=self._serve, name=f"{name}-faults-{index}", daemon=True)
            for index in range(thread_count)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Ends the threads, and the userfaultfd with them. Not to be called from one of them."""
        # The ringing waits until the userfaultfd is closed, so it is done by a thread of its own.
        ringing = threading.Thread(target=_ring, args=(self._doorbell,))
        ringing.start()
        for thread in self._threads:
            thread.join()
        self._userfault.close()
        ringing.join()

    def _serve(self) -> None:
        fd, handler, doorbell, unpack = self._userfault.fd, self._handler, self._doorbell, _MESSAGE.unpack
        while True:
            event, flags, address = unpack(os.read(fd, _MESSAGE.size))
            if event != _EVENT_PAGEFAULT:
                continue  # none other was asked for
            if address & -PAGE_SIZE == doorbell:
                self._userfault.wake(doorbell, PAGE_SIZE)  # which rings for the next thread
                return
            try:
                handler(address, flags)
            except Exception:
                logger.exception("a fault at %#x", address)
