"""The command ``compositor-shim``."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import requires, version
from pathlib import Path

import click

_MAX_SIDE = 16384
_BACKLOG = 128
_GRACE_S = 5.0


def size_of(_context: object, _option: object, text: str) -> tuple[int, int]:
    """A size like 1280x800, in pixels; a callback of click's. Raises click.BadParameter."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise click.BadParameter(f"{text!r} is no size like 1280x800")
    size = (int(width), int(height))
    if not all(1 <= side <= _MAX_SIDE for side in size):
        raise click.BadParameter(f"{text}: a side has 1 to {_MAX_SIDE} pixels")
    return size


@click.command(
    short_help="A headless compositor for testing Wayland clients.",
    context_settings={"allow_interspersed_args": False, "help_option_names": ["-h", "--help"]},
)
@click.option(
    "--socket",
    "name",
    metavar="SOCKET",
    help="The socket for clients, relative to $XDG_RUNTIME_DIR or absolute. [default: the first free wayland-N]",
)
@click.option("--size", default="1280x800", metavar="WxH", show_default=True, callback=size_of, help="Of the screen.")
@click.option("--scale", default=1, type=click.IntRange(1, 4), show_default=True, help="Pixels to a logical pixel.")
@click.option(
    "--screenshot-on-exit",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="At the end, write the screen to a PNG file, as it was when it last showed a window.",
)
@click.option(
    "--keymap-from",
    type=click.Choice(["memfd", "file"]),
    default="memfd",
    show_default=True,
    help="What clients get the keymap as: anonymous memory, or a file on disk.",
)
@click.option(
    "--control", metavar="PATH", type=click.Path(path_type=Path), help="A socket to drive the shim by (its Python API)."
)
@click.option(
    "--strict", is_flag=True, help="Without a CLIENT, too: say at the end what clients did wrong, and end with 1 then."
)
@click.option("--verbose", "-v", is_flag=True, help="Say who comes and goes, and what clients do wrong.")
@click.version_option(version("waylend"), prog_name="compositor-shim")
@click.argument("client", nargs=-1, type=click.UNPROCESSED, metavar="[-- CLIENT [ARGS]...]")
def main(
    *,
    name: str | None,
    size: tuple[int, int],
    scale: int,
    screenshot_on_exit: Path | None,
    keymap_from: str,
    control: Path | None,
    strict: bool,
    verbose: bool,
    client: tuple[str, ...],
) -> None:
    """A headless Wayland compositor that composites what it is shown, checks its clients strictly and takes screenshots.

    With a CLIENT it runs until that ends, and ends with its exit status (128 + N when signal N ended it), or with 1 if
    the client broke the protocol; without one until SIGTERM or Ctrl-C.
    """
    logging.basicConfig(format="compositor-shim: %(message)s", level=logging.DEBUG if verbose else logging.WARNING)
    logging.getLogger("PIL").setLevel(logging.WARNING)
    try:
        with _listening(name) as (path, sock):
            told = bool(client) or strict
            sys.exit(_serve(path, sock, size, scale, screenshot_on_exit, keymap_from, control, client, strict=told))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"compositor-shim: {where}{error.strerror or error}", file=sys.stderr)
        sys.exit(1)


def _serve(
    path: Path,
    sock: socket.socket,
    size: tuple[int, int],
    scale: int,
    screenshot: Path | None,
    keymap_from: str,
    control: Path | None,
    client: tuple[str, ...],
    *,
    strict: bool,
) -> int:
    _check_pywayland()
    # Loads libwayland: not for --help.
    from compositor_shim.compositor import Compositor  # noqa: PLC0415
    from compositor_shim.control import Control, ControlSocket  # noqa: PLC0415
    from compositor_shim.output import Screen  # noqa: PLC0415
    from compositor_shim.server import Server  # noqa: PLC0415

    server = Server()
    server.stop_at_signals()  # before there is a client, which somebody may see and want to end
    compositor = Compositor(server, Screen(size, scale), keymap_from=keymap_from)
    server.listen(sock)
    driven = ControlSocket(server, Control(server, compositor), control) if control else None
    process = None
    status = 0
    try:
        if client:
            process = _start(client, path)
            # Only a signal tells that a child ended, and it wakes the loop.
            signal.signal(signal.SIGCHLD, lambda *_: server.stop() if process.poll() is not None else None)
            if process.poll() is not None:
                server.stop()
        elif name_is_chosen(path):
            print(f"compositor-shim: WAYLAND_DISPLAY={path.name}", file=sys.stderr)
        server.run()
    finally:
        if process is not None:
            status = _end(process)
        if screenshot:
            compositor.save_last(screenshot)
        if driven:
            driven.close()
        compositor.close()
    for violation in server.violations if strict else ():
        print(f"compositor-shim: {violation['object']}: {violation['message']}", file=sys.stderr)
        status = status or 1
    return status


def _check_pywayland() -> None:
    try:
        from compositor_shim import pywayland_parts  # noqa: PLC0415

        pywayland_parts.check()
    except ImportError as error:
        needed = next(needed for needed in requires("waylend") or () if needed.startswith("pywayland"))
        print(f"compositor-shim: {error}; it needs {needed}: python3 -m pip install '{needed}'", file=sys.stderr)
        sys.exit(1)


def name_is_chosen(path: Path) -> bool:
    """Whether somebody at a terminal wants to know which socket it became."""
    return sys.stderr.isatty() and path.is_relative_to(os.environ.get("XDG_RUNTIME_DIR", "/nowhere"))


def _start(client: tuple[str, ...], path: Path) -> subprocess.Popen[bytes]:
    environ = {**os.environ, "WAYLAND_DISPLAY": f"{path}"}
    for elsewhere in ("DISPLAY", "WAYLAND_SOCKET"):
        environ.pop(elsewhere, None)
    try:
        return subprocess.Popen(client, env=environ)
    except OSError as error:
        print(f"compositor-shim: can't run {client[0]}: {error.strerror}", file=sys.stderr)
        sys.exit(127 if isinstance(error, FileNotFoundError) else 126)


def _end(process: subprocess.Popen[bytes]) -> int:
    """Its exit status as a shell has it; a client that still runs is asked to end, then killed."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
    status = process.wait()
    return status if status >= 0 else 128 - status


@contextmanager
def _listening(name: str | None) -> Iterator[tuple[Path, socket.socket]]:
    """A socket with its lock file, as libwayland makes them (wl_display_add_socket). Raises OSError."""
    names = [name] if name else [f"wayland-{number}" for number in range(1, 33)]
    for tried in names:
        path = _path(tried)
        lock_path = path.with_name(f"{path.name}.lock")
        lock = os.open(lock_path, os.O_CREAT | os.O_CLOEXEC | os.O_RDWR, 0o660)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            if tried == names[-1]:
                raise OSError(0, "in use by another process", f"{path}") from None
            continue
        break
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            path.unlink(missing_ok=True)
            sock.bind(os.fspath(path))
            sock.listen(_BACKLOG)
            yield path, sock
        finally:
            path.unlink(missing_ok=True)
            lock_path.unlink(missing_ok=True)
            os.close(lock)


def _path(name: str) -> Path:
    if name.startswith("/"):
        return Path(name)
    runtime_dir = os.environ.get("XDG_RUNTIME_DIR", "")
    if not runtime_dir.startswith("/"):
        raise click.UsageError("XDG_RUNTIME_DIR is not set: set it, or give an absolute --socket")
    return Path(runtime_dir) / name
