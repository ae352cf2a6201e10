"""The codec: bytes and values say the same, and bytes that don't fit their spec are refused.

What libwayland sends for the same values is compared in test_libwayland.py.
"""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waylend.errors import Malformed
from waylend.wire.codec import MAX_MESSAGE_BYTES, decode, encode, header
from waylend.wire.spec import HEADER_BYTES, ArgType, Argument, MessageSpec

UINT = st.integers(0, 0xFFFFFFFF)
TEXT = st.binary(max_size=40).map(lambda text: text.replace(b"\0", b"."))
VALUES = {
    ArgType.INT: st.integers(-(1 << 31), (1 << 31) - 1),
    ArgType.UINT: UINT,
    ArgType.FIXED: st.integers(-(1 << 31), (1 << 31) - 1).map(lambda raw: raw / 256),
    ArgType.OBJECT: UINT,
    ArgType.NEW_ID: UINT,
    ArgType.ARRAY: st.binary(max_size=40),
    ArgType.FD: st.integers(0, 1000).map(lambda number: f"fd {number}"),
}
ARGUMENTS = st.builds(
    Argument,
    st.just("x"),
    st.sampled_from(ArgType),
    st.sampled_from([None, "wl_surface"]),
    st.booleans(),
)


def message(*args: Argument) -> MessageSpec:
    return MessageSpec("wl_thing", "do", 3, args)


@st.composite
def messages(draw: st.DrawFn) -> tuple[MessageSpec, list[object]]:
    spec = message(*draw(st.lists(ARGUMENTS, max_size=6)))
    values: list[object] = []
    for arg in spec.args:
        if arg.type is ArgType.STRING:
            values.append(draw(st.none() | TEXT if arg.nullable else TEXT))
        elif arg.type is ArgType.NEW_ID and arg.interface is None:
            values += (draw(TEXT), draw(UINT), draw(UINT))
        else:
            values.append(draw(VALUES[arg.type]))
    return spec, values


@given(messages())
def test_what_is_encoded_is_decoded(case: tuple[MessageSpec, list[object]]) -> None:
    spec, values = case
    octets, fds = encode(spec, 7, values)
    object_id, word = struct.unpack_from("=II", octets)
    assert (object_id, word & 0xFFFF, word >> 16) == (7, spec.opcode, len(octets))
    assert len(octets) % 4 == 0
    assert spec.size_bytes in (None, len(octets))
    assert decode(spec, octets[HEADER_BYTES:], fds) == values


@given(messages(), st.data())
def test_every_truncation_is_refused(case: tuple[MessageSpec, list[object]], data: st.DataObject) -> None:
    spec, values = case
    octets, fds = encode(spec, 7, values)
    body = octets[HEADER_BYTES:]
    if body:
        cut = data.draw(st.integers(0, len(body) // 4 - 1)) * 4
        with pytest.raises(Malformed):
            decode(spec, body[:cut], fds)
    if fds:
        with pytest.raises(Malformed, match="file descriptor is missing"):
            decode(spec, body, fds[:-1])
    with pytest.raises(Malformed, match="too many"):
        decode(spec, body + bytes(4), fds)


@given(messages(), st.binary(max_size=64))
def test_any_bytes_are_decoded_or_malformed(case: tuple[MessageSpec, list[object]], body: bytes) -> None:
    spec, _ = case
    try:
        decode(spec, body, ["fd"] * 8)
    except Malformed:
        pass


STRING = message(Argument("s", ArgType.STRING))


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (struct.pack("=I", 0), "null"),
        (struct.pack("=I", 4) + b"abcd", "NUL"),
        (struct.pack("=I", 4) + b"a\0b\0", "NUL"),
        (struct.pack("=I", 0xFFFFFFFF) + b"abc\0", "reaches beyond"),
        (struct.pack("=I", 5) + b"abc\0", "reaches beyond"),
        (b"", "too few"),
    ],
)
def test_a_bad_string_is_refused(body: bytes, complaint: str) -> None:
    with pytest.raises(Malformed, match=complaint):
        decode(STRING, body)


@pytest.mark.parametrize("value", [None, 3, "text"])
def test_what_a_string_cannot_hold_is_our_own_mistake(value: object) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        encode(STRING, 1, [value])


@pytest.mark.parametrize("values", [[], [b"a", b"b"]])
def test_as_many_values_as_arguments(values: list[object]) -> None:
    with pytest.raises(ValueError, match="arguments"):
        encode(STRING, 1, values)


def test_a_message_has_65532_bytes_at_most() -> None:
    largest = MAX_MESSAGE_BYTES - HEADER_BYTES - 4 - 1
    assert len(encode(STRING, 1, [b"x" * largest])[0]) == MAX_MESSAGE_BYTES
    with pytest.raises(ValueError, match="more than a message"):
        encode(STRING, 1, [b"x" * (largest + 1)])


def test_the_header_is_two_words_in_host_order() -> None:
    assert header(0x01020304, 5, 12) == struct.pack("=II", 0x01020304, 12 << 16 | 5)
