"""Messages between a ProcessDomain and its process: a length, JSON, and maybe descriptors beside it; errors by name.

A request has an ``id``, and its answer has the same; answers come in any order. ``events`` may come with an answer or alone.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Iterable, Sequence
from typing import Any

from waylend import errors
from waylend.errors import LendingError, Unavailable

Message = dict[str, Any]
#: An event with a reason: the domain has been cut off. The others are lending events: kind, time_ns, lease, page, page_count; of
#: one that has ended faults_served and revocations, too.
LOST_ALL = "lost all"
_LENGTH = struct.Struct("=I")


def packed(message: Message) -> bytes:
    content = json.dumps(message).encode()
    return _LENGTH.pack(len(content)) + content


def send(connection: socket.socket, message: Message, fds: Sequence[int]) -> None:
    """Waits until all of it is on its way. Raises OSError."""
    packet = packed(message)
    sent = socket.send_fds(connection, [packet], fds)
    connection.sendall(packet[sent:])


def receive(connection: socket.socket) -> Message | None:
    """The next message, its descriptors under ``fds``; None at the end. They come with the first bytes. Raises OSError."""
    head, fds, _, _ = socket.recv_fds(connection, _LENGTH.size, 4, socket.MSG_CMSG_CLOEXEC | socket.MSG_WAITALL)
    if len(head) < _LENGTH.size:
        close_all(fds)
        return None
    length_bytes = _LENGTH.unpack(head)[0]
    content = connection.recv(length_bytes, socket.MSG_WAITALL)
    if len(content) < length_bytes:
        close_all(fds)
        return None
    message: Message = json.loads(content)
    message["fds"] = fds
    return message


def close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


def failed(error: BaseException) -> Message:
    """What an answer says instead of a result."""
    arguments = [error.reason, error.remedy] if isinstance(error, Unavailable) else [str(error)]
    return {"error": type(error).__name__, "arguments": arguments}


def revived(name: str, arguments: list[str]) -> Exception:
    """The exception that was raised over there: one of ours, or ValueError; anything else is a LendingError."""
    if name == "ValueError":
        return ValueError(*arguments)
    if name == "Unavailable":
        return Unavailable(*arguments)
    kind = getattr(errors, name, LendingError)
    return kind(*arguments) if issubclass(kind, LendingError) else LendingError(f"{name}: {arguments}")
