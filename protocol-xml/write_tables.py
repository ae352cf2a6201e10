"""Where the specs come from: pywayland's protocol modules, and our own descriptions in this folder.

Only a developer runs this: ``python protocol-xml/write_tables.py`` writes ``waylend/wire/interfaces.txt``, which ``tables.py``
reads when waylend starts. So a start costs no import of 60 modules and no libwayland, and what we announce changes only by a
commit that somebody has read. A test fails when the file isn't what the sources say.

Two sources may describe one interface (an unstable protocol and its stable successor that kept the name): the higher
version wins, provided that the lower one is its beginning, message by message. Anything else is a contradiction and an
error: guessing would mean to misread somebody's fds.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pywayland.protocol
from pywayland.protocol_core.interface import Interface
from pywayland.scanner.argument import ArgumentType

from waylend.errors import Unavailable
from waylend.wire.spec import ArgType, Argument, InterfaceSpec, MessageSpec
from waylend.wire.tables import TABLES_FILE, Tables

if TYPE_CHECKING:
    from pywayland.protocol_core.message import Message

PYWAYLAND = f"pywayland {version('pywayland')}"
PROTOCOL_XML = Path(__file__).resolve().parent

# Modules of pywayland that are not for us, each with the reason.
LEFT_OUT = {
    # It gives the names xdg_surface and xdg_popup to other messages than the stable xdg_shell does, so that the name
    # on the wire no longer says how to read them. No compositor has announced its xdg_shell since 2019.
    "xdg_shell_unstable_v5",
}

# The messages that end their object, of those that pywayland doesn't show as such: its scanner writes ``self._destroy()``
# into a destructor's method, but neither for events nor where a request returns a new object.
DESTRUCTORS = {
    "ext_workspace_manager_v1.finished",
    "wl_callback.done",
    "wp_drm_lease_device_v1.released",
    "wp_drm_lease_request_v1.submit",
    "wp_image_description_creator_icc_v1.create",
    "wp_image_description_creator_params_v1.create",
    "wp_image_description_info_v1.done",
    "wp_presentation_feedback.discarded",
    "wp_presentation_feedback.presented",
    "zwp_fullscreen_shell_mode_feedback_v1.mode_failed",
    "zwp_fullscreen_shell_mode_feedback_v1.mode_successful",
    "zwp_fullscreen_shell_mode_feedback_v1.present_cancelled",
    "zwp_linux_buffer_release_v1.fenced_release",
    "zwp_linux_buffer_release_v1.immediate_release",
}


def collect() -> Tables:
    """Every interface that pywayland or ``protocol-xml/`` describes.

    Raises ``ValueError`` if two sources contradict each other, or one is malformed or refers to what nobody describes, and
    ``Unavailable`` outside a checkout (a wheel has no ``protocol-xml/``).
    """
    specs: dict[str, InterfaceSpec] = {}
    origins: dict[str, str] = {}
    for origin, spec in (*_from_pywayland(), *_from_xml_folder(PROTOCOL_XML)):
        known = specs.get(spec.name)
        if known is None or spec.version > known.version:
            origins[spec.name] = origin
        specs[spec.name] = spec if known is None else newer_of(known, spec)
    tables = Tables(specs, origins)
    tables.check()
    return tables


def text() -> str:
    """The content of ``interfaces.txt``."""
    return (
        f"# Written by `python protocol-xml/write_tables.py` with {PYWAYLAND}; tables.py says how to read it.\n\n"
        + (collect().to_text())
    )


def newer_of(one: InterfaceSpec, other: InterfaceSpec) -> InterfaceSpec:
    """The higher version of two descriptions of one interface; ``ValueError`` if the lower is not its beginning.

    What counts is what the wire shows: names of arguments may differ.
    """
    older, newer = (one, other) if one.version <= other.version else (other, one)
    common = newer.at_version(older.version)
    for ours, theirs in ((older.requests, common.requests), (older.events, common.events)):
        if [_on_the_wire(message) for message in ours] != [_on_the_wire(message) for message in theirs]:
            raise ValueError(f"two descriptions of {one.name} (versions {older.version}, {newer.version}) disagree")
    return newer


def _on_the_wire(message: MessageSpec) -> tuple[object, ...]:
    return message.name, message.signature, message.destructor, [arg.interface for arg in message.args]


# --- pywayland -------------------------------------------------------------------------------------------------------

_ARG_TYPES = {
    ArgumentType.Int: ArgType.INT,
    ArgumentType.Uint: ArgType.UINT,
    ArgumentType.Fixed: ArgType.FIXED,
    ArgumentType.String: ArgType.STRING,
    ArgumentType.Object: ArgType.OBJECT,
    ArgumentType.NewId: ArgType.NEW_ID,
    ArgumentType.Array: ArgType.ARRAY,
    ArgumentType.FileDescriptor: ArgType.FD,
}


def _from_pywayland() -> Iterator[tuple[str, InterfaceSpec]]:
    for module_info in pkgutil.iter_modules(pywayland.protocol.__path__):
        if module_info.name in LEFT_OUT:
            continue
        module = importlib.import_module(f"pywayland.protocol.{module_info.name}")
        for value in vars(module).values():
            # Modules also import each other's interfaces, and Interface itself.
            if isinstance(value, type) and issubclass(value, Interface) and value.__module__ == module.__name__:
                yield f"pywayland:{module_info.name}", _interface_from_pywayland(value)


def _interface_from_pywayland(interface: type[Interface]) -> InterfaceSpec:
    return InterfaceSpec(
        interface.name,
        interface.version,
        tuple(_message_from_pywayland(interface, n, message, False) for n, message in enumerate(interface.requests)),
        tuple(_message_from_pywayland(interface, n, message, True) for n, message in enumerate(interface.events)),
    )


def _message_from_pywayland(interface: type[Interface], opcode: int, message: Message, is_event: bool) -> MessageSpec:
    code: CodeType = message.py_func.__code__
    return MessageSpec(
        interface.name,
        message.name,
        opcode,
        tuple(_arguments_from_pywayland(message, code, is_event)),
        message.version or 1,
        f"{interface.name}.{message.name}" in DESTRUCTORS or (not is_event and "_destroy" in code.co_names),
    )


def _arguments_from_pywayland(message: Message, code: CodeType, is_event: bool) -> Iterator[Argument]:
    """Names are the method's parameters.

    A request's method takes no new_id (it returns the object); for a typeless one it takes interface and version.
    """
    names = iter(code.co_varnames[1 : code.co_argcount])
    for argument in message.arguments:
        arg_type = _ARG_TYPES[argument.argument_type]
        if arg_type is ArgType.NEW_ID and not is_event:
            name = "id"
            if argument.interface is None:
                next(names)
                next(names)
        else:
            name = next(names).strip("_")
        yield Argument(name, arg_type, argument.interface.name if argument.interface else None, argument.nullable)


# --- protocol-xml ----------------------------------------------------------------------------------------------------

_XML_TYPES = {
    "int": ArgType.INT,
    "uint": ArgType.UINT,
    "fixed": ArgType.FIXED,
    "string": ArgType.STRING,
    "object": ArgType.OBJECT,
    "new_id": ArgType.NEW_ID,
    "array": ArgType.ARRAY,
    "fd": ArgType.FD,
}
# Element -> (attributes it must have, attributes it may have, elements it may hold)
_XML_GRAMMAR: dict[str, tuple[set[str], set[str], set[str]]] = {
    "protocol": ({"name"}, set(), {"description", "interface"}),
    "interface": ({"name", "version"}, set(), {"description", "request", "event", "enum"}),
    "request": ({"name"}, {"type", "since"}, {"description", "arg"}),
    "event": ({"name"}, {"type", "since"}, {"description", "arg"}),
    "arg": ({"name", "type"}, {"interface", "allow-null", "enum", "summary"}, set()),
    "enum": ({"name"}, {"bitfield", "since"}, {"description", "entry"}),
    "entry": ({"name", "value"}, {"since", "summary"}, {"description"}),
    "description": (set(), {"summary"}, set()),
}
_XML_NAME = re.compile(r"[a-z][a-z0-9_]*")


def _from_xml_folder(folder: Path) -> Iterator[tuple[str, InterfaceSpec]]:
    if not folder.is_dir():
        raise Unavailable(f"{folder} is not there", "run this in a checkout of waylend")
    for path in sorted(folder.glob("*.xml")):
        for spec in read_xml(path.read_text(encoding="utf-8"), path.name):
            yield f"protocol-xml:{path.stem}", spec


def read_xml(text: str, source: str) -> list[InterfaceSpec]:
    """The interfaces that a protocol description in Wayland's XML dialect holds, in its order.

    Strict: an unknown element or attribute, a type that we don't know, a name twice, or a ``since`` out of order raises
    ``ValueError`` that begins with ``source``.
    """
    try:
        root = ElementTree.fromstring(text)  # noqa: S314 (our own files)
        if root.tag != "protocol":
            raise ValueError(f"<{root.tag}> is not a <protocol>")
        _check_grammar(root)
        specs = [_interface_from_xml(element) for element in root.iter("interface")]
        _once(spec.name for spec in specs)
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"{source}: {error}") from error
    return specs


def _check_grammar(element: ElementTree.Element) -> None:
    required, optional, children = _XML_GRAMMAR[element.tag]
    present = set(element.attrib)
    where = f"<{element.tag} name={element.get('name')!r}>"
    if missing := required - present:
        raise ValueError(f"{where} lacks {', '.join(sorted(missing))}")
    if unknown := present - required - optional:
        raise ValueError(f"{where} has unknown {', '.join(sorted(unknown))}")
    if "name" in required and not _XML_NAME.fullmatch(element.attrib["name"]):
        raise ValueError(f"{where} is not a name")
    for child in element:
        if child.tag not in children:
            raise ValueError(f"{where} can't hold <{child.tag}>")
        _check_grammar(child)


def _interface_from_xml(element: ElementTree.Element) -> InterfaceSpec:
    name = element.attrib["name"]
    spec = InterfaceSpec(
        name,
        int(element.attrib["version"]),
        tuple(_message_from_xml(name, n, request) for n, request in enumerate(element.iter("request"))),
        tuple(_message_from_xml(name, n, event) for n, event in enumerate(element.iter("event"))),
    )
    _once(message.name for message in spec.requests)
    _once(message.name for message in spec.events)
    spec.check()
    return spec


def _message_from_xml(interface: str, opcode: int, element: ElementTree.Element) -> MessageSpec:
    name = element.attrib["name"]
    if element.get("type", "destructor") != "destructor":
        raise ValueError(f"{interface}.{name} has type {element.get('type')!r}")
    args = tuple(_argument_from_xml(f"{interface}.{name}", arg) for arg in element.iter("arg"))
    _once(arg.name for arg in args)
    return MessageSpec(interface, name, opcode, args, int(element.get("since", "1")), "type" in element.attrib)


def _argument_from_xml(message: str, element: ElementTree.Element) -> Argument:
    attributes = element.attrib
    arg_type = _XML_TYPES.get(attributes["type"])
    where = f"{message}({attributes['name']})"
    if arg_type is None:
        raise ValueError(f"{where}: no type {attributes['type']!r}")
    if "interface" in attributes and arg_type not in (ArgType.OBJECT, ArgType.NEW_ID):
        raise ValueError(f"{where}: only object and new_id have an interface")
    nullable = {"true": True, "false": False}.get(attributes.get("allow-null", "false"))
    if nullable is None or (nullable and arg_type not in (ArgType.OBJECT, ArgType.STRING)):
        raise ValueError(f"{where}: allow-null is true or false, and for an object or a string")
    return Argument(attributes["name"], arg_type, attributes.get("interface"), nullable)


def _once(names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{name} is there twice")
        seen.add(name)


if __name__ == "__main__":
    TABLES_FILE.write_text(text(), encoding="utf-8")
