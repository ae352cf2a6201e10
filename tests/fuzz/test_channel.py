"""What hostile halves can send. The contract of the host half: it goes on, or the channel ends; nothing else, and nothing stays.

Real traffic with words changed, cut, repeated and put elsewhere, into a real host half with a real domain and a relay. A second
test does the same to the guest half, which trusts its host more, but must not break either.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.channel.joined import Files, HandLoop, Party
from tests.host_half.hosting import Hosting
from tests.processes import wait_until
from tests.relay.between import open_fds
from waylend.channel.halves import GuestEnd
from waylend.policy import Limits, Policy
from waylend.wire.codec import encode
from waylend.wire.spec import ArgType, MessageSpec
from waylend.wire.tables import load_tables

TABLES = load_tables()
INTERFACES = ["waylend_channel_v1", "waylend_connection_v1", "waylend_lease_v1", "waylend_stream_v1"]
IDS = st.integers(1, 12) | st.sampled_from([0, 0xFEFFFFFF, 0xFF000000, 0xFF000001, 0xFFFFFFFF])
NUMBERS = st.sampled_from([0, 1, 2, 5, 4096, 65536, 1 << 20, 1 << 31, 0xFFFFFFFF])
WAYLAND = [
    encode(TABLES["wl_display"].requests[1], 1, (2,))[0],
    encode(TABLES["wl_display"].requests[0], 1, (3,))[0],
    encode(TABLES["wl_registry"].requests[0], 2, (1, b"wl_shm", 1, 4))[0],
    encode(TABLES["wl_shm"].requests[0], 4, (5, "fd", 4096))[0],
    encode(TABLES["wl_shm_pool"].requests[0], 5, (6, 0, 16, 16, 64, 0))[0],
    b"\xff" * 16,
]


#: The objects that are there after the beginning, on either side.
THERE = {
    "waylend_channel_v1": [1],
    "waylend_connection_v1": [2, 3],
    "waylend_lease_v1": [4],
    "waylend_stream_v1": [5, 4],
}


def argument(kind: ArgType, fresh: int) -> st.SearchStrategy[object]:
    if kind is ArgType.STRING:
        return st.binary(max_size=8).map(lambda text: text.replace(b"\0", b""))
    if kind is ArgType.ARRAY:
        whole = st.lists(st.sampled_from(WAYLAND), min_size=1, max_size=4).map(b"".join)
        return st.just(b"".join(WAYLAND[:5])) | whole | st.binary(max_size=40)
    if kind is ArgType.NEW_ID:
        return st.sampled_from([fresh] * 9 + [2])
    return NUMBERS


@st.composite
def message(draw: st.DrawFn, specs: list[MessageSpec], fresh: int) -> bytes:
    # hello anew ends all that was: seldom.
    spec = draw(st.sampled_from(specs[1:]) if draw(st.integers(0, 20)) else st.sampled_from(specs))
    values = [draw(argument(arg.type, fresh)) for arg in spec.args]
    object_id = draw(st.sampled_from(THERE[spec.interface])) if draw(st.integers(0, 30)) else draw(IDS)
    return encode(spec, object_id, values)[0]


def traffic(specs: list[MessageSpec], beginning: list[bytes], first_id: int) -> st.SearchStrategy[bytes]:
    @st.composite
    def build(draw: st.DrawFn) -> bytes:
        start = draw(st.sampled_from([b"".join(beginning)] * 8 + [beginning[0], b""]))
        count = draw(st.integers(0, 12))
        octets = start + b"".join(draw(message(specs, first_id + number)) for number in range(count))
        words = list(struct.unpack(f"={len(octets) // 4}I", octets))
        if words and not draw(st.integers(0, 3)):
            words[draw(st.integers(0, len(words) - 1))] = draw(IDS | NUMBERS)
        whole = struct.pack(f"={len(words)}I", *words)
        return whole[: draw(st.integers(0, len(octets)))] if not draw(st.integers(0, 5)) else whole

    return build()


REQUESTS = [spec for name in INTERFACES for spec in TABLES[name].requests]
EVENTS = [spec for name in INTERFACES for spec in TABLES[name].events]
HELLO = encode(TABLES[INTERFACES[0]].requests[0], 1, (1, 0, 9, b""))[0]
CONNECTS = [encode(TABLES[INTERFACES[0]].requests[1], 1, (object_id,))[0] for object_id in (2, 3)]
LEASE = encode(TABLES[INTERFACES[1]].requests[4], 3, (4, 1))[0]
STREAM = encode(TABLES[INTERFACES[1]].requests[2], 3, (5,))[0]


@pytest.fixture(scope="module")
def hosting() -> Iterator[Hosting]:
    running = Hosting(Policy(limits=Limits(leases=16, aperture_bytes=1 << 22)))
    yield running
    running.close()


class NoBugs(logging.Handler):
    """What the loop logs of exceptions that nobody expected."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(self.format(record))


