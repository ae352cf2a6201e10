"""The scan of requests and of events: a chunk in any pieces is accepted, or refused with the peer's error; no fd is lost."""

from __future__ import annotations

import struct

from tests.fuzz.inputs import Input
from waylend.errors import CompositorError, ProtocolError
from waylend.wire.codec import encode
from waylend.wire.objects import DISPLAY_ID, Catalogue, ObjectMap
from waylend.wire.scan import EventScanner, RequestScanner, Scanner
from waylend.wire.tables import load_tables

TABLES = load_tables()
_INTERPOSED = {"wl_registry.bind", "wl_shm.create_pool", "xdg_toplevel.set_title", "wl_keyboard.keymap"}
_CATALOGUE = Catalogue(TABLES, interposed_requests=_INTERPOSED, interposed_events=_INTERPOSED)
_ALIVE = [(2, "wl_registry", 1), *((at, name, TABLES[name].version) for at, name in enumerate(sorted(TABLES), 3))]
_IDS = {name: object_id for object_id, name, _ in _ALIVE}


def _seed(events: bool, fd_count: int, *messages: bytes) -> bytes:
    return bytes((events, fd_count, 0)) + b"".join(messages)


def _request(name: str, *args: object) -> bytes:
    interface, message = name.split(".")
    spec = next(one for one in TABLES[interface].requests if one.name == message)
    return encode(spec, _IDS.get(interface, DISPLAY_ID), args)[0]


def _event(name: str, *args: object) -> bytes:
    interface, message = name.split(".")
    spec = next(one for one in TABLES[interface].events if one.name == message)
    return encode(spec, _IDS.get(interface, DISPLAY_ID), args)[0]


SEEDS = [
    _seed(False, 0, _request("wl_display.sync", 500), _request("wl_surface.commit")),
    _seed(False, 1, _request("wl_shm.create_pool", 500, "fd", 4096), _request("xdg_toplevel.set_title", b"title")),
    _seed(False, 0, _request("wl_registry.bind", 1, b"wl_shm", 1, 600), _request("wl_surface.destroy")),
    _seed(True, 1, _event("wl_keyboard.keymap", 1, "fd", 100), _event("wl_display.delete_id", 3)),
    _seed(True, 0, _event("wl_data_device.data_offer", 0xFF000000), _event("wl_display.error", 1, 1, b"why")),
]


def close() -> None:
    """The inputs have nothing in common."""


def one_input(octets: bytes) -> None:
    choices = Input(octets)
    events, fd_count, pieces = choices.number(2), choices.number(40), 1 + choices.number(5)
    chunk = choices.rest()
    objects = ObjectMap(_CATALOGUE)
    for object_id, interface, version in _ALIVE:
        objects.kinds[object_id] = _CATALOGUE.kind(interface, version)
    scanner: Scanner[int] = EventScanner(objects, {}) if events else RequestScanner(objects, {})
    scanner.unclaimed.extend(range(fd_count))
    done = 0
    try:
        for piece in range(1, pieces + 1):
            arrived = len(chunk) * piece // pieces
            memory = memoryview(bytearray(chunk[done:arrived] + bytes(-(arrived - done) % 4)))
            whole = 4 * scanner.scan(memory.cast("I"), memory, (arrived - done) // 4)
            assert 0 <= whole <= arrived - done
            done += whole
    except ProtocolError as error:
        assert not events
        assert error.object_id == DISPLAY_ID or error.object_id in objects.kinds
        struct.pack("=I", error.code)
    except CompositorError:
        assert events
    objects.check()
    assert sorted([*scanner.claimed, *scanner.unclaimed]) == list(range(fd_count))
