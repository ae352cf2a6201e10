"""What other proxies were seen to fail at, on sway: a screen recorder, four windows of 4K, and a storm of keymaps."""

from __future__ import annotations

import signal
import tempfile
from pathlib import Path

import pytest

from tests.live.compositors import Sway
from tests.live.conftest import MakeGuest
from tests.live.guest import Guest, Proxy
from tests.live.halves import Halves
from tests.live.picture import has_colours
from tests.processes import Process


@pytest.fixture(params=[Proxy, Halves], ids=["local", "halves"])
def guest(make_guest: MakeGuest, sway: Sway, request: pytest.FixtureRequest) -> Guest:
    sway.input.move(0, 0)
    return make_guest(sway, proxy_type=request.param)


@pytest.mark.parametrize("proxy_type", [Proxy, Halves], ids=["local", "halves"])
def test_wf_recorder_records_the_screen(
    sway: Sway, make_guest: MakeGuest, proxy_type: type[Proxy], tmp_path: Path
) -> None:
    """It binds wl_output at a version for which sway's events are too new, as libwayland's clients may."""
    guest = make_guest(
        sway, "--allow", "zwlr_screencopy_manager_v1", "--allow", "zxdg_output_manager_v1", proxy_type=proxy_type
    )
    film = tmp_path / "film.mkv"
    # Its pools are files in XDG_RUNTIME_DIR, which is shared memory in a session.
    display = Path(guest.environment()["XDG_RUNTIME_DIR"]) / guest.environment()["WAYLAND_DISPLAY"]
    with tempfile.TemporaryDirectory(dir="/dev/shm") as own:
        recorder = guest.start("wf-recorder", "-f", film, XDG_RUNTIME_DIR=own, WAYLAND_DISPLAY=f"{display}")
        _record(sway, guest, recorder, film)


def _record(sway: Sway, guest: Guest, recorder: Process, film: Path) -> None:
    foot = guest.start("foot")  # sway paints no frames of a screen on which nothing moves
    box = sway.wait_for_window(foot, "foot").box
    recorder.wait_until(film.exists, "the film's file")
    for number, colour in enumerate([(200, 40, 90), (40, 160, 220), (250, 220, 10)]):
        shade = ";".join(map(str, colour))
        sway.type_text(rf"printf '\033[48;2;{shade}m\033[2J'", enter=True)
        sway.wait_for_picture(has_colours((colour, 0.9)), f"colour {number} of the film", box=box, app=recorder)
    foot.end()
    recorder.send(signal.SIGINT)
    assert recorder.wait() == 0, recorder.log()
    assert film.read_bytes()[:4] == b"\x1a\x45\xdf\xa3", "no Matroska file"
    assert film.stat().st_size > 4096, "a film without pictures"


@pytest.mark.timeout(300)
def test_four_windows_of_4k_are_shown(sway: Sway, guest: Guest) -> None:
    """Three buffers of 32 MiB each: what is short must not be taken from the one who asks last."""
    colours = [(200, 40, 90), (40, 160, 220), (250, 220, 10), (20, 120, 40)]
    apps = [guest.start_python("big_window.py", "4", *map(str, colour)) for colour in colours]
    for app in apps:
        app.wait_until(lambda app=app: "done" in app.log(), "the last frame", 120.0)  # type: ignore[misc]
    assert len(sway.windows()) == len(colours)
    for window in sway.windows():
        sway.command(f"[con_id={window.window_id}] move absolute position 0 0, focus")
        (colour,) = (colour for colour in colours if window.title == f"{colour}")
        sway.wait_for_picture(has_colours((colour, 0.9)), "a window of 4K")


@pytest.mark.timeout(300)
def test_three_thousand_keymaps_end_nobody(sway: Sway, guest: Guest, tmp_path: Path) -> None:
    """Each text of wtype, an on-screen keyboard or an input method brings one."""
    foot = guest.start("foot")
    sway.wait_for_window(foot, "foot")
    # Something else first, so that the descriptors are counted when foot has all of its own.
    sway.type_text("true", enter=True)
    for n in range(3000):
        sway.input.use_layout(("us", "de", "fr", "gb")[n % 4])
    sway.input.use_layout("us")
    told = tmp_path / "told"
    sway.type_text(f"echo typed > {told}", enter=True)
    foot.wait_until(lambda: told.exists() and told.read_text() == "typed\n", "the typed command to run", 60.0)
    assert guest.proxy is not None
    assert len(guest.proxy.leases()) < 64
    assert len(guest.proxy.process.fds()) < 200
