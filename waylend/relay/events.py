"""What a relay tells its observer: sessions, windows and leases come and go. Values only."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class RelayEvent:
    """``session_id`` counts the clients of one relay from 1."""

    session_id: int


@dataclass(frozen=True)
class SessionOpened(RelayEvent):
    """A client connected. ``pid`` and ``uid`` are as the kernel says (SO_PEERCRED), in the relay's own namespaces.

    Both are None for a client behind a channel, whose processes are another machine's.
    """

    pid: int | None
    uid: int | None


@dataclass(frozen=True)
class SessionEnded(RelayEvent):
    """``reason`` is empty for an ordinary end."""

    reason: str

    @property
    def broke_protocol(self) -> bool:
        """Whether waylend ended it for what the client said: then the reason begins with an object, as errors.py has it."""
        return re.match(r"\w+#\d+[.:]", self.reason) is not None


@dataclass(frozen=True)
class WindowOpened(RelayEvent):
    object_id: int


@dataclass(frozen=True)
class WindowNamed(RelayEvent):
    """A window got its title or its app id, as it may be shown (the policy's prefix is not in it)."""

    object_id: int
    what: str
    text: str


@dataclass(frozen=True)
class WindowClosed(RelayEvent):
    object_id: int


@dataclass(frozen=True)
class LeaseLent(RelayEvent):
    """A client got lent memory for the first time: a lease of its own, or one that others have, too."""

    lease_id: int
    name: str
    size_bytes: int


@dataclass(frozen=True)
class LeaseReturned(RelayEvent):
    """The client's end gave the lease back; it ends when nobody else has it."""

    lease_id: int
