"""The tables of the wire: every interface that we can read, and so may announce.

They come from ``interfaces.txt``, a text of one line a message that ``sources.py`` writes from pywayland's modules and
from ``protocol-xml/``. Here is its reader and writer, and nothing that knows either source or a connection. The text::

    wl_surface 6 pywayland:wayland
    > attach(buffer:?o=wl_buffer, x:i, y:i)
    > destroy() destructor
    < preferred_buffer_scale(factor:i) since 6

``>`` is a request, ``<`` an event; their order gives the opcodes. Types are libwayland's letters, ``?`` means that null
is allowed, and ``=`` names the interface of an object or a new id. A line that begins with ``#`` is a comment.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from waylend.wire.spec import ArgType, Argument, InterfaceSpec, MessageSpec

TABLES_FILE = Path(__file__).with_name("interfaces.txt")

_INTERFACE = re.compile(r"(\w+) (\d+) (\S+)")
_MESSAGE = re.compile(r"([<>]) (\w+)\((.*)\)(?: since (\d+))?( destructor)?")
_ARGUMENT = re.compile(r"(\w+):(\??)([iufsonah])(?:=(\w+))?")


class Tables(Mapping[str, InterfaceSpec]):
    """Interface name -> spec, at the highest version that we know. Immutable, shared by all sessions.

    ``globals`` are the interfaces that a registry may announce: those that no message creates. ``origins`` says for
    each interface which pywayland module or XML file it came from.
    """

    def __init__(self, specs: Mapping[str, InterfaceSpec], origins: Mapping[str, str]) -> None:
        self._specs = dict(sorted(specs.items()))
        self.origins: Mapping[str, str] = MappingProxyType(dict(origins))
        created = {arg.interface for spec in specs.values() for arg in _arguments(spec) if arg.type is ArgType.NEW_ID}
        # Object 1 of a compositor's connection, and of a channel between two halves of waylend.
        self.globals = frozenset(specs) - created - {"wl_display", "waylend_channel_v1"}

    def __getitem__(self, name: str) -> InterfaceSpec:
        return self._specs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)

    def check(self) -> None:
        """Walk the invariants: opcodes and versions are in order, and every interface that an argument names is known.

        Raises ``ValueError``.
        """
        for name, spec in self._specs.items():
            spec.check()
            for arg in _arguments(spec):
                if arg.interface is not None and arg.interface not in self._specs:
                    raise ValueError(f"{name} ({self.origins[name]}) names {arg.interface}, which nothing describes")

    def to_text(self) -> str:
        """What ``from_text`` reads."""
        blocks = (
            "\n".join(
                [
                    f"{name} {spec.version} {self.origins[name]}",
                    *(f"> {_message_to_text(request)}" for request in spec.requests),
                    *(f"< {_message_to_text(event)}" for event in spec.events),
                ]
            )
            for name, spec in self._specs.items()
        )
        return "\n\n".join(blocks) + "\n"

    @classmethod
    def from_text(cls, text: str) -> Tables:
        """The tables that ``to_text`` wrote. Raises ``ValueError`` that quotes what can't be read."""
        specs: dict[str, InterfaceSpec] = {}
        origins: dict[str, str] = {}
        for block in text.strip("\n").split("\n\n"):
            first, *lines = block.split("\n")
            if first.startswith("#"):
                continue
            name, version, origin = _match(_INTERFACE, first)
            requests: list[MessageSpec] = []
            events: list[MessageSpec] = []
            for line in lines:
                direction, message, args, since, destructor = _match(_MESSAGE, line)
                arguments = tuple(_argument(arg) for arg in args.split(", ")) if args else ()
                siblings = requests if direction == ">" else events
                siblings.append(MessageSpec(name, message, len(siblings), arguments, int(since or 1), bool(destructor)))
            specs[name] = InterfaceSpec(name, int(version), tuple(requests), tuple(events))
            origins[name] = origin
        return cls(specs, origins)


@functools.cache
def load_tables() -> Tables:
    """Every interface that we know, from ``interfaces.txt``. The same object each time."""
    return Tables.from_text(TABLES_FILE.read_text(encoding="utf-8"))


def _arguments(spec: InterfaceSpec) -> Iterator[Argument]:
    for message in (*spec.requests, *spec.events):
        yield from message.args


def _match(pattern: re.Pattern[str], text: str) -> tuple[str, ...]:
    found = pattern.fullmatch(text)
    if found is None:
        raise ValueError(f"can't read {text!r}")
    return found.groups()


@functools.cache
def _argument(text: str) -> Argument:
    """Many messages share an argument like ``surface:o=wl_surface``: one value each, not one a message."""
    name, nullable, letter, interface = _match(_ARGUMENT, text)
    return Argument(name, ArgType(letter), interface, bool(nullable))


def _message_to_text(message: MessageSpec) -> str:
    args = (
        f"{arg.name}:{'?' if arg.nullable else ''}{arg.type.value}" + (f"={arg.interface}" if arg.interface else "")
        for arg in message.args
    )
    since = f" since {message.since}" if message.since > 1 else ""
    return f"{message.name}({', '.join(args)}){since}{' destructor' if message.destructor else ''}"
