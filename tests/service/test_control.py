"""The control socket: who is answered, and what becomes of what is no request."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import anyio
import anyio.from_thread
import pytest

from waylend.domain.memfd import MemfdDomain
from waylend.errors import UsageError
from waylend.service.control import ControlServer, ask

ASK = """
import socket, sys
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect(sys.argv[1])
    try:
        sock.sendall(b'{"command": "leases"}\\n')
        print(len(sock.recv(65536)))
    except ConnectionError:
        print(0)
"""


@pytest.fixture
def domain() -> Iterator[MemfdDomain]:
    domain = MemfdDomain("work", aperture_pages=64)
    yield domain
    domain.close()


@pytest.fixture
def control(domain: MemfdDomain) -> Iterator[Path]:
    """The path of a socket that answers for ``domain``, in a folder that everybody may enter."""
    server = ControlServer({"work": domain}, {"pid": 7, "listen": ["/guest"], "compositor": "/host"})
    with tempfile.TemporaryDirectory() as folder, anyio.from_thread.start_blocking_portal() as portal:
        os.chmod(folder, 0o755)
        path = Path(folder) / "control"
        with portal.wrap_async_context_manager(server.listening(path)):
            yield path


def test_it_answers_who_may_ask(control: Path) -> None:
    answer = ask(control, "leases")
    assert (answer["pid"], [domain["name"] for domain in answer["domains"]]) == (7, ["work"])


def test_another_user_gets_no_answer_even_through_an_open_door(control: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can be another user")
    assert os.stat(control).st_mode & 0o777 == 0o600
    os.chmod(control, 0o666)
    argv = ["/usr/bin/python3", "-I", "-S", "-c", ASK, f"{control}"]
    done = subprocess.run(argv, user=65534, group=65534, extra_groups=[], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("0\n", "")
    done = subprocess.run([sys.executable, "-c", ASK, f"{control}"], capture_output=True, text=True, check=False)
    assert int(done.stdout) > 100  # the same words from our own user


@pytest.mark.parametrize("line", [b"", b"{", b"[]", b'"leases"', b"{}", b'{"command": 7}', b'{"command": []}', b"\xff"])
def test_what_is_no_request_is_said_to_be_none(domain: MemfdDomain, line: bytes) -> None:
    answer = ControlServer({"work": domain}, {}).answer(line)
    assert not answer["ok"]
    assert answer["error"]
    json.dumps(answer)


def test_a_lease_that_is_not_there(control: Path) -> None:
    with pytest.raises(UsageError, match="there is no lease 5"):
        ask(control, "revoke", lease=5)


def test_a_request_without_an_end_is_hung_up_on(control: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10.0)
        sock.connect(os.fspath(control))
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            sock.sendall(b" " * (16 << 20))
    assert ask(control, "leases")["ok"]
