"""The life of a connection across the channel: which steps it may take from where."""

from __future__ import annotations

import enum


class Life(enum.Enum):
    """Where a connection is. It is over when the session has closed it and the other half has ended it, in any order."""

    OPEN = "open"
    #: What came can't be passed on: the session is to find that out, behind what has arrived.
    FAILED = "failed"
    #: The other half sends no more; what has arrived is still to be received.
    ENDED = "ended by the other half"
    #: The session is over, and the other half was told.
    CLOSED = "closed"
    OVER = "over"


class Step(enum.Enum):
    """What happens to a connection."""

    FAIL = "fail"
    END = "be ended by the other half"
    CLOSE = "be closed"


_TRANSITIONS = {
    (Life.OPEN, Step.FAIL): Life.FAILED,
    (Life.OPEN, Step.END): Life.ENDED,
    (Life.OPEN, Step.CLOSE): Life.CLOSED,
    # Nobody is there to hear of the failure any more.
    (Life.FAILED, Step.END): Life.ENDED,
    (Life.FAILED, Step.CLOSE): Life.CLOSED,
    (Life.ENDED, Step.CLOSE): Life.OVER,
    (Life.CLOSED, Step.END): Life.OVER,
}


def after(life: Life, step: Step) -> Life:
    """Where a connection is after that step. Raises ValueError for one that it can't take: a mistake of ours."""
    try:
        return _TRANSITIONS[life, step]
    except KeyError:
        raise ValueError(f"a connection that is {life.value} can't {step.value}") from None
