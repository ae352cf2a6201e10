"""Wayland's sockets by name: where they are, how a listening one is claimed, how a supervisor hands them over.

The names and the lock file are libwayland's (wl_display_add_socket), the hand-over is systemd's (sd_listen_fds(3),
sd_notify(3)).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import socket
import stat
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

from waylend.errors import UsageError
from waylend.linux import own_umask

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


def own_dir(environ: Mapping[str, str] = os.environ, *, make: bool = True) -> Path:
    """``$XDG_RUNTIME_DIR/waylend``: control sockets, and locks of sockets that are elsewhere. With ``make`` it is there.

    Raises UsageError when it can't be made, or isn't this user's alone.
    """
    path = runtime_dir(environ) / "waylend"
    try:
        if make:
            path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise UsageError(f"can't make a folder in {path.parent}: {os.strerror(errno.ENOENT)}") from None
        return path
    except OSError as error:
        raise UsageError(f"can't make a folder in {path.parent}: {error.strerror}") from error
    # Root may look into a user's, but makes nothing there.
    owners = (os.geteuid(),) if make else (os.geteuid(), path.parent.stat().st_uid if not os.geteuid() else -1)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in owners or found.st_mode & 0o022:
        raise UsageError(f"{path} is no folder of this user's alone")
    return path


def lock_path(path: Path, environ: Mapping[str, str] = os.environ, *, for_clients: bool = True) -> Path | None:
    """Where the lock of the socket ``path`` is.

    Beside it, as ``NAME.lock``, where it is ``for_clients`` of Wayland in XDG_RUNTIME_DIR itself: compositors look for it there
    (wl_display_add_socket). A socket anywhere else may be in a folder that a guest can write to, even as root of a container,
    and what it puts there must not be opened: its lock is in ``own_dir``. None where there is no XDG_RUNTIME_DIR.
    """
    try:
        parent = path.parent.resolve()
        if for_clients and parent == runtime_dir(environ).resolve():
            return path.with_name(f"{path.name}.lock")
        digest = hashlib.sha256(os.fsencode(parent / path.name)).hexdigest()[:16]
        return own_dir(environ) / f"{digest}.lock"
    except UsageError:
        return None


class ListeningSocket:
    """A unix socket that clients connect to. ``close`` removes it and its lock file, unless they are another's by now."""

    #: Those of this process that aren't closed yet.
    open: ClassVar[set[ListeningSocket]] = set()

    def __init__(self, path: Path, *, mode: int | None = None, locked: bool = True, for_clients: bool = True) -> None:
        """Claims ``path``, with the permissions ``mode``; a socket that a dead process left there is replaced.

        Without ``locked`` there is no lock file: for a name that nobody else makes. ``for_clients``: see ``lock_path``. Raises
        UsageError when somebody listens there or the place is not to be had.
        """
        self.path = path
        self._lock = _Lock(path, for_clients) if locked else None
        try:
            self.sock = _bound(path, mode)
            self._identity = _identity(path)
        except OSError as error:
            self._unlock()
            raise UsageError(f"can't listen on {path}: {error.strerror or error}") from error
        except UsageError:
            self._unlock()
            raise
        self.open.add(self)

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def close(self) -> None:
        """Idempotent."""
        self.open.discard(self)
        self.sock.close()
        self.unlink()
        self._unlock()

    def unlink(self) -> None:
        """Removes the name alone. Idempotent."""
        if self._identity is not None and _identity(self.path) == self._identity:
            with contextlib.suppress(OSError):
                os.unlink(self.path)
        self._identity = None


class _Lock:
    """The lock file of a socket. Raises UsageError when another process holds it."""

    def __init__(self, socket_path: Path, for_clients: bool) -> None:
        self._path = lock_path(socket_path, for_clients=for_clients)
        self._fd = -1
        while self._path is not None and self._fd < 0:
            try:
                fd = os.open(self._path, os.O_CREAT | os.O_CLOEXEC | os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK, 0o660)
            except OSError as error:
                raise UsageError(f"can't make the lock {self._path}: {error.strerror}") from error
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(fd)
                raise UsageError(
                    f"socket {socket_path} is in use by another process (lock {self._path.name})"
                ) from error
            # Who held it before may have removed it since it was opened: then it keeps nobody out.
            status = os.fstat(fd)
            if _identity(self._path) == (status.st_dev, status.st_ino):
                self._fd = fd
            else:
                os.close(fd)

    def close(self) -> None:
        if self._path is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._path)
            os.close(self._fd)


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file is there just now: its device and inode."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _bound(path: Path, mode: int | None) -> socket.socket:
    """A listening socket at ``path``. Raises OSError, UsageError."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError(0, "there is a file of that name that is no socket")
        if _somebody_listens(path):
            raise UsageError(f"socket {path} is in use by another process")
        os.unlink(path)
    except FileNotFoundError:
        pass
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if mode is None:
            sock.bind(os.fspath(path))
        else:
            _bind_with_mode(sock, path, mode)
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _somebody_listens(path: Path) -> bool:
    """Whether the socket there is more than what a dead process left. Waits for nobody."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
        try:
            sock.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:  # its backlog is full, or it isn't for us: there it is all the same
            return True
    return True


def _bind_with_mode(sock: socket.socket, path: Path, mode: int) -> None:
    """The socket has its permissions from the first moment on: chmod(2) by a name would follow what a guest puts there.

    bind(2) gives it those that the umask leaves. The umask is a process's; a thread can have one of its own.
    """
    failed: list[OSError] = []

    def bind() -> None:
        try:
            own_umask()
            os.umask(~mode & 0o777)
            sock.bind(os.fspath(path))
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=bind, name="bind")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


class NamelessSocket:
    """A listening unix socket that has no name by the time that this returns: who has ``path_fd`` connects to it.

    So nothing of it can stay behind, however its maker ends. ``path_fd`` is an O_PATH descriptor of where it was bound:
    connect(2) looks the socket up by the inode that ``/proc/self/fd/N`` leads to, which lives on with the descriptor.
    """

    def __init__(self) -> None:
        """Raises OSError."""
        try:
            folder = own_dir()
        except UsageError:
            folder = Path(tempfile.gettempdir())
        path = folder / f".waylend-{secrets.token_hex(8)}"
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _bind_with_mode(self.sock, path, 0o600)
            try:
                self.path_fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
            finally:
                os.unlink(path)
            self.sock.listen(_BACKLOG)
        except OSError:
            self.sock.close()
            raise
        self.path = Path(f"/proc/self/fd/{self.path_fd}")

    def close(self) -> None:
        """Idempotent."""
        self.sock.close()
        if self.path_fd >= 0:
            os.close(self.path_fd)
            self.path_fd = -1


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
