"""Interposers: code for the Wayland interfaces that are not simply passed on, one module for each.

An interposer is made anew for each client, and names in ``REQUESTS`` and ``EVENTS`` the messages that it wants to see. For
each it has a method of the message's name (``wl_registry.bind``: ``bind``), which is a ``scan.Hook``.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

from waylend.policy import Policy
from waylend.relay.events import RelayEvent
from waylend.wire.objects import ObjectMap
from waylend.wire.scan import Hook, Message, NotYet

__all__ = ["Client", "FdMessage", "Hook", "Interposer", "NotYet"]

FdMessage = Message[int]


class Client(Protocol):
    """What an interposer may know of the session that it serves."""

    session_id: int
    policy: Policy
    objects: ObjectMap

    def emit(self, event: RelayEvent) -> None:
        """Tells the relay's observer."""

    def resume(self) -> None:
        """A hook has raised NotYet, and now it can say: its message and all behind it are looked at again."""


class Interposer:
    """The base of all: sees nothing, keeps nothing."""

    REQUESTS: ClassVar[tuple[str, ...]] = ()
    EVENTS: ClassVar[tuple[str, ...]] = ()

    def close(self) -> None:
        """The client's session is over."""
