"""Browsers on sway, through a local proxy and through two halves."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.compositors import Sway, Window
from tests.live.conftest import MakeGuest
from tests.live.guest import Guest, Proxy
from tests.live.halves import Halves
from tests.live.picture import Colour, Picture, has_colours
from tests.processes import Process

PAGE, TYPED = (40, 160, 90), (200, 40, 90)
#: Browsers start slowly, and several at a time slower.
START_S = 90.0

_HTML = """<!doctype html><title>page</title>
<body style="margin:0;background:rgb(40,160,90)"
 onkeydown="document.body.style.background='rgb(200,40,90)';document.title='typed '+event.key">
"""

BROWSERS = {
    # Both refuse to be confined by themselves for root; here they are guests, and that is what confines them.
    "chromium": (
        "--no-sandbox --ozone-platform=wayland --disable-gpu --no-first-run --disable-component-update "
        "--disable-background-networking --password-store=basic --window-size=640,480"
    ),
    "firefox-esr": "--no-remote --new-instance --width 640 --height 480",
}


@pytest.fixture(params=[Proxy, Halves], ids=["local", "halves"])
def guest(make_guest: MakeGuest, sway: Sway, request: pytest.FixtureRequest) -> Guest:
    sway.input.move(0, 0)
    return make_guest(sway, proxy_type=request.param)


@pytest.fixture
def page(tmp_path: Path) -> str:
    path = tmp_path / "page.html"
    path.write_text(_HTML)
    return path.as_uri()


@pytest.fixture
def profile() -> Iterator[Path]:
    """A browser's own folder; short, as a socket's path has 108 bytes."""
    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def started(guest: Guest, name: str, page: str, profile: Path) -> Process:
    if name == "chromium":
        flags = [*BROWSERS[name].split(), f"--user-data-dir={profile}"]
    else:
        # Neither questions nor pages of its own at a first start.
        prefs = {
            "browser.shell.checkDefaultBrowser": "false",
            "browser.aboutwelcome.enabled": "false",
            "datareporting.policy.dataSubmissionEnabled": "false",
            "toolkit.telemetry.reportingpolicy.firstRun": "false",
            "trailhead.firstrun.didSeeAboutWelcome": "true",
            "browser.startup.homepage_override.mstone": '"ignore"',
            "browser.sessionstore.resume_from_crash": "false",
        }
        (profile / "user.js").write_text("".join(f'user_pref("{key}", {value});\n' for key, value in prefs.items()))
        flags = [*BROWSERS[name].split(), "--profile", f"{profile}"]
    # What a browser leaves in its folders when it is ended is none of waylend's.
    display = Path(guest.environment()["XDG_RUNTIME_DIR"]) / guest.environment()["WAYLAND_DISPLAY"]
    return guest.start(
        name,
        *flags,
        page,
        MOZ_ENABLE_WAYLAND="1",
        TMPDIR=f"{profile}",
        XDG_RUNTIME_DIR=f"{profile}",
        WAYLAND_DISPLAY=f"{display}",
    )


def shows(sway: Sway, app: Process, colour: Colour, what: str) -> Window:
    window = app.wait_until(lambda: max(sway.windows(), key=lambda one: one.window_id, default=None), what, START_S)
    assert window is not None
    sway.wait_for_picture(has_colours((colour, 0.4)), what, box=window.box, app=app, deadline_s=START_S)
    return window


@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", BROWSERS)
def test_a_browser_shows_a_page_and_hears_a_key(sway: Sway, guest: Guest, name: str, page: str, profile: Path) -> None:
    browser = started(guest, name, page, profile)
    window = shows(sway, browser, PAGE, f"{name} with its page")
    shown, tries = has_colours((TYPED, 0.4)), itertools.count()

    def has_heard(picture: Picture) -> bool:
        # A page that is painted may not listen yet: what is typed then is lost, also without waylend.
        if not shown(picture) and not next(tries) % 20:
            sway.input.click(*window.centre)
            sway.type_text("x")
        return shown(picture)

    sway.wait_for_picture(has_heard, f"{name} after a key", box=window.box, app=browser, deadline_s=START_S)
