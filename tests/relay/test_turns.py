"""One client's requests, however much work they are, hold up the others for one turn of the loop, not for all of a chunk."""

from __future__ import annotations

import time
from typing import ClassVar

from tests.relay.between import Between, begin
from waylend.policy import Policy
from waylend.relay.interpose import Client, FdMessage, Interposer
from waylend.wire.objects import DISPLAY_ID

REQUESTS = 600


class Laborious(Interposer):
    """Looks at each sync for a millisecond, as at a commit whose buffer is to be copied."""

    REQUESTS: ClassVar = ("wl_display.sync",)
    looks: ClassVar[list[int]] = []

    def __init__(self, client: Client) -> None:
        super().__init__(client)

    def sync(self, message: FdMessage) -> None:
        time.sleep(0.001)  # which leaves the interpreter to those who look on
        self.looks.append(message.args[0])  # type: ignore[arg-type]


def test_others_have_their_turn_and_nothing_is_lost_or_moved() -> None:
    between = Between(Policy(), embedded=(Laborious,))
    try:
        busy, its_compositor = between.open()
        other, others_compositor = between.open()
        Laborious.looks.clear()
        ids = range(2, 2 + REQUESTS)
        busy.send_raw(b"".join(b"\x01\0\0\0\0\0\x0c\0" + one.to_bytes(4, "little") for one in ids))
        assert its_compositor.receive("wl_display.sync") == (DISPLAY_ID, [2])
        begin(other, others_compositor, (1, "wl_shm", 1))
        assert len(Laborious.looks) < REQUESTS / 2, "another client waited for all of it"
        assert [its_compositor.receive("wl_display.sync")[1] for _ in range(REQUESTS - 1)] == [[one] for one in ids[1:]]
        assert Laborious.looks == list(ids), "each is looked at once"
    finally:
        between.close()


def test_a_client_that_goes_in_the_middle_is_gone() -> None:
    between = Between(Policy(), embedded=(Laborious,))
    try:
        busy, its_compositor = between.open()
        busy.send_raw(b"".join(b"\x01\0\0\0\0\0\x0c\0" + one.to_bytes(4, "little") for one in range(2, 2 + REQUESTS)))
        its_compositor.receive("wl_display.sync")
        its_compositor.close()
        assert busy.is_at_end()
        other, others_compositor = between.open()
        begin(other, others_compositor, (1, "wl_shm", 1))
        assert between.in_loop(lambda: len(between.relay.sessions)) == 1
    finally:
        between.close()
