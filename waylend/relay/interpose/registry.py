"""wl_registry: hides the globals that the tables don't know or the policy denies, and caps versions to what the tables know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

from waylend.errors import Denied, ProtocolError
from waylend.policy import HIGHEST_VERSIONS, Policy
from waylend.relay.interpose import Client, FdMessage, Interposer
from waylend.wire.spec import InterfaceSpec


class Announced(NamedTuple):
    """A global as the client may see it. ``replacement`` is its event with the version capped, if it had to be."""

    name: int
    interface: str
    version: int
    replacement: bytes | None


class GlobalFilter:
    """What becomes of each ``wl_registry.global``; the same for all clients of a relay, so that it is worked out once.

    The memory is bounded by what the compositor, who is trusted, announces.
    """

    def __init__(self, tables: Mapping[str, InterfaceSpec], policy: Policy) -> None:
        self._tables = tables
        self._policy = policy
        self._known: dict[bytes, Announced | None] = {}

    def announced(self, message: FdMessage) -> Announced | None:
        """The global as it may be announced; None hides it."""
        body = message.raw[8:]
        try:
            return self._known[body]
        except KeyError:
            announced = self._known[body] = self._judge(message)
            return announced

    def _judge(self, message: FdMessage) -> Announced | None:
        name, raw_interface, version = message.args
        assert isinstance(name, int) and isinstance(raw_interface, bytes) and isinstance(version, int)
        interface = raw_interface.decode(errors="replace")
        spec = self._tables.get(interface)
        # An interface without a spec can't be passed safely: nobody knows how many fds or ids its messages carry.
        if spec is None or not self._policy.announces(interface):
            return None
        highest = HIGHEST_VERSIONS.get(interface, spec.version)
        if version <= highest:
            return Announced(name, interface, version, None)
        return Announced(name, interface, highest, message.with_args(name, raw_interface, highest))


class Registry(Interposer):
    """Keeps what this client was told, so that it binds nothing else.

    A global that was removed stays bindable, since the client may not have heard of it yet; the compositor answers then.
    """

    REQUESTS: ClassVar = ("wl_registry.bind",)
    EVENTS: ClassVar = ("wl_registry.global", "wl_registry.global_remove")

    def __init__(self, client: Client, global_filter: GlobalFilter) -> None:
        super().__init__(client)
        self._filter = global_filter
        self._announced: dict[int, Announced] = {}

    def global_(self, message: FdMessage) -> bytes | None:
        announced = self._filter.announced(message)
        if announced is None:
            return b""
        self._announced[announced.name] = announced
        if announced.replacement is None:
            return None
        # Encoded for the registry that was first to get it; the object id is the first word.
        return message.raw[:4] + announced.replacement[4:]

    def global_remove(self, message: FdMessage) -> bytes | None:
        return None if message.args[0] in self._announced else b""

    def bind(self, message: FdMessage) -> bytes | None:
        name, raw_interface, version, _ = message.args
        assert isinstance(name, int) and isinstance(raw_interface, bytes) and isinstance(version, int)
        announced = self._announced.get(name)
        shown = raw_interface[:64].decode(errors="replace")
        if announced is None:
            # The very words do not tell a hidden global from one that never was.
            self.refuse(message, ProtocolError.INVALID_OBJECT, f"no global {name} ({shown!r})", Denied)
        if announced.interface.encode() != raw_interface:
            why = f"global {name} is {announced.interface}, not {shown!r}"
            self.refuse(message, ProtocolError.INVALID_OBJECT, why)
        if not 1 <= version <= announced.version:
            why = f"{announced.interface} version {version}, announced was {announced.version}"
            self.refuse(message, ProtocolError.INVALID_OBJECT, why)
        return None

    def close(self) -> None:
        self._announced.clear()
