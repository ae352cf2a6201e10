"""examples/containers: an application in a container is shown, and finds nothing of the session but waylend's socket."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.live.compositors import Sway
from tests.live.conftest import MakeGuest
from tests.live.guest import Guest
from tests.live.picture import has_colours
from tests.processes import require

BWRAP_APP = Path(__file__).parents[2] / "examples" / "containers" / "bwrap-app"


@pytest.fixture
def guest(make_guest: MakeGuest, sway: Sway) -> Guest:
    require("bwrap")
    return make_guest(sway)


def in_a_container(guest: Guest, *argv: str) -> tuple[str, ...]:
    """As `waylend run` starts it: with the socket's whole path."""
    environment = guest.environment()
    display = Path(environment["XDG_RUNTIME_DIR"]) / environment["WAYLAND_DISPLAY"]
    return ("env", f"WAYLAND_DISPLAY={display}", f"{BWRAP_APP}", *argv)


def test_an_application_is_shown(sway: Sway, guest: Guest) -> None:
    foot = guest.start(*in_a_container(guest, "foot", "sh", "-c", r"printf '\033[48;2;200;40;90m\033[2J'; sleep 1000"))
    box = sway.wait_for_window(foot, "foot").box
    sway.wait_for_picture(has_colours(((200, 40, 90), 0.9)), "foot in a container", box=box, app=foot)


def test_nothing_else_of_the_session_is_there(guest: Guest, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("of the session")
    look = f"""
        for file in $(find /run /tmp /home /dev /etc); do test -S $file && echo $file; done
        test -e {tmp_path}/secret && echo a file of the session
        ls -d /proc/[0-9]* | wc -l
        env | cut -d= -f1 | sort | tr '\\n' ' '
        grep -c : /proc/net/dev
    """
    told = guest.run(in_a_container(guest, "sh", "-c", look)).decode().split("\n")
    assert told[0] == "/run/user/app/wayland-0"
    assert int(told[1]) < 12, "processes of the session are seen"
    assert told[2].split() == ["HOME", "LANG", "PATH", "PWD", "TERM", "WAYLAND_DISPLAY", "XDG_RUNTIME_DIR", "1"]


def test_without_waylends_socket_it_says_what_to_do(guest: Guest) -> None:
    app = guest.start(f"{BWRAP_APP}", "foot", WAYLAND_DISPLAY="wayland-0")
    assert app.wait() == 2
    assert "waylend run --" in app.log()
