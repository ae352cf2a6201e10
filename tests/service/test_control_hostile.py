"""The control socket among strangers: whatever is asked, the proxy survives it; whatever answers, who asked gets one line."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from tests.live.ordinary_user import CHECKOUT, as_ordinary_user
from waylend.domain.memfd import MemfdDomain
from waylend.errors import UsageError
from waylend.service import control
from waylend.service.control import ControlServer, ask, running_proxies

ABOUT = {"pid": 1, "listen": [], "compositor": "none"}


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """A server's control socket. Afterwards it must still answer, end at once, and leave no file."""
    place = tmp_path / "a.control"
    started, domain = threading.Event(), MemfdDomain("test")
    stop: list[Callable[[], None]] = []

    async def serve() -> None:
        async with ControlServer({"test": domain}, ABOUT).listening(place):
            ended = anyio.Event()
            token = anyio.lowlevel.current_token()
            stop.append(lambda: anyio.from_thread.run_sync(ended.set, token=token))
            started.set()
            await ended.wait()

    thread = threading.Thread(target=anyio.run, args=(serve,))
    thread.start()
    assert started.wait(10)
    yield place
    assert ask(place, "leases")["pid"] == 1
    stop[0]()
    thread.join(5)
    assert not thread.is_alive()
    assert not place.exists()
    domain.close()


