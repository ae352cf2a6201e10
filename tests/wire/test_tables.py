"""The tables are what the sources say, and the sources are what real programs speak.

``announced.txt`` pins what waylend may announce, and every message that carries file descriptors. After a wanted change write
it anew with ``python -m tests.wire.test_tables``, and have the difference reviewed.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import pywayland.protocol
import write_tables
from pywayland import ffi
from pywayland.protocol_core.interface import Interface

from tests.processes import absent
from tests.wire.compiled import UNKNOWN, CompiledInterface, compiled_interfaces
from waylend.wire.spec import ArgType, Argument, InterfaceSpec, MessageSpec
from waylend.wire.tables import TABLES_FILE, Tables, load_tables

ANNOUNCED = Path(__file__).with_name("announced.txt")

# Programs and libraries with wayland-scanner's tables in them (sway's are in wlroots), as Debian and its kin have them.
PROGRAMS = ["/usr/bin/" + name for name in ("foot", "grim", "mpv", "wl-copy", "wtype", "Xwayland")]
LIBRARIES = ["libEGL_mesa.so.0", "libgdk-3.so.0", "libwlroots*.so*"]


def library(name: str) -> Path:
    return max(Path("/usr/lib").glob(f"*-linux-gnu/{name}"), default=Path("/usr/lib") / name)


def compiled_in(path: Path) -> list[CompiledInterface]:
    if not path.exists():
        absent(f"{path} is not installed (tests/apt-packages.txt)")
    return compiled_interfaces(path.resolve())


COMPILED = [*map(Path, PROGRAMS), *map(library, LIBRARIES)]


def types_of(message: MessageSpec) -> list[str | None]:
    """The interface of each letter of the signature; a typeless new id is three letters."""
    types: list[str | None] = []
    for arg in message.args:
        types += [None] * (len(arg.signature.strip("?")) - 1) + [arg.interface]
    return types


def messages_of(tables: Tables) -> list[MessageSpec]:
    return [message for spec in tables.values() for message in (*spec.requests, *spec.events)]


# --- the file and its sources


def test_the_file_is_what_the_sources_say() -> None:
    written_with = TABLES_FILE.read_text().splitlines()[0]
    if f" {write_tables.PYWAYLAND};" in written_with:
        assert TABLES_FILE.read_text() == write_tables.text(), "run `python protocol-xml/write_tables.py`"


def test_the_file_agrees_with_whatever_pywayland_is_installed() -> None:
    ours, theirs = load_tables(), write_tables.collect()
    for name in ours.keys() & theirs.keys():
        newer = write_tables.newer_of(ours[name], theirs[name])
        assert newer.version >= ours[name].version


def test_invariants_hold() -> None:
    load_tables().check()


def test_text_round_trip() -> None:
    tables = load_tables()
    again = Tables.from_text(tables.to_text())
    assert dict(again) == dict(tables)
    assert again.origins == tables.origins
    assert again.globals == tables.globals


@pytest.mark.parametrize(
    "line",
    [
        "wl_x one pywayland:x",
        "wl_x 1",
        "wl_x 1 o\n> destroy",
        "wl_x 1 o\n! destroy()",
        "wl_x 1 o\n> move(x)",
        "wl_x 1 o\n> move(x:z)",
        "wl_x 1 o\n> move(x:i,y:i)",
        "wl_x 1 o\n> move(x:i) until 3",
    ],
)
def test_a_line_that_can_not_be_read_is_an_error_that_quotes_it(line: str) -> None:
    with pytest.raises(ValueError, match="can't read"):
        Tables.from_text(line)


# --- what is announced


def announced() -> str:
    tables = load_tables()
    lines = ["# Every global that waylend can announce: interface, highest version, where it is described."]
    lines += [f"{name} {tables[name].version} {tables.origins[name]}" for name in sorted(tables.globals)]
    lines += ["", "# Every message that carries file descriptors, with its signature."]
    for spec in tables.values():
        for direction, messages in (("request", spec.requests), ("event", spec.events)):
            lines += [f"{direction} {message} {message.signature}" for message in messages if message.fd_count]
    return "\n".join(lines) + "\n"


def test_what_is_announced_is_pinned() -> None:
    assert announced() == ANNOUNCED.read_text(), f"if this is wanted: {__doc__.splitlines()[2:]}"


def test_a_global_is_what_no_message_makes() -> None:
    tables = load_tables()
    assert {"wl_compositor", "wl_shm", "wl_seat", "xdg_wm_base", "zwlr_layer_shell_v1"} <= tables.globals
    assert not {"wl_display", "wl_registry", "wl_callback", "wl_surface", "wl_data_offer"} & tables.globals


# --- against pywayland's own C structs


def pywayland_interfaces() -> list[type[Interface]]:
    found = []
    for module_info in pkgutil.iter_modules(pywayland.protocol.__path__):
        module = importlib.import_module(f"pywayland.protocol.{module_info.name}")
        found += [
            value
            for value in vars(module).values()
            if isinstance(value, type) and issubclass(value, Interface) and value.__module__ == module.__name__
        ]
    return [value for value in found if value.__module__.rpartition(".")[2] not in write_tables.LEFT_OUT]


def c_string(pointer: Any) -> str:
    name: bytes = ffi.string(pointer)
    return name.decode()


@pytest.mark.parametrize("interface", pywayland_interfaces(), ids=lambda value: f"{value.__module__[19:]}.{value.name}")
def test_signatures_are_those_that_pywayland_gives_to_libwayland(interface: type[Interface]) -> None:
    spec = load_tables()[interface.name].at_version(interface.version)
    struct = interface._ptr
    assert c_string(struct.name) == spec.name
    for theirs, count, ours in (
        (struct.methods, struct.method_count, spec.requests),
        (struct.events, struct.event_count, spec.events),
    ):
        assert [c_string(theirs[n].name) for n in range(count)] == [message.name for message in ours]
        assert [c_string(theirs[n].signature) for n in range(count)] == [message.signature for message in ours]
        for n, message in enumerate(ours):
            types = [theirs[n].types[i] for i in range(len(types_of(message)))]
            assert [c_string(t.name) if t != ffi.NULL else None for t in types] == types_of(message)


# --- against the protocols' own XML

XML_FILES = [
    path
    for path in [Path("/usr/share/wayland/wayland.xml"), *sorted(Path("/usr/share/wayland-protocols").rglob("*.xml"))]
    if path.exists() and path.stem.replace("-", "_") not in write_tables.LEFT_OUT
]


@pytest.mark.live
def test_the_xml_of_debian_is_there() -> None:
    if len(XML_FILES) < 30 or XML_FILES[0].stem != "wayland":
        absent("libwayland-dev or wayland-protocols is not installed (tests/apt-packages.txt)")


@pytest.mark.live
@pytest.mark.parametrize("path", XML_FILES, ids=lambda path: path.stem)
def test_messages_and_destructors_are_those_of_the_xml(path: Path) -> None:
    for interface in ElementTree.parse(path).getroot().iter("interface"):
        spec = load_tables()[interface.attrib["name"]]
        for kind, ours in (("request", spec.requests), ("event", spec.events)):
            theirs = list(interface.iter(kind))
            assert len(theirs) <= len(ours)
            for element, message in zip(theirs, ours, strict=False):
                assert (message.name, message.since, message.destructor) == (
                    element.attrib["name"],
                    int(element.get("since", "1")),
                    element.get("type") == "destructor",
                ), f"{message}"
                assert [(arg.type.name, arg.interface, arg.nullable) for arg in message.args] == [
                    (arg.attrib["type"].upper(), arg.get("interface"), arg.get("allow-null") == "true")
                    for arg in element.iter("arg")
                ], f"{message}"
            assert all(message.since > int(interface.attrib["version"]) for message in ours[len(theirs) :])


# --- against the tables in real programs


@pytest.mark.live
@pytest.mark.parametrize("path", COMPILED, ids=lambda path: path.name)
def test_signatures_are_those_compiled_into_real_programs(path: Path) -> None:
    found = compiled_in(path)
    assert found
    tables = load_tables()
    for theirs in found:
        if theirs.name not in tables:
            continue
        spec = tables[theirs.name].at_version(theirs.version)
        for ours, compiled in ((spec.requests, theirs.requests), (spec.events, theirs.events)):
            # A program may know a newer version than we do; the other way round it has all that we have.
            assert len(ours) == len(compiled) or theirs.version > spec.version
            for message, other in zip(ours, compiled, strict=False):
                assert (message.name, message.signature) == (other.name, other.signature), theirs.name
                pairs = zip(types_of(message), other.types, strict=True)
                assert all(ours == theirs for ours, theirs in pairs if theirs != UNKNOWN), str(message)


@pytest.mark.live
def test_all_our_own_descriptions_were_compared() -> None:
    compiled: dict[str, int] = {}
    for path in COMPILED:
        for found in compiled_in(path):
            compiled[found.name] = max(found.version, compiled.get(found.name, 0))
    tables = load_tables()
    # Nobody but waylend speaks the channel's protocol.
    ours = [
        name
        for name, origin in tables.origins.items()
        if origin.startswith("protocol-xml:") and origin != "protocol-xml:waylend-channel-v1"
    ]
    # Debian 12 has version 2 of these; the README of protocol-xml says how the rest was checked.
    newer = {
        "zwlr_output_configuration_head_v1",
        "zwlr_output_configuration_v1",
        "zwlr_output_head_v1",
        "zwlr_output_manager_v1",
        "zwlr_output_mode_v1",
    }
    # wlroots dropped these after 0.16, which Debian 12 has.
    dropped = {
        "org_kde_kwin_idle",
        "org_kde_kwin_idle_timeout",
        "zwlr_input_inhibit_manager_v1",
        "zwlr_input_inhibitor_v1",
    }
    if any(Path("/usr/lib").glob("*-linux-gnu/libwlroots.so.*")):
        dropped.clear()
    assert {name for name in ours if compiled.get(name, 0) < tables[name].version} <= newer | dropped


# --- facts that sources have lost before


@pytest.mark.parametrize(
    "name",
    [
        "wl_callback.done",
        "wl_surface.destroy",
        "wl_seat.release",
        "wp_presentation_feedback.presented",
        "wp_drm_lease_request_v1.submit",
        "wp_image_description_creator_icc_v1.create",
        "ext_session_lock_v1.unlock_and_destroy",
        "zwlr_output_manager_v1.finished",
    ],
)
def test_a_destructor_is_marked(name: str) -> None:
    assert [message.destructor for message in messages_of(load_tables()) if str(message) == name] == [True]


@pytest.mark.parametrize("name", ["wl_buffer.release", "wp_drm_lease_device_v1.release", "wl_registry.bind"])
def test_what_ends_nothing_is_no_destructor(name: str) -> None:
    assert [message.destructor for message in messages_of(load_tables()) if str(message) == name] == [False]


def test_every_explicit_destructor_names_a_message() -> None:
    assert {str(message) for message in messages_of(load_tables())} >= write_tables.DESTRUCTORS


def test_names_are_those_of_the_wire() -> None:
    names = {str(message) for message in messages_of(load_tables())}
    assert {"wl_registry.global", "zxdg_importer_v1.import", "wl_shell_surface.set_class"} <= names
    assert load_tables()["wl_registry"].requests[0].signature == "usun"
    assert all(
        not arg.name.startswith("_") and not arg.name.endswith("_")
        for m in messages_of(load_tables())
        for arg in m.args
    )


# --- two descriptions of one interface


def description(version: int, *requests: MessageSpec) -> InterfaceSpec:
    return InterfaceSpec("x", version, requests)


MOVE = MessageSpec("x", "move", 0, (Argument("a", ArgType.INT),))
MOVE_RENAMED = MessageSpec("x", "move", 0, (Argument("b", ArgType.INT),))
MOVE_UINT = MessageSpec("x", "move", 0, (Argument("a", ArgType.UINT),))
MOVE_ENDS = MessageSpec("x", "move", 0, (Argument("a", ArgType.INT),), destructor=True)
TURN = MessageSpec("x", "turn", 1, since=2)
TURN_EARLY = MessageSpec("x", "turn", 1, since=1)


@pytest.mark.parametrize("swap", [False, True])
def test_the_higher_version_wins_if_the_lower_is_its_beginning(swap: bool) -> None:
    pair = [description(1, MOVE_RENAMED), description(2, MOVE, TURN)]
    assert write_tables.newer_of(*(reversed(pair) if swap else pair)) == pair[1]


@pytest.mark.parametrize(
    "other", [description(2, MOVE_UINT), description(2, MOVE_ENDS), description(2, MOVE, TURN_EARLY)]
)
def test_a_contradiction_is_an_error(other: InterfaceSpec) -> None:
    with pytest.raises(ValueError, match="two descriptions of x"):
        write_tables.newer_of(description(1, MOVE), other)


# --- the XML reader

GOOD = """<protocol name="p"><interface name="x" version="2"><description summary="s"/>
<request name="make"><arg name="id" type="new_id" interface="x"/><arg name="t" type="string" allow-null="true"/></request>
<request name="go" type="destructor" since="2"/><event name="gone"><arg name="fd" type="fd"/></event>
<enum name="e"><entry name="a" value="0"/></enum></interface></protocol>"""


def test_xml_is_read() -> None:
    (spec,) = write_tables.read_xml(GOOD, "p.xml")
    make = MessageSpec(
        "x", "make", 0, (Argument("id", ArgType.NEW_ID, "x"), Argument("t", ArgType.STRING, nullable=True))
    )
    assert spec == InterfaceSpec(
        "x",
        2,
        (make, MessageSpec("x", "go", 1, (), 2, True)),
        (MessageSpec("x", "gone", 0, (Argument("fd", ArgType.FD),)),),
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("<protocol", "<protokoll"),
        ('<interface name="x"', "<interface"),
        ('name="gone"', 'name="Gone"'),
        ('type="fd"', 'type="handle"'),
        ('type="fd"', 'type="fd" interface="x"'),
        ('type="fd"', 'type="fd" allow-null="true"'),
        ('allow-null="true"', 'allow-null="yes"'),
        ('type="destructor"', 'type="constructor"'),
        ('since="2"', 'since="3"'),
        ('since="2"', 'since="two"'),
        ('version="2"', 'version="1"'),
        ('name="go"', 'name="make"'),
        ('<arg name="t"', '<arg name="id"'),
        ('summary="s"', 'sumary="s"'),
        ("<event", "<oevent"),
        ('<event name="gone">', '<event name="gone"><request name="in"/>'),
    ],
)
def test_malformed_xml_is_an_error_that_names_the_file(old: str, new: str) -> None:
    broken = GOOD.replace(old, new).replace("</protocol>", "</protokoll>" if "protokoll" in new else "</protocol>")
    broken = broken.replace("</event>", "</oevent>") if "<oevent" in new else broken
    assert broken != GOOD
    with pytest.raises(ValueError, match=r"^p\.xml: "):
        write_tables.read_xml(broken, "p.xml")


def test_an_interface_that_nothing_describes_is_an_error() -> None:
    spec = InterfaceSpec("x", 1, (MessageSpec("x", "make", 0, (Argument("id", ArgType.NEW_ID, "y"),)),))
    with pytest.raises(ValueError, match=r"x .* names y"):
        Tables({"x": spec}, {"x": "here"}).check()


if __name__ == "__main__":
    ANNOUNCED.write_text(announced())
