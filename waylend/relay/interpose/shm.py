"""wl_shm: looks at the file behind a client's pool before the compositor maps it.

The compositor will touch its pages, and the time to serve them is the file's owner's. A file that the client itself serves
(FUSE, or a network file system) could hang the compositor, and with it everybody else's windows.
"""

from __future__ import annotations

import os
import stat
from typing import ClassVar

from waylend import linux
from waylend.relay.interpose import FdMessage, Interposer

# wl_shm.error.invalid_fd
_INVALID_FD = 2
# statfs(2), linux/magic.h: file systems whose pages some other process or machine delivers.
_SERVED_ELSEWHERE = {
    0x65735546: "FUSE",
    0x6969: "NFS",
    0x517B: "SMB",
    0xFF534D42: "CIFS",
    0xFE534D42: "SMB2",
    0x01021997: "9P",
    0x00C36400: "Ceph",
    0x5346414F: "AFS",
    0x73757245: "Coda",
}


class ShmPools(Interposer):
    REQUESTS: ClassVar = ("wl_shm.create_pool",)

    def create_pool(self, message: FdMessage) -> None:
        what = unfit_for_a_pool(message.fds[0])
        if what:
            self.refuse(message, _INVALID_FD, f"the file descriptor is {what}")


def unfit_for_a_pool(fd: int) -> str:
    """What speaks against letting the compositor map ``fd``, or an empty string."""
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        return "not a file that can be mapped"
    served_by = _SERVED_ELSEWHERE.get(_file_system_of(fd))
    return f"a file that {served_by} serves: it could make the compositor wait" if served_by else ""


def _file_system_of(fd: int) -> int:
    try:
        return linux.file_system_of(fd)
    except OSError:
        return 0
