"""Interposers: code for the Wayland interfaces that are not simply passed on, one module for each.

An interposer is made anew for each client, and names in ``REQUESTS`` and ``EVENTS`` the messages that it wants to see. For
each it has a method of the message's name (``wl_registry.bind``: ``bind``), which is a ``scan.Hook``; ``_`` is added where
the name is Python's own (``wl_registry.global``: ``global_``).

An embedder's own interposers stand beside waylend's (``serve(interposers=...)``, docs/embedding.md). Where both want the same
message the embedder's sees it first, and waylend's what that left: no interposer can pass on what the policy forbids.
"""

from __future__ import annotations

import functools
import keyword
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, NoReturn, Protocol

from waylend.errors import ProtocolError, UsageError
from waylend.policy import Policy
from waylend.relay.events import RelayEvent
from waylend.wire.codec import header
from waylend.wire.objects import ObjectMap
from waylend.wire.scan import Hook, Message, NotYet
from waylend.wire.spec import InterfaceSpec

__all__ = ["Client", "FdMessage", "Hook", "Interposer", "MakesInterposer", "NotYet"]

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

    def resume_later(self) -> None:
        """``resume``, soon; from any thread."""


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
        """The client's session is over. Called once, in the relay's thread."""


class MakesInterposer(Protocol):
    """A class of interposers; or what makes them for a client, and says which messages they want."""

    @property
    def REQUESTS(self) -> tuple[str, ...]: ...  # noqa: N802 (as the class has it)
    @property
    def EVENTS(self) -> tuple[str, ...]: ...  # noqa: N802
    def __call__(self, client: Client, /) -> Interposer: ...


def hooks_of(interposers: Iterable[Interposer]) -> tuple[dict[str, Hook[int]], dict[str, Hook[int]]]:
    """Message name -> hook, for requests and for events. A later one of the same message gets what the earlier left."""
    requests: dict[str, Hook[int]] = {}
    events: dict[str, Hook[int]] = {}
    for interposer in interposers:
        for hooks, names in (requests, interposer.REQUESTS), (events, interposer.EVENTS):
            for name, method in methods_of(names):
                hook = getattr(interposer, method)
                hooks[name] = functools.partial(_one_after_the_other, hooks[name], hook) if name in hooks else hook
    return requests, events


@functools.cache
def methods_of(names: tuple[str, ...]) -> list[tuple[str, str]]:
    """Full names of messages, each with the method for it."""
    methods = ((name, name.partition(".")[2]) for name in names)
    return [(name, f"{method}_" if keyword.iskeyword(method) else method) for name, method in methods]


def _one_after_the_other(first: Hook[int], second: Hook[int], message: FdMessage) -> bytes | None:
    left = first(message)
    if left is None:
        return second(message)
    if not left:
        return b""
    if left[:4] != message.raw[:4] or left[4:8] != header(0, message.spec.opcode, len(left))[4:]:
        raise ValueError(f"{message.spec}: an interposer made another message of it, and others want to see it, too")
    after = second(Message(message.object_id, message.spec, left, message.fds))
    return left if after is None else after


def check_interposers(interposers: Sequence[MakesInterposer], tables: Mapping[str, InterfaceSpec]) -> None:
    """An embedder's own. Raises UsageError for a message that nobody knows, or that has no method."""
    for made_by in interposers:
        name = getattr(made_by, "__name__", f"{made_by!r}")
        for kind, messages in ("request", made_by.REQUESTS), ("event", made_by.EVENTS):
            for message, method in methods_of(tuple(messages)):
                interface = tables.get(message.partition(".")[0])
                known = () if interface is None else interface.requests if kind == "request" else interface.events
                if message not in {spec.full_name for spec in known}:
                    raise UsageError(f"interposer {name}: no {kind} {message!r} is known")
                if isinstance(made_by, type) and not callable(getattr(made_by, method, None)):
                    raise UsageError(f"interposer {name}: it wants {message}, but has no method {method}")
