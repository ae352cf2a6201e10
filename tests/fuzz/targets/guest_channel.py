"""A host half that has gone mad: whatever it says, a guest half's end of the channel goes on or is over, and nothing stays."""

from __future__ import annotations

import os
import socket
import struct

from tests.channel.joined import Files, HandLoop, Party
from tests.fuzz.contract import Unforeseen, nothing_stays
from tests.fuzz.inputs import Input
from tests.fuzz.peers import TABLES, event, message, specs_of
from waylend.channel.halves import GuestEnd
from waylend.guest_half.leases import LeaseAsked

_INTERFACES = ("waylend_channel_v1", "waylend_connection_v1", "waylend_lease_v1", "waylend_stream_v1")

# Steps of an input, as their first byte says.
_CHANNEL, _CLIENT, _WORDS, _SEND, _CUT, _PIPE, _END = range(7)

SEEDS = [
    bytes((1, _CHANNEL, 1, 2, 0, 4, 1, 2, 3, 4, _SEND, _CHANNEL, 2, 4, 0, 0, _SEND)),
    bytes((1, _PIPE, _SEND, _CHANNEL, 3, 5, 0, 1, 2, 3, _CHANNEL, 3, 5, 2, _CLIENT, 3, _SEND)),
    bytes((1, _CHANNEL, 1, 2, 3, 0, _CHANNEL, 1, 3, 4, 1, 2, _SEND, _END, _CHANNEL, 0, 0, 2)),
    bytes((0, _WORDS, 3, 4, 1, 4, 2, 4, 3, _SEND, _CUT, 5, _SEND)),
]


def close() -> None:
    """The inputs have nothing in common."""


def one_input(octets: bytes) -> None:
    choices = Input(octets)
    with nothing_stays():
        loop, files = HandLoop(), Files()
        over: list[str] = []
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        guest = GuestEnd(
            loop, theirs.detach(), attachments_of=files.of, on_ready=lambda _pages: None,
            on_file_ended=lambda _lease: None, on_over=over.append,
        )  # fmt: skip
        parties: list[Party] = []
        try:
            _turn(loop)
            if choices.number(8):
                (nonce,) = struct.unpack_from("=I", ours.recv(1 << 16), 16)
                ours.send(event("waylend_channel_v1.hello", 1, nonce, 1, 0, 4096))
                _turn(loop)
                parties += [Party(loop, guest.connect()), Party(loop, guest.connect())]
                LeaseAsked(
                    parties[0].connection,
                    5,
                    aperture_pages=65536,
                    on_change=lambda: None,
                    on_loss=lambda _lease: None,
                    on_over=lambda _lease: None,
                )
                _turn(loop)
            _play(loop, ours, parties, choices)
            ours.close()
            _turn(loop)
            if not over:
                raise Unforeseen("the end was not noticed")
            if not all(party.connection.is_closed for party in parties):
                raise Unforeseen("a client did not hear of the end")
        finally:
            ours.close()
            guest.close()
            _turn(loop)
            for party in parties:
                for fd in party.fds:
                    os.close(fd)
            loop.close()
            files.close()


def _turn(loop: HandLoop) -> None:
    for _ in range(4):
        loop.turn(0.0)


def _play(loop: HandLoop, ours: socket.socket, parties: list[Party], choices: Input) -> None:
    chunk = b""
    fresh = 0xFF000000
    ids = [1, 2, 3, 4, 5, 0xFF000000]
    while choices:
        step = choices.number(7)
        if step == _CHANNEL:
            specs = specs_of(TABLES[choices.choice(_INTERFACES)], events=True)
            chunk += message(choices, specs, choices.choice(ids), ids, fresh)
            ids.append(fresh)
            fresh += 1
        elif step == _WORDS:
            chunk += b"".join(struct.pack("=I", choices.word()) for _ in range(choices.number(6)))
        elif step == _CUT:
            chunk = chunk[: max(0, len(chunk) - choices.number(16))]
        elif step == _CLIENT and parties:
            parties[0].send(choices.octets(choices.number(9)).ljust(8, b"\0"))
        elif step == _PIPE and parties:
            reading, writing = os.pipe()
            parties[choices.number(2)].send(b"pipe", [writing])
            os.close(reading)
        elif step == _END and parties:
            parties[choices.number(2)].connection.close()
        if step == _SEND or len(chunk) > 8192:
            chunk = _send(ours, chunk)
            _turn(loop)
            _read(ours)
    _send(ours, chunk)


def _send(ours: socket.socket, chunk: bytes) -> bytes:
    try:
        ours.sendall(chunk)
    except OSError:
        pass  # it was hung up on
    return b""


def _read(ours: socket.socket) -> None:
    try:
        while ours.recv(1 << 18):
            pass
    except OSError:
        pass
