"""Wayland's sockets by name: where they are, how a listening one is claimed, how a supervisor hands them over.

The names and the lock file are libwayland's (wl_display_add_socket), the hand-over is systemd's (sd_listen_fds(3),
sd_notify(3)).
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

from waylend.errors import UsageError

# sun_path of struct sockaddr_un, unix(7), with its NUL.
_MAX_PATH_BYTES = 107
_LISTEN_FDS_START = 3
_BACKLOG = 128


def runtime_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """XDG_RUNTIME_DIR. Raises UsageError when it is not set or not absolute."""
    path = environ.get("XDG_RUNTIME_DIR", "")
    if not path.startswith("/"):
        raise UsageError(
            "XDG_RUNTIME_DIR is not set: set it to a private folder (mode 700), or give absolute socket names"
        )
    return Path(path)


def socket_path(name: str, environ: Mapping[str, str] = os.environ) -> Path:
    """The path of a Wayland socket: absolute, or relative to XDG_RUNTIME_DIR. Raises UsageError."""
    if not name:
        raise UsageError("a socket name is empty")
    path = Path(name) if name.startswith("/") else runtime_dir(environ) / name
    if len(os.fsencode(path)) > _MAX_PATH_BYTES:
        raise UsageError(f"socket {path}: the path is longer than {_MAX_PATH_BYTES} bytes")
    return path


class ListeningSocket:
    """A unix socket that clients connect to, with its lock file beside it (``NAME.lock``). ``close`` removes both."""

    def __init__(self, path: Path, *, mode: int | None = None) -> None:
        """Claims ``path``; a socket that a dead process left there is replaced.

        Raises UsageError when another process holds it or the place is not to be had.
        """
        self.path = path
        self._lock_path = path.with_name(f"{path.name}.lock")
        try:
            self._lock_fd = os.open(self._lock_path, os.O_CREAT | os.O_CLOEXEC | os.O_RDWR, 0o660)
        except OSError as error:
            raise UsageError(f"can't make {self._lock_path}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.sock = self._bind(mode)
        except BlockingIOError:
            os.close(self._lock_fd)
            raise UsageError(f"socket {path} is in use by another process (lock {self._lock_path.name})") from None
        except OSError as error:
            os.unlink(self._lock_path)
            os.close(self._lock_fd)
            raise UsageError(f"can't listen on {path}: {error.strerror or error}") from error

    def _bind(self, mode: int | None) -> socket.socket:
        try:
            if not stat.S_ISSOCK(os.lstat(self.path).st_mode):
                raise FileExistsError(0, "there is a file of that name that is no socket")
            os.unlink(self.path)
        except FileNotFoundError:
            pass
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.bind(os.fspath(self.path))
            if mode is not None:
                os.chmod(self.path, mode)
            sock.listen(_BACKLOG)
        except OSError:
            sock.close()
            raise
        return sock

    def close(self) -> None:
        """Idempotent."""
        if self._lock_fd >= 0:
            self.sock.close()
            for path in (self.path, self._lock_path):
                try:
                    os.unlink(path)
                except FileNotFoundError:
                    pass
            os.close(self._lock_fd)
            self._lock_fd = -1


def activated_sockets(environ: Mapping[str, str] = os.environ) -> list[socket.socket]:
    """The listening sockets that a supervisor passed (LISTEN_PID, LISTEN_FDS), made close-on-exec. Ours to close.

    Raises UsageError when what it passed is no listening unix socket.
    """
    if environ.get("LISTEN_PID") != f"{os.getpid()}":
        return []
    count = environ.get("LISTEN_FDS", "")
    if not count.isdecimal():
        return []
    sockets = []
    for fd in range(_LISTEN_FDS_START, _LISTEN_FDS_START + int(count)):
        try:
            sock = socket.socket(fileno=fd)
            usable = sock.family == socket.AF_UNIX and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except OSError as error:
            raise UsageError(f"LISTEN_FDS: fd {fd}: {error.strerror}") from error
        if not usable:
            raise UsageError(f"LISTEN_FDS: fd {fd} is no listening unix socket")
        sock.set_inheritable(False)
        sockets.append(sock)
    return sockets


def notify_supervisor(state: str, environ: Mapping[str, str] = os.environ) -> None:
    """Sends ``state`` (``READY=1``, ``STOPPING=1``) to NOTIFY_SOCKET, if there is one. A supervisor that is gone is none."""
    address = environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        try:
            sock.sendto(state.encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)
        except OSError:
            pass


def connector(path: Path) -> Callable[[], socket.socket]:
    """What makes a session's connection to the compositor at ``path``: non-blocking, raises OSError."""

    def connect() -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            sock.connect(os.fspath(path))
        except OSError:
            sock.close()
            raise
        return sock

    return connect
