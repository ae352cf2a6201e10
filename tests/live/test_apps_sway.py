"""Real applications on sway, through a local proxy and through two halves. A test looks at what one shows, and what it hears."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tests.live.compositors import Sway
from tests.live.conftest import MakeGuest
from tests.live.guest import Guest, Proxy
from tests.live.halves import Halves
from tests.live.picture import Colour, Picture, has_colours
from tests.processes import require, require_module, wait_until

Fields = tuple[Colour, Colour, Colour]
LEFT, RIGHT, CLICKED = (200, 40, 90), (40, 160, 220), (250, 220, 10)


@pytest.fixture(params=[Proxy, Halves], ids=["local", "halves"])
def guest(make_guest: MakeGuest, sway: Sway, request: pytest.FixtureRequest) -> Guest:
    # The pointer would be in the picture.
    sway.park_pointer()
    return make_guest(sway, proxy_type=request.param)


def test_foot_shows_and_runs_what_is_typed(sway: Sway, guest: Guest, tmp_path: Path) -> None:
    told = tmp_path / "told"
    foot = guest.start("foot")
    box = sway.wait_for_window(foot, "foot").box
    prompt = sway.wait_for_still_picture("foot with its prompt", box=box, app=foot)
    sway.type_text(f"echo typed 'On Sway' > {told}", enter=True)
    foot.wait_until(lambda: told.exists() and told.read_text() == "typed On Sway\n", "the typed command to run")
    sway.wait_for_picture(
        lambda picture: picture.difference(prompt) > 0.001, "foot with the typed command", box=box, app=foot
    )
    # The colour comes from the keys that were typed, through the shell, the terminal and its buffers, to the screen.
    sway.type_text(r"printf '\033[48;2;200;40;90m\033[2J'", enter=True)
    sway.wait_for_picture(has_colours((LEFT, 0.9)), "foot filled with the typed colour", box=box, app=foot)
    sway.type_text("exit", enter=True)
    assert foot.wait() == 0


def test_foot_looks_as_it_does_directly(sway: Sway, guest: Guest) -> None:
    def picture_of_foot(direct: bool, same_as: Picture | None = None) -> Picture:
        title = "direct" if direct else "lent"
        script = "printf 'one \\033[31mtwo\\033[m \\033[1mthree\\033[m\\n\\303\\244\\342\\202\\254 %s' same; sleep 1000"
        foot = guest.start("foot", "--title", title, "sh", "-c", script, direct=direct)
        box = sway.wait_for_window(foot).box
        if same_as is not None:
            sway.wait_for_same_picture(same_as, f"foot {title}", box=box, app=foot)
        picture = sway.wait_for_still_picture(f"foot {title}", box=box, app=foot)
        foot.end()
        return picture

    directly = picture_of_foot(direct=True)
    assert len(directly.colours()) > 10
    assert picture_of_foot(direct=False, same_as=directly).difference(directly) == 0


def test_weston_terminal_shows_and_runs_what_is_typed(sway: Sway, guest: Guest, tmp_path: Path) -> None:
    told = tmp_path / "told"
    terminal = guest.start("weston-terminal", "--shell=/bin/sh")
    box = sway.wait_for_window(terminal).box
    sway.wait_for_still_picture("weston-terminal with its prompt", box=box, app=terminal)
    sway.type_text(f"echo typed > {told}", enter=True)
    terminal.wait_until(lambda: told.exists() and told.read_text() == "typed\n", "the typed command to run")
    sway.type_text(r"printf '\033[42m%1900s'", enter=True)
    sway.wait_for_picture(has_colours(((0, 170, 0), 0.8)), "weston-terminal filled with green", box=box, app=terminal)


def test_weston_flower_draws_and_is_dragged(sway: Sway, guest: Guest) -> None:
    flower = guest.start("weston-flower")
    window = sway.wait_for_window(flower, "org.freedesktop.weston.flower")

    def a_flower(picture: Picture) -> bool:
        # Its shape and colours are drawn by chance: a filled centre (petals can be deep), the background in the corners.
        centre = picture.part((95, 95, 105, 105)).share_of(sway.background, 2)
        return centre == 0 and picture.pixel(1, 1) == sway.background and len(picture.colours()) > 20

    sway.wait_for_picture(a_flower, "weston-flower", box=window.box, app=flower)
    # The flower asks to be moved when it hears of the press; from then on it goes where the pointer goes.
    x, y = window.centre
    sway.input.press(x, y)
    away = itertools.cycle([(x + 150, y - 100), (x, y)])

    def dragged() -> bool:
        sway.input.move(*next(away))
        return sway.wait_for_window(flower).box != window.box

    try:
        flower.wait_until(dragged, "the flower to be dragged")
    finally:
        sway.input.release()
    sway.wait_for_picture(a_flower, "weston-flower moved", box=sway.wait_for_window(flower).box)


def test_weston_subsurfaces_are_shown_together(sway: Sway, guest: Guest) -> None:
    demo = guest.start("weston-subsurfaces")
    box = sway.wait_for_window(demo).box
    # The main surface is green, the first sub-surface red and drawn with cairo, the second a triangle drawn with GL.
    first = sway.wait_for_picture(
        has_colours(((6, 176, 19), 0.3), ((164, 35, 4), 0.05), ((2, 58, 6), 0.05)), "weston-subsurfaces", box=box
    )
    sway.wait_for_picture(
        lambda picture: picture.difference(first) > 0, "weston-subsurfaces turning", box=box, app=demo
    )


def test_gtk3_demo_answers_a_click(sway: Sway, guest: Guest) -> None:
    def picture_of_demo(direct: bool) -> tuple[Picture, Picture]:
        way = "directly" if direct else "lent"
        sway.park_pointer()
        demo = guest.start("gtk3-demo", direct=direct)
        window = sway.wait_for_window(demo, "gtk3-demo")
        start = sway.wait_for_still_picture(f"gtk3-demo {way}", box=window.box, app=demo)
        # The fourth entry of the list.
        sway.input.click(window.box[0] + 60, window.box[1] + 130)
        sway.park_pointer()
        sway.wait_for_picture(
            lambda picture: picture.difference(start) > 0.005, "gtk3-demo clicked", box=window.box, app=demo
        )
        clicked = sway.wait_for_still_picture(f"gtk3-demo clicked {way}", box=window.box, app=demo)
        demo.end()
        wait_until(lambda: not sway.windows(), "the window to go")
        return start, clicked

    directly = picture_of_demo(direct=True)
    lent = picture_of_demo(direct=False)
    assert len(directly[0].colours()) > 100
    # All but the last pixels of what GTK fades in: two runs without a proxy can differ by those, too.
    assert lent[0].difference(directly[0]) < 1e-4
    assert lent[1].difference(directly[1]) < 1e-4


@pytest.mark.parametrize("toolkit", ["PySide6", "pygame"])
def test_toolkit_window_shows_and_hears(sway: Sway, guest: Guest, toolkit: str) -> None:
    require_module(toolkit)
    script = {"PySide6": "qt_window.py", "pygame": "pygame_window.py"}[toolkit]
    app = guest.start_python(script)
    window = sway.wait_for_window(app)
    sway.wait_for_picture(has_colours((LEFT, 0.4), (RIGHT, 0.4)), f"{toolkit} window", box=window.box, app=app)
    sway.type_text("Type this")
    app.wait_until(lambda: "Type this" in app.log(), "the typed text to reach the app")
    sway.input.click(*window.centre)
    sway.wait_for_picture(
        has_colours((CLICKED, 0.4), (RIGHT, 0.4)), f"{toolkit} window clicked", box=window.box, app=app
    )
    sway.type_text("q")
    assert app.wait() == 0, app.log()


def test_mpv_plays(sway: Sway, guest: Guest) -> None:
    options = ["--no-config", "--vo=wlshm", "--osc=no", "--osd-level=0", "--hwdec=no", "--ao=null"]
    mpv = guest.start("mpv", *options, "av://lavfi:testsrc=size=320x240:rate=25:duration=60")
    box = sway.wait_for_window(mpv, "mpv").box
    # The bars of the test pattern.
    bars = [
        ((0, 255, 255), 0.05),
        ((255, 0, 255), 0.05),
        ((0, 0, 255), 0.05),
        ((255, 255, 0), 0.05),
        ((0, 255, 0), 0.05),
    ]
    playing = sway.wait_for_picture(
        lambda picture: all(picture.share_of(colour, 12) >= share for colour, share in bars), "mpv", box=box
    )
    sway.wait_for_picture(lambda picture: picture.difference(playing) > 0.001, "mpv a little later", box=box, app=mpv)
    sway.type_text("q")
    assert mpv.wait() == 0


TEN_MEGABYTES = 10 * 1000 * 1000


@pytest.fixture
def ten_megabytes(tmp_path: Path) -> Path:
    path = tmp_path / "content"
    path.write_bytes(bytes(range(251)) * (TEN_MEGABYTES // 251))
    return path


def test_wl_paste_gets_what_wl_copy_has(sway: Sway, guest: Guest, ten_megabytes: Path) -> None:
    require("wl-copy")
    with ten_megabytes.open("rb") as content:
        copy = guest.start("wl-copy", "--foreground", "--type", "application/octet-stream", stdin=content.fileno())
    wait_until(lambda: guest.start("wl-paste", "--list-types").wait() == 0, "the clipboard to be offered")
    pasted = guest.run(["wl-paste", "--no-newline", "--type", "application/octet-stream"])
    assert pasted == ten_megabytes.read_bytes()
    guest.run(["wl-copy", "--clear"])
    assert copy.wait() == 0


@pytest.mark.parametrize("reader", ["guest", "host"])
def test_paste_from_a_slow_writer_of_small_pieces(
    sway: Sway, guest: Guest, ten_megabytes: Path, tmp_path: Path, reader: str
) -> None:
    """Other proxies hang up after a short read, and hang on more than a pipe holds. EOF is the only end."""
    require("wl-paste")
    copy = guest.start_python("slow_copy.py", str(ten_megabytes), "700", "25")
    sway.wait_for_window(copy, "slow-copy")
    copy.wait_until(lambda: "copied" in copy.log(), "the offer")
    pasted = tmp_path / "pasted"
    paste = guest.start("sh", "-c", f"exec wl-paste --no-newline > {pasted}", direct=reader == "host")
    assert paste.wait() == 0
    assert pasted.read_bytes() == ten_megabytes.read_bytes()
