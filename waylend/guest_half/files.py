"""What the compositor hands out for reading (keymaps, colour profiles), as sealed files of the guest's own.

A client may keep such a file for as long as it likes, and the lease that it came as may end at any time.
"""

from __future__ import annotations

import os
from collections import OrderedDict

from waylend import linux
from waylend.errors import PeerError
from waylend.guest_half.bar import Bar
from waylend.lending.pages import PAGE_SHIFT

#: How many are kept for the next client.
_MAX_COPIES = 64
_ALL_SEALS = linux.F_SEAL_SEAL | linux.F_SEAL_SHRINK | linux.F_SEAL_GROW | linux.F_SEAL_WRITE


class SealedCopies:
    """By the number of the lease that each is a copy of; those that were used last."""

    def __init__(self) -> None:
        self._fds: OrderedDict[int, int] = OrderedDict()

    def open(self, bar: Bar | None, lease: int, gfn: int, size_bytes: int) -> int:
        """A descriptor for reading, its caller's from now on, of what is at page ``gfn``. Raises PeerError, OSError."""
        if not size_bytes:
            return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        if lease in self._fds:
            self._fds.move_to_end(lease)
        else:
            self._fds[lease] = _sealed_copy(bar, gfn, size_bytes)
            if len(self._fds) > _MAX_COPIES:
                self.forget(next(iter(self._fds)))
        # Opened anew for reading only: kernels before 6.7 let nobody map a sealed file for reading through a descriptor
        # that could write.
        return os.open(f"/proc/self/fd/{self._fds[lease]}", os.O_RDONLY | os.O_CLOEXEC)

    def forget(self, lease: int) -> None:
        """Its number may come again, for something else."""
        fd = self._fds.pop(lease, -1)
        if fd >= 0:
            os.close(fd)

    def forget_all(self) -> None:
        while self._fds:
            os.close(self._fds.popitem()[1])


def _sealed_copy(bar: Bar | None, gfn: int, size_bytes: int) -> int:
    if bar is None or (gfn << PAGE_SHIFT) + size_bytes > bar.size_bytes:
        raise PeerError(f"the host half lent {size_bytes} bytes at page {gfn}, which are not in the aperture")
    fd = os.memfd_create("waylend-file", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size_bytes)
        failure = bar.copy_out(fd, 0, gfn << PAGE_SHIFT, size_bytes)
        if failure:
            raise PeerError(f"a file of the compositor: {failure}")
        linux.add_seals(fd, _ALL_SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd
