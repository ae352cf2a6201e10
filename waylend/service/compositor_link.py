"""waylend's own connection to the compositor: what it needs for itself it never asks for on a client's.

It lists the globals, asks for a security context where there is one, and notices when the compositor goes away.
"""

from __future__ import annotations

import os
import struct
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.abc

from waylend.errors import CompositorError
from waylend.wire.codec import Value, decode, encode
from waylend.wire.objects import DISPLAY_ID
from waylend.wire.spec import HEADER_BYTES, InterfaceSpec

_ANSWER_DEADLINE_S = 5.0
_REGISTRY_ID = 2
_SECURITY_CONTEXT = "wp_security_context_manager_v1"
#: What a compositor gets to know of us: the name by which it can tell our guests from other sandboxes.
SANDBOX_ENGINE = b"org.waylend"


@dataclass(frozen=True)
class Global:
    name: int
    version: int


class CompositorLink:
    """A connection that has listed the compositor's globals, by interface."""

    def __init__(self, stream: anyio.abc.UNIXSocketStream, tables: Mapping[str, InterfaceSpec]) -> None:
        self._stream = stream
        self._tables = tables
        self._interfaces: dict[int, InterfaceSpec] = {DISPLAY_ID: tables["wl_display"]}
        self._arrived = bytearray()
        self._last_id = _REGISTRY_ID
        self.globals: dict[str, Global] = {}

    async def send(self, object_id: int, message: str, *args: Value) -> None:
        """Sends a request by its name. A new_id among ``args`` becomes known. Raises CompositorError."""
        spec = next(request for request in self._interfaces[object_id].requests if request.name == message)
        octets, fds = encode(spec, object_id, args)
        for arg, value in zip(spec.args, args, strict=False):
            if arg.interface is not None and arg.type.value == "n" and isinstance(value, int):
                self._interfaces[value] = self._tables[arg.interface]
        try:
            if fds:
                await self._stream.send_fds(octets, [fd for fd in fds if isinstance(fd, int)])
            else:
                await self._stream.send(octets)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise CompositorError("the compositor closed the connection") from error

    def new_id(self) -> int:
        """An id for the next request that makes an object: libwayland takes no gaps."""
        self._last_id += 1
        return self._last_id

    def bind(self, interface: str, object_id: int) -> tuple[int, str, Value, Value, Value, Value]:
        """The arguments of ``send`` that bind a global."""
        known = self.globals[interface]
        self._interfaces[object_id] = self._tables[interface]
        version = min(known.version, self._tables[interface].version)
        return _REGISTRY_ID, "bind", known.name, interface.encode(), version, object_id

    async def roundtrip(self) -> None:
        """Until the compositor has answered all before. Raises CompositorError, also after 5 s."""
        callback_id = self.new_id()
        try:
            with anyio.fail_after(_ANSWER_DEADLINE_S):
                await self.send(DISPLAY_ID, "sync", callback_id)
                while True:
                    for object_id, name, _ in await self._receive():
                        if object_id == callback_id and name == "done":
                            return
        except TimeoutError:
            raise CompositorError(f"the compositor did not answer within {_ANSWER_DEADLINE_S:g} s") from None

    async def wait_closed(self) -> None:
        """Until the compositor is gone."""
        try:
            while True:
                await self._receive()
        except CompositorError:
            return

    async def _receive(self) -> list[tuple[int, str, list[Value]]]:
        try:
            self._arrived += await self._stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise CompositorError("the compositor closed the connection") from error
        events = []
        while len(self._arrived) >= HEADER_BYTES:
            object_id, word = struct.unpack_from("=II", self._arrived)
            size_bytes = max(word >> 16, HEADER_BYTES)
            if len(self._arrived) < size_bytes:
                break
            body = bytes(self._arrived[HEADER_BYTES:size_bytes])
            del self._arrived[:size_bytes]
            spec = self._interfaces[object_id].events[word & 0xFFFF]
            events.append((object_id, spec.name, decode(spec, body)))
        for _, name, args in events:
            self._note(name, args)
        return events

    def _note(self, event: str, args: list[Value]) -> None:
        if event == "error":
            raise CompositorError(f"the compositor refused waylend's own request: {args[2]!r}")
        if event == "global":
            name, interface, version = args
            assert isinstance(name, int)
            assert isinstance(interface, bytes)
            assert isinstance(version, int)
            self.globals[interface.decode(errors="replace")] = Global(name, version)

    @property
    def offers_security_context(self) -> bool:
        return _SECURITY_CONTEXT in self.globals

    @asynccontextmanager
    async def security_context(self, listen_fd: int, *, app_id: str, instance_id: str) -> AsyncIterator[None]:
        """Has the compositor take clients from the listening socket ``listen_fd``, and know them as a sandbox's.

        It does so until the context is left. (wp_security_context_v1: engine, app id and instance id are set once, before
        ``commit``; the compositor stops listening when the other end of ``close_fd`` is closed.)
        """
        manager_id, context_id = self.new_id(), self.new_id()
        with _hang_up_when_left() as close_fd:
            await self.send(*self.bind(_SECURITY_CONTEXT, manager_id))
            await self.send(manager_id, "create_listener", context_id, listen_fd, close_fd)
            await self.send(context_id, "set_sandbox_engine", SANDBOX_ENGINE)
            await self.send(context_id, "set_app_id", app_id.encode())
            await self.send(context_id, "set_instance_id", instance_id.encode())
            await self.send(context_id, "commit")
            await self.send(context_id, "destroy")
            await self.roundtrip()
            yield


@asynccontextmanager
async def compositor_link(path: Path, tables: Mapping[str, InterfaceSpec]) -> AsyncIterator[CompositorLink]:
    """Connects and lists the globals. Raises OSError when nobody listens at ``path``, CompositorError."""
    async with await anyio.connect_unix(path) as stream:
        link = CompositorLink(stream, tables)
        await link.send(DISPLAY_ID, "get_registry", _REGISTRY_ID)
        await link.roundtrip()
        yield link


@contextmanager
def _hang_up_when_left() -> Iterator[int]:
    theirs, ours = os.pipe2(os.O_CLOEXEC)
    try:
        yield theirs
    finally:
        os.close(ours)
        os.close(theirs)
