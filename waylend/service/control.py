"""The control socket: how ``waylend leases``, ``revoke`` and others ask a running proxy.

One JSON object a line each way, over a unix socket in ``$XDG_RUNTIME_DIR/waylend``, for the proxy's own user (and root)
only. A request has a ``command``; an answer has ``ok``, and ``error`` where that is false.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.abc

from waylend.domain.base import Domain
from waylend.errors import LendingError, UsageError, WaylendError
from waylend.relay.endpoint import credentials_of
from waylend.relay.sockets import runtime_dir

logger = logging.getLogger(__name__)

_MAX_LINE_BYTES = 1 << 20
_ANSWER_DEADLINE_S = 10.0

Answer = dict[str, Any]


def control_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the control sockets are, made on first use. Raises UsageError."""
    path = runtime_dir(environ) / "waylend"
    path.mkdir(mode=0o700, exist_ok=True)
    return path


class ControlServer:
    """Answers for the domains of one proxy. ``about`` is what it says of itself (its sockets, its pid)."""

    def __init__(self, domains: Mapping[str, Domain], about: Mapping[str, object]) -> None:
        self._domains = domains
        self._about = about
        self._commands = {"leases": self._leases, "revoke": self._revoke}

    @asynccontextmanager
    async def listening(self, path: Path) -> AsyncIterator[None]:
        """Serves at ``path`` until the context is left."""
        async with await anyio.create_unix_listener(path, mode=0o600) as listener, anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, self._serve)
            try:
                yield
            finally:
                tasks.cancel_scope.cancel()
                path.unlink(missing_ok=True)

    async def _serve(self, stream: anyio.abc.SocketStream) -> None:
        async with stream:
            peer = stream.extra(anyio.abc.SocketAttribute.raw_socket)  # noqa: S610 (not Django)
            if credentials_of(peer)[1] not in (0, os.geteuid()):
                return
            line = bytearray()
            try:
                while b"\n" not in line:
                    if len(line) > _MAX_LINE_BYTES:
                        return
                    line += await stream.receive()
                # Revoking may take as long as its deadline, and must not hold up the others.
                answer = await anyio.to_thread.run_sync(self.answer, bytes(line))
                await stream.send(json.dumps(answer).encode() + b"\n")
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return

    def answer(self, line: bytes) -> Answer:
        """The answer to one request."""
        try:
            request = json.loads(line)
            command = self._commands.get(request["command"])
            if command is None:
                raise UsageError(f"unknown command {request['command']!r}")
            return {"ok": True, **self._about, **command(request)}
        except (ValueError, TypeError, KeyError) as error:
            return {"ok": False, "error": f"not a request: {error}"}
        except WaylendError as error:
            return {"ok": False, "error": f"{error}"}

    def _leases(self, _request: Answer) -> Answer:
        return {"domains": [dataclasses.asdict(domain.stats()) for domain in self._domains.values()]}

    def _revoke(self, request: Answer) -> Answer:
        wanted = request.get("lease")  # None: all of them
        revoked = pages = 0
        for domain in self._domains.values():
            if wanted is None:
                revoked += len(domain.stats().leases)
                pages += domain.revoke_all()
            elif (lease := domain.lease(wanted)) is not None:
                pages += domain.revoke(lease)
                revoked += 1
        if wanted is not None and not revoked:
            raise LendingError(f"there is no lease {wanted}")
        return {"leases_revoked": revoked, "pages_revoked": pages}


def ask(path: Path, command: str, **arguments: object) -> Answer:
    """One request to the proxy whose control socket is ``path``. Raises OSError, UsageError with the proxy's own words."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(_ANSWER_DEADLINE_S)
        sock.connect(os.fspath(path))
        sock.sendall(json.dumps({"command": command, **arguments}).encode() + b"\n")
        with sock.makefile("rb") as stream:
            line = stream.readline()
    if not line:
        raise UsageError(f"{path}: the proxy gave no answer")
    answer: Answer = json.loads(line)
    if not answer["ok"]:
        raise UsageError(str(answer["error"]))
    return answer


def running_proxies(environ: Mapping[str, str] = os.environ) -> list[Path]:
    """The control sockets that somebody answers; those of dead proxies are removed. Raises UsageError."""
    found = []
    for path in sorted(control_dir(environ).glob("*.control")):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            try:
                sock.connect(os.fspath(path))
                found.append(path)
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)
            except OSError:
                continue
    return found
