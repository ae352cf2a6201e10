"""Sockets by name: who may have one, with which permissions, and whose it is to remove. The folder may be a guest's."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from waylend.errors import UsageError
from waylend.relay.sockets import ListeningSocket, NamelessSocket, connector, lock_path


@pytest.fixture
def runtime_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "run"
    path.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(path))
    return path


@pytest.fixture
def guests(tmp_path: Path, runtime_dir: Path) -> Path:
    """A folder that a guest can write to, as `podman -v /run/guest:/run/guest` makes one."""
    path = tmp_path / "guest"
    path.mkdir()
    return path


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if not path.is_dir())


class TestWhereTheLockIs:
    def test_beside_the_socket_in_the_runtime_folder_where_compositors_look_for_it(self, runtime_dir: Path) -> None:
        assert lock_path(runtime_dir / "wayland-7") == runtime_dir / "wayland-7.lock"

    def test_in_our_own_folder_for_a_socket_anywhere_else(self, runtime_dir: Path, guests: Path) -> None:
        listening = ListeningSocket(guests / "wayland-0")
        assert left_in(guests) == ["wayland-0"]
        assert len(left_in(runtime_dir / "waylend")) == 1
        with pytest.raises(UsageError, match="in use"):
            ListeningSocket(guests / "wayland-0")
        listening.close()
        assert left_in(guests) == left_in(runtime_dir) == []

    def test_nowhere_without_a_runtime_folder(self, guests: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("XDG_RUNTIME_DIR")
        listening = ListeningSocket(guests / "wayland-0")
        assert left_in(guests) == ["wayland-0"]
        with pytest.raises(UsageError, match="in use"):
            ListeningSocket(guests / "wayland-0")
        listening.close()

    def test_a_link_in_its_place_is_not_followed(self, runtime_dir: Path, tmp_path: Path) -> None:
        """A file elsewhere is neither made nor locked."""
        (runtime_dir / "wayland-7.lock").symlink_to(tmp_path / "made")
        with pytest.raises(UsageError, match=r"wayland-7\.lock"):
            ListeningSocket(runtime_dir / "wayland-7")
        assert not (tmp_path / "made").exists()

    def test_a_link_that_the_guest_put_beside_its_socket_is_nothing_to_us(self, guests: Path, tmp_path: Path) -> None:
        elsewhere = tmp_path / "xtables.lock"
        elsewhere.touch()
        (guests / "wayland-0.lock").symlink_to(elsewhere)
        listening = ListeningSocket(guests / "wayland-0", mode=0o666)
        with elsewhere.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        listening.close()
        assert elsewhere.exists()

    def test_our_own_folder_must_be_ours_alone(self, runtime_dir: Path, guests: Path) -> None:
        (runtime_dir / "waylend").symlink_to(guests)
        listening = ListeningSocket(guests / "wayland-0")
        assert left_in(guests) == ["wayland-0"]  # no lock
        listening.close()

    def test_a_lock_that_its_holder_removed_keeps_nobody_out(self, runtime_dir: Path) -> None:
        first = ListeningSocket(runtime_dir / "wayland-7")
        stale = os.open(runtime_dir / "wayland-7.lock", os.O_RDWR)
        first.close()
        second = ListeningSocket(runtime_dir / "wayland-7")
        fcntl.flock(stale, fcntl.LOCK_EX | fcntl.LOCK_NB)  # what somebody has who opened it before
        os.close(stale)
        with pytest.raises(UsageError, match="in use"):
            ListeningSocket(runtime_dir / "wayland-7")
        second.close()


class TestPermissions:
    @pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, 0o777])
    def test_are_those_that_were_asked_for(self, guests: Path, mode: int) -> None:
        before = os.umask(0o022)
        try:
            listening = ListeningSocket(guests / "wayland-0", mode=mode)
            assert stat.S_IMODE((guests / "wayland-0").lstat().st_mode) == mode
            assert os.umask(0o022) == 0o022  # ours is as it was
            listening.close()
        finally:
            os.umask(before)

    def test_never_reach_a_file_that_a_guest_swaps_in(self, guests: Path, tmp_path: Path) -> None:
        """Where the socket was changed by its name, a link in its place was followed."""
        host_only = tmp_path / "shadow"
        host_only.touch(mode=0o600)
        over = threading.Event()

        def swap() -> None:
            link, target = guests / "link", guests / "wayland-0"
            while not over.is_set():
                link.unlink(missing_ok=True)
                link.symlink_to(host_only)
                while not over.is_set() and not target.is_socket():
                    pass
                link.rename(target)

        guest = threading.Thread(target=swap)
        guest.start()
        try:
            for _ in range(200):
                try:
                    listening = ListeningSocket(guests / "wayland-0", mode=0o666)
                except UsageError:
                    pass
                else:
                    listening.close()
                (guests / "wayland-0").unlink(missing_ok=True)
        finally:
            over.set()
            guest.join()
        assert stat.S_IMODE(host_only.stat().st_mode) == 0o600


class TestAPlaceThatIsTaken:
    @pytest.fixture
    def foreign(self, guests: Path) -> Iterator[socket.socket]:
        """Somebody's listening socket that has no lock file."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.bind(str(guests / "wayland-0"))
            sock.listen(1)
            yield sock

    def test_is_left_to_who_listens_there(self, guests: Path, foreign: socket.socket) -> None:
        with pytest.raises(UsageError, match="in use"):
            ListeningSocket(guests / "wayland-0")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(str(guests / "wayland-0"))

    def test_is_left_to_who_is_too_busy_to_answer(self, guests: Path, foreign: socket.socket) -> None:
        waiting = []
        while True:
            client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            waiting.append(client)
            try:
                client.connect(str(guests / "wayland-0"))
            except BlockingIOError:
                break
        with pytest.raises(UsageError, match="in use"):
            ListeningSocket(guests / "wayland-0")
        for client in waiting:
            client.close()

    def test_is_taken_over_from_the_dead(self, guests: Path, foreign: socket.socket) -> None:
        foreign.close()
        ListeningSocket(guests / "wayland-0").close()
        assert left_in(guests) == []

    def test_is_no_socket(self, guests: Path) -> None:
        (guests / "wayland-0").write_text("mine")
        with pytest.raises(UsageError, match="no socket"):
            ListeningSocket(guests / "wayland-0")
        assert (guests / "wayland-0").read_text() == "mine"

    def test_that_is_anothers_by_now_is_not_removed(self, guests: Path) -> None:
        listening = ListeningSocket(guests / "wayland-0")
        (guests / "wayland-0").unlink()
        (guests / "wayland-0").write_text("another's")
        listening.close()
        assert (guests / "wayland-0").read_text() == "another's"


class TestASocketWithoutAName:
    def test_is_connected_to_all_the_same(self, runtime_dir: Path) -> None:
        nameless = NamelessSocket()
        assert left_in(runtime_dir) == []
        with connector(nameless.path)() as client:
            server, _ = nameless.sock.accept()
            server.sendall(b"x")
            server.close()
            client.setblocking(True)
            assert client.recv(1) == b"x"
        before = len(os.listdir("/proc/self/fd"))
        nameless.close()
        nameless.close()
        assert len(os.listdir("/proc/self/fd")) == before - 2
