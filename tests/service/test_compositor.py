"""What a half or a proxy tells the compositor of its guest, and what it says where the compositor then hides what was allowed."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from tests.relay.between import Peer
from waylend.policy import Policy
from waylend.service.compositor import CompositorSocket, keep_in_touch
from waylend.wire.tables import load_tables

LAYER_SHELL, CAPTURE, CONTEXTS = "zwlr_layer_shell_v1", "zwlr_screencopy_manager_v1", "wp_security_context_manager_v1"
REGISTRY, SYNC = 2, 3


def announce(peer: Peer, *interfaces: str) -> None:
    """Plays a compositor up to the answer of the first sync."""
    peer.receive("wl_display.get_registry")
    for name, interface in enumerate(interfaces, 1):
        peer.send("wl_registry.global", REGISTRY, name, interface.encode(), 1)
    peer.receive("wl_display.sync")
    peer.send("wl_callback.done", SYNC, 0)


class WithPrivileges:
    """A compositor that shows its layer shell to whom it takes for the user's own, as sway 1.9 does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.contexts = 0
        self.beside: list[str] = []
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.bind(str(path))
        sock.listen()
        self._listening = [sock]
        self._peers: list[Peer] = []
        self._thread = threading.Thread(target=self._play)
        self._thread.start()

    def _accept(self) -> Peer:
        self._peers.append(Peer(self._listening[-1].accept()[0]))
        return self._peers[-1]

    def _play(self) -> None:
        try:
            proxy = self._accept()
            announce(proxy, "wl_compositor", LAYER_SHELL, CAPTURE, CONTEXTS)
            proxy.receive("wl_registry.bind")
            self.contexts += 1
            proxy.receive("wp_security_context_manager_v1.create_listener")
            for request in ("set_sandbox_engine", "set_app_id", "set_instance_id", "commit", "destroy"):
                proxy.receive(f"wp_security_context_v1.{request}")
            _, (callback_id,) = proxy.receive("wl_display.sync")
            assert isinstance(callback_id, int)
            proxy.send("wl_callback.done", callback_id, 0)
            self._listening.append(socket.socket(fileno=proxy.fds.pop(0)))
            announce(self._accept(), "wl_compositor", CAPTURE)
            self.beside = os.listdir(self.path.parent)
        except (EOFError, OSError):
            pass  # it asked for no more

    def close(self) -> None:
        for sock in (*self._listening, *(peer.sock for peer in self._peers)):
            sock.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        for sock in self._listening:
            sock.close()
        for peer in self._peers:
            peer.close()


@pytest.fixture
def compositor() -> Iterator[WithPrivileges]:
    with tempfile.TemporaryDirectory() as folder:
        compositor = WithPrivileges(Path(folder) / "wayland-1")
        yield compositor
        compositor.close()


def said_to(compositor: WithPrivileges, policy: Policy, caplog: pytest.LogCaptureFixture) -> list[str]:
    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            where = CompositorSocket.named(str(compositor.path))
            with anyio.fail_after(20):
                await tasks.start(keep_in_touch, where, anyio.Event(), load_tables(), "guest", policy, True)
            tasks.cancel_scope.cancel()

    with caplog.at_level(logging.WARNING):
        anyio.run(main)
    return [record.getMessage() for record in caplog.records]


def test_allowing_what_the_compositor_hides_from_guests_is_said(
    compositor: WithPrivileges, caplog: pytest.LogCaptureFixture
) -> None:
    (said,) = said_to(compositor, Policy(allow=("zwlr_*",)), caplog)
    assert f"hides {LAYER_SHELL} from clients with a security context" in said
    assert "--no-security-context" in said
    assert CAPTURE not in said
    assert compositor.contexts == 1
    assert compositor.beside == ["wayland-1"], "what somebody who is killed would leave"


@pytest.mark.parametrize("allow", [(), (CAPTURE,)])
def test_what_it_does_not_hide_or_nobody_allowed_is_no_news(
    compositor: WithPrivileges, caplog: pytest.LogCaptureFixture, allow: tuple[str, ...]
) -> None:
    assert said_to(compositor, Policy(allow=allow), caplog) == []
    assert compositor.contexts == 1


def test_a_policy_may_keep_it_to_itself_that_this_is_a_guest(
    compositor: WithPrivileges, caplog: pytest.LogCaptureFixture
) -> None:
    assert said_to(compositor, Policy(allow=(LAYER_SHELL,), security_context=False), caplog) == []
    assert compositor.contexts == 0


def test_nobody_gets_in_around_the_security_context(compositor: WithPrivileges) -> None:
    """A client that was held while the compositor was away must not be let in before it would be known as a guest's."""

    async def main() -> None:
        where = CompositorSocket.named(str(compositor.path))
        with pytest.raises(ConnectionRefusedError):
            where.new_connection()
        async with anyio.create_task_group() as tasks:
            with anyio.fail_after(20):
                await tasks.start(keep_in_touch, where, anyio.Event(), load_tables(), "guest", Policy(), True)
            with where.new_connection() as sock:
                assert sock.getpeername() != str(compositor.path)
            tasks.cancel_scope.cancel()
        with pytest.raises(ConnectionRefusedError):
            where.new_connection()

    anyio.run(main)
