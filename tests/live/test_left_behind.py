"""What stays of waylend after SIGKILL: only names that the next start takes over."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest

from tests.live.compositors import OurShim, plain_environment
from tests.live.guest import WAYLEND
from tests.processes import Process, wait_until


def names_in(folder: Path) -> list[str]:
    return sorted(
        f"{path.relative_to(folder)}" for path in folder.rglob("*") if not path.is_dir() or path.name != "waylend"
    )


def accepts(path: Path) -> bool:
    """The name alone may be what the last one left."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(path)) == 0


@pytest.fixture
def guests_dir(tmp_path: Path) -> Path:
    path = tmp_path / "guest"
    path.mkdir(mode=0o700)
    return path


def test_killed_in_front_of_a_compositor_with_security_contexts(guests_dir: Path, tmp_path: Path) -> None:
    """It made a socket for the compositor to listen on; neither that nor a folder for it has a name any more."""
    shim = OurShim()
    try:
        shim.start()
        before = names_in(shim.runtime_dir)
        command = [*WAYLEND, "serve", "--listen", "wayland-0", "--compositor", str(shim.socket)]
        environment = plain_environment(guests_dir)
        for _ in range(2):
            with Process(command, tmp_path / "log", environment) as serve:
                serve.wait_until(lambda: accepts(guests_dir / "wayland-0"), "the guest's socket")
                client = Process(
                    ["weston-flower"], tmp_path / "client", {**environment, "WAYLAND_DISPLAY": "wayland-0"}
                )
                with client:
                    wait_until(
                        lambda: any(
                            one["identity"].get("sandbox_engine") == "org.waylend" for one in shim.shim.clients()
                        ),
                        "the compositor to know whose client that is",
                    )
                    assert names_in(shim.runtime_dir) == before
                    serve.end(signal.SIGKILL)
                    client.wait()
            left = [name for name in names_in(guests_dir) if not name.endswith(".control")]
            assert left == ["wayland-0", "wayland-0.lock"]
            assert names_in(shim.runtime_dir) == before
    finally:
        shim.close()
