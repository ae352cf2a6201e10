"""Sends every message that pywayland knows through libwayland itself, as one side of a connection.

Run as ``python libwayland_peer.py client|server FD PLAN``: FD is the socket, PLAN the file that says what was sent, a
line of JSON a message. Not a test: ``test_libwayland.py`` starts it, since libwayland wants a process for each Display.
"""

from __future__ import annotations

import base64
import importlib
import json
import os
import pkgutil
import random
import select
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO

import pywayland.protocol
from pywayland import ffi, lib
from pywayland.protocol.wayland import WlDisplay, WlRegistry
from pywayland.protocol_core.interface import Interface
from pywayland.protocol_core.message import Message

INTS = (0, -1, 1, 42, 2**31 - 1, -(2**31))
UINTS = (0, 1, 7, 2**31, 2**32 - 1)
FIXED = (0.0, -1.5, 1 / 256, -1 / 256, 3.25, 8388607.99609375, -8388608.0)
STRINGS = ("", "x", "abc", "four", "Grüße, 😀", "line\n\x1b[31m", "y" * 2000)
ARRAYS = (b"", b"\0", b"abc", b"\xff" * 8, bytes(1001))
ROUNDS = 3


def interfaces() -> Iterator[type[Interface]]:
    """Every interface once, at its highest version."""
    found: dict[str, type[Interface]] = {}
    for module_info in pkgutil.iter_modules(pywayland.protocol.__path__):
        if module_info.name == "xdg_shell_unstable_v5":
            continue  # not in our tables: it gives names of xdg_shell to other messages
        module = importlib.import_module(f"pywayland.protocol.{module_info.name}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Interface) and value is not Interface:
                known = found.get(value.name)
                if known is None or known.version < value.version:
                    found[value.name] = value
    return iter(found.values())


Pointer = Any
Object = tuple[Pointer, int]  # struct wl_object *, and its id
c_new: Callable[..., Pointer] = ffi.new


class Side:
    """What the two sides have in common: arguments for libwayland, and the same in the plan."""

    def __init__(self, plan: TextIO) -> None:
        self.plan = plan
        self.random = random.Random(20)  # the same messages each time
        self.objects: dict[type[Interface], Object] = {}

    def make(self, interface: type[Interface]) -> Object:
        raise NotImplementedError

    def an_object(self, interface: type[Interface]) -> Object:
        if interface not in self.objects:
            self.objects[interface] = self.make(interface)
        return self.objects[interface]

    def send_all(self, of: Callable[[type[Interface]], list[Message]], send: Callable[..., None]) -> None:
        for interface in interfaces():
            self.an_object(interface)
        for interface in interfaces():
            for opcode, message in enumerate(of(interface)):
                for _ in range(ROUNDS):
                    pointer, object_id = self.an_object(interface)
                    args, keep, plan = self.arguments(message)
                    send(pointer, opcode, message, args)
                    self.record(interface, opcode, object_id, plan)
                    for fd in keep:
                        if isinstance(fd, int):
                            os.close(fd)

    def arguments(self, message: Message) -> tuple[Pointer, list[Any], list[Any]]:
        """``union wl_argument[]``, what to keep alive, and the arguments as the plan has them."""
        args = c_new("union wl_argument []", len(message.arguments))
        keep: list[Any] = []
        plan: list[Any] = []
        for slot, argument in zip(args, message.arguments, strict=True):
            letter = argument.signature.strip("?")
            value: object
            is_null = argument.nullable and self.random.random() < 0.4
            if letter == "i":
                slot.i = value = self.random.choice(INTS)
            elif letter == "u":
                slot.u = value = self.random.choice(UINTS)
            elif letter == "f":
                value = number = self.random.choice(FIXED)
                slot.f = lib.wl_fixed_from_double(number)
            elif letter in "sa" and is_null:
                slot.s, value = ffi.NULL, None
            elif letter == "s":
                text = self.random.choice(STRINGS).encode()
                slot.s = string = c_new("char []", text)
                keep.append(string)
                value = {"bytes": base64.b64encode(text).decode()}
            elif letter == "a":
                content = self.random.choice(ARRAYS)
                buffer = c_new("char []", content + b"\0")
                slot.a = array = c_new("struct wl_array *", (len(content), len(content), buffer))
                keep += (buffer, array)
                value = {"bytes": base64.b64encode(content).decode()}
            elif letter == "h":
                slot.h = fd = os.memfd_create("oracle")
                keep.append(fd)
                value = {"fd": os.fstat(fd).st_ino}
            elif letter == "o":
                slot.o, value = (ffi.NULL, 0) if is_null else self.an_object(argument.interface or WlRegistry)
            else:
                assert argument.interface is not None
                slot.o, value = self.new_id(argument.interface)
            plan.append(value)
        return args, keep, plan

    def new_id(self, interface: type[Interface]) -> Object:
        raise NotImplementedError

    def run(self) -> None:
        raise NotImplementedError

    def record(self, interface: type[Interface], opcode: int, object_id: int, args: list[Any]) -> None:
        print(json.dumps([interface.name, opcode, object_id, args]), file=self.plan)


class Client(Side):
    """Sends requests. Objects come from ``wl_registry.bind``; nobody answers, and none is needed."""

    def __init__(self, fd: int, plan: TextIO) -> None:
        super().__init__(plan)
        self.fd = fd
        self.display = lib.wl_display_connect_to_fd(fd)
        self.last_id = 1
        self.objects[WlDisplay] = (ffi.cast("struct wl_object *", self.display), 1)
        registry = self.marshal(self.objects[WlDisplay][0], 1, WlDisplay.requests[1], ffi.new("union wl_argument [1]"))
        self.last_id += 1
        self.record(WlDisplay, 1, 1, [self.last_id])
        self.objects[WlRegistry] = (registry, self.last_id)

    def make(self, interface: type[Interface]) -> Object:
        registry, registry_id = self.objects[WlRegistry]
        name, version = self.random.choice(UINTS), interface.version
        text = c_new("char []", interface.name.encode())
        args = c_new("union wl_argument [4]")
        args[0].u, args[1].s, args[2].u = name, text, version
        pointer = self.marshal(registry, 0, WlRegistry.requests[0], args, interface)
        self.last_id += 1
        spoken = {"bytes": base64.b64encode(interface.name.encode()).decode()}
        self.record(WlRegistry, 0, registry_id, [name, spoken, version, self.last_id])
        return pointer, self.last_id

    def new_id(self, interface: type[Interface]) -> Object:
        self.last_id += 1
        return ffi.NULL, self.last_id  # the constructor puts it in

    def marshal(
        self, pointer: Pointer, opcode: int, message: Message, args: Pointer, bound: type[Interface] | None = None
    ) -> Pointer:
        select.select([], [self.fd], [])
        proxy: Pointer = ffi.cast("struct wl_proxy *", pointer)
        created = [argument.interface for argument in message.arguments if argument.signature.endswith("n")]
        if created:
            interface = created[0] or bound
            assert interface is not None
            made: Pointer = lib.wl_proxy_marshal_array_constructor(proxy, opcode, args, interface._ptr)
        else:
            lib.wl_proxy_marshal_array(proxy, opcode, args)
            made = None
        assert lib.wl_display_flush(self.display) >= 0, lib.wl_display_get_error(self.display)
        return made and ffi.cast("struct wl_object *", made)

    def run(self) -> None:
        # bind is what make() sends all the time
        self.send_all(lambda interface: [] if interface is WlRegistry else interface.requests, self.marshal)


class Server(Side):
    """Sends events, on resources that it makes as if a client had asked for them."""

    def __init__(self, fd: int, plan: TextIO) -> None:
        super().__init__(plan)
        self.fd = fd
        self.display = lib.wl_display_create()
        self.client = lib.wl_client_create(self.display, fd)
        self.last_id = 1

    def make(self, interface: type[Interface]) -> Object:
        self.last_id += 1
        return self.resource(interface, self.last_id)

    def new_id(self, interface: type[Interface]) -> Object:
        return self.resource(interface, 0)  # libwayland takes one from the server's range

    def resource(self, interface: type[Interface], object_id: int) -> Object:
        resource = lib.wl_resource_create(self.client, interface._ptr, interface.version, object_id)
        return ffi.cast("struct wl_object *", resource), lib.wl_resource_get_id(resource)

    def post(self, pointer: Pointer, opcode: int, message: Message, args: Pointer) -> None:
        select.select([], [self.fd], [])
        lib.wl_resource_post_event_array(ffi.cast("struct wl_resource *", pointer), opcode, args)
        lib.wl_display_flush_clients(self.display)

    def run(self) -> None:
        # The resource of wl_display, which sends error and delete_id, is libwayland's own.
        self.send_all(lambda interface: [] if interface is WlDisplay else interface.events, self.post)


if __name__ == "__main__":
    with open(sys.argv[3], "w") as plan_file:
        {"client": Client, "server": Server}[sys.argv[1]](int(sys.argv[2]), plan_file).run()
