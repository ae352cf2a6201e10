"""A connection's life: the steps that it can take, and that nothing changes at one that it can't."""

from __future__ import annotations

import itertools

import pytest

from tests.channel.joined import Joined
from waylend.channel.life import Life, Step, after

LEGAL = {
    (Life.OPEN, Step.FAIL): Life.FAILED,
    (Life.OPEN, Step.END): Life.ENDED,
    (Life.OPEN, Step.CLOSE): Life.CLOSED,
    (Life.FAILED, Step.END): Life.ENDED,
    (Life.FAILED, Step.CLOSE): Life.CLOSED,
    (Life.ENDED, Step.CLOSE): Life.OVER,
    (Life.CLOSED, Step.END): Life.OVER,
}


@pytest.mark.parametrize(("life", "step"), [*itertools.product(Life, Step)])
def test_a_step_leads_on_or_is_a_mistake(life: Life, step: Step) -> None:
    if (life, step) in LEGAL:
        assert after(life, step) is LEGAL[life, step]
    else:
        with pytest.raises(ValueError, match=f"{life.value} can't {step.value}"):
            after(life, step)


@pytest.mark.parametrize("message", ["end", "bytes", "credit", "attach_stream", "attach_aperture", "lease"])
def test_a_half_that_ended_a_connection_has_nothing_to_say_of_it(joined: Joined, message: str) -> None:
    """Whether the other side has noticed or not: here its session reads nothing, so that the connection lives on."""
    joined.reads = False
    guest, host = joined.connect()
    guest.send(b"not read")
    guest.connection.tell("end", b"first")
    joined.loop.settle()
    assert (host.ended, joined.host_over) == (False, [])
    arguments = {"end": (b"second",), "bytes": (bytes(8),), "credit": (0,), "attach_stream": (9,), "lease": (9, 1)}
    guest.connection.tell(message, *arguments.get(message, ()))
    joined.loop.until(lambda: bool(joined.host_over), "the channel's end")
    assert "after the end" in joined.host_over[0]
    assert host.connection.end_reason == "first"
    assert joined.files.leases == []
