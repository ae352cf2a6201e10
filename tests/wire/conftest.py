"""What the tests of the wire share."""

from __future__ import annotations

import array
import base64
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from waylend.wire.spec import MessageSpec
from waylend.wire.tables import load_tables

PEER = Path(__file__).with_name("libwayland_peer.py")
DEADLINE_S = 60


def receive_all(sock: socket.socket) -> tuple[bytes, list[int]]:
    """All bytes until the other side ends, and the inodes of all fds, in order."""
    received = bytearray()
    inodes: list[int] = []
    while True:
        piece, ancillary, flags, _ = sock.recvmsg(1 << 16, socket.CMSG_SPACE(28 * 4), socket.MSG_CMSG_CLOEXEC)
        assert not flags & socket.MSG_CTRUNC
        for _, _, content in ancillary:
            for fd in array.array("i", content):
                inodes.append(os.fstat(fd).st_ino)
                os.close(fd)
        if not piece:
            return bytes(received), inodes
        received += piece


def from_json(value: object) -> object:
    match value:
        case {"bytes": str(text)}:
            return base64.b64decode(text)
        case {"fd": int(inode)}:
            return inode
    return value


class Message(NamedTuple):
    spec: MessageSpec
    object_id: int
    args: list[object]  # as codec.encode takes them; an fd is the inode of its file


class Sent(NamedTuple):
    """What one side of libwayland sent, in three ways: what it was asked to, what arrived, and what WAYLAND_DEBUG shows."""

    side: str
    messages: list[Message]
    received: bytes
    inodes: list[int]  # of the files whose fds came with the bytes
    debug: str
    expected: set[str]  # every message that pywayland describes for that side


@pytest.fixture(scope="session", params=["client", "server"])
def sent(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sent:
    folder = tmp_path_factory.mktemp(request.param)
    plan, debug = folder / "plan", folder / "debug"
    debug_env = {"WAYLAND_DEBUG": "1" if request.param == "client" else "server"}
    ours, theirs = socket.socketpair()
    with ours:
        ours.settimeout(DEADLINE_S)
        with theirs, debug.open("w") as stderr:
            peer = subprocess.Popen(
                [sys.executable, str(PEER), request.param, str(theirs.fileno()), str(plan)],
                pass_fds=[theirs.fileno()],
                stderr=stderr,
                env=os.environ | debug_env,
            )
        try:
            received, inodes = receive_all(ours)
            assert peer.wait(DEADLINE_S) == 0, debug.read_text()[-2000:]
        finally:
            peer.kill()
            peer.wait()
    tables = load_tables()
    of_side = {name: spec.requests if request.param == "client" else spec.events for name, spec in tables.items()}
    messages = []
    for line in plan.read_text().splitlines():
        name, opcode, object_id, args = json.loads(line)
        messages.append(Message(of_side[name][opcode], object_id, [from_json(arg) for arg in args]))
    if request.param == "server":
        del of_side["wl_display"]  # it sends error and delete_id by itself, and not on demand
    known = {str(spec) for name in of_side for spec in of_side[name] if tables.origins[name].startswith("pywayland:")}
    return Sent(request.param, messages, received, inodes, debug.read_text(), known)
