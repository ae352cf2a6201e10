"""Interposers: code for the Wayland interfaces that are not simply passed on, one module for each.

An interposer is made anew for each client, and names in ``REQUESTS`` and ``EVENTS`` the messages that it wants to see. For
each it has a method of the message's name (``wl_registry.bind``: ``bind``), which is a ``scan.Hook``.
"""

from __future__ import annotations

from typing import ClassVar, NoReturn, Protocol

from waylend.errors import ProtocolError
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

    def __init__(self, client: Client) -> None:
        self.client = client

    def refuse(self, message: FdMessage, code: int, why: str, kind: type[ProtocolError] = ProtocolError) -> NoReturn:
        """Ends the client: raises ``kind`` for the message's object, with the message's name before ``why``.

        ``code`` is an error of the object's interface, or one of ``ProtocolError``'s own.
        """
        label = self.client.objects.label(message.object_id)
        raise kind(message.object_id, code, f"{label}.{message.spec.name}: {why}")

    def close(self) -> None:
        """The client's session is over."""
