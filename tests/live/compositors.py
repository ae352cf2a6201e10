"""Real compositors, headless, each with a runtime directory of its own: the host side of the live tests.

What they have in common is ``Compositor``; what a test can do with one (type, click, look) is a method of it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compositor_shim import Shim
from tests.live.picture import Box, Picture, keep
from tests.live.virtual_input import VirtualInput
from tests.processes import DEADLINE_S, Process, require, run, wait_until


def plain_environment(runtime_dir: Path, **more: str) -> dict[str, str]:
    """What a program needs to run, and nothing of the session that the tests were started from.

    Temporary files (and mounts on them) come into the runtime directory, too, where one sees what a program leaves.
    """
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "CI") if name in os.environ}
    return kept | {"LANG": "C.UTF-8", "XDG_RUNTIME_DIR": str(runtime_dir), "TMPDIR": str(runtime_dir)} | more


class Compositor:
    """``start`` starts it, ``socket`` is where its clients connect, ``close`` ends it and removes its directory."""

    name: str
    process: Process

    def __init__(self) -> None:
        # Short: a socket's path has 108 bytes. mkdtemp makes it mode 700, as XDG_RUNTIME_DIR must be.
        self.runtime_dir = Path(tempfile.mkdtemp(prefix=f"{self.name}-"))
        self.socket = self.runtime_dir / "wayland-1"

    def start(self) -> None:
        raise NotImplementedError

    def accepts(self) -> bool:
        """Whether a client can connect; the socket's file alone may be what a killed compositor left."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            return probe.connect_ex(str(self.socket)) == 0

    def environment(self) -> dict[str, str]:
        """For a program on the host's side."""
        return plain_environment(self.runtime_dir, WAYLAND_DISPLAY=self.socket.name)

    def screenshot(self) -> Picture:
        raise NotImplementedError

    def wait_for_picture(
        self,
        check: Callable[[Picture], bool],
        what: str,
        *,
        box: Box | None = None,
        app: Process | None = None,
        deadline_s: float = DEADLINE_S,
    ) -> Picture:
        """Takes screenshots until one (or its part ``box``) passes the check, and returns it. Keeps the last one.

        With ``app`` it fails as soon as that ends.
        """
        last: list[Picture] = []

        def looks_right() -> bool:
            picture = self.screenshot()
            last[:] = [picture if box is None else picture.part(box)]
            return check(last[0])

        try:
            (wait_until if app is None else app.wait_until)(looks_right, what, deadline_s)
        except AssertionError as error:
            failed = Path(tempfile.mkdtemp(prefix="waylend-failed-")) / "screenshot.png"
            last[0].save(failed)
            raise AssertionError(f"{error}; the last screenshot is {failed}") from None
        keep(last[0], what.replace(" ", "-"))
        return last[0]

    def wait_for_still_picture(self, what: str, *, box: Box | None = None, app: Process | None = None) -> Picture:
        """Waits until ten screenshots in a row are the same."""
        seen: list[Picture] = []

        def still(picture: Picture) -> bool:
            if seen and picture.difference(seen[-1]) > 0:
                seen.clear()
            seen.append(picture)
            return len(seen) >= 10

        return self.wait_for_picture(still, what, box=box, app=app)

    def wait_for_same_picture(
        self,
        expected: Picture,
        what: str,
        *,
        box: Box | None = None,
        app: Process | None = None,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        """Waits until ten screenshots in a row are ``expected``: on a busy machine the last frame may come late."""
        in_a_row = 0
        changed: Box | None = None

        def same(picture: Picture) -> bool:
            nonlocal in_a_row, changed
            changed = picture.changed_box(expected)
            in_a_row = in_a_row + 1 if picture.difference(expected) == 0 else 0
            return in_a_row >= 10

        try:
            self.wait_for_picture(same, what, box=box, app=app, deadline_s=deadline_s)
        except AssertionError as error:
            raise AssertionError(f"{error}; it differs in {changed}") from None

    def close(self) -> None:
        if hasattr(self, "process"):
            self.process.end(signal.SIGTERM)
        shutil.rmtree(self.runtime_dir)


@dataclass(frozen=True)
class Window:
    """A toplevel, as the compositor sees it. ``box`` is in pixels of the screenshot."""

    window_id: int
    app_id: str | None
    title: str | None
    pid: int
    box: Box

    @property
    def centre(self) -> tuple[int, int]:
        left, top, right, bottom = self.box
        return ((left + right) // 2, (top + bottom) // 2)


class Sway(Compositor):
    """sway with a seat: a keyboard and a pointer, both virtual. Windows float at the size that they ask for."""

    name = "sway"
    size = (1024, 768)
    background = (0x20, 0x40, 0x60)

    def start(self) -> None:
        for program in ("sway", "swaybg", "swaymsg", "grim", "unshare"):
            require(program)
        config = self.runtime_dir / "config"
        width, height = self.size
        config.write_text(
            f"output HEADLESS-1 resolution {width}x{height} bg #204060 solid_color\n"
            "xwayland disable\n"
            "focus_follows_mouse no\n"
            "default_border none\n"
            "default_floating_border none\n"
            'for_window [app_id=".*"] floating enable\n'
        )
        environment = plain_environment(
            self.runtime_dir, WLR_BACKENDS="headless", WLR_RENDERER="pixman", WLR_LIBINPUT_NO_DEVICES="1"
        )
        # sway refuses to be root; in a user namespace it is not.
        unshare = ["unshare", "--user", "--map-user=1000", "--map-group=1000"] if os.getuid() == 0 else []
        self.process = Process([*unshare, "sway", "-c", config], self.runtime_dir / "log", environment)
        self.process.wait_until(self.accepts, "sway to accept clients")
        self.ipc = self.process.wait_until(
            lambda: next(self.runtime_dir.glob(f"sway-ipc.*.{self.process.pid}.sock"), None), "sway's ipc socket"
        )
        assert self.ipc is not None
        self.wait_for_picture(lambda picture: picture.share_of(self.background) > 0.99, "sway's background")
        self.input = VirtualInput(self.socket, self.size)
        self.process.wait_until(
            lambda: self.query("get_seats")[0]["capabilities"] == 3, "a seat with pointer and keyboard"
        )

    def query(self, kind: str) -> Any:
        return json.loads(run(["swaymsg", "--socket", str(self.ipc), "--raw", "-t", kind], self.environment()))

    def command(self, command: str) -> None:
        run(["swaymsg", "--socket", str(self.ipc), command], self.environment())

    def screenshot(self) -> Picture:
        return Picture.decode(run(["grim", "-t", "ppm", "-"], self.environment()))

    def windows(self) -> list[Window]:
        def walk(node: dict[str, Any]) -> list[Window]:
            found = [window for child in node["nodes"] + node["floating_nodes"] for window in walk(child)]
            if node.get("pid"):
                rect = node["rect"]
                box = (rect["x"], rect["y"], rect["x"] + rect["width"], rect["y"] + rect["height"])
                found.append(Window(node["id"], node["app_id"], node["name"], node["pid"], box))
            return found

        return walk(self.query("get_tree"))

    def wait_for_window(self, app: Process, app_id: str | None = None) -> Window:
        """The newest window, as soon as there is one (with that app-id) and it is the focused one."""

        def newest() -> Window | None:
            windows = [window for window in self.windows() if app_id is None or window.app_id == app_id]
            return max(windows, key=lambda window: window.window_id, default=None)

        window = app.wait_until(newest, f"a window of {app.name}")
        assert window is not None
        return window

    def park_pointer(self) -> None:
        """The pointer goes into the corner, off all windows, where its picture shows.

        A client that has locked it, as weston-resizor does at a click, may let it go only after the first try.
        """

        def parked() -> bool:
            self.input.move(0, 0)
            return self.screenshot().part((0, 0, 8, 8)).share_of(self.background) < 1

        wait_until(parked, "the pointer to be in the corner")

    def type_text(self, text: str, *, enter: bool = False) -> None:
        self.input.type_text(text)
        if enter:
            self.input.press_key("Return")

    def close(self) -> None:
        if hasattr(self, "input"):
            self.input.close()
        super().close()


class OurShim(Compositor):
    """compositor-shim, driven by its own API. A client's protocol error fails the test when it closes."""

    name = "shim"
    size = (1024, 768)
    background = (0x20, 0x40, 0x60)

    def __init__(self, *, keymap_from: str = "memfd") -> None:
        super().__init__()
        self._keymap_from = keymap_from

    def start(self) -> None:
        self.shim = Shim(socket=self.socket, size=self.size, keymap_from=self._keymap_from)

    def screenshot(self) -> Picture:
        return Picture(self.shim.screenshot())

    def close(self) -> None:
        try:
            assert self.shim.protocol_errors() == []
        finally:
            self.shim.stop()
            super().close()


class Weston(Compositor):
    """weston, headless, without a seat. Windows stand where weston puts them, so pictures are of the whole output."""

    name = "weston"
    size = (1024, 768)
    background = (0x20, 0x40, 0x60)

    def start(self) -> None:
        for program in ("weston", "weston-screenshooter"):
            require(program)
        width, height = self.size
        config = self.runtime_dir / "weston.ini"
        config.write_text("[shell]\nbackground-color=0xff204060\npanel-position=none\nlocking=false\n")
        command = ["weston", "--backend=headless-backend.so", "--use-pixman", f"--socket={self.socket.name}"]
        command += [f"--width={width}", f"--height={height}", "--idle-time=0", "--debug", f"--config={config}"]
        self.process = Process(command, self.runtime_dir / "log", plain_environment(self.runtime_dir))
        self.process.wait_until(self.accepts, "weston to accept clients")
        self.wait_for_picture(lambda picture: picture.share_of(self.background) > 0.99, "weston's background")

    def screenshot(self) -> Picture:
        # weston-screenshooter writes wayland-screenshot-DATE.png into its working directory.
        folder = Path(tempfile.mkdtemp(dir=self.runtime_dir))
        run(["env", f"--chdir={folder}", "weston-screenshooter"], self.environment())
        (file,) = folder.iterdir()
        picture = Picture.decode(file.read_bytes())
        shutil.rmtree(folder)
        return picture
