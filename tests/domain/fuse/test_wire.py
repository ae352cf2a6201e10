"""The bytes of the FUSE protocol, held against the sizes and places that linux/fuse.h gives."""

from __future__ import annotations

import struct

import pytest

from waylend.domain.fuse import wire


def header(opcode: int, body: bytes, *, unique: int = 7, node: int = 17, thread_id: int = 99) -> bytes:
    return wire.IN_HEADER.pack(40 + len(body), opcode, unique, node, 1000, 1001, thread_id, 0, 0) + body


def opened(answer: bytes) -> tuple[int, int, bytes]:
    """(error, unique, body) of an answer whose length is what it says."""
    length, error, unique = struct.unpack_from("=IiQ", answer)
    assert length == len(answer)
    return error, unique, answer[16:]


def test_the_hot_path_finds_a_read() -> None:
    request = header(wire.READ, struct.pack("=QQIIQII", 5, 4096 * 9, 131072, 0, 1, 0o100000, 0))
    assert wire.REQUEST_HEAD.unpack_from(request) == (wire.READ, 7, 17)
    assert wire.READ_BODY.unpack_from(request, wire.HEADER_SIZE_BYTES) == (4096 * 9, 131072, 0o100000)
    assert wire.parse_thread_id(request) == 99


def test_the_content_of_a_write_begins_behind_its_head() -> None:
    request = header(wire.WRITE, struct.pack("=QQIIQII", 5, 3, 4, 1, 0, 2, 0) + b"data")
    assert wire.READ_BODY.unpack_from(request, wire.HEADER_SIZE_BYTES)[:2] == (3, 4)
    assert request[wire.IO_IN_END :] == b"data"
    assert opened(wire.write_reply(7, 4)) == (0, 7, struct.pack("=II", 4, 0))


def test_the_handshake_takes_what_both_sides_offer() -> None:
    offered = wire.ASYNC_READ | wire.MAX_PAGES | 1 << 30
    kernel = wire.parse_init(header(wire.INIT, struct.pack("=IIII", 7, 45, 1 << 17, offered)))
    assert kernel == (7, 45, 1 << 17, offered)
    answer = wire.pack_init(
        3,
        kernel,
        flags=wire.ASYNC_READ | wire.BIG_WRITES,
        max_readahead_bytes=1 << 20,
        max_write_bytes=1 << 20,
        max_pages=256,
    )
    error, unique, body = opened(answer)
    assert (error, unique, len(body)) == (0, 3, 64)
    assert struct.unpack_from("=IIII", body) == (7, wire.KERNEL_MINOR, 1 << 17, wire.ASYNC_READ)
    assert struct.unpack_from("=I", body, 20) == (1 << 20,)
    assert struct.unpack_from("=H", body, 28) == (256,)


def test_attributes_stand_where_the_kernel_looks() -> None:
    attributes = wire.Attributes(17, 5000, wire.S_IFREG | 0o400, 10, 20)
    packed = attributes.pack()
    assert len(packed) == 88
    assert struct.unpack_from("=QQQ", packed) == (17, 5000, 10)
    assert struct.unpack_from("=IIII", packed, 60) == (wire.S_IFREG | 0o400, 1, 10, 20)
    assert opened(wire.entry_reply(1, attributes, valid_s=9))[2] == struct.pack("=QQQQII", 17, 0, 9, 9, 0, 0) + packed
    assert opened(wire.attributes_reply(1, attributes, valid_s=9))[2] == struct.pack("=QII", 9, 0, 0) + packed


@pytest.mark.parametrize(
    ("opcode", "body", "parse", "expected"),
    [
        (wire.OPEN, struct.pack("=II", 0o2, 0), wire.parse_open_flags, 2),
        (wire.RELEASE, struct.pack("=QIIQ", 77, 0, 0, 0), wire.parse_release, 77),
        (wire.SETATTR, struct.pack("=II80x", 8, 0), wire.parse_setattr_valid, wire.FATTR_SIZE),
    ],
)
def test_small_requests(opcode: int, body: bytes, parse: object, expected: int) -> None:
    assert callable(parse)
    assert parse(header(opcode, body)) == expected


def test_names() -> None:
    request = header(wire.LOOKUP, b"lease\0")
    assert wire.parse_name(bytearray(request) + b"left over from before", len(request)) == b"lease"


def test_failures_and_opens() -> None:
    assert opened(wire.failure(4, 5)) == (-5, 4, b"")
    assert opened(wire.open_reply(4, 6, wire.FOPEN_KEEP_CACHE)) == (0, 4, struct.pack("=QII", 6, 2, 0))
    assert opened(wire.reply_head(4, 4) + b"body") == (0, 4, b"body")
    assert len(opened(wire.statfs_reply(4, 0))[2]) == 80


def test_notifications_have_their_code_for_an_error_and_no_unique() -> None:
    assert opened(wire.inval_inode(17, 4096, 8192)) == (2, 0, struct.pack("=Qqq", 17, 4096, 8192))
    assert opened(wire.inval_entry(2, "31")) == (3, 0, struct.pack("=QII", 2, 2, 0) + b"31\0")


def test_directories_are_given_out_in_pieces() -> None:
    entries = [(10, "a", wire.S_IFREG), (11, "longer-name", wire.S_IFDIR)]
    whole = wire.directory_entries(entries, 0, 4096)
    first = wire.directory_entries(entries, 0, 40)
    assert whole == first + wire.directory_entries(entries, 1, 4096)
    assert struct.unpack_from("=QQII", first) == (10, 1, 1, 8)
    assert len(first) % 8 == 0
    assert wire.directory_entries(entries, 2, 4096) == b""
