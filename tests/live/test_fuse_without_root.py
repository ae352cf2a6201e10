"""FuseDomain as an ordinary user: through fusermount3, with nothing in any mount table afterwards."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.live.ordinary_user import CHECKOUT, as_ordinary_user

pytestmark = pytest.mark.live

LENDER = """
import os, subprocess, sys
from waylend.backing.file import FileBacking
from waylend.domain.fuse.domain import FuseDomain
assert os.geteuid() != 0
mounts = open("/proc/self/mountinfo").read()
fd = os.memfd_create("file")
os.pwrite(fd, b"lent" * 4096, 0)
domain = FuseDomain("unprivileged", aperture_pages=64)
lease = domain.lend(FileBacking(fd))
borrowed = domain.open_lease(lease)
def borrow():
    "The status of a process that touches the lent page: 0 if it is what it should be."
    touch = f"import mmap; exit(mmap.mmap({borrowed}, 0, mmap.MAP_SHARED, mmap.PROT_READ)[8192:8196] != b'lent')"
    return subprocess.run([sys.executable, "-c", touch], pass_fds=[borrowed], check=False).returncode
print(borrow(), domain.revoke(lease), borrow())
try:
    os.open(f"/proc/self/fd/{borrowed}", os.O_RDWR)
except OSError as refused:
    print(type(refused).__name__)
print("slows writers" if domain.slows_writers else "lifted root's limit")
print("in no mount table" if open("/proc/self/mountinfo").read() == mounts else "mounted")
domain.close()
try:
    os.pread(borrowed, 1, 0)
except OSError:
    print("cut off")
print(len(os.listdir("/proc/self/fd")))
"""


def test_lending_as_an_ordinary_user() -> None:
    done = subprocess.run(
        as_ordinary_user(sys.executable, "-"),
        input=LENDER,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "0 4 0",
        "PermissionError",
        "slows writers",
        "in no mount table",
        "cut off",
        "5",
    ]
    assert not [name for name in os.listdir("/tmp") if name.startswith("waylend-") and os.stat(f"/tmp/{name}").st_uid]
