"""Our codec against libwayland's own: the same messages must be the same bytes, with the same fds, in both directions.

Another process sends every message of every interface that pywayland describes, with values at the edges of their types,
through libwayland, and tells what it sent (``sent``, in conftest.py).
"""

from __future__ import annotations

import struct

from tests.wire.conftest import Sent
from waylend.wire.codec import decode, encode
from waylend.wire.spec import HEADER_BYTES


def test_all_messages_were_sent(sent: Sent) -> None:
    assert {str(message.spec) for message in sent.messages} == sent.expected


def test_our_bytes_and_fds_are_what_libwayland_sends(sent: Sent) -> None:
    at = 0
    our_fds: list[object] = []
    for spec, object_id, args in sent.messages:
        ours, fds = encode(spec, object_id, args)
        assert sent.received[at : at + len(ours)] == ours, f"{spec}{args}"
        at += len(ours)
        our_fds += fds
    assert at == len(sent.received)
    assert our_fds == sent.inodes


def test_we_read_what_libwayland_sends(sent: Sent) -> None:
    at = 0
    fds = iter(sent.inodes)
    for spec, object_id, args in sent.messages:
        sender, word = struct.unpack_from("=II", sent.received, at)
        assert (sender, word & 0xFFFF) == (object_id, spec.opcode)
        end = at + (word >> 16)
        assert decode(spec, sent.received[at + HEADER_BYTES : end], fds) == args, str(spec)
        at = end
    assert at == len(sent.received)
    assert list(fds) == []
