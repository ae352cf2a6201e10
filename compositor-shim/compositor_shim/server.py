"""The compositor's process: its display, its clients, its loop, and the book of what went wrong.

What the globals mean is in the modules that ``compositor`` puts together; here they are only announced and bound.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable
from typing import Any

from pywayland import ffi, lib
from pywayland.server.display import Display
from pywayland.server.eventloop import EventLoop
from pywayland.server.listener import Listener

from compositor_shim.resource import Connection, ProtocolViolation, Resource

logger = logging.getLogger("compositor_shim")

_READABLE = EventLoop.FdMask.WL_EVENT_READABLE


class Server:
    """Owns the display. ``violations``: what clients did wrong; ``bugs``: what we did."""

    def __init__(self) -> None:
        self.display = Display()
        self._pointer: Any = self.display._ptr
        self._loop = self.display.get_event_loop()
        self.connections: dict[int, Connection] = {}
        self.violations: list[dict[str, Any]] = []
        self.bugs: list[str] = []
        self.running = True
        #: Called with each client that leaves, while its objects are still there.
        self.on_leave: Callable[[Connection], None] = lambda _: None
        self._numbers = 0
        self._globals: list[Any] = []
        self._sources: dict[int, Any] = {}
        self._listeners: dict[int, Listener] = {}
        self._due: list[tuple[float, Callable[[], None]]] = []

    # Recorder

    def violation(self, resource: Resource, error: ProtocolViolation) -> None:
        self.violations.append(
            {
                "client": resource.connection.number,
                "object": resource.name,
                "code": error.code,
                "message": error.text,
            }
        )

    def bug(self, text: str) -> None:
        self.bugs.append(text)
        logger.error("%s", text)

    # Globals and clients

    def announce(self, kind: type[Resource], version: int, made: Callable[[Resource], None] | None = None) -> None:
        """Announces a global; ``made`` is called with each object that a client binds to it."""
        interface = kind.WIRE.interface
        announced = interface.global_class(self.display, version)

        def bound(wire: Any) -> None:
            try:
                pointer = lib.wl_resource_get_client(wire._ptr)
                resource = kind(self.connections[_address(pointer)], bound=wire)
                if made is not None:
                    made(resource)
            except Exception:
                self.bug(f"bind of {interface.name}: {traceback.format_exc()}")

        announced.bind_func = bound
        self._globals.append(announced)

    def listen(self, listening: socket.socket, identity: dict[str, str] | None = None) -> None:
        """Takes clients from a listening socket, whose owner stays the caller."""
        listening.setblocking(False)
        self.watch(listening.fileno(), lambda: self._accept(listening, identity or {}))

    def _accept(self, listening: socket.socket, identity: dict[str, str]) -> None:
        try:
            sock, _ = listening.accept()
        except OSError:
            return
        sock.setblocking(False)
        pointer = lib.wl_client_create(self._pointer, sock.detach())
        if pointer == ffi.NULL:
            return
        self._numbers += 1
        connection = Connection(pointer, self, self._numbers)
        connection.identity = identity
        key = _address(pointer)
        self.connections[key] = connection
        listener = self._listeners[key] = Listener(lambda *_: self._client_gone(key))
        assert listener._ptr is not None
        lib.wl_client_add_destroy_listener(pointer, listener._ptr)

    def _client_gone(self, key: int) -> None:
        self._listeners.pop(key).remove()
        connection = self.connections[key]
        self.on_leave(connection)
        del self.connections[key]
        # libwayland destroys the objects after this; what they do when they are gone still finds the connection.
        logger.debug("client %d is gone", connection.number)

    # The loop

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Calls ``callback`` whenever ``fd`` can be read."""

        def safely(*_: object) -> int:
            try:
                callback()
            except Exception:
                self.bug(traceback.format_exc())
            return 0

        self._sources[fd] = self._loop.add_fd(fd, safely, _READABLE, None)

    def unwatch(self, fd: int) -> None:
        """Before ``fd`` is closed."""
        source = self._sources.pop(fd, None)
        if source is not None:
            source.remove()

    def after(self, delay_s: float, callback: Callable[[], None]) -> None:
        self._due.append((time.monotonic() + delay_s, callback))
        self._due.sort(key=lambda due: due[0])

    def stop_at_signals(self) -> None:
        """From now on SIGTERM, SIGINT and SIGHUP are ``stop``, also those that come before ``run``."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: self.stop())

    def run(self) -> None:
        """Until ``stop``."""
        # A signal must also end a dispatch that sleeps: Python's handler alone would not.
        reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(writing)
        self.watch(reading, lambda: _drain(reading))
        try:
            while self.running:
                self.display.flush_clients()
                self._loop.dispatch(self._timeout_ms())
                self._run_due()
        finally:
            signal.set_wakeup_fd(-1)
            self.unwatch(reading)
            os.close(reading)
            os.close(writing)

    def stop(self) -> None:
        self.running = False

    def close(self) -> None:
        """Ends all clients."""
        for fd in list(self._sources):
            self.unwatch(fd)
        lib.wl_display_destroy_clients(self._pointer)

    def _timeout_ms(self) -> int:
        return -1 if not self._due else max(0, round((self._due[0][0] - time.monotonic()) * 1000) + 1)

    def _run_due(self) -> None:
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            _, callback = self._due.pop(0)
            try:
                callback()
            except Exception:
                self.bug(traceback.format_exc())


def _drain(fd: int) -> None:
    os.read(fd, 64)


def _address(pointer: Any) -> int:
    return int(ffi.cast("uintptr_t", pointer))


def now_ms() -> int:
    """The time that events carry: CLOCK_MONOTONIC, as an unsigned 32-bit count."""
    return time.monotonic_ns() // 1_000_000 & 0xFFFFFFFF
