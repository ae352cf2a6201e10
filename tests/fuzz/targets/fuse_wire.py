"""What a borrower makes the kernel ask: every request of FUSE, for any node, at any offset, gets one answer, of its length.

The frames are the kernel's, who is trusted: what a borrower chooses is in them. A domain's files, served on a pair of sockets
in the place of /dev/fuse.
"""

from __future__ import annotations

import functools
import os
import socket
import struct
from types import SimpleNamespace
from typing import cast

from tests.fuzz.contract import Unforeseen, nothing_stays
from tests.fuzz.inputs import Input
from waylend.backing.file import FileBacking
from waylend.domain.fuse import wire
from waylend.domain.fuse.domain import FuseDomain
from waylend.domain.fuse.mounts import FuseMount
from waylend.domain.fuse.server import FuseServer
from waylend.lending.lease import Lease, LossPolicy, Protection

_IN_HEADER = struct.Struct("=IIQQIIII")
_OUT_HEADER = struct.Struct("=IiQ")
_OPCODES = tuple(range(1, 50))
_NODES = (0, 1, 2, 3, 4, 16, 17, 18, 19, 20, 0xFFFFFFFF)
_SIZES = (0, 1, 2, 4095, 4096, 4097, 8192, 131072)
PAGE = 4096
_BACKING_PAGES = 4

SEEDS = [
    bytes((14, 5, 0, 1, 2, 3)),
    bytes((13, 6, 0, 0, 0, 0, 4, 13, 3, 0, 0, 0, 0, 5)),
    bytes((14, 6, 0, 0, 1, 14, 15, 6, 0, 1, 0, 3, 15, 3, 0, 0, 1, 7)),
    bytes((0, 1, 0, 0, 27, 1, 28, 1, 0, 0, 4, 3, 6, 8, 9)),
]


class _Served:
    """A domain, whose files a second server serves at our end of a pair of sockets."""

    def __init__(self) -> None:
        self.domain = FuseDomain("fuzz", aperture_pages=64, gap_zeros=True)
        self.sock, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for sock in (self.sock, its):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 21)
        self.sock.settimeout(10.0)
        self.sock.send(_IN_HEADER.pack(56, wire.INIT, 1, 0, 0, 0, 0, 0) + struct.pack("=IIII", 7, 38, 1 << 17, 0xFFFF))
        self._its, self._root = its.detach(), os.open("/", os.O_PATH | os.O_CLOEXEC)
        mount = SimpleNamespace(device_fd=self._its, root_fd=self._root)
        self.server = FuseServer(cast("FuseMount", mount), name="fuzz")
        self._real = self.domain._server
        self._serve_by(self.server)
        self.server.start(self.domain._served)
        self.sock.recv(1 << 16)
        self.leases = [
            self._lend(Protection.READ),
            self._lend(Protection.READ_WRITE, PAGE + 100),
            self._lend(Protection.READ_WRITE),
        ]

    def _serve_by(self, server: FuseServer) -> None:
        self.domain._server = self.domain._served._server = server

    def _lend(self, protection: Protection, size_bytes: int | None = None) -> Lease:
        fd = os.memfd_create("lent")
        os.ftruncate(fd, _BACKING_PAGES * PAGE)
        backing = FileBacking(fd, writable=True)
        return self.domain.lend(backing, size_bytes=size_bytes, protection=protection, loss=LossPolicy.ZERO)

    def close(self) -> None:
        self._serve_by(self._real)
        # Its threads end after a request more.
        self.server._cut_off = True
        for _ in self.server._threads:
            self.sock.send(_IN_HEADER.pack(40, wire.FORGET, 2, 0, 0, 0, 0, 0))
        for thread in self.server._threads:
            thread.join()
        self.domain.close()
        self.sock.close()
        os.close(self._its)
        os.close(self._root)


_served = functools.cache(_Served)


def close() -> None:
    """What the inputs had in common."""
    _served().close()
    _served.cache_clear()


def one_input(octets: bytes) -> None:
    served, choices = _served(), Input(octets)
    unique = 2
    with nothing_stays():
        while choices and unique < 40:
            unique += 2
            opcode = choices.choice(_OPCODES)
            if opcode in (wire.INIT, 38):  # INIT comes once, DESTROY never
                continue
            served.sock.send(_request(opcode, unique, choices))
            if opcode not in wire.UNANSWERED:
                _check_answer(served.sock.recv(1 << 21), unique)


def _request(opcode: int, unique: int, choices: Input) -> bytes:
    node = choices.choice(_NODES)
    if opcode in (wire.READ, wire.WRITE, wire.READDIR):
        offset = choices.number(40) * PAGE + choices.number(3) * 100
        if choices.number(8) == 7:
            offset = choices.word() << choices.number(31)
        size = choices.choice(_SIZES)
        if opcode == wire.READ:
            size = max(size, PAGE) // PAGE * PAGE
            offset = offset // PAGE * PAGE
        body = struct.pack("=QQIIQII", choices.number(8), offset, size, 0, 0, choices.choice((0, 0o40000)), 0)
        if opcode == wire.WRITE:
            body += b"w" * size
    elif opcode == wire.LOOKUP:
        name = choices.choice((b"bar", b"lease", b"1", b"2", b"01", b"", b"\xc2\xb2", b"9" * 30, b"-1", b"x" * 255))
        body = name + b"\0"
    else:
        body = b"".join(struct.pack("=I", choices.word()) for _ in range(22))
    return _IN_HEADER.pack(40 + len(body), opcode, unique, node, 0, 0, choices.number(3), 0) + body


def _check_answer(answer: bytes, unique: int) -> None:
    length, error, answered = _OUT_HEADER.unpack_from(answer)
    if length != len(answer) or answered != unique or not -4095 <= error <= 0 or (error and length != 16):
        raise Unforeseen(f"{length} of {len(answer)} bytes, error {error}, to {answered} and not {unique}")
