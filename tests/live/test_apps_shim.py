"""Real applications through waylend on our own compositor, which checks every request and knows a guest when it sees one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.compositors import OurShim
from tests.live.conftest import MakeGuest
from tests.live.guest import Guest
from tests.live.picture import has_colours
from tests.processes import require, wait_until


@pytest.fixture(params=["memfd", "file"])
def host(request: pytest.FixtureRequest) -> Iterator[OurShim]:
    """What it hands its keymap out as must make no difference."""
    compositor = OurShim(keymap_from=request.param)
    compositor.start()
    yield compositor
    compositor.close()


@pytest.fixture
def guest(make_guest: MakeGuest, host: OurShim) -> Guest:
    return make_guest(host)


def test_foot_shows_what_is_typed(host: OurShim, guest: Guest, tmp_path: Path) -> None:
    told = tmp_path / "told"
    foot = guest.start("foot", "/bin/sh")
    window = host.shim.wait_for_window(app_id="foot")
    box = (*window.position, window.position[0] + window.size[0], window.position[1] + window.size[1])
    host.wait_for_still_picture("foot with its prompt", box=box, app=foot)
    host.shim.type_text(f"echo 'It is typed: {{}}!' > {told}\n")
    foot.wait_until(lambda: told.exists() and told.read_text() == "It is typed: {}!\n", "the typed command to run")
    host.shim.type_text("printf '\\033[48;2;0;170;0m%5000s'\n")
    host.wait_for_picture(has_colours(((0, 170, 0), 0.8)), "foot filled with green", box=box, app=foot)
    host.shim.type_text("exit\n")
    assert foot.wait() == 0
    host.shim.wait_for_no_window()


def test_menu_of_weston_terminal_pops_up(host: OurShim, guest: Guest) -> None:
    terminal = guest.start("weston-terminal", "--shell=/bin/sh")
    x, y = host.shim.wait_for_window(title="Wayland Terminal").centre
    before = host.wait_for_still_picture("weston-terminal", app=terminal)
    host.shim.click(x, y, "right")
    host.wait_for_picture(lambda picture: picture.difference(before) > 0.01, "its menu", app=terminal)
    host.shim.click(5, 5)
    host.wait_for_picture(lambda picture: picture.difference(before) < 0.01, "no menu", app=terminal)


def test_clipboard_crosses_in_both_directions(host: OurShim, guest: Guest) -> None:
    require("wl-copy")
    content = bytes(range(256)) * 4096
    host.shim.set_selection({"application/octet-stream": content})
    pasted = guest.run(["wl-paste", "--no-newline", "--type", "application/octet-stream"])
    assert pasted == content
    guest.start("wl-copy", "--foreground", "--type", "text/plain", "from the guest")
    wait_until(lambda: "text/plain" in host.shim.selection_types(), "the guest's offer")
    assert host.shim.selection("text/plain") == b"from the guest"


def test_compositor_knows_the_guest(host: OurShim, guest: Guest) -> None:
    if guest.proxy is None:
        pytest.skip("nobody tells it without waylend")
    guest.start("foot", "/bin/sh")
    window = host.shim.wait_for_window(app_id="foot")
    (client,) = (client for client in host.shim.clients() if client["number"] == window.client)
    assert client["identity"]["sandbox_engine"] == "org.waylend"


def test_keymap_is_lent_whatever_it_is(host: OurShim, guest: Guest) -> None:
    direct = guest.start_python("keymap.py", direct=True)
    assert direct.wait() == 0
    lent = guest.start_python("keymap.py")
    assert lent.wait() == 0
    assert lent.log() == direct.log() != ""
