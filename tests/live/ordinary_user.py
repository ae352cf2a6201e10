"""Running a program as an ordinary user, whoever runs the tests."""

from __future__ import annotations

import os

from tests.processes import require

#: Debian's nobody and nogroup.
UID = 65534
# In a mount namespace of its own where /dev/fuse is open to all, as udev makes it everywhere.
_STEPS = (
    "set -e; mount -t tmpfs -o mode=755 device /mnt; mknod -m 666 /mnt/fuse c 10 229; mount --bind /mnt/fuse /dev/fuse;"
    f'exec setpriv --reuid {UID} --regid {UID} --clear-groups --inh-caps=-all "$@"'
)


def as_ordinary_user(*command: str) -> list[str]:
    """The command line that runs ``command`` so: as nobody, where we are root."""
    require("fusermount3")
    if os.geteuid():
        return list(command)
    return [require("unshare"), "-m", "sh", "-c", _STEPS, "sh", *command]
