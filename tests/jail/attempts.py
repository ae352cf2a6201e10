"""Runs in a process of its own: goes to jail, then tries what is forbidden and what is allowed, and prints what came of each.

Usage: attempts.py serving|relay FOLDER. What it prints is JSON: name -> "done", or the error's name.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable

from waylend import linux
from waylend.jail import profiles

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
#: The numbers are x86-64's; others are the same everywhere.
_PTRACE, _MOUNT, _BPF, _KEYCTL, _PROCESS_VM_READV = 101, 165, 321, 250, 310
_CLONE3, _IO_URING_SETUP, _MEMFD_CREATE = 435, 425, 319


def raw(number: int, *arguments: object) -> None:
    if _libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "syscall")


def reads(path: str) -> Callable[[], object]:
    return lambda: os.close(os.open(path, os.O_RDONLY))


def writes(path: str) -> Callable[[], object]:
    return lambda: os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))


def connects(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)


def has_a_descriptor_closed() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    fd = os.eventfd(0)
    pid, _stack = linux.process_that_closes(fd)
    assert os.waitpid(pid, linux.WALL) == (pid, 0)
    try:
        os.close(fd)
    except OSError:
        return
    raise AssertionError("it is open")


def much_memory() -> None:
    try:
        bytearray(3 << 30)
    except MemoryError:
        raise OSError(errno.ENOMEM, "bytearray") from None


def many_descriptors() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard + 1, hard + 1))
    except ValueError:
        raise OSError(errno.EPERM, "setrlimit") from None


def attempts(folder: str) -> dict[str, Callable[[], object]]:
    return {
        "read a file": reads(f"{folder}/secret"),
        "read /etc/passwd": reads("/etc/passwd"),
        "read a parent's memory": reads(f"/proc/{os.getppid()}/mem"),
        "read a parent's environment": reads(f"/proc/{os.getppid()}/environ"),
        "write a file": writes(f"{folder}/secret"),
        "make a file": writes(f"{folder}/new"),
        "remove a file": lambda: os.unlink(f"{folder}/secret"),
        "make a folder": lambda: os.mkdir(f"{folder}/folder"),
        "open a device": lambda: os.open("/dev/fuse", os.O_RDWR),
        "execute": lambda: subprocess.run(["/bin/true"], check=True),
        "fork": lambda: os.fork() or os._exit(0),
        "fork by clone3": lambda: raw(_CLONE3, None, 0),
        "trace": lambda: raw(_PTRACE, 16, os.getppid(), 0, 0),
        "read memory": lambda: raw(_PROCESS_VM_READV, os.getppid(), None, 0, None, 0, 0),
        "mount": lambda: raw(_MOUNT, b"none", b"/mnt", b"tmpfs", 0, None),
        "bpf": lambda: raw(_BPF, 0, None, 0),
        "keys": lambda: raw(_KEYCTL, 0, 0, 0),
        "io_uring": lambda: raw(_IO_URING_SETUP, 1, None),
        "become another user": lambda: os.setuid(12345),
        "a network socket": lambda: socket.socket(socket.AF_INET).close(),
        "a packet socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close(),
        "a unix socket": lambda: connects(f"{folder}/socket"),
        "signal a parent": lambda: os.kill(os.getppid(), signal.SIGCONT),
        "much memory": much_memory,
        "more descriptors": many_descriptors,
        "a thread": lambda: threading.Thread(target=int).start(),
        "a process that closes": has_a_descriptor_closed,
        "a memory file": lambda: os.close(os.memfd_create("x")),
        "a file of its mount": lambda: os.close(os.open("inside", os.O_RDWR, dir_fd=mount)),
    }


def outcome(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, f"{error}")
    return "done"


kind, place = sys.argv[1:]
mount = os.open(f"{place}/mount", os.O_PATH | os.O_DIRECTORY)
if kind == "serving":
    profiles.enter(profiles.serving(mount))
else:
    profiles.enter(profiles.relaying(own_dir=f"{place}/own", names_in=[f"{place}/names"], uses=[f"{place}/used"]))
tried = attempts(place)
if kind == "relay":
    tried |= {
        "read a library": reads(os.__file__),
        "use /dev/null": writes(os.devnull),
        "use what it uses again": writes(f"{place}/used"),
        "look at itself": reads("/proc/self/fdinfo/0"),
        "make a name of its own": writes(f"{place}/own/lock"),
        "remove its socket": lambda: os.unlink(f"{place}/names/wayland-0"),
    }
in_a_thread: dict[str, str] = {}
results = {name: outcome(attempt) for name, attempt in tried.items()}
later = threading.Thread(target=lambda: in_a_thread.update({"read": outcome(tried["read a file"])}))
later.start()
later.join()
print(json.dumps(results | {"read a file in a thread": in_a_thread["read"]}))
