"""What a descriptor of a stranger's is, found out without asking anybody (docs/threat-model.md).

fstat(2) and fstatfs(2) of a FUSE file ask its daemon, and so may ioctl(2) and poll(2): whoever serves that file decides when
they return. What is used here asks the kernel alone: F_GET_SEALS (which memfds and files of tmpfs and hugetlbfs have), the
name in /proc/self/fd (which names what has no path by its kind), /proc/self/fdinfo (the mount), and /proc/self/mountinfo.
A path says nothing by itself: in a mount namespace of its own a stranger calls its files what it likes.
"""

from __future__ import annotations

import enum
import functools
import os
import stat

from waylend import linux

#: File systems whose pages and answers come from another process or machine.
_SERVED_ELSEWHERE = (
    "fuse",
    "virtiofs",
    "9p",
    "nfs",
    "cifs",
    "smb",
    "ceph",
    "afs",
    "coda",
    "orangefs",
    "gfs2",
    "ocfs2",
    "autofs",
)
#: Devices that take whatever is written: /dev/null, /dev/zero and /dev/full (Documentation/admin-guide/devices.txt).
_SINKS = (os.makedev(1, 3), os.makedev(1, 5), os.makedev(1, 7))


class DescriptorKind(enum.Enum):
    """What a descriptor is. Of all but OTHER this is true: to close it waits for nobody."""

    SHARED_MEMORY = "shared memory"
    PIPE = "a pipe"
    LOCAL_FILE = "a file on disk"
    LOCAL_DEVICE = "a terminal or a device"
    DMABUF = "a dma-buf"
    SYNC_FILE = "a fence"
    SYNCOBJ = "a timeline of fences"
    OTHER = "something else"


class Descriptor(int):
    """A stranger's descriptor that was looked at: a number like another, and what it is.

    One of kind OTHER is -1: it was given away to be closed when it came, so that it can hold up nobody.
    """

    kind: DescriptorKind
    #: For an error: what it is in words.
    what: str

    def __new__(cls, fd: int, kind: DescriptorKind, what: str = "") -> Descriptor:
        self = super().__new__(cls, fd)
        self.kind = kind
        self.what = what or kind.value
        return self


def look_at(fd: int) -> Descriptor:
    """What ``fd`` is. ``fd`` stays as it is, and the number in the answer is its own."""
    if linux.can_have_seals(fd):
        return Descriptor(fd, DescriptorKind.SHARED_MEMORY)
    try:
        name = name_of(fd)
        # These names are the kernel's: every path begins with a slash.
        if name.startswith("pipe:"):
            return Descriptor(fd, DescriptorKind.PIPE)
        if name.startswith("/"):
            return Descriptor(fd, *_of_path(fd, name))
    except OSError as error:
        return Descriptor(fd, DescriptorKind.OTHER, f"not to be looked at ({error.strerror})")
    if name.startswith("socket:"):
        return Descriptor(fd, DescriptorKind.OTHER, "a socket")
    kind = {"anon_inode:sync_file": DescriptorKind.SYNC_FILE, "anon_inode:syncobj_file": DescriptorKind.SYNCOBJ}.get(
        name
    )
    return Descriptor(fd, kind) if kind else Descriptor(fd, DescriptorKind.OTHER, f"no file ({name[:40]})")


def name_of(fd: int) -> str:
    """What /proc says that it is: a path, or the kind of what has none. Raises OSError."""
    return os.readlink(f"{fd}", dir_fd=_names_fd(os.getpid()))


@functools.lru_cache(maxsize=1)
def _names_fd(_pid: int) -> int:
    """Our own folder of descriptors, kept open: to walk to it each time takes four times as long as to read a name in it."""
    return os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _of_path(fd: int, name: str) -> tuple[DescriptorKind, str]:
    with open(f"/proc/self/fdinfo/{fd}", encoding="utf-8", errors="replace") as lines:
        info = dict(line.partition(":")[::2] for line in lines)
    # Only dma-bufs say so (dma_buf_show_fdinfo), whose name looks like a path.
    if name.startswith("/dmabuf:") and "exp_name" in info:
        return DescriptorKind.DMABUF, ""
    file_system = _file_system_of_mount(info["mnt_id"].strip())
    if not file_system:
        return DescriptorKind.OTHER, "a file that is mounted elsewhere: whoever serves it could make others wait"
    if file_system.startswith(_SERVED_ELSEWHERE):
        return DescriptorKind.OTHER, f"a file that somebody serves ({file_system}): it could make others wait"
    # It is a file of this kernel's own, in our own view: now it can be asked.
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode):
        return DescriptorKind.LOCAL_FILE, ""
    if stat.S_ISFIFO(status.st_mode):
        return DescriptorKind.PIPE, ""
    if stat.S_ISCHR(status.st_mode) and (status.st_rdev in _SINKS or os.isatty(fd)):
        return DescriptorKind.LOCAL_DEVICE, ""
    return DescriptorKind.OTHER, "a folder" if stat.S_ISDIR(status.st_mode) else "a device"


def _file_system_of_mount(mount_id: str) -> str:
    """The type of a file system that is mounted in our own namespace; empty for one that isn't. proc_pid_mountinfo(5)."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
        for mount in mounts:
            if mount.partition(" ")[0] == mount_id:
                return mount.partition(" - ")[2].partition(" ")[0]
    return ""
