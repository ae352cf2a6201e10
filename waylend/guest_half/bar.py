"""The aperture in a guest: a file or a PCI BAR, mapped; bytes move between it and files by the kernel, never by our own loads.

A page that can't be had is an error of the copy then (EFAULT), not a signal.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

from waylend.errors import PeerError, Unavailable
from waylend.lending.pages import PAGE_SHIFT

_PCI_DEVICES = Path("/sys/bus/pci/devices")
#: QEMU's ivshmem-plain, whose BAR 2 is the shared memory.
_IVSHMEM = ("0x1af4", "0x1110")
_GONE = "the host half is gone"


class Bar:
    """The aperture, mapped from ``path``; ``page_count`` pages. Raises OSError, and PeerError when the file is too small."""

    def __init__(self, path: str, page_count: int) -> None:
        self.page_count = page_count
        self.size_bytes = page_count << PAGE_SHIFT
        self._closed = False
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            if os.fstat(fd).st_size < self.size_bytes:
                raise PeerError(f"{path} has {os.fstat(fd).st_size} bytes, not the aperture's {self.size_bytes}")
            self._octets = memoryview(mmap.mmap(fd, self.size_bytes, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE))
        finally:
            os.close(fd)

    def copy_in(self, fd: int, file_offset: int, aperture_offset: int, spans: Iterable[tuple[int, int]]) -> str:
        """See ``buffers.ApertureAccess``."""
        if self._closed:
            return _GONE
        octets, preadv = self._octets, os.preadv
        to_file = file_offset - aperture_offset
        try:
            for offset, size_bytes in spans:
                start = aperture_offset + offset
                end = start + size_bytes
                while start < end:
                    count = preadv(fd, [octets[start:end]], start + to_file)
                    if not count:
                        return "the pool's file was cut short"
                    start += count
        except OSError as error:
            return "the host's memory is gone" if error.errno == errno.EFAULT else error.strerror or f"{error}"
        return ""

    def copy_out(self, fd: int, file_offset: int, aperture_offset: int, size_bytes: int) -> str:
        """Copies ``size_bytes`` to ``fd``, which doesn't grow by it. Returns what went wrong, or an empty string."""
        if self._closed:
            return _GONE
        if os.fstat(fd).st_size < file_offset + size_bytes:
            return "the file is too short"
        end = aperture_offset + size_bytes
        while aperture_offset < end:
            try:
                count = os.pwrite(fd, self._octets[aperture_offset:end], file_offset)
            except OSError as error:
                return "the host's memory is gone" if error.errno == errno.EFAULT else error.strerror or f"{error}"
            aperture_offset += count
            file_offset += count
        return ""

    def close(self) -> None:
        self._closed = True
        mapping = self._octets.obj
        self._octets.release()
        assert isinstance(mapping, mmap.mmap)
        mapping.close()


def find_bar() -> str:
    """The path of the BAR that a VMM gave this machine for the aperture. Raises Unavailable."""
    for device in sorted(_PCI_DEVICES.glob("*")):
        try:
            ids = tuple((device / name).read_text().strip() for name in ("vendor", "device"))
        except OSError:
            continue
        if ids == _IVSHMEM:
            for name in ("resource2_wc", "resource2"):
                if (device / name).exists():
                    return f"{device / name}"
    raise Unavailable(
        "this machine has no device with lent memory",
        "start it with the options that `waylend host --qemu-args` prints, or give --bar FILE",
    )
