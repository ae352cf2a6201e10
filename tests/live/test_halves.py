"""Two halves with lent memory between them, on sway: pixels, files and pipes that cross, and how things end."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.client_runs import boxes, boxes_directly, keymap_of, wait_until_drawn_again
from tests.live.compositors import Sway
from tests.live.conftest import MakeGuest
from tests.live.guest import Guest
from tests.live.halves import ActivatedHalves, Halves
from tests.live.picture import Picture, has_colours
from tests.processes import Process, require, wait_until

LEFT, RIGHT = (200, 40, 90), (40, 160, 220)
MEGABYTE = bytes(range(250)) * 4000


@pytest.fixture
def guest(make_guest: MakeGuest, sway: Sway) -> Guest:
    sway.park_pointer()
    return make_guest(sway, proxy_type=Halves)


def halves_of(guest: Guest) -> Halves:
    if not isinstance(guest.proxy, Halves):
        pytest.skip("needs the halves")
    return guest.proxy


class BareHalves(Halves):
    """A guest half where anyio and click are installed, and nothing else."""

    guest_command = (sys.executable, str(Path(__file__).with_name("bare_python.py")))


def test_a_guest_needs_anyio_and_click(sway: Sway, make_guest: MakeGuest) -> None:
    guest = make_guest(sway, proxy_type=BareHalves)
    boxes(sway, guest, "buffer")
    assert keymap_of(guest) == keymap_of(guest, direct=True)


# --- pixels --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["buffer", "surface", "viewport", "pools", "grow", "subsurface"])
def test_every_pixel_is_as_it_is_directly(sway: Sway, guest: Guest, mode: str) -> None:
    directly = boxes_directly(sway, guest, mode)
    _, lent = boxes(sway, guest, mode)
    assert lent.difference(directly) == 0, lent.changed_box(directly)


def test_no_pixel_is_lost_to_revocations_in_between(sway: Sway, guest: Guest) -> None:
    halves = halves_of(guest)
    directly = boxes_directly(sway, guest, "buffer")
    app = guest.start_python("boxes.py", "buffer", "40")
    sway.wait_for_window(app)
    revoked = 0
    while "done" not in app.log():
        revoked += "pages" in halves.ask("revoke", "--all")
        assert app.running, app.log()
        time.sleep(0.02)  # the storm's own pace: nothing is waited for
    assert revoked > 0
    halves.ask("revoke", "--all")
    wait_until_drawn_again(sway, app, "buffer", directly)
    assert any(lease["revocations"] > 0 for lease in halves.leases())


@pytest.mark.parametrize("mode", ["buffer", "pools", "subsurface"])
def test_the_window_of_an_idle_app_is_right_when_all_its_memory_was_taken(sway: Sway, guest: Guest, mode: str) -> None:
    halves = halves_of(guest)
    app, shown = boxes(sway, guest, mode)
    assert sum(lease["pages_present"] for lease in halves.leases()) > 0
    for x in (100, 120, 140):
        halves.guest_half.send(signal.SIGSTOP)  # else what it draws again may be there before one has looked
        halves.ask("revoke", "--all")
        sway.command(f'[app_id="boxes-{mode}"] move absolute position {x} 80')
        assert not any(halves.process.blocks_of("waylend-buffer")), "what was drawn is in the host's memory still"
        halves.guest_half.send(signal.SIGCONT)
    wait_until_drawn_again(sway, app, mode, shown)


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="the guest half draws again without damage: a compositor that has painted in between paints no more",
)
def test_a_window_that_was_painted_before_it_was_drawn_again_is_right_by_itself(sway: Sway, guest: Guest) -> None:
    halves = halves_of(guest)
    app, shown = boxes(sway, guest, "buffer")
    halves.guest_half.send(signal.SIGSTOP)
    halves.ask("revoke", "--all")
    sway.command('[app_id="boxes-buffer"] move absolute position 100 80')
    box = sway.wait_for_window(app).box
    sway.wait_for_picture(has_colours(((0, 0, 0), 1.0)), "a black window", box=box, app=app)
    halves.guest_half.send(signal.SIGCONT)
    sway.wait_for_same_picture(shown, "boxes drawn again", box=box, app=app, deadline_s=5.0)


def test_what_is_captured_comes_back_into_the_clients_pool(sway: Sway, make_guest: MakeGuest, tmp_path: Path) -> None:
    require("grim")
    guest = make_guest(sway, "--allow", "zwlr_screencopy_manager_v1", "--no-security-context", proxy_type=Halves)
    app, shown = boxes(sway, guest, "buffer")
    box = sway.wait_for_window(app).box
    captured = tmp_path / "captured"
    assert guest.start("grim", "-t", "ppm", str(captured)).wait() == 0
    assert Picture.decode(captured.read_bytes()).part(box).difference(shown) == 0


def test_who_may_not_capture_is_not_told_how(guest: Guest, tmp_path: Path) -> None:
    require("grim")
    grim = guest.start("grim", str(tmp_path / "captured"))
    assert grim.wait() == 1
    assert "screencopy" in grim.log()


def test_leases_are_shown_and_end_with_their_client(sway: Sway, guest: Guest) -> None:
    halves = halves_of(guest)
    app, _ = boxes(sway, guest, "buffer")
    names = {lease["name"] for lease in halves.leases()}
    assert "wl_shm buffers" in names
    assert sum(lease["pages_present"] for lease in halves.leases()) >= 2 * 320 * 240 * 4 // 4096
    app.end()
    wait_until(lambda: not halves.leases(), "the leases to end")


def test_a_pool_that_is_cut_short_ends_its_client_only(sway: Sway, guest: Guest) -> None:
    stays = guest.start_python("qt_window.py")
    window = sway.wait_for_window(stays)
    cut = guest.start_python("boxes.py", "cut", "5")
    assert cut.wait() != 0
    assert "cut short" in cut.log(), cut.log()
    assert "wl_buffer" in cut.log(), cut.log()
    wait_until(lambda: sway.windows() == [window], "the client's window to go")
    sway.type_text("still here")
    stays.wait_until(lambda: "still here" in stays.log(), "the other client to hear what is typed")


# --- files and pipes -----------------------------------------------------------------------------------------------------


def test_the_keymap_is_the_compositors_to_the_last_byte(sway: Sway, guest: Guest) -> None:
    assert keymap_of(guest) == keymap_of(guest, direct=True)


def test_nobody_can_change_the_keymap(sway: Sway, guest: Guest) -> None:
    attempts = dict(word.split("=") for word in keymap_of(guest, "write").split())
    # Root may open anything anew, for writing, too: the seals hold all the same.
    attempts.pop("reopen")
    assert "done" not in attempts.values(), attempts


@pytest.mark.parametrize("source", ["host", "guest"])
@pytest.mark.parametrize("selection", ["clipboard", "primary"])
def test_a_selection_crosses_whole(sway: Sway, guest: Guest, tmp_path: Path, source: str, selection: str) -> None:
    require("wl-copy")
    flags = ["--primary"] if selection == "primary" else []
    content = tmp_path / "content"
    content.write_bytes(MEGABYTE)
    kind = ["--type", "application/octet-stream"]
    with content.open("rb") as stream:
        guest.start("wl-copy", "--foreground", *flags, *kind, direct=source == "host", stdin=stream.fileno())

    def offered() -> bool:
        listing = guest.start("wl-paste", *flags, "--list-types", direct=source == "guest")
        return listing.wait() == 0 and "octet-stream" in listing.log()

    wait_until(offered, "the selection to be offered")
    pasted = tmp_path / "pasted"
    arguments = " ".join(["wl-paste", "--no-newline", *flags, *kind])
    paste = guest.start("sh", "-c", f"exec {arguments} > {pasted}", direct=source == "guest")
    assert paste.wait() == 0
    assert pasted.read_bytes() == MEGABYTE


def test_a_reader_that_goes_away_leaves_nothing(sway: Sway, guest: Guest, tmp_path: Path) -> None:
    """check_idle, at the end of the test, looks at the descriptors of both halves."""
    content = tmp_path / "content"
    content.write_bytes(MEGABYTE * 10)
    with content.open("rb") as stream:
        guest.start("wl-copy", "--foreground", "--type", "text/plain", direct=True, stdin=stream.fileno())
    wait_until(lambda: guest.start("wl-paste", "--list-types").wait() == 0, "the clipboard to be offered")
    paste = guest.start("sh", "-c", "wl-paste --no-newline | head -c 1000 | wc -c; exit 0")
    assert paste.wait() == 0
    assert paste.log().strip() == "1000"


# --- ends ----------------------------------------------------------------------------------------------------------------


def sleeping_foot(sway: Sway, guest: Guest) -> Process:
    foot = guest.start("foot", "sh", "-c", "sleep 1000")
    sway.wait_for_window(foot, "foot")
    return foot


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_when_the_guest_half_ends_its_windows_close(sway: Sway, guest: Guest, number: signal.Signals) -> None:
    halves = halves_of(guest)
    foot = sleeping_foot(sway, guest)
    begun = time.monotonic()
    halves.guest_half.end(number)
    foot.wait()
    wait_until(lambda: not sway.windows(), "the window to go")
    wait_until(lambda: not halves.leases(), "the leases to end")
    assert time.monotonic() - begun < 5
    halves.start_guest()
    sleeping_foot(sway, guest)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_guest_half_survives_the_host_half(sway: Sway, guest: Guest, number: signal.Signals) -> None:
    halves = halves_of(guest)
    foot = sleeping_foot(sway, guest)
    halves.process.end(number)
    foot.wait()
    wait_until(lambda: not sway.windows(), "the window to go")
    refused = guest.start("foot", "sh", "-c", "sleep 1000")
    assert refused.wait() != 0
    halves.start_host()
    halves.guest_half.wait_until(lambda: "the host half is there" in halves.guest_half.log(), "the halves to meet")
    sleeping_foot(sway, guest)


@pytest.fixture
def mortal_sway() -> Iterator[Sway]:
    sway = Sway()
    try:
        sway.start()
        yield sway
    finally:
        sway.close()


def test_the_host_half_waits_for_the_compositor(mortal_sway: Sway, make_guest: MakeGuest) -> None:
    guest = make_guest(mortal_sway, proxy_type=Halves)
    halves = halves_of(guest)
    foot = sleeping_foot(mortal_sway, guest)
    mortal_sway.input.close()
    mortal_sway.process.end(signal.SIGKILL)
    foot.wait()
    wait_until(lambda: not halves.leases(), "the leases to end")
    mortal_sway.start()
    halves.process.wait_until(lambda: "is there" in halves.process.log(), "word that the compositor is back")
    app = guest.start_python("qt_window.py")
    box = mortal_sway.wait_for_window(app).box
    mortal_sway.wait_for_picture(has_colours((LEFT, 0.4), (RIGHT, 0.4)), "a window on the new sway", box=box, app=app)


def test_a_stopped_guest_half_holds_up_nobody_else(sway: Sway, guest: Guest) -> None:
    halves = halves_of(guest)
    sleeping_foot(sway, guest)
    halves.guest_half.send(signal.SIGSTOP)
    try:
        direct = guest.start("foot", "--app-id", "direct", "sh", "-c", "sleep 1000", direct=True)
        sway.wait_for_window(direct, "direct")
        assert "wl_shm" in halves.ask("leases")
        halves.ask("revoke", "--all")
    finally:
        halves.guest_half.send(signal.SIGCONT)
    sleeping_foot(sway, guest)


def test_who_activates_the_guest_half_is_shown(sway: Sway, make_guest: MakeGuest) -> None:
    """The first client is there before the guest half is, and that is there before the host half has greeted it."""
    guest = make_guest(sway, proxy_type=ActivatedHalves)
    assert isinstance(guest.proxy, ActivatedHalves)
    foot = guest.start("foot", "sh", "-c", "sleep 1000")
    guest.proxy.activate()
    sway.wait_for_window(foot, "foot")
