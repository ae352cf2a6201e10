"""Who may be the guest half, and which answer is the host half's."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from typing import cast

import pytest

from tests.channel.joined import Files, HandLoop
from waylend.channel.halves import GuestEnd
from waylend.channel.messages import CHANNEL_ID
from waylend.channel.transport import check_identity
from waylend.errors import ChannelError
from waylend.wire.codec import encode
from waylend.wire.tables import load_tables

HELLO = load_tables()["waylend_channel_v1"].events[0]


class VsockOf:
    """A connected vsock of that machine's, as far as it is asked."""

    family = socket.AF_VSOCK

    def __init__(self, cid: int) -> None:
        self._cid = cid

    def getpeername(self) -> tuple[int, int]:
        return self._cid, 1234


def test_a_user_that_is_named_may_be_the_guest_half_and_no_other() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        check_identity(theirs, frozenset({os.geteuid()}), frozenset())
        with pytest.raises(ChannelError, match=f"user {os.geteuid()} may not"):
            check_identity(theirs, frozenset({os.geteuid() + 1}), frozenset())
        with pytest.raises(ChannelError, match="may not"):
            check_identity(theirs, frozenset(), frozenset({1}))


def test_a_machine_that_is_named_may_be_the_guest_half_and_no_other() -> None:
    guest = cast("socket.socket", VsockOf(7))
    check_identity(guest, frozenset(), frozenset({7, 8}))
    check_identity(guest, frozenset(), frozenset())  # any
    with pytest.raises(ChannelError, match="context id 7 may not"):
        check_identity(guest, frozenset(), frozenset({8}))


def answered(answer: Callable[[int], bytes]) -> tuple[list[int], list[str]]:
    """What a guest end makes of that answer to its nonce: (pages when it is ready, why it is over)."""
    loop, files = HandLoop(), Files()
    ours, theirs = socket.socketpair()
    ready: list[int] = []
    over: list[str] = []
    guest = GuestEnd(
        loop, theirs.detach(), attachments_of=files.of, on_ready=ready.append, on_file_ended=ready.append, on_over=over.append
    )  # fmt: skip
    try:
        loop.settle()
        (nonce,) = struct.unpack_from("=I", ours.recv(1000), 16)
        ours.send(answer(nonce))
        loop.settle()
        return ready, over
    finally:
        guest.close()
        loop.settle()
        ours.close()
        files.close()
        loop.close()


def hello(nonce: int, version: int = 1) -> bytes:
    return encode(HELLO, CHANNEL_ID, (nonce & 0xFFFFFFFF, version, 0, 4096))[0]


def test_the_answer_has_the_nonce() -> None:
    assert answered(hello) == ([4096], [])


def test_an_answer_to_another_hello_is_none() -> None:
    ready, over = answered(lambda nonce: hello(nonce + 1))
    assert ready == []
    assert "nobody said" in over[0]


def test_a_second_answer_is_none() -> None:
    ready, over = answered(lambda nonce: hello(nonce) * 2)
    assert ready == [4096]
    assert "nobody said" in over[0]


@pytest.mark.parametrize("version", [0, 2])
def test_a_version_that_nobody_speaks_is_refused(version: int) -> None:
    ready, over = answered(lambda nonce: hello(nonce, version))
    assert ready == []
    assert f"speaks version {version}" in over[0]
