"""How the shim is driven from outside: JSON objects, one a line each way, over a unix socket.

A request has a ``command``; an answer has ``ok``, and ``error`` where that is false. ``api`` is the other end. Whoever may
connect to the socket may do everything, so it is for the shim's own user only.
"""

from __future__ import annotations

import array
import base64
import io
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compositor_shim import keymap
from compositor_shim.compositor import Compositor
from compositor_shim.selection import Board, OwnContent
from compositor_shim.server import Server
from compositor_shim.shell import Toplevel

# linux/input-event-codes.h
BUTTONS = {"left": 0x110, "right": 0x111, "middle": 0x112}

Message = dict[str, Any]


class Control:
    """The commands, each a method that takes the request (and the fd that came with it, or -1) and returns the answer."""

    def __init__(self, server: Server, compositor: Compositor) -> None:
        self._server = server
        self._compositor = compositor
        self._commands: dict[str, Callable[[Message, int], Message]] = {
            "status": self._status,
            "windows": self._windows,
            "clients": self._clients,
            "errors": self._errors,
            "screenshot": self._screenshot,
            "type": self._type,
            "key": self._key,
            "pointer": self._pointer,
            "button": self._button,
            "scroll": self._scroll,
            "touch": self._touch,
            "close": self._close,
            "resize": self._resize,
            "set_keymap": self._set_keymap,
            "set_selection": self._set_selection,
            "selection": self._selection,
        }

    def answer(self, line: bytes, fd: int = -1) -> Message:
        """The answer to one request."""
        try:
            request = json.loads(line)
            return {"ok": True, **self._commands[request["command"]](request, fd)}
        except (ValueError, TypeError, KeyError, LookupError) as error:
            return {"ok": False, "error": f"{type(error).__name__}: {error}"}

    # What there is

    def _status(self, _request: Message, _fd: int) -> Message:
        compositor = self._compositor
        return {"size": compositor.size, "scale": compositor.screen.scale, "frames": compositor.frames}

    def _windows(self, _request: Message, _fd: int) -> Message:
        focus = self._compositor.seat.keyboard_focus
        return {
            "windows": [
                {
                    "number": window.number,
                    "client": window.connection.number,
                    "title": window.title,
                    "app_id": window.app_id,
                    "position": window.position,
                    "size": window.shell.box()[2:],
                    "focused": window.surface is focus,
                }
                for window in self._compositor.windows
            ]
        }

    def _clients(self, _request: Message, _fd: int) -> Message:
        return {
            "clients": [
                {"number": connection.number, "identity": connection.identity, "objects": len(connection.resources)}
                for connection in self._server.connections.values()
            ]
        }

    def _errors(self, _request: Message, _fd: int) -> Message:
        return {"violations": self._server.violations, "bugs": self._server.bugs}

    def _screenshot(self, _request: Message, _fd: int) -> Message:
        png = io.BytesIO()
        self._compositor.picture().save(png, "PNG", compress_level=1)
        return {"png": base64.b64encode(png.getvalue()).decode()}

    # Input

    def _type(self, request: Message, _fd: int) -> Message:
        self._compositor.seat.type_text(request["text"])
        return {}

    def _key(self, request: Message, _fd: int) -> Message:
        code = keymap.key_named(request["key"])
        self._compositor.seat.key(code, bool(request["pressed"]))
        return {}

    def _pointer(self, request: Message, _fd: int) -> Message:
        self._compositor.move_pointer(float(request["x"]), float(request["y"]))
        return {}

    def _button(self, request: Message, _fd: int) -> Message:
        self._compositor.button(BUTTONS[request["button"]], bool(request["pressed"]))
        return {}

    def _scroll(self, request: Message, _fd: int) -> Message:
        self._compositor.seat.scroll(int(request["steps"]), horizontal=bool(request["horizontal"]))
        return {}

    def _touch(self, request: Message, _fd: int) -> Message:
        number = int(request["finger"])
        if request["action"] == "up":
            self._compositor.seat.touch_up(number)
            return {}
        at = (float(request["x"]), float(request["y"]))
        if request["action"] == "down":
            self._compositor.touch_down(number, *at)
        else:
            self._compositor.touch_move(number, *at)
        return {}

    # Windows

    def _window(self, request: Message) -> Toplevel:
        for window in self._compositor.windows:
            if window.number == request["window"]:
                return window
        raise LookupError(f"there is no window {request['window']}")

    def _close(self, request: Message, _fd: int) -> Message:
        self._window(request).send("close")
        return {}

    def _resize(self, request: Message, _fd: int) -> Message:
        self._window(request).resize(int(request["width"]), int(request["height"]))
        return {}

    # Keymap and selections

    def _set_keymap(self, request: Message, _fd: int) -> Message:
        self._compositor.seat.set_keymap(str(request["comment"]))
        return {}

    def _board(self, request: Message) -> Board:
        return {"clipboard": self._compositor.clipboard, "primary": self._compositor.primary}[request["which"]]

    def _set_selection(self, request: Message, _fd: int) -> Message:
        content = {mime: base64.b64decode(text) for mime, text in request["content"].items()}
        self._board(request).set(OwnContent(content) if content else None, self._compositor.seat.keyboard_focus)
        return {}

    def _selection(self, request: Message, fd: int) -> Message:
        """What types there are; with a type and a pipe's writing end, has that content written into the pipe."""
        content = self._board(request).content
        types = [] if content is None else content.types
        mime = request.get("mime")
        if mime is not None and fd >= 0:
            if content is None or mime not in types:
                raise LookupError(f"the {request['which']} has no {mime}")
            content.write_to(mime, os.dup(fd))
        return {"types": types}


class ControlSocket:
    """Listens at ``path`` on the server's loop. ``close`` removes the socket."""

    def __init__(self, server: Server, control: Control, path: Path) -> None:
        self._server = server
        self._control = control
        self._path = path
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        path.unlink(missing_ok=True)
        old = os.umask(0o077)
        try:
            self._sock.bind(os.fspath(path))
        finally:
            os.umask(old)
        self._sock.listen()
        server.watch(self._sock.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            sock, _ = self._sock.accept()
        except OSError:
            return
        buffer = bytearray()
        self._server.watch(sock.fileno(), lambda: self._receive(sock, buffer))

    def _receive(self, sock: socket.socket, buffer: bytearray) -> None:
        fds: array.array[int] = array.array("i")
        try:
            chunk, ancillary, _, _ = sock.recvmsg(1 << 16, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
        except OSError:
            chunk, ancillary = b"", []
        for _level, _kind, content in ancillary:
            fds.frombytes(content[: len(content) // 4 * 4])
        buffer += chunk
        try:
            while b"\n" in buffer:
                line, _, rest = buffer.partition(b"\n")
                buffer[:] = rest
                answer = self._control.answer(bytes(line), fds[0] if fds else -1)
                sock.settimeout(5)  # a big screenshot goes in several pieces; the reader is our own user
                sock.sendall(json.dumps(answer).encode() + b"\n")
        except OSError:
            chunk = b""
        finally:
            for fd in fds:
                os.close(fd)
        if not chunk:
            self._server.unwatch(sock.fileno())
            sock.close()

    def close(self) -> None:
        self._server.unwatch(self._sock.fileno())
        self._sock.close()
        self._path.unlink(missing_ok=True)
