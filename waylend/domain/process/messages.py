"""Messages between a ProcessDomain and its process: a length, JSON, and maybe descriptors beside it; errors by name."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Sequence
from typing import Any

from waylend import errors
from waylend.errors import LendingError, Unavailable

_LENGTH = struct.Struct("=I")


def send(connection: socket.socket, message: dict[str, Any], fds: Sequence[int]) -> None:
    content = json.dumps(message).encode()
    packet = _LENGTH.pack(len(content)) + content
    sent = socket.send_fds(connection, [packet], fds)
    connection.sendall(packet[sent:])


def receive(connection: socket.socket) -> dict[str, Any] | None:
    """The next message, its descriptors under ``fds``; None at the end. They come with the first bytes."""
    head, fds, _, _ = socket.recv_fds(connection, _LENGTH.size, 4, socket.MSG_CMSG_CLOEXEC | socket.MSG_WAITALL)
    if len(head) < _LENGTH.size:
        return None
    length_bytes = _LENGTH.unpack(head)[0]
    content = connection.recv(length_bytes, socket.MSG_WAITALL)
    if len(content) < length_bytes:
        return None
    message: dict[str, Any] = json.loads(content)
    message["fds"] = fds
    return message


def revived(name: str, arguments: list[str]) -> Exception:
    """The exception that was raised over there: one of ours, or ValueError; anything else is a LendingError."""
    if name == "ValueError":
        return ValueError(*arguments)
    if name == "Unavailable":
        return Unavailable(*arguments)
    kind = getattr(errors, name, LendingError)
    return kind(*arguments) if issubclass(kind, LendingError) else LendingError(f"{name}: {arguments}")
