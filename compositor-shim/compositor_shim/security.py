"""wp_security_context_v1: a sandbox's proxy brings a socket of its own, and what comes that way is known as the sandbox's."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from pywayland.protocol.security_context_v1 import WpSecurityContextManagerV1, WpSecurityContextV1

from compositor_shim.resource import Resource

if TYPE_CHECKING:
    from compositor_shim.server import Server


class SecurityContextManager(Resource):
    WIRE = WpSecurityContextManagerV1.resource_class
    server: Server

    def create_listener(self, object_id: int, listen_fd: int, close_fd: int) -> None:
        try:
            listening = socket.socket(fileno=listen_fd)
            usable = listening.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except OSError:
            usable = False
        if not usable:
            os.close(close_fd)
            raise self.violate(
                WpSecurityContextManagerV1.error.invalid_listen_fd.value, "the fd is no listening socket"
            )
        if self.connection.identity:
            listening.close()
            os.close(close_fd)
            raise self.violate(WpSecurityContextManagerV1.error.nested.value, "a sandbox in a sandbox")
        SecurityContext(self, object_id, self.server, listening, close_fd)


class SecurityContext(Resource):
    WIRE = WpSecurityContextV1.resource_class

    def __init__(
        self, parent: Resource, object_id: int, server: Server, listening: socket.socket, close_fd: int
    ) -> None:
        super().__init__(parent, object_id)
        self.server = server
        self.listening = listening
        self.close_fd = close_fd
        self.identity: dict[str, str] = {}
        self.committed = False

    def set_sandbox_engine(self, name: str) -> None:
        self._set("sandbox_engine", name)

    def set_app_id(self, app_id: str) -> None:
        self._set("app_id", app_id)

    def set_instance_id(self, instance_id: str) -> None:
        self._set("instance_id", instance_id)

    def _set(self, what: str, value: str) -> None:
        if self.committed:
            raise self.violate(WpSecurityContextV1.error.already_used.value, "the context was committed")
        if what in self.identity:
            raise self.violate(WpSecurityContextV1.error.already_set.value, f"{what} was set before")
        self.identity[what] = value

    def commit(self) -> None:
        if self.committed:
            raise self.violate(WpSecurityContextV1.error.already_used.value, "the context was committed")
        if "sandbox_engine" not in self.identity:
            raise self.violate(WpSecurityContextV1.error.invalid_metadata.value, "a context without an engine")
        self.committed = True
        listening, close_fd, server = self.listening, self.close_fd, self.server

        def hung_up() -> None:
            server.unwatch(close_fd)
            server.unwatch(listening.fileno())
            listening.close()
            os.close(close_fd)

        server.listen(listening, self.identity)
        server.watch(close_fd, hung_up)

    def gone(self) -> None:
        if not self.committed:
            self.listening.close()
            os.close(self.close_fd)
