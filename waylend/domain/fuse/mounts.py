"""Getting a FUSE connection: a mount of our own that leaves nothing behind, whatever becomes of us.

The mount is *detached*: it is in no mount table and on no path, it is reached through a file descriptor of its root,
and it vanishes with the last descriptor, also after SIGKILL. As root (of a user namespace at least) that is
fsopen(2), fsconfig(2), fsmount(2); without, fusermount3 mounts on an empty directory of ours, which is unmounted
lazily as soon as it is open. Nothing about files or leases lives here.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import subprocess
from dataclasses import dataclass

from waylend.errors import Unavailable
from waylend.linux import system_call

# System calls that neither Python nor older C libraries wrap; the numbers are the same on all architectures (Linux
# 5.2).
_SYS_MOVE_MOUNT = 429
_SYS_FSOPEN = 430
_SYS_FSCONFIG = 431
_SYS_FSMOUNT = 432
_FSOPEN_CLOEXEC = 1
_FSCONFIG_SET_FLAG = 0
_FSCONFIG_SET_STRING = 1
_FSCONFIG_CMD_CREATE = 6
_FSMOUNT_CLOEXEC = 1
_MOUNT_ATTR_RDONLY = 1
_MOUNT_ATTR_SAFE = 2 | 4 | 8  # nosuid, nodev, noexec
_MOVE_MOUNT_F_EMPTY_PATH = 4
_AT_FDCWD = -100


@dataclass
class FuseMount:
    """A mounted connection. Its owner closes both descriptors (``close``)."""

    device_fd: int
    root_fd: int
    #: Whether processes of other users can use descriptors of its files.
    other_users: bool

    def close(self) -> None:
        """Lets go of both descriptors. Idempotent."""
        for name in ("root_fd", "device_fd"):
            fd = getattr(self, name)
            setattr(self, name, -1)
            if fd >= 0:
                os.close(fd)


def mount_fuse(name: str, *, read_only: bool = False) -> FuseMount:
    """A new connection. Nobody serves it yet: don't touch ``root_fd`` with anything that asks the server.

    Raises Unavailable, with what to do about it.
    """
    try:
        device_fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except PermissionError as refused:  # fusermount3 may open it
        return _mount_through_fusermount(name, read_only, refused)
    except OSError as error:
        remedy = "load the kernel module fuse (modprobe fuse), or give this container the device /dev/fuse"
        raise Unavailable(f"/dev/fuse can't be opened: {error.strerror}", remedy) from error
    try:
        root_fd = _mount_detached(device_fd, name, read_only)
    except OSError as refused:
        os.close(device_fd)
        return _mount_through_fusermount(name, read_only, refused)
    return FuseMount(device_fd, root_fd, other_users=True)


def attach(mount: FuseMount, path: str) -> None:
    """Also puts the mount on the directory ``path``, for programs that need one. ``umount`` it yourself. Raises OSError."""
    system_call(
        "move_mount", _SYS_MOVE_MOUNT, mount.root_fd, b"", _AT_FDCWD, os.fsencode(path), _MOVE_MOUNT_F_EMPTY_PATH
    )


def open_abort(connection: int) -> int:
    """A descriptor that cuts connection number ``connection`` off when something is written to it. Raises OSError.

    Of the file system fusectl where it is mounted, else of a detached mount of it (which needs root).
    """
    try:
        control = os.open("/sys/fs/fuse/connections", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return os.open(f"{connection}/abort", os.O_WRONLY | os.O_CLOEXEC, dir_fd=control)
        finally:
            os.close(control)
    except OSError:
        context = system_call("fsopen", _SYS_FSOPEN, b"fusectl", _FSOPEN_CLOEXEC)
        try:
            _configure(context, _FSCONFIG_CMD_CREATE)
            control = system_call("fsmount", _SYS_FSMOUNT, context, _FSMOUNT_CLOEXEC, _MOUNT_ATTR_SAFE)
        finally:
            os.close(context)
        try:
            return os.open(f"{connection}/abort", os.O_WRONLY | os.O_CLOEXEC, dir_fd=control)
        finally:
            os.close(control)


def abort(connection: int) -> None:
    """Every request of the connection, under way or to come, fails. Raises OSError."""
    fd = open_abort(connection)
    try:
        os.write(fd, b"1")
    finally:
        os.close(fd)


def lift_dirty_limit(connection: int) -> None:
    """Lets borrowers write to all that is lent without being slowed down. Raises OSError.

    Of a FUSE file system the kernel lets only a hundredth of its dirty limit be dirty (``max_ratio``, strictly), and pauses
    whoever dirties more: on a small machine that is less than one window. What is lent for writing bounds it already. Only
    root may lift it (Documentation/ABI/testing/sysfs-class-bdi).
    """
    folder = f"/sys/class/bdi/0:{connection}"
    for name, value in (("max_ratio", b"100"), ("strict_limit", b"0")):
        try:
            fd = os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            if name == "max_ratio":
                raise
            return  # before Linux 6.2; the ratio alone does nearly as well
        try:
            os.write(fd, value)
        finally:
            os.close(fd)


def limits_dirty(connection: int) -> bool:
    """Whether that limit is there still: a udev rule may lift it, too, a moment after the mount."""
    try:
        with open(f"/sys/class/bdi/0:{connection}/max_ratio", encoding="ascii") as file:
            return int(file.read()) < 100
    except OSError:
        return False


def dirty_limit_bytes() -> int:
    """About what the kernel lets be dirty of a FUSE file system where nobody has lifted that limit."""
    values = {}
    for name in ("dirty_bytes", "dirty_ratio"):
        with open(f"/proc/sys/vm/{name}", encoding="ascii") as file:
            values[name] = int(file.read())
    if values["dirty_bytes"]:
        return values["dirty_bytes"] // 100
    with open("/proc/meminfo", encoding="ascii") as file:
        available_kib = next((int(line.split()[1]) for line in file if line.startswith("MemAvailable:")), 0)
    return (available_kib << 10) * values["dirty_ratio"] // 100 // 100


def _mount_detached(device_fd: int, name: str, read_only: bool) -> int:
    context = system_call("fsopen", _SYS_FSOPEN, b"fuse", _FSOPEN_CLOEXEC)
    try:
        for key, value in (
            ("source", name),
            ("fd", str(device_fd)),
            ("rootmode", "40000"),
            ("user_id", str(os.geteuid())),
            ("group_id", str(os.getegid())),
        ):
            _configure(context, _FSCONFIG_SET_STRING, key, value)
        with contextlib.suppress(OSError):  # only a name, and not every kernel takes it here
            _configure(context, _FSCONFIG_SET_STRING, "subtype", "waylend")
        for flag in ("allow_other", "default_permissions", *(("ro",) if read_only else ())):
            _configure(context, _FSCONFIG_SET_FLAG, flag)
        _configure(context, _FSCONFIG_CMD_CREATE)
        attributes = _MOUNT_ATTR_SAFE | (_MOUNT_ATTR_RDONLY if read_only else 0)
        return system_call("fsmount", _SYS_FSMOUNT, context, _FSMOUNT_CLOEXEC, attributes)
    finally:
        os.close(context)


def _configure(context: int, command: int, key: str | None = None, value: str | None = None) -> None:
    system_call(
        "fsconfig",
        _SYS_FSCONFIG,
        context,
        command,
        None if key is None else key.encode(),
        None if value is None else value.encode(),
        0,
    )


def _mount_through_fusermount(name: str, read_only: bool, refused: OSError) -> FuseMount:
    # A serving process lives with what it imports: this is large, and only an ordinary user's mount needs it.
    import shutil  # noqa: PLC0415

    program = shutil.which("fusermount3") or shutil.which("fusermount")
    if program is None:
        raise Unavailable(
            f"this user may not mount FUSE ({refused}) and there is no fusermount3",
            "apt-get install fuse3, or run as root",
        ) from refused
    options = f"fsname={name},subtype=waylend,default_permissions,nosuid,nodev,noexec" + (",ro" if read_only else "")
    try:
        return _fusermount(program, options + ",allow_other", other_users=True)
    except Unavailable:  # allow_other needs user_allow_other in /etc/fuse.conf
        return _fusermount(program, options, other_users=False)


def _fusermount(program: str, options: str, *, other_users: bool) -> FuseMount:
    """Mounts through fusermount3, which passes the descriptor back over the socket that _FUSE_COMMFD names."""
    import tempfile  # noqa: PLC0415 (as above)

    ours, theirs = socket.socketpair()
    directory = tempfile.mkdtemp(prefix="waylend-")
    device_fd = root_fd = -1
    try:
        with ours, theirs:
            done = subprocess.run(
                [program, "-o", options, "--", directory],
                env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                check=False,
            )
            if done.returncode:
                reason = done.stderr.decode(errors="replace").strip() or f"status {done.returncode}"
                raise Unavailable(f"fusermount3 refused: {reason}", "see fusermount3(1), or run as root")
            device_fd = _received_fd(ours)
        try:
            root_fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        finally:
            subprocess.run([program, "-u", "-z", "--", directory], stdin=subprocess.DEVNULL, check=False)
    except BaseException:
        if device_fd >= 0:
            os.close(device_fd)
        raise
    finally:
        with contextlib.suppress(OSError):
            os.rmdir(directory)
    return FuseMount(device_fd, root_fd, other_users)


def _received_fd(receiver: socket.socket) -> int:
    fds = array.array("i")
    _, ancillary, _, _ = receiver.recvmsg(1, socket.CMSG_SPACE(fds.itemsize), socket.MSG_CMSG_CLOEXEC)
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: fds.itemsize])
    if not fds:
        raise Unavailable("fusermount3 passed no descriptor")
    return fds[0]
