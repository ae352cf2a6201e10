"""What a Wayland interface looks like on the wire. Plain values; nothing here reads, parses or does I/O.

The source of every rule is the Wayland protocol's description of its wire format: a message is a header of two 32-bit
words in host byte order (object id; size in bytes << 16 | opcode), then arguments, each padded to 32 bits.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from functools import cached_property

HEADER_BYTES = 8


class ArgType(enum.Enum):
    """An argument's type, by the letter that libwayland uses for it in signatures."""

    INT = "i"
    UINT = "u"
    FIXED = "f"
    STRING = "s"
    OBJECT = "o"
    NEW_ID = "n"
    ARRAY = "a"
    FD = "h"


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a message.

    ``interface`` is the name of the interface of an ``OBJECT`` or ``NEW_ID``, or None. A ``NEW_ID`` without an
    interface is typeless: three arguments on the wire (interface name, version, id), as in ``wl_registry.bind``.
    """

    name: str
    type: ArgType
    interface: str | None = None
    nullable: bool = False

    @property
    def signature(self) -> str:
        letters = "sun" if self.type is ArgType.NEW_ID and self.interface is None else self.type.value
        return f"?{letters}" if self.nullable else letters


@dataclass(frozen=True)
class MessageSpec:
    """A request or an event of an interface. ``since``: the interface version that has it first."""

    interface: str
    name: str
    opcode: int
    args: tuple[Argument, ...] = ()
    since: int = 1
    destructor: bool = False

    @cached_property
    def signature(self) -> str:
        """As libwayland writes it, with the version in front where it is above 1: ``"5?oii"``."""
        letters = "".join(arg.signature for arg in self.args)
        return f"{self.since}{letters}" if self.since > 1 else letters

    @cached_property
    def fd_count(self) -> int:
        return sum(arg.type is ArgType.FD for arg in self.args)

    @cached_property
    def size_bytes(self) -> int | None:
        """The exact size of the message with its header, or None where strings or arrays make it vary."""
        size = HEADER_BYTES
        for arg in self.args:
            if arg.type in (ArgType.STRING, ArgType.ARRAY) or arg.signature.endswith("sun"):
                return None
            size += 0 if arg.type is ArgType.FD else 4
        return size

    @cached_property
    def changes_objects(self) -> bool:
        """Whether the message makes or ends objects."""
        makes = any(arg.type is ArgType.NEW_ID for arg in self.args)
        return makes or self.destructor or self.full_name == "wl_display.delete_id"

    @cached_property
    def full_name(self) -> str:
        """``wl_surface.attach``"""
        return f"{self.interface}.{self.name}"

    def __str__(self) -> str:
        return self.full_name


@dataclass(frozen=True)
class InterfaceSpec:
    """An interface: ``requests`` go to the compositor, ``events`` to the client; the index is the opcode."""

    name: str
    version: int
    requests: tuple[MessageSpec, ...] = field(default=())
    events: tuple[MessageSpec, ...] = field(default=())

    def at_version(self, version: int) -> InterfaceSpec:
        """The same interface as a peer that bound ``version`` sees it: later messages are not there.

        Opcodes keep their numbers, since a protocol only ever appends.
        """
        if version >= self.version:
            return self
        return InterfaceSpec(
            self.name,
            version,
            tuple(message for message in self.requests if message.since <= version),
            tuple(message for message in self.events if message.since <= version),
        )

    def check(self) -> None:
        """Walk the invariants: an opcode is an index, and ``since`` never falls nor passes the interface's version.

        Raises ``ValueError``.
        """
        for messages in (self.requests, self.events):
            since = 1
            for opcode, message in enumerate(messages):
                if (message.interface, message.opcode) != (self.name, opcode):
                    raise ValueError(f"{message} is not message {opcode} of {self.name}")
                if not since <= message.since <= self.version:
                    raise ValueError(f"{message}: since {message.since}, after {since}, in version {self.version}")
                since = message.since
