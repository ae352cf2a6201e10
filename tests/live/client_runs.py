"""Runs of our own clients whose outcome is the same whichever way their messages went."""

from __future__ import annotations

import os

from tests.live.compositors import Sway
from tests.live.guest import Guest
from tests.live.picture import Box, Picture
from tests.processes import DEADLINE_S, Process, wait_until


def boxes(
    sway: Sway, guest: Guest, mode: str, *, frames: int = 40, direct: bool = False, deadline_s: float = DEADLINE_S
) -> tuple[Process, Picture]:
    """tests/live/clients/boxes.py at its last frame."""
    app = guest.start_python("boxes.py", mode, f"{frames}", direct=direct)
    app.wait_until(sway.windows, "its window", deadline_s)
    app.wait_until(lambda: "done" in app.log(), "the last frame", deadline_s)
    box = repainted(sway, app, mode)
    way = "directly" if direct else "lent"
    return app, sway.wait_for_still_picture(f"boxes {mode} {way}", box=box, app=app)


def repainted(sway: Sway, app: Process, mode: str) -> Box:
    """Moves the window: now all of its picture comes from its last buffer, whatever was painted before. Returns its place."""
    sway.command(f'[app_id="boxes-{mode}"] move absolute position 64 72')
    app.wait_until(lambda: sway.wait_for_window(app).box[:2] == (64, 72), "the window to move")
    return sway.wait_for_window(app).box


def wait_until_drawn_again(
    sway: Sway, app: Process, mode: str, expected: Picture, *, deadline_s: float = DEADLINE_S
) -> None:
    """After a loss: waits until the window, painted anew each time, is ``expected``, and then that it stays so.

    What is painted before the guest half has drawn again is black, on a busy machine for a while.
    """

    def right() -> bool:
        sway.command(f'[app_id="boxes-{mode}"] move absolute position 100 80')
        box = repainted(sway, app, mode)
        return sway.screenshot().part(box).difference(expected) == 0

    app.wait_until(right, "the window to be drawn again", deadline_s)
    box = sway.wait_for_window(app).box
    sway.wait_for_same_picture(expected, f"boxes {mode} drawn again", box=box, app=app)


def boxes_directly(sway: Sway, guest: Guest, mode: str) -> Picture:
    app, picture = boxes(sway, guest, mode, direct=True)
    app.end()
    wait_until(lambda: not sway.windows(), "the window to go")
    assert len(picture.colours()) > 15
    return picture


def keymap_of(guest: Guest, *arguments: str, direct: bool = False, deadline_s: float = DEADLINE_S) -> str:
    reader, writer = os.pipe()
    try:
        client = guest.start_python("keymap.py", *arguments, direct=direct, stdin=reader)
        os.close(reader)
        client.wait_until(lambda: client.log().endswith("\n"), "a keymap", deadline_s)
    finally:
        os.close(writer)
    assert client.wait(deadline_s) == 0, client.log()
    return client.log().strip()
