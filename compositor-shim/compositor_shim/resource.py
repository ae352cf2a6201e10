"""What stands between pywayland's server side and the protocol's code: arguments, callbacks, errors.

pywayland 0.4 turns the arguments of requests into *client* objects, which fails for every new_id and object, and prints and
swallows what a callback raises. Here requests arrive as methods of our own objects with ids and those objects as
arguments; what a method raises is either the client's fault (``ProtocolViolation``: it is told, and that is recorded) or a
bug of ours (recorded as such). Nothing here knows what an interface means.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from typing import Any, ClassVar, Protocol, TypeVar

from pywayland import ffi, lib
from pywayland.protocol_core.message import Message
from pywayland.protocol_core.resource import Resource as PyResource
from pywayland.scanner.argument import ArgumentType


class ProtocolViolation(Exception):
    """A client broke the protocol of the object that it sent the request to. ``code``: of that interface's errors."""

    def __init__(self, code: int, text: str, *, on: Resource | None = None) -> None:
        super().__init__(text)
        self.code = int(code)
        self.text = text
        self.on = on


class Recorder(Protocol):
    """Where violations and bugs are written down."""

    def violation(self, resource: Resource, error: ProtocolViolation) -> None: ...
    def bug(self, text: str) -> None: ...


class _Arguments:
    """Stands in for pywayland's Message where a dispatcher asks it for the arguments of a request."""

    def __init__(self, message: Message) -> None:
        self._message = message

    def c_to_arguments(self, values: Any) -> list[Any]:
        arguments: list[Any] = []
        for n, argument in enumerate(self._message.arguments):
            value = values[n]
            match argument.argument_type:
                case ArgumentType.Int:
                    arguments.append(value.i)
                case ArgumentType.Uint:
                    arguments.append(value.u)
                case ArgumentType.Fixed:
                    arguments.append(lib.wl_fixed_to_double(value.f))
                case ArgumentType.FileDescriptor:
                    arguments.append(value.h)
                case ArgumentType.NewId:
                    arguments.append(value.n)
                case ArgumentType.String:
                    text = None if value.s == ffi.NULL else ffi.string(value.s).decode(errors="replace")
                    arguments.append(text)
                case ArgumentType.Array:
                    arguments.append(bytes(ffi.buffer(value.a.data, value.a.size)))
                case ArgumentType.Object:
                    arguments.append(_object_of(value.o))
        return arguments


def _values_of(message: Message, args: tuple[Any, ...]) -> tuple[Any, list[Any]]:
    """The C arguments of an event, and what must stay alive as long as they are used."""
    values: Any = ffi.new("union wl_argument []", len(args))
    kept: list[Any] = []
    for value, argument, arg in zip(values, message.arguments, args, strict=True):
        match argument.argument_type:
            case ArgumentType.Int:
                value.i = int(arg)
            case ArgumentType.Uint:
                value.u = int(arg)
            case ArgumentType.Fixed:
                value.f = round(arg * 256)
            case ArgumentType.FileDescriptor:
                value.h = arg
            case ArgumentType.String:
                kept.append(ffi.NULL if arg is None else ffi.new("char []", arg.encode()))
                value.s = kept[-1]
            case ArgumentType.Array:
                content: Any = ffi.new("char []", bytes(arg))
                array: Any = ffi.new("struct wl_array *")
                array.size = array.alloc = len(arg)
                array.data = ffi.cast("void *", content)
                kept += (content, array)
                value.a = array
            case ArgumentType.Object | ArgumentType.NewId:
                value.o = ffi.NULL if arg is None else ffi.cast("struct wl_object *", arg.wire._ptr)
    return values, kept


def _object_of(pointer: Any) -> Resource | None:
    if pointer == ffi.NULL:
        return None
    made = ffi.from_handle(lib.wl_resource_get_user_data(ffi.cast("struct wl_resource *", pointer)))
    found: Resource = made.owner
    return found


