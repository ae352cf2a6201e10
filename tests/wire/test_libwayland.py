"""Our codec against libwayland's own: the same messages must be the same bytes, with the same fds, in both directions.

Another process sends every message of every interface that pywayland describes, with values at the edges of their types,
through libwayland, and tells what it sent.
"""

from __future__ import annotations

import array
import base64
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from waylend.wire.codec import decode, encode
from waylend.wire.spec import HEADER_BYTES, MessageSpec
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


@pytest.fixture(scope="module", params=["client", "server"])
def sent(request, tmp_path_factory):
    """What a side of libwayland sent: (spec, object id, arguments) of each message, all bytes, inodes of all fds.

    And, fourth, the names of all messages that it should have sent at least once.
    """
    plan = tmp_path_factory.mktemp(request.param) / "plan"
    ours, theirs = socket.socketpair()
    with ours:
        ours.settimeout(DEADLINE_S)
        with theirs:
            peer = subprocess.Popen(
                [sys.executable, str(PEER), request.param, str(theirs.fileno()), str(plan)], pass_fds=[theirs.fileno()]
            )
        try:
            received, inodes = receive_all(ours)
            assert peer.wait(DEADLINE_S) == 0
        finally:
            peer.kill()
            peer.wait()
    tables = load_tables()
    of_side = {name: spec.requests if request.param == "client" else spec.events for name, spec in tables.items()}
    messages = []
    for line in plan.read_text().splitlines():
        name, opcode, object_id, args = json.loads(line)
        messages.append((of_side[name][opcode], object_id, [from_json(arg) for arg in args]))
    if request.param == "server":
        del of_side["wl_display"]  # it sends error and delete_id by itself, and not on demand
    known = {str(spec) for name in of_side for spec in of_side[name] if tables.origins[name].startswith("pywayland:")}
    return messages, received, inodes, known


def test_all_messages_were_sent(sent):
    messages, _, _, expected = sent
    assert {str(spec) for spec, _, _ in messages} == expected


def test_our_bytes_and_fds_are_what_libwayland_sends(sent):
    messages, received, inodes, _ = sent
    at = 0
    our_fds: list[object] = []
    for spec, object_id, args in messages:
        ours, fds = encode(spec, object_id, args)
        assert received[at : at + len(ours)] == ours, f"{spec}{args}"
        at += len(ours)
        our_fds += fds
    assert at == len(received)
    assert our_fds == inodes


def test_we_read_what_libwayland_sends(sent):
    messages, received, inodes, _ = sent
    at = 0
    fds = iter(inodes)
    for spec, object_id, args in messages:
        size = message_size(received, at, object_id, spec)
        assert decode(spec, received[at + HEADER_BYTES : at + size], fds) == args, str(spec)
        at += size
    assert at == len(received)
    assert list(fds) == []


def message_size(received: bytes, at: int, object_id: int, spec: MessageSpec) -> int:
    word = int.from_bytes(received[at + 4 : at + 8], sys.byteorder)
    assert int.from_bytes(received[at : at + 4], sys.byteorder) == object_id
    assert word & 0xFFFF == spec.opcode
    return word >> 16
