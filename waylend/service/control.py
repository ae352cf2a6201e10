"""The control socket: how ``waylend leases``, ``revoke`` and others ask a running proxy.

One JSON object a line each way, over a unix socket in ``$XDG_RUNTIME_DIR/waylend``, for the proxy's own user (and root)
only. A request has a ``command``; an answer has ``ok``, and ``error`` where that is false. Whatever is asked, the proxy
survives it: connections, lines and the time for each are bounded. So is what an asker takes for an answer.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread

from waylend.domain.base import Domain, LeaseStats
from waylend.errors import LendingError, UsageError, WaylendError
from waylend.relay.endpoint import credentials_of
from waylend.relay.sockets import ListeningSocket, own_dir

logger = logging.getLogger(__name__)

_MAX_REQUEST_BYTES = 1 << 16
_MAX_ANSWER_BYTES = 1 << 26
#: How many may ask at a time; the others wait in the backlog, at most until these have had their time.
_MAX_ASKERS = 16
_LINE_DEADLINE_S = 5.0
_ANSWER_DEADLINE_S = 10.0
_PIECE_BYTES = 1 << 16

Answer = dict[str, Any]


class ControlServer:
    """Answers for the domains of one proxy. ``about`` is what it says of itself (its sockets, its pid), ``now`` what changes."""

    def __init__(
        self,
        domains: Mapping[str, Domain],
        about: Mapping[str, object],
        now: Callable[[], Mapping[str, object]] = dict,
    ) -> None:
        self._domains = domains
        self._about = about
        self._now = now
        self._commands = {"leases": self._leases, "revoke": self._revoke}
        self._askers = anyio.Semaphore(_MAX_ASKERS)
        # Of their own: nobody who asks takes the threads that the proxy itself needs.
        self._threads = anyio.CapacityLimiter(_MAX_ASKERS)

    @asynccontextmanager
    async def listening(self, path: Path) -> AsyncIterator[None]:
        """Serves at ``path`` until the context is left. Raises UsageError."""
        with closing(ListeningSocket(path, mode=0o600, locked=False)) as listening:
            listening.sock.setblocking(False)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._accept, listening.sock, tasks)
                try:
                    yield
                finally:
                    tasks.cancel_scope.cancel()

    async def _accept(self, listening: socket.socket, tasks: anyio.abc.TaskGroup) -> None:
        while True:
            await self._askers.acquire()
            peer = await self._next(listening)
            tasks.start_soon(self._serve, peer)

    async def _next(self, listening: socket.socket) -> socket.socket:
        """The next who may ask. Others are hung up on before they take anybody's place."""
        while True:
            await anyio.wait_readable(listening)
            try:
                peer, _ = listening.accept()
            except BlockingIOError:
                continue
            except OSError as error:  # no descriptors are left, or it is gone again
                logger.info("control socket: %s", error.strerror)
                await anyio.sleep(0.1)
                continue
            if credentials_of(peer)[1] in (0, os.geteuid()):
                peer.setblocking(False)
                return peer
            peer.close()

    async def _serve(self, peer: socket.socket) -> None:
        try:
            with peer:
                line = b""
                with anyio.move_on_after(_LINE_DEADLINE_S):
                    line = await _line_from(peer)
                if line:
                    # Revoking may take as long as its deadline, and must not hold up the others.
                    answer = await anyio.to_thread.run_sync(
                        self.answer, line, abandon_on_cancel=True, limiter=self._threads
                    )
                    with anyio.move_on_after(_ANSWER_DEADLINE_S):
                        await _send_all(peer, json.dumps(answer).encode() + b"\n")
        except OSError:
            pass  # who asked is gone
        finally:
            self._askers.release()

    def answer(self, line: bytes) -> Answer:
        """The answer to one request, whatever it is."""
        try:
            request = json.loads(line)
            command = self._commands.get(request["command"])
            if command is None:
                raise UsageError(f"unknown command {request['command']!r}"[:200])
            return {"ok": True, **self._about, **self._now(), **command(request)}
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            return {"ok": False, "error": f"not a request: {error}"[:200]}
        except (WaylendError, OSError) as error:
            return {"ok": False, "error": f"{error}"}
        except Exception as error:
            logger.exception("control socket: a request failed")
            return {"ok": False, "error": f"it failed: {type(error).__name__}"}

    def _leases(self, _request: Answer) -> Answer:
        return {"domains": [dataclasses.asdict(domain.stats()) for domain in self._domains.values()]}

    def _revoke(self, request: Answer) -> Answer:
        wanted = request.get("lease")  # None: all of them
        if wanted is not None and type(wanted) is not int:
            raise TypeError("lease is no number")
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


