"""Running a program as an ordinary user, whoever runs the tests."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from tests.processes import require

CHECKOUT = Path(__file__).parents[2]
#: Debian's nobody and nogroup.
UID = 65534
_DEVICE = "mount -t tmpfs -o mode=755 device /mnt; mknod -m 666 /mnt/fuse c 10 229; mount --bind /mnt/fuse /dev/fuse"
BECOME = f"setpriv --reuid {UID} --regid {UID} --clear-groups --inh-caps=-all"


def way_into_checkout() -> str:
    """For a shell that is root in a mount namespace (or a machine) of its own: what makes the checkout readable for all.

    It may be in a home that is closed to others, /root for one: then an empty folder stands before that, with the checkout in
    it and nothing else.
    """
    closed = next((folder for folder in reversed(CHECKOUT.parents) if not folder.stat().st_mode & 0o001), None)
    if closed is None:
        return "true"
    checkout, folder = shlex.quote(str(CHECKOUT)), shlex.quote(str(closed))
    return (
        f"mkdir -p /tmp/checkout; mount --bind {checkout} /tmp/checkout; mount -t tmpfs -o mode=755 way {folder}; "
        f"mkdir -p {checkout}; mount --move /tmp/checkout {checkout}; rmdir /tmp/checkout"
    )


def as_ordinary_user(*command: str) -> list[str]:
    """The command line that runs ``command`` so: as nobody, where we are root.

    In a mount namespace of its own, where /dev/fuse is open to all, as udev makes it everywhere.
    """
    require("fusermount3")
    if os.geteuid():
        return list(command)
    steps = f'set -e; {_DEVICE}; {way_into_checkout()}; exec {BECOME} "$@"'
    return [require("unshare"), "-m", "sh", "-c", steps, "sh", *command]