def connected(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(20)
    sock.connect(str(path))
    return sock


class TestServer:
    @pytest.mark.parametrize(
        "request_line",
        [
            b"{}",
            b"",
            b"[]",
            b"\xff\xfe",
            b"null",
            b'{"command": "drop"}',
            b'{"command": ["leases"]}',
            b'{"command": "revoke", "lease": []}',
            b'{"command": "revoke", "lease": 1e400}',
            b'{"command": "revoke", "lease": true}',
            b'{"command": "revoke", "lease": "1"}',
            b'{"command": "revoke", "lease": 7}',
            b'{"command": "\\ud800"}',
            b"9" * 5000,
            b"[" * 60_000,
            b'{"command":' * 5000,
        ],
    )
    def test_refuses_what_is_no_request(self, path: Path, request_line: bytes) -> None:
        with connected(path) as sock:
            sock.sendall(request_line + b"\n")
            answer = json.loads(sock.makefile("rb").readline())
        assert answer["ok"] is False
        assert 0 < len(answer["error"]) <= 300

    @pytest.mark.parametrize("request_line", [b"[" * 100_000 + b"\n", b"x" * 1_000_000])
    def test_hangs_up_on_a_line_that_is_too_long(self, path: Path, request_line: bytes) -> None:
        with connected(path) as sock:
            try:
                sock.sendall(request_line)
                assert sock.recv(1) == b""
            except (BrokenPipeError, ConnectionResetError):
                pass

    def test_hangs_up_on_who_says_nothing(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(control, "_LINE_DEADLINE_S", 0.2)
        with connected(path) as sock:
            assert sock.recv(1) == b""

    def test_answers_though_many_say_nothing(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """All places are taken, and come free again."""
        monkeypatch.setattr(control, "_LINE_DEADLINE_S", 0.5)
        silent = [connected(path) for _ in range(3 * control._MAX_ASKERS)]
        assert ask(path, "leases")["ok"]
        for sock in silent:
            sock.close()

    def test_has_no_more_descriptors_than_places(self, path: Path) -> None:
        def open_sockets() -> int:
            return sum("socket:" in os.readlink(f"/proc/self/fd/{fd}") for fd in _open_fds())

        before = open_sockets()
        with contextlib.ExitStack() as stack:
            silent = [stack.enter_context(connected(path)) for _ in range(60)]
            time.sleep(0.2)
            # Ours, and no more of the server's than it has places.
            assert open_sockets() - before - len(silent) <= control._MAX_ASKERS + 1

    def test_survives_who_leaves_before_the_answer(self, path: Path) -> None:
        for _ in range(50):
            with connected(path) as sock:
                sock.sendall(b'{"command": "leases"}\n')

    def test_hears_only_its_own_user_and_root(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(control, "credentials_of", lambda _peer: (1, 12345))
        with connected(path) as sock:
            assert sock.recv(1) == b""
        monkeypatch.setattr(control, "credentials_of", lambda _peer: (1, 0))


def _open_fds() -> list[int]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            os.readlink(f"/proc/self/fd/{name}")
            found.append(int(name))
        except FileNotFoundError:
            continue
    return found


@contextmanager
def answering(path: Path, answer: bytes | None) -> Iterator[None]:
    """Somebody at ``path`` who gives that answer to whatever is asked; None: no answer at all."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(str(path))
        sock.listen()

        def serve() -> None:
            try:
                while True:
                    peer, _ = sock.accept()
                    with peer, contextlib.suppress(BrokenPipeError, ConnectionResetError):
                        if answer is not None:
                            peer.recv(4096)
                            peer.sendall(answer)
                        else:
                            kept.append(peer.dup())
            except OSError:
                return

        kept: list[socket.socket] = []
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            sock.shutdown(socket.SHUT_RDWR)
            thread.join()
            for peer in kept:
                peer.close()


GARBAGE = [
    b"",
    b"\n",
    b"no newline",
    b"\xff\xfe\n",
    b"[" * 100_000 + b"\n",
    b"[]\n",
    b"7\n",
    b"{}\n",
    b'{"ok": true}\n',
    b'{"ok": true, "pid": "1", "listen": [], "compositor": "", "domains": []}\n',
    b'{"ok": true, "pid": 1, "listen": [], "compositor": "", "domains": [7]}\n',
    b'{"ok": true, "pid": 1, "listen": [], "compositor": "", "domains": '
    b'[{"name": "a", "mechanism": "b", "aperture_pages": 1, "leases": [{}]}]}\n',
    b'{"ok": false}\n',
    b'{"ok": false, "error": 7}\n',
]
COMMANDS = (["leases"], ["leases", "--json"], ["top", "--count", "1"], ["revoke", "--all"])


class TestAsker:
    @pytest.mark.parametrize("answer", GARBAGE)
    @pytest.mark.parametrize("command", ["leases", "revoke"])
    def test_refuses_garbage(self, tmp_path: Path, command: str, answer: bytes) -> None:
        with answering(tmp_path / "a.control", answer), pytest.raises(UsageError):
            ask(tmp_path / "a.control", command)

    def test_waits_for_nobody_for_long(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(control, "_ANSWER_DEADLINE_S", 0.2)
        with answering(tmp_path / "a.control", None), pytest.raises(UsageError, match="no answer within"):
            ask(tmp_path / "a.control", "leases")

    def test_nobody_is_there(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="no proxy answers"):
            ask(tmp_path / "a.control", "leases")

    def test_finds_no_proxy_where_there_is_no_folder_yet_and_makes_none(self, tmp_path: Path) -> None:
        assert running_proxies({"XDG_RUNTIME_DIR": str(tmp_path)}) == []
        assert list(tmp_path.iterdir()) == []

    def test_removes_what_the_dead_left_but_not_what_is_busy(self, tmp_path: Path) -> None:
        folder = tmp_path / "waylend"
        folder.mkdir(mode=0o700)
        with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as dead:
            busy.bind(str(folder / "busy.control"))
            busy.listen(0)
            dead.bind(str(folder / "dead.control"))
            waiting = connected(folder / "busy.control")
            found = running_proxies({"XDG_RUNTIME_DIR": str(tmp_path)})
            assert found == [folder / "busy.control"]
            assert not (folder / "dead.control").exists()
            waiting.close()


def waylend(*args: str, runtime_dir: Path | str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "waylend", *args],
        capture_output=True, text=True, timeout=30, env={"XDG_RUNTIME_DIR": str(runtime_dir)}, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("args", COMMANDS)
class TestCommands:
    def test_say_in_one_line_that_what_answers_is_no_proxy(self, tmp_path: Path, args: list[str]) -> None:
        with answering(tmp_path / "a.control", b"[" * 100_000 + b"\n"):
            done = waylend(*args, "--control", str(tmp_path / "a.control"), runtime_dir=tmp_path)
        assert done.returncode == 1
        assert done.stderr == f"waylend: {tmp_path}/a.control: what answers there is no proxy of this version\n"

    def test_say_in_one_line_that_nobody_answers(self, tmp_path: Path, args: list[str]) -> None:
        done = waylend(*args, "--control", str(tmp_path / "a.control"), runtime_dir=tmp_path)
        assert done.returncode == 1
        assert done.stderr.startswith(f"waylend: {tmp_path}/a.control: no proxy answers there: No such file")
        assert done.stderr.count("\n") == 1

    @pytest.mark.parametrize("kind", ["missing", "a file", "another's link"])
    def test_say_in_one_line_what_is_wrong_with_the_folder(self, tmp_path: Path, args: list[str], kind: str) -> None:
        runtime_dir = tmp_path / "run"
        if kind == "a file":
            runtime_dir.touch()
        elif kind == "another's link":
            runtime_dir.mkdir()
            (runtime_dir / "waylend").symlink_to(tmp_path)
        done = waylend(*args, runtime_dir=runtime_dir)
        assert done.returncode == 1
        assert str(runtime_dir) in done.stderr
        assert done.stderr.count("\n") == 1, done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another's folder")
def test_anothers_runtime_folder_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o700)
    program = (
        "import sys; from waylend.service.control import running_proxies;"
        "from waylend.errors import UsageError\n"
        "try: running_proxies({'XDG_RUNTIME_DIR': sys.argv[1]})\n"
        "except UsageError as error: print(error)"
    )
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    command = as_ordinary_user(sys.executable, "-c", program, str(tmp_path / "run"))
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == f"can't make a folder in {tmp_path}/run: Permission denied\n", done.stderr


def test_one_proxy_that_gives_no_answer_hides_no_other(tmp_path: Path) -> None:
    folder = tmp_path / "waylend"
    folder.mkdir(mode=0o700)
    good = json.dumps({"ok": True, **ABOUT, "domains": [], "pages_revoked": 0, "leases_revoked": 0}).encode() + b"\n"
    with answering(folder / "a.control", b"{}\n"), answering(folder / "b.control", good):
        done = waylend("leases", "--json", runtime_dir=tmp_path)
        assert [proxy["pid"] for proxy in json.loads(done.stdout)] == [1]
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert "took back 0 pages" in waylend("revoke", "--all", runtime_dir=tmp_path).stdout