@given(traffic(REQUESTS, [HELLO, *CONNECTS, LEASE, STREAM], 6), st.integers(1, 4))
def test_the_host_half_goes_on_or_ends_the_channel(hosting: Hosting, octets: bytes, pieces: int) -> None:
    bugs = NoBugs()
    logging.getLogger("waylend").addHandler(bugs)
    try:
        guest = hosting.guest(greets=False)
        try:
            for piece in range(pieces):
                guest.raw(octets[len(octets) * piece // pieces : len(octets) * (piece + 1) // pieces])
            guest.sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it has had enough already
        guest.rest()
        wait_until(lambda: hosting.in_loop(lambda: hosting.half._end is None), "the channel to end")
        assert hosting.in_loop(lambda: hosting.half.relay.sessions) == {}
        assert hosting.half.clients == set()
    finally:
        logging.getLogger("waylend").removeHandler(bugs)
        hosting.drop_peers()
    assert bugs.records == []


def test_nothing_has_stayed_in_the_host_half(hosting: Hosting) -> None:
    """After all of the above."""
    wait_until(lambda: not hosting.domain.stats().leases, "leases to end")
    before = open_fds()
    hosting.guest()
    hosting.drop_peers()
    wait_until(lambda: hosting.in_loop(lambda: hosting.half._end is None), "the channel to end")
    assert open_fds() <= before


NONCE_AT = 8
ANSWER = encode(TABLES[INTERFACES[0]].events[0], 1, (0, 1, 0, 65536))[0]


@given(traffic(EVENTS, [ANSWER], 0xFF000000), st.booleans())
def test_the_guest_half_goes_on_or_ends_the_channel(octets: bytes, connects: bool) -> None:
    before = open_fds()
    loop = HandLoop()
    files = Files()
    ours, theirs = socket.socketpair()
    over: list[str] = []
    guest = GuestEnd(
        loop, theirs.detach(), attachments_of=files.of, on_ready=lambda _pages: None, on_file_ended=lambda _lease: None,
        on_over=over.append,
    )  # fmt: skip
    parties: list[Party] = []
    try:
        loop.settle()
        nonce = struct.pack("=I", guest._nonce)
        rest = octets
        if octets.startswith(ANSWER):
            ours.send(ANSWER[:NONCE_AT] + nonce + ANSWER[NONCE_AT + 4 :])
            rest = octets[len(ANSWER) :]
            loop.settle()
            if connects:
                parties += [Party(loop, guest.connect()), Party(loop, guest.connect())]
                reading, writing = os.pipe()
                parties[0].send(b"pipe", [writing])
                os.close(reading)
        ours.send(rest)
        loop.settle()
        ours.close()
        loop.settle()
        assert over or not octets
    finally:
        guest.close()
        loop.settle()
        for party in parties:
            for fd in party.fds:
                os.close(fd)
        loop.close()
        files.close()
        ours.close()
    assert open_fds() == before
