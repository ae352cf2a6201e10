"""Descriptors whose close(2) waits for somebody, for tests that must not."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.processes import DEADLINE_S, absent

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def sending_a_fuse_file(refuses: str, into: socket.socket) -> Iterator[None]:
    """Has somebody send a descriptor of its FUSE file through ``into``, and serve it as ``stranger.py`` says.

    No process of ours may be started while this one has that descriptor: to start it would close a copy.
    """
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        absent("/dev/fuse is not there for us")
    stranger = subprocess.Popen(
        [sys.executable, f"{ROOT / 'tests/foreign/stranger.py'}", f"{into.fileno()}", refuses],
        stdin=subprocess.PIPE,
        pass_fds=(into.fileno(),),
        env={**os.environ, "PYTHONPATH": f"{ROOT}"},
    )
    try:
        yield
    finally:
        assert stranger.stdin is not None
        stranger.stdin.close()
        assert stranger.wait(DEADLINE_S) == 0


@contextlib.contextmanager
def fuse_file(refuses: str) -> Iterator[int]:
    """A descriptor of such a file; closed when its file system is gone, and so without waiting."""
    ours, theirs = socket.socketpair()
    with ours, theirs, contextlib.ExitStack() as stack, sending_a_fuse_file(refuses, theirs):
        ours.settimeout(DEADLINE_S)
        _, (fd,), _, _ = socket.recv_fds(ours, 1, 1)
        stack.callback(close_now, fd)
        yield fd


def close_now(fd: int) -> None:
    """Of a file whose file system is gone: the error says so, and the descriptor is closed."""
    with contextlib.suppress(OSError):
        os.close(fd)


@contextlib.contextmanager
def lingering_socket() -> Iterator[int]:
    """A TCP socket with data that its peer never reads: its last close waits for 30 s (SO_LINGER, socket(7))."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client = socket.create_connection(server.getsockname())
        peer, _ = server.accept()
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                client.send(bytes(1 << 16))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 30))
        fd = client.detach()
        try:
            yield fd
        finally:
            peer.close()  # what is unread makes this a reset: nobody waits any more
            with contextlib.suppress(OSError):
                os.close(fd)