class Resource:
    """An object of one client. A subclass names its pywayland class in ``WIRE`` and has a method for each request.

    The method has the request's name (``_`` added where that is Python's own); new ids come as ints, objects as Resources or
    None. A request without a method does nothing, except that one called ``destroy`` or ``release`` ends the object.
    ``gone`` is called when the object is over, however that came.
    """

    WIRE: ClassVar[type[PyResource[Any]]]

    def __init__(
        self, parent: Resource | Connection, object_id: int = 0, *, bound: PyResource[Any] | None = None
    ) -> None:
        """Makes the object that a request asked for, or (id 0) one of the compositor's, or takes over a ``bound`` global."""
        self.connection: Connection = parent.connection
        self.alive = True
        interface = self.WIRE.interface
        if bound is None:
            bound = self.WIRE(self.connection.client, min(parent.version, interface.version), object_id)
        if bound._ptr == ffi.NULL:
            raise MemoryError("no memory for another object")
        self.version: int = bound.version
        self.wire = bound
        self.wire.owner = self  # type: ignore[attr-defined]
        dispatcher = self.wire.dispatcher
        for opcode, message in enumerate(interface.requests):
            dispatcher[opcode] = self._callback(message)
        dispatcher.messages = [_Arguments(message) for message in interface.requests]  # type: ignore[misc]
        dispatcher.destructor = self._gone  # type: ignore[assignment]
        # pywayland hands its dispatcher NULL where it then looks for the object.
        handle, pointer = bound._handle, bound._ptr
        assert pointer is not None
        lib.wl_resource_set_dispatcher(pointer, lib.dispatcher_func, handle, handle, lib.resource_destroy_func)
        self.connection.resources.add(self)

    @property
    def name(self) -> str:
        return f"{self.WIRE.interface.name}#{self.object_id}"

    @property
    def object_id(self) -> int:
        return int(self.wire.get_id()) if self.alive else 0

    def _callback(self, message: Message) -> Callable[..., int]:
        request = message.name
        method = getattr(self, f"{request}_" if request in ("global", "import") else request, None)
        ends = request in ("destroy", "release")
        fds = [
            n for n, argument in enumerate(message.arguments) if argument.argument_type is ArgumentType.FileDescriptor
        ]

        def call(_wire: object, *args: Any) -> int:
            if method is None or self.connection.refused:
                for n in fds:
                    os.close(args[n])
            else:
                try:
                    method(*args)
                except ProtocolViolation as error:
                    self.connection.refuse(error.on or self, error)
                except Exception:
                    self.connection.recorder.bug(f"{self.name}.{request}:\n{traceback.format_exc()}")
            if ends and self.alive:
                self.end()
            return 0

        return call

    def end(self) -> None:
        """Ends the object from this side, or after its destructor."""
        if self.alive:
            self.wire.destroy()

    def _gone(self, _wire: object) -> None:
        if self.alive:
            self.alive = False
            self.wire._ptr = None
            self.connection.resources.discard(self)
            try:
                self.gone()
            except Exception:
                self.connection.recorder.bug(f"{self.WIRE.interface.name}: {traceback.format_exc()}")

    def gone(self) -> None:
        """The object is over."""

    def send(self, event: str, *args: Any) -> None:
        """Sends an event, unless the object is over or its version lacks it. Objects, also new ones, are Resources."""
        pointer = self.wire._ptr
        if not self.alive or pointer is None:
            return
        for opcode, message in enumerate(self.WIRE.interface.events):
            if message.name == event:
                if (message.version or 1) <= self.version:
                    values, _kept = _values_of(message, args)
                    lib.wl_resource_post_event_array(pointer, opcode, values)
                return
        raise AttributeError(f"{self.WIRE.interface.name} has no event {event}")

    def violate(self, code: int, text: str) -> ProtocolViolation:
        """What to raise when the client broke a rule of this very object."""
        return ProtocolViolation(code, text, on=self)


class Connection:
    """One client, with all its objects. ``identity`` is what a security context said of it."""

    version: int = 1

    def __init__(self, client: Any, recorder: Recorder, number: int) -> None:
        self.connection: Connection = self
        self.client = client
        self.recorder = recorder
        self.number = number
        self.refused = False
        self.identity: dict[str, str] = {}
        self.resources: set[Resource] = set()

    def refuse(self, resource: Resource, error: ProtocolViolation) -> None:
        """Posts the error; libwayland ends the client once it has been sent."""
        self.recorder.violation(resource, error)
        if not self.refused and resource.alive:
            self.refused = True
            resource.wire._post_error(error.code, f"{resource.name}: {error.text}")

    def all(self, kind: type[R]) -> list[R]:
        """The client's live objects of a class, in the order of their ids."""
        found = [resource for resource in self.resources if isinstance(resource, kind)]
        return sorted(found, key=lambda resource: resource.object_id)


R = TypeVar("R", bound=Resource)
