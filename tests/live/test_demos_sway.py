"""weston's demos on sway, each twice: through waylend it looks as it does directly, pixel for pixel, after a click and a key.

They use between them most of what a toolkit uses: pointer constraints, sub-surfaces, viewports, popups, clipping,
fullscreen, a second connection's resources. Those whose picture moves or is drawn by chance are in test_apps_sway.py.
"""

from __future__ import annotations

import shutil

import pytest

from tests.live.compositors import Sway
from tests.live.conftest import MakeGuest
from tests.live.guest import Guest, Proxy
from tests.live.halves import Halves
from tests.live.picture import Picture
from tests.processes import wait_until

#: In Debian 12's weston, and not in 13's.
GONE_IN_WESTON_14 = "weston-confine"

DEMOS = [
    "weston-clickdot",
    "weston-cliptest",
    GONE_IN_WESTON_14,
    "weston-eventdemo",
    "weston-fullscreen",
    "weston-resizor",
    "weston-scaler",
]


def _picture_of(sway: Sway, guest: Guest, demo: str, *, direct: bool, same_as: Picture | None = None) -> Picture:
    sway.park_pointer()
    app = guest.start(demo, direct=direct)
    window = sway.wait_for_window(app)
    way = "directly" if direct else "lent"
    sway.wait_for_still_picture(f"{demo} {way} at first", box=window.box, app=app)
    sway.input.click(*window.centre)
    sway.type_text("a")
    sway.park_pointer()
    (window,) = sway.windows()
    if same_as is not None:
        sway.wait_for_same_picture(same_as, f"{demo} {way}", box=window.box, app=app)
    picture = sway.wait_for_still_picture(f"{demo} {way}", box=window.box, app=app)
    app.end()
    wait_until(lambda: not sway.windows(), "the window to go")
    return picture


@pytest.mark.parametrize("proxy_type", [Proxy, Halves], ids=["local", "halves"])
@pytest.mark.parametrize("demo", DEMOS)
def test_demo_looks_as_it_does_directly(sway: Sway, make_guest: MakeGuest, demo: str, proxy_type: type[Proxy]) -> None:
    if demo == GONE_IN_WESTON_14 and shutil.which("weston") and not shutil.which(demo):
        pytest.skip("this weston has it no more")
    guest = make_guest(sway, proxy_type=proxy_type)
    directly = _picture_of(sway, guest, demo, direct=True)
    lent = _picture_of(sway, guest, demo, direct=False, same_as=directly)
    # Not an empty window, by far; but the scaler of weston 14 shows one field of its picture nearly alone.
    emptiest = 0.97 if demo == "weston-scaler" else 0.95
    assert max(directly.share_of(colour) for colour in directly.colours()) < emptiest
    assert lent.difference(directly) == 0, lent.changed_box(directly)
