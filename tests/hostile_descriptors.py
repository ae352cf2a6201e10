"""Descriptors that make whoever closes them, or asks about them, wait for as long as a stranger likes. No privilege needed."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
import struct
import tempfile
from dataclasses import dataclass

_CLONE_NEWUSER, _CLONE_NEWNS, _MNT_DETACH = 0x10000000, 0x20000, 2
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000
_PR_SET_PDEATHSIG = 1
_IN_HEADER = struct.Struct("=IIQQ")
_OUT_HEADER = struct.Struct("=IiQ")
_ATTRIBUTES = struct.Struct("=QQQQQQIIIIIIIIII")
# Requests of linux/fuse.h.
_LOOKUP, _FORGET, _GETATTR, _OPEN, _READ, _WRITE, _STATFS, _FLUSH, _INIT, _OPENDIR = 1, 2, 3, 14, 15, 16, 17, 25, 26, 27
_UNANSWERED = (_FORGET, 42, 36)  # BATCH_FORGET, INTERRUPT
_SIZE_BYTES = 1 << 20
#: Nothing hangs for longer than this, whatever goes wrong here.
_LIFE_S = 100

#: What a daemon of ``stalling_file`` may leave unanswered.
REQUESTS = {"flush": _FLUSH, "statfs": _STATFS, "getattr": _GETATTR, "read": _READ, "write": _WRITE}


@dataclass
class Lingering:
    """``fd``: a TCP socket whose last close(2) waits, since its peer never reads what was sent to it."""

    fd: int
    peer: socket.socket


def lingering_socket(seconds: int = 20) -> Lingering:
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        listening.bind(("127.0.0.1", 0))
        listening.listen(1)
        sending = socket.socket()
        sending.connect(listening.getsockname())
        peer, _ = listening.accept()
    sending.setblocking(False)
    try:
        while True:
            sending.send(bytes(65536))
    except BlockingIOError:
        pass
    sending.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, seconds))
    return Lingering(sending.detach(), peer)


@dataclass
class Stalling:
    """``fd``: a file whose daemon leaves one kind of request unanswered, or fails it. ``end`` the daemon before this process
    ends, which would hang in closing the file."""

    fd: int
    daemon_pid: int

    def end(self) -> None:
        os.kill(self.daemon_pid, signal.SIGKILL)
        os.waitpid(self.daemon_pid, 0)


def stalling_file(request: str, *, fails: bool = False, as_a_user: bool = False) -> Stalling:
    """A file on a FUSE mount of our own. ``request`` is one of ``REQUESTS``: not answered, or answered with EIO.

    Moves this process, which may have no threads, into a mount namespace of its own, and into a user namespace where it isn't
    root or ``as_a_user``: then nobody outside may even ask about the file. Raises OSError where that, or FUSE, is not to be had.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.geteuid(), os.getegid()
    if as_a_user or uid:
        _check(libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS), "unshare")
        for name, content in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(content)
    else:
        _check(libc.unshare(_CLONE_NEWNS), "unshare")
        _check(libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None), "mount")
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    folder = tempfile.mkdtemp(prefix="hostile-")
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
    _check(libc.mount(b"hostile", folder.encode(), b"fuse", 0, options.encode()), "mount")
    armed, arm = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if not pid:
        try:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.alarm(_LIFE_S)
            os.close(arm)
            if os.getppid() == parent:
                _serve(device, armed, REQUESTS[request], fails)
        finally:
            os._exit(0)
    os.close(device)
    os.close(armed)
    fd = os.open(f"{folder}/file", os.O_RDWR)
    os.close(arm)
    libc.umount2(folder.encode(), _MNT_DETACH)
    os.rmdir(folder)
    return Stalling(fd, pid)


def _check(result: int, call: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{call}: {os.strerror(ctypes.get_errno())}")


def _serve(device: int, armed: int, stalls: int, fails: bool) -> None:
    """The daemon. It is well-behaved until the other end of ``armed`` is closed, and leaves two readers room for one request."""
    os.set_blocking(armed, False)
    behaves = True
    while True:
        try:
            asked = os.read(device, _SIZE_BYTES + 4096)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):
                continue
            return
        if behaves:
            try:
                behaves = os.read(armed, 1) != b""
            except BlockingIOError:
                pass
        _, opcode, unique, node = _IN_HEADER.unpack_from(asked)
        if opcode in _UNANSWERED or (opcode == stalls and not behaves and not fails):
            continue
        failure = errno.EIO if opcode == stalls and not behaves else 0
        body = b"" if failure else _answer(opcode, node, asked)
        if body is None:
            failure, body = errno.ENOSYS, b""
        os.write(device, _OUT_HEADER.pack(16 + len(body), -failure, unique) + body)


def _answer(opcode: int, node: int, asked: bytes) -> bytes | None:
    if opcode == _INIT:
        (read_ahead,) = struct.unpack_from("=I", asked, 48)
        return struct.pack("=IIIIHHIIHHI28x", 7, 31, read_ahead, 0, 12, 10, _SIZE_BYTES, 1, 0, 0, 0)
    if opcode == _LOOKUP:
        return struct.pack("=QQQQII", 2, 0, 0, 0, 0, 0) + _attributes(2)
    if opcode == _GETATTR or opcode == 4:  # SETATTR
        return struct.pack("=QII", 0, 0, 0) + _attributes(node)
    if opcode in (_OPEN, _OPENDIR):
        return struct.pack("=QII", 1, 0, 0)
    if opcode == _READ:
        return bytes(struct.unpack_from("=QI", asked, 48)[1])
    if opcode == _WRITE:
        return struct.pack("=II", struct.unpack_from("=I", asked, 56)[0], 0)
    if opcode == _STATFS:
        return struct.pack("=QQQQQIIII24x", 1, 1, 1, 1, 1, 4096, 255, 4096, 0)
    return b"" if opcode in (_FLUSH, 18, 20, 29) else None  # RELEASE, FSYNC, RELEASEDIR


def _attributes(node: int) -> bytes:
    """Nobody may keep them: they are asked for each time."""
    mode, size_bytes = (0o40777, 0) if node == 1 else (0o100666, _SIZE_BYTES)
    return _ATTRIBUTES.pack(node, size_bytes, size_bytes // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)
