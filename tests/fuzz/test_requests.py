"""What a hostile client can send. The contract: accepted, or ProtocolError; nothing else, and nothing half done.

The inputs are what finds bugs: real traffic with words changed, cut, repeated and put elsewhere, and fds in any number.
"""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from waylend.errors import ProtocolError
from waylend.wire.codec import encode
from waylend.wire.objects import DISPLAY_ID, Catalogue, ObjectMap
from waylend.wire.scan import RequestScanner
from waylend.wire.spec import ArgType, InterfaceSpec
from waylend.wire.tables import load_tables

TABLES = load_tables()
CATALOGUE = Catalogue(TABLES, interposed_requests={"wl_registry.bind", "wl_shm.create_pool", "xdg_toplevel.set_title"})
# Objects of many kinds, under small ids, so that random ids hit them.
ALIVE = [(2, "wl_registry", 1), *((at, name, TABLES[name].version) for at, name in enumerate(sorted(TABLES), 3))]
IDS = st.integers(0, len(ALIVE) + 20) | st.sampled_from([0xFEFFFFFF, 0xFF000000, 0xFFFFFFFF])
WORDS = IDS | st.integers(0, 0xFFFFFFFF) | st.integers(0, 80).map(lambda size: size << 16 | size % 16)


def value_of(kind: ArgType) -> st.SearchStrategy[object]:
    if kind in (ArgType.STRING, ArgType.ARRAY):
        return st.binary(max_size=24)
    return st.sampled_from([0, 1, 2, 5, 300, 0x7FFFFF])


@st.composite
def valid_requests(draw: st.DrawFn) -> bytes:
    object_id, interface, _ = draw(st.sampled_from(ALIVE))
    spec: InterfaceSpec = TABLES[interface]
    if not spec.requests:
        return b""
    request = draw(st.sampled_from(spec.requests))
    values: list[object] = []
    for arg in request.args:
        if arg.type is ArgType.NEW_ID and arg.interface is None:
            values += [draw(st.sampled_from([b"wl_shm", b"wl_seat", b"nothing", b"\xff"])), draw(st.integers(0, 9))]
        values.append(draw(value_of(arg.type)))
    return encode(request, object_id, values)[0]


@st.composite
def traffic(draw: st.DrawFn) -> bytes:
    chunk = b"".join(draw(st.lists(valid_requests() | st.lists(WORDS, max_size=6).map(pack), max_size=8)))
    words = list(struct.unpack(f"={len(chunk) // 4}I", chunk))
    for at, word in draw(st.lists(st.tuples(st.integers(0, max(len(words) - 1, 0)), WORDS), max_size=3)):
        if words:
            words[at] = word
    return pack(words)[: draw(st.none() | st.integers(0, len(words) * 4))]


def pack(words: list[int]) -> bytes:
    return struct.pack(f"={len(words)}I", *words)


@given(traffic(), st.integers(0, 40), st.integers(1, 5))
def test_accepted_or_a_protocol_error(chunk: bytes, fd_count: int, pieces: int) -> None:
    objects = ObjectMap(CATALOGUE)
    for object_id, interface, version in ALIVE:
        objects.kinds[object_id] = CATALOGUE.kind(interface, version)
    scanner: RequestScanner[int] = RequestScanner(objects, {})
    scanner.unclaimed.extend(range(fd_count))
    done = 0
    try:
        for piece in range(1, pieces + 1):
            arrived = len(chunk) * piece // pieces
            memory = memoryview(bytearray(chunk[done:arrived] + bytes(-(arrived - done) % 4)))
            whole = 4 * scanner.scan(memory.cast("I"), memory, (arrived - done) // 4)
            assert 0 <= whole <= arrived - done
            done += whole
    except ProtocolError as error:
        assert error.message
        assert 0 <= error.code <= 3
        assert error.object_id == DISPLAY_ID or error.object_id in objects.kinds
    objects.check()
    assert sorted([*scanner.claimed, *scanner.unclaimed]) == list(range(fd_count))  # no fd is lost, or there twice
