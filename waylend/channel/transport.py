"""Where a channel's other half is, and how its byte stream is opened: a virtio-serial port, a vsock, a unix socket.

An address is ``unix:PATH``, ``vsock:CID:PORT`` (a guest half's; CID 2 is the host) or ``vsock:PORT`` (a host half's), or
``port:PATH``. A path alone is a port where it is a character device, else a unix socket.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
from dataclasses import dataclass

from waylend.errors import ChannelError, UsageError

#: The name of the virtio-serial port, which the guest's udev shows below /dev/virtio-ports.
PORT_NAME = "org.waylend.0"
PORT_PATH = f"/dev/virtio-ports/{PORT_NAME}"
_ANY_CID = 0xFFFFFFFF
_HOST_CID = 2
_BACKLOG = 4


@dataclass(frozen=True)
class Address:
    """``kind`` is "unix", "vsock" or "port"; ``path`` or ``cid`` and ``vsock_port`` say where."""

    kind: str
    path: str = ""
    cid: int = _ANY_CID
    vsock_port: int = 0

    @classmethod
    def parse(cls, text: str) -> Address:
        """Raises UsageError."""
        kind, colon, rest = text.partition(":")
        if colon and kind == "vsock":
            numbers = rest.split(":")
            if len(numbers) in (1, 2) and all(number.isdecimal() and int(number) <= _ANY_CID for number in numbers):
                return cls("vsock", cid=int(numbers[0]) if len(numbers) == 2 else _ANY_CID, vsock_port=int(numbers[-1]))
            raise UsageError(
                f"{text!r} is no vsock address: give vsock:PORT for a host half, vsock:2:PORT for a guest's"
            )
        if colon and kind in ("unix", "port") and rest:
            return cls(kind, path=rest)
        if not text or (colon and "/" not in kind):
            raise UsageError(f"{text!r} is no channel: give unix:PATH, vsock:CID:PORT or port:PATH")
        return cls("port" if _is_character_device(text) else "unix", path=text)

    def __str__(self) -> str:
        if self.kind == "vsock":
            return f"vsock:{self.vsock_port}" if self.cid == _ANY_CID else f"vsock:{self.cid}:{self.vsock_port}"
        return f"{self.kind}:{self.path}"


def _is_character_device(path: str) -> bool:
    try:
        return stat.S_ISCHR(os.stat(path).st_mode)
    except OSError:
        return False


def open_to_host(address: Address) -> int:
    """A guest half's byte stream: a descriptor, the caller's from now on. Raises OSError.

    A port can be open once at a time (EBUSY); writes to it fail or wait while no host half has it open.
    """
    if address.kind == "port":
        return os.open(address.path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    family = socket.AF_VSOCK if address.kind == "vsock" else socket.AF_UNIX
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        if address.kind == "vsock":
            sock.settimeout(2.0)
            cid = _HOST_CID if address.cid == _ANY_CID else address.cid
            sock.connect((cid, address.vsock_port))
        else:
            sock.connect(address.path)
        return sock.detach()


def listen_for_guest(address: Address) -> socket.socket:
    """A host half's listening vsock. Raises OSError. (A unix socket has a name to claim: ``relay.sockets``.)"""
    sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    try:
        sock.bind((address.cid, address.vsock_port))
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def check_identity(sock: socket.socket, uids: frozenset[int], cids: frozenset[int]) -> None:
    """Whether who connected is one that may: by user id on a unix socket, by context id on a vsock (empty: any).

    Raises ChannelError. The identity is the kernel's word (SO_PEERCRED, the vsock's address).
    """
    if sock.family == socket.AF_UNIX:
        _pid, uid, _gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid not in uids:
            raise ChannelError(f"user {uid} may not be the guest half")
    elif cids:
        cid = sock.getpeername()[0]
        if cid not in cids:
            raise ChannelError(f"the machine with context id {cid} may not be the guest half")