async def _line_from(peer: socket.socket) -> bytes:
    """Up to the first newline; empty when there is none, or none in so many bytes. Raises OSError."""
    line = bytearray()
    while b"\n" not in line:
        await anyio.wait_readable(peer)
        piece = peer.recv(_PIECE_BYTES)
        line += piece
        if not piece or len(line) > _MAX_REQUEST_BYTES:
            return b""
    return bytes(line)


async def _send_all(peer: socket.socket, octets: bytes) -> None:
    while octets:
        await anyio.wait_writable(peer)
        octets = octets[peer.send(octets[:_PIECE_BYTES]) :]


def ask(path: Path, command: str, **arguments: object) -> Answer:
    """One request to the proxy whose control socket is ``path``.

    Raises UsageError: with the proxy's own words, or with what is wrong with the proxy or its answer.
    """
    try:
        line = _asked(path, json.dumps({"command": command, **arguments}).encode() + b"\n")
    except TimeoutError:
        raise UsageError(f"{path}: no answer within {_ANSWER_DEADLINE_S:g} s: is the proxy stopped?") from None
    except OSError as error:
        raise UsageError(f"{path}: no proxy answers there: {error.strerror or error}") from error
    if not line:
        raise UsageError(f"{path}: the proxy gave no answer")
    try:
        answer = json.loads(line)
        ok, error_text = answer["ok"], answer.get("error", "")
        if ok:
            _check(command, answer)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UsageError(f"{path}: what answers there is no proxy of this version") from error
    if not ok:
        raise UsageError(f"{error_text}"[:1000])
    assert isinstance(answer, dict)
    return answer


def answers_of(paths: Iterable[Path], command: str, **arguments: object) -> tuple[list[Answer], bool]:
    """What each proxy answers, and whether one gave none: a warning says which, and the others are heard all the same."""
    answers: list[Answer] = []
    failed = False
    for path in paths:
        try:
            answers.append(ask(path, command, **arguments))
        except UsageError as error:
            logger.warning("%s", error)
            failed = True
    return answers, failed


def _asked(path: Path, request: bytes) -> bytes:
    """The line that answers; empty when there is none. All of it within the deadline. Raises OSError."""
    give_up_at = time.monotonic() + _ANSWER_DEADLINE_S
    answer = bytearray()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(_ANSWER_DEADLINE_S)
        sock.connect(os.fspath(path))
        sock.sendall(request)
        while len(answer) <= _MAX_ANSWER_BYTES:
            left_s = give_up_at - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            sock.settimeout(left_s)
            piece = sock.recv(_PIECE_BYTES)
            answer += piece
            if not piece or b"\n" in piece:
                break
    line, newline, _ = bytes(answer).partition(b"\n")
    return line if newline else b""


def _check(command: str, answer: Answer) -> None:
    """That what prints an answer finds in it what it prints. Raises KeyError, TypeError."""
    wanted: dict[str, type] = {"pid": int, "listen": list, "compositor": str}
    if command == "revoke":
        wanted |= {"pages_revoked": int, "leases_revoked": int}
    _check_fields(answer, wanted)
    if command == "leases":
        _check_fields(answer, {"domains": list})
        figures = {field.name: str if field.type == "str" else int for field in dataclasses.fields(LeaseStats)}
        for domain in answer["domains"]:
            _check_fields(domain, {"name": str, "mechanism": str, "aperture_pages": int, "leases": list})
            for lease in domain["leases"]:
                _check_fields(lease, figures)


def _check_fields(found: Any, wanted: Mapping[str, type]) -> None:
    for name, kind in wanted.items():
        if not isinstance(found[name], kind):
            raise TypeError(name)


def running_proxies(environ: Mapping[str, str] = os.environ) -> list[Path]:
    """The control sockets that somebody answers; those of dead proxies are removed. Raises UsageError."""
    found = []
    for path in sorted(own_dir(environ, make=False).glob("*.control")):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
            try:
                sock.connect(os.fspath(path))
                found.append(path)
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)
            except BlockingIOError:  # it has no time for us just now
                found.append(path)
            except OSError:
                continue
    return found
