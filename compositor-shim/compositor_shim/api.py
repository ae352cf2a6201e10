"""Driving a shim from a test: start it, wait for a window, look at its pixels, type, click.

Everything here is plain and synchronous, and each wait has a deadline (``TimeoutError`` names what didn't come). The shim
is a process of its own: what its clients do to it doesn't happen to the test.
"""

from __future__ import annotations

import base64
import io
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from PIL import Image

DEADLINE_S = 20.0
_POLL_S = 0.01
_END_S = 5.0

T = TypeVar("T")


class ShimError(Exception):
    """The shim didn't start, ended early, or refused a request."""


@dataclass(frozen=True)
class Window:
    """A mapped toplevel. ``position`` and ``size``: its window geometry on the screen, in logical pixels."""

    number: int
    client: int
    title: str
    app_id: str
    position: tuple[int, int]
    size: tuple[int, int]
    focused: bool

    @property
    def centre(self) -> tuple[float, float]:
        return (self.position[0] + self.size[0] / 2, self.position[1] + self.size[1] / 2)


class Shim:
    """A running compositor-shim, as a context manager.

    ``socket``: an absolute path for it; by default ``wayland-0`` in a private folder. ``environ`` is what a client needs
    to come to it. ``keymap_from``: "memfd" or "file".
    """

    def __init__(
        self,
        *,
        socket: Path | str | None = None,
        size: tuple[int, int] = (1280, 800),
        scale: int = 1,
        keymap_from: str = "memfd",
    ) -> None:
        """Raises ShimError when it doesn't start."""
        self._folder = Path(tempfile.mkdtemp(prefix="compositor-shim-"))
        self.socket = Path(socket) if socket else self._folder / "wayland-0"
        self._control_path = self._folder / "control"
        self._log_path = self._folder / "log"
        argv = [sys.executable, "-m", "compositor_shim", "--verbose", "--socket", f"{self.socket}"]
        argv += ["--size", f"{size[0]}x{size[1]}", "--scale", f"{scale}", "--keymap-from", keymap_from]
        argv += ["--control", f"{self._control_path}"]
        with open(self._log_path, "wb") as log:
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            self._control = self._connected()
        except BaseException:
            self.stop()
            raise

    def _connected(self) -> _Line:
        def connect() -> _Line | None:
            if self._process.poll() is not None:
                raise ShimError(f"the shim ended with status {self._process.returncode}: {self.log()}")
            try:
                return _Line(self._control_path)
            except OSError:
                return None

        return _until(connect, "the shim's control socket", DEADLINE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # The process

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def environ(self) -> dict[str, str]:
        """What of the environment tells a client to come here."""
        return {"WAYLAND_DISPLAY": f"{self.socket}"}

    def log(self) -> str:
        return self._log_path.read_text(errors="replace")

    def stop(self) -> None:
        """Ends the shim and removes its files. Idempotent."""
        if hasattr(self, "_control"):
            self._control.close()
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_END_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def crash(self) -> None:
        """Ends it as a crash would: no client is told anything."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    # What it shows

    def windows(self) -> list[Window]:
        """The mapped toplevels, bottom to top."""
        return [
            Window(**{**found, "position": tuple(found["position"]), "size": tuple(found["size"])})
            for found in self._ask("windows")["windows"]
        ]

    def wait_for_window(
        self, *, title: str | None = None, app_id: str | None = None, deadline_s: float = DEADLINE_S
    ) -> Window:
        """The topmost window whose title and app-id contain these. Raises TimeoutError."""

        def found() -> Window | None:
            for window in reversed(self.windows()):
                if (title or "") in window.title and (app_id or "") in window.app_id:
                    return window
            return None

        return _until(found, f"a window with title {title!r}, app-id {app_id!r}", deadline_s, self._tell)

    def wait_for_no_window(self, *, deadline_s: float = DEADLINE_S) -> None:
        """Raises TimeoutError."""
        _until(lambda: not self.windows() or None, "the end of all windows", deadline_s, self._tell)

    def screenshot(self, window: Window | None = None) -> Image.Image:
        """The screen, or a window's part of it, RGB."""
        png = base64.b64decode(self._ask("screenshot")["png"])
        picture = Image.open(io.BytesIO(png)).convert("RGB")
        if window is None:
            return picture
        scale = int(self.status()["scale"])
        left, top = (scale * value for value in window.position)
        return picture.crop((left, top, left + scale * window.size[0], top + scale * window.size[1]))

    def wait_for_picture(
        self, looks_right: Callable[[Image.Image], bool], *, what: str = "the picture", deadline_s: float = DEADLINE_S
    ) -> Image.Image:
        """The first screenshot of which ``looks_right`` says so. Raises TimeoutError."""

        def found() -> Image.Image | None:
            picture = self.screenshot()
            return picture if looks_right(picture) else None

        return _until(found, what, deadline_s, self._tell)

    def status(self) -> dict[str, Any]:
        """``size``, ``scale``, ``frames`` so far."""
        return self._ask("status")

    def clients(self) -> list[dict[str, Any]]:
        """``number``, ``identity`` (of its security context: sandbox_engine, app_id, instance_id), ``objects``."""
        found: list[dict[str, Any]] = self._ask("clients")["clients"]
        return found

    def protocol_errors(self) -> list[dict[str, Any]]:
        """What clients did wrong: ``client``, ``object``, ``code``, ``message``. Raises ShimError for a bug of the shim's."""
        answer = self._ask("errors")
        if answer["bugs"]:
            raise ShimError("\n".join(answer["bugs"]))
        found: list[dict[str, Any]] = answer["violations"]
        return found

    # Input

    def type_text(self, text: str) -> None:
        """Into the focused window, US layout; newline is Return. Raises ShimError for what that has no key for."""
        self._ask("type", text=text)

    def press_key(self, *keys: str) -> None:
        """Presses keys by XKB name (``Return``, ``F1``) or character, in order, then lets them go: a chord."""
        for key in keys:
            self._ask("key", key=key, pressed=True)
        for key in reversed(keys):
            self._ask("key", key=key, pressed=False)

    def move_to(self, x: float, y: float) -> None:
        """The pointer, in logical pixels of the screen."""
        self._ask("pointer", x=x, y=y)

    def button(self, button: str = "left", *, pressed: bool) -> None:
        """``left``, ``right`` or ``middle``."""
        self._ask("button", button=button, pressed=pressed)

    def click(self, x: float, y: float, button: str = "left") -> None:
        self.move_to(x, y)
        self.button(button, pressed=True)
        self.button(button, pressed=False)

    def scroll(self, steps: int, *, horizontal: bool = False) -> None:
        """Of a wheel; positive is down, or right."""
        self._ask("scroll", steps=steps, horizontal=horizontal)

    def touch(self, action: str, x: float = 0, y: float = 0, *, finger: int = 0) -> None:
        """``down``, ``move`` or ``up``."""
        self._ask("touch", action=action, x=x, y=y, finger=finger)

    # Windows, keymap, selections

    def close_window(self, window: Window) -> None:
        """Asks its client to close it."""
        self._ask("close", window=window.number)

    def resize(self, window: Window, width: int, height: int) -> None:
        """Asks its client for another size."""
        self._ask("resize", window=window.number, width=width, height=height)

    def set_keymap(self, comment: str) -> None:
        """All keyboards get another keymap: the same keys, and ``comment`` in its text."""
        self._ask("set_keymap", comment=comment)

    def set_selection(self, content: Mapping[str, bytes], *, which: str = "clipboard") -> None:
        """What the shim offers, by MIME type; ``which``: clipboard or primary. Empty: no selection."""
        packed = {mime: base64.b64encode(value).decode() for mime, value in content.items()}
        self._ask("set_selection", which=which, content=packed)

    def selection_types(self, *, which: str = "clipboard") -> list[str]:
        """The MIME types that the selection is offered in."""
        types: list[str] = self._ask("selection", which=which)["types"]
        return types

    def selection(self, mime: str, *, which: str = "clipboard", deadline_s: float = DEADLINE_S) -> bytes:
        """The selection's content, whoever holds it. Raises ShimError when there is none of that type, TimeoutError."""
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            try:
                self._ask("selection", fd=writing, which=which, mime=mime)
            finally:
                os.close(writing)
            return _read_all(reading, deadline_s)
        finally:
            os.close(reading)

    def _ask(self, command: str, *, fd: int = -1, **arguments: object) -> dict[str, Any]:
        answer = self._control.ask({"command": command, **arguments}, fd)
        if not answer["ok"]:
            raise ShimError(answer["error"])
        return answer

    def _tell(self) -> str:
        return f"windows: {[window.title for window in self.windows()]}, errors: {self.protocol_errors()}"


class _Line:
    """The control socket, connected."""

    def __init__(self, path: Path) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._sock.settimeout(DEADLINE_S)
            self._sock.connect(os.fspath(path))
        except OSError:
            self._sock.close()
            raise
        self._stream = self._sock.makefile("rb")

    def ask(self, request: dict[str, object], fd: int) -> dict[str, Any]:
        try:
            line = json.dumps(request).encode() + b"\n"
            sent = socket.send_fds(self._sock, [line], [fd]) if fd >= 0 else 0
            self._sock.sendall(line[sent:])
            answer = self._stream.readline()
        except OSError as error:
            raise ShimError(f"the shim doesn't answer: {error}") from error
        if not answer:
            raise ShimError("the shim is gone")
        found: dict[str, Any] = json.loads(answer)
        return found

    def close(self) -> None:
        self._stream.close()
        self._sock.close()


def _read_all(fd: int, deadline_s: float) -> bytes:
    content = bytearray()
    end = time.monotonic() + deadline_s
    while True:
        if not select.select([fd], [], [], max(0.0, end - time.monotonic()))[0]:
            raise TimeoutError(f"the selection's content stopped after {len(content)} bytes")
        chunk = os.read(fd, 1 << 16)
        if not chunk:
            return bytes(content)
        content += chunk


def _until(condition: Callable[[], T | None], what: str, deadline_s: float, tell: Callable[[], str] | None = None) -> T:
    """The first result that isn't None."""
    end = time.monotonic() + deadline_s
    while True:
        result = condition()
        if result is not None:
            return result
        if time.monotonic() > end:
            raise TimeoutError(f"{what} didn't come within {deadline_s:g} s; {tell() if tell else ''}")
        time.sleep(_POLL_S)
