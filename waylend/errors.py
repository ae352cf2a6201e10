"""Every exception of waylend, in one tree.

::

    WaylendError
    ├── UsageError                  the caller asked for something that can't be (a flag, a policy file, a socket name)
    ├── Unavailable                 this machine lacks what is needed; says what and how to get it
    ├── Malformed                   bytes that don't say what their spec says; whose they were decides what follows
    ├── PeerError                   the other side broke its contract: only that side's connection ends
    │   ├── ProtocolError           a client's message that breaks the Wayland protocol
    │   │   ├── LimitExceeded       ... or a limit of the policy
    │   │   └── Denied              ... or asks for what the policy hides
    │   ├── CompositorError         the compositor's message can't be understood, or it went away
    │   └── ChannelError            the other half of waylend speaks something else
    └── LendingError                our own book says no
        ├── NoSpace                 the aperture has no such gap
        ├── QuotaExceeded           the domain has all the leases or pages that it may have
        ├── LeaseEnded              the lease is over
        ├── BackingLost             the backing can't deliver the page (docs/lending.md, "Loss")
        └── RevokeTimeout           the mechanism missed the deadline; the aperture was cut off

A module raises the narrowest one that fits; programming errors stay ``ValueError`` and ``TypeError``; an ``OSError``
keeps its errno and names its call.
"""

from __future__ import annotations


class WaylendError(Exception):
    """The root of all errors that waylend raises on purpose."""


class UsageError(WaylendError):
    """What the caller asked for can't be: a flag, a policy file, a socket name."""


class Unavailable(WaylendError):
    """This machine lacks what is needed.

    ``reason`` says what is missing, ``remedy`` how to get it (may be empty).
    """

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(f"{reason}; {remedy}" if remedy else reason)
        self.reason = reason
        self.remedy = remedy


class Malformed(WaylendError):
    """Bytes that don't say what their message's spec says. Whoever knows the sender re-raises it as that peer's error."""


class PeerError(WaylendError):
    """The other side of a connection broke its contract. Ends that connection and nothing else."""


class ProtocolError(PeerError):
    """A client's message breaks the Wayland protocol.

    Carries what ``wl_display.error`` needs: ``object_id`` (the object at fault, 1 for the display), ``code`` (an error
    code of ``wl_display``: 0 invalid_object, 1 invalid_method, 2 no_memory, 3 implementation) and ``message``, which
    begins with the object and message, like ``wl_shm_pool#7.create_buffer: ...``.
    """

    INVALID_OBJECT = 0
    INVALID_METHOD = 1
    NO_MEMORY = 2
    IMPLEMENTATION = 3

    def __init__(self, object_id: int, code: int, message: str) -> None:
        super().__init__(message)
        self.object_id = object_id
        self.code = code
        self.message = message


class LimitExceeded(ProtocolError):
    """A limit of the policy was hit; the message names the limit."""


class Denied(ProtocolError):
    """A client asked for what its policy hides."""


class CompositorError(PeerError):
    """The compositor sent what can't be understood, or went away."""


class ChannelError(PeerError):
    """The other half of waylend speaks something else, or broke the channel's protocol."""


class LendingError(WaylendError):
    """The lender's own book says no."""


class NoSpace(LendingError):
    """The aperture has no gap of that size."""


class QuotaExceeded(LendingError):
    """The domain has all the leases or pages that it may have."""


class LeaseEnded(LendingError):
    """The lease is over."""


class BackingLost(LendingError):
    """The backing can't deliver the page: its content is gone for good."""


class RevokeTimeout(LendingError):
    """The mechanism missed the deadline, and the whole aperture was cut off."""
