"""The parts of pywayland that it promises to nobody, and that ``resource`` and ``server`` stand on: looked at when the shim
starts, so that a version without them is one clear line, and no crash inside of libwayland."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

from pywayland import ffi, lib
from pywayland.protocol.wayland import WlSurface
from pywayland.scanner.argument import ArgumentType
from pywayland.server.display import Display
from pywayland.server.eventloop import EventLoop
from pywayland.server.listener import Listener

_FUNCTIONS = """
    dispatcher_func resource_destroy_func wl_client_add_destroy_listener wl_client_create wl_display_destroy_clients
    wl_fixed_to_double wl_resource_get_client wl_resource_get_user_data wl_resource_post_event_array
    wl_resource_set_dispatcher
""".split()
_RESOURCE = "_ptr _handle _post_error dispatcher destroy get_id version interface".split()


class UnfitPywayland(ImportError):
    """The installed pywayland lacks what the shim uses of it; the text says what."""


def check() -> None:
    """Raises UnfitPywayland."""
    try:
        missing = ", ".join(_missing())
    except Exception as error:  # whatever another version may do
        missing = f"{type(error).__name__}: {error}"
    if missing:
        raise UnfitPywayland(f"pywayland {version('pywayland')} is not as expected ({missing})")


def _missing() -> Iterator[str]:
    yield from _absent(lib, "lib", _FUNCTIONS)
    yield from _absent(ffi, "ffi", ["from_handle", "new_handle"])
    yield from _absent(ArgumentType, "ArgumentType", "Int Uint Fixed String Object NewId Array FileDescriptor".split())
    yield from _absent(EventLoop, "EventLoop", ["FdMask", "add_fd", "dispatch"])
    yield from _absent(WlSurface, "Interface", ["requests", "events", "global_class", "resource_class"])
    yield from _absent(WlSurface.global_class, "Global", ["bind_func"])
    yield from _absent(WlSurface.requests[0], "Message", ["name", "version", "arguments"])
    yield from _absent(WlSurface.requests[1].arguments[0], "Argument", ["argument_type"])
    yield from _absent(Listener(lambda *_: None), "Listener", ["_ptr", "remove"])
    with Display() as display:
        yield from _absent(display, "Display", ["_ptr", "get_event_loop", "flush_clients"])
        yield from _missing_of_resource(display)


def _missing_of_resource(display: Any) -> Iterator[str]:
    """What an object lacks that a client has. The client goes with its display."""
    ours, its = socket.socketpair()
    with ours:
        client = lib.wl_client_create(display._ptr, its.detach())
        resource = WlSurface.resource_class(client, 1, 0)
        yield from _absent(resource, "Resource", _RESOURCE)
        yield from _absent(resource.dispatcher, "Dispatcher", ["messages", "destructor", "__setitem__"])


def _absent(owner: object, name: str, parts: list[str]) -> Iterator[str]:
    return (f"no {name}.{part}" for part in parts if not hasattr(owner, part))
