"""SIGTERM ends `waylend serve` within two seconds, whatever hangs then; nothing of it stays."""

from __future__ import annotations

import os
import signal
import socket
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.compositors import Sway, plain_environment
from tests.live.guest import WAYLEND
from tests.processes import Process, descendants, wait_until

GET_REGISTRY = struct.pack("=III", 1, 12 << 16 | 1, 2)
ENDS_WITHIN_S = 4.0  # two, on a machine that isn't busy


@pytest.fixture
def runtime_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="guest-") as path:
        yield Path(path)


@pytest.fixture
def serve(sway: Sway, runtime_dir: Path, tmp_path: Path) -> Iterator[Process]:
    command = [*WAYLEND, "serve", "--listen", "wayland-0", "--compositor", str(sway.socket)]
    with Process(command, tmp_path / "serve.log", plain_environment(runtime_dir)) as process:
        process.wait_until(lambda: list(runtime_dir.glob("waylend/*.control")), "waylend to serve")
        yield process


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def client_of(runtime_dir: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.connect(f"{runtime_dir}/wayland-0")
    client.sendall(GET_REGISTRY)
    return client


def ends(serve: Process, runtime_dir: Path) -> None:
    serving = [pid for pid in descendants(serve.pid) if "waylend.domain.process" in command_of(pid)]
    serve.send(signal.SIGTERM)
    assert serve.wait(ENDS_WITHIN_S) == 0
    wait_until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in serving), "its processes to go")
    assert not (runtime_dir / "wayland-0").exists()


def test_while_a_client_is_there(serve: Process, runtime_dir: Path) -> None:
    with client_of(runtime_dir):
        ends(serve, runtime_dir)


def test_while_a_descriptor_of_a_client_can_not_be_closed(serve: Process, runtime_dir: Path) -> None:
    """close(2) of a socket with SO_LINGER and unsent data waits for its peer."""
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as lingering:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        lingering.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
        lingering.connect(listening.getsockname())
        lingering.setblocking(False)
        peer, _ = listening.accept()
        with peer:
            try:
                while True:
                    lingering.send(bytes(1 << 16))
            except BlockingIOError:
                pass
            lingering.setblocking(True)
            with client_of(runtime_dir) as client:
                socket.send_fds(client, [struct.pack("=III", 1, 12 << 16, 3)], [lingering.fileno()] * 20)
            # Ours goes without a wait, as long as it isn't the last.
            ends(serve, runtime_dir)
            lingering.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))


@pytest.mark.parametrize("who", ["compositor", "serving process"])
def test_while_somebody_is_stopped(serve: Process, sway: Sway, runtime_dir: Path, who: str) -> None:
    serving = [pid for pid in descendants(serve.pid) if "waylend.domain.process.server" in command_of(pid)]
    assert len(serving) == 1
    pid = sway.process.pid if who == "compositor" else serving[0]
    with client_of(runtime_dir):
        os.kill(pid, signal.SIGSTOP)
        try:
            ends(serve, runtime_dir)
        finally:
            if who == "compositor":
                os.kill(pid, signal.SIGCONT)
