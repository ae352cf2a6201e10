"""What a guest sees of the host, and what the host sees of a guest."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.live.compositors import Sway, Window
from tests.live.conftest import MakeGuest
from tests.live.guest import Guest
from tests.live.picture import has_colours
from tests.processes import require, wait_until


def announced(guest: Guest, *, direct: bool = False) -> dict[str, int]:
    """Interface -> version of every global that a client is told of. libwayland's own trace says so."""
    client = guest.start("weston-flower", direct=direct, WAYLAND_DEBUG="1")
    client.wait_until(lambda: "xdg_surface" in client.log() and "configure" in client.log(), "the client to be served")
    client.end()
    found = re.findall(r'wl_registry[@#]\d+\.global\(\d+, "(\w+)", (\d+)\)', client.log())
    return {interface: int(version) for interface, version in found}


@pytest.mark.parametrize("flags", [(), ("--no-security-context",)], ids=["as a guest", "as one of us"])
def test_guest_sees_no_more_than_an_application_needs(
    sway: Sway, make_guest: MakeGuest, flags: tuple[str, ...]
) -> None:
    guest = make_guest(sway, *flags)
    if guest.proxy is None:
        pytest.skip("needs the proxy")
    host, lent = announced(guest, direct=True), announced(guest)
    assert not lent.keys() - host.keys()
    assert all(lent[interface] <= host[interface] for interface in lent)
    # Sway has these, and each would let a guest watch or drive the whole desktop.
    for interface in (
        "zwlr_screencopy_manager_v1",
        "zwlr_export_dmabuf_manager_v1",
        "zwp_virtual_keyboard_manager_v1",
        "zwlr_virtual_pointer_manager_v1",
        "zwlr_layer_shell_v1",
        "zwlr_data_control_manager_v1",
        "zwlr_output_manager_v1",
        "zwlr_gamma_control_manager_v1",
        "zwlr_foreign_toplevel_manager_v1",
    ):
        assert interface in host
        assert interface not in lent
    assert "zwlr_input_inhibit_manager_v1" not in lent  # sway has it up to 1.8
    for interface in (
        "wl_compositor",
        "wl_shm",
        "wl_seat",
        "xdg_wm_base",
        "wl_data_device_manager",
        "wl_subcompositor",
    ):
        assert interface in lent


def test_policy_of_the_command_line(sway: Sway, make_guest: MakeGuest) -> None:
    guest = make_guest(sway, "--allow", "zwlr_layer_shell_v1", "--deny", "wp_viewporter", "--no-security-context")
    if guest.proxy is None:
        pytest.skip("needs the proxy")
    lent = announced(guest)
    assert "zwlr_layer_shell_v1" in lent
    assert "wp_viewporter" not in lent
    assert "hides" not in guest.proxy.log()


def test_what_the_compositor_hides_although_it_is_allowed_is_said(sway: Sway, make_guest: MakeGuest) -> None:
    """sway from 1.9 on does that to clients with a security context, which it doesn't know before."""
    guest = make_guest(sway, "--allow", "zwlr_layer_shell_v1")
    if guest.proxy is None:
        pytest.skip("needs the proxy")
    hidden = "wp_security_context_manager_v1" in announced(guest, direct=True)
    assert ("zwlr_layer_shell_v1" in announced(guest)) is not hidden
    assert ("hides zwlr_layer_shell_v1 from clients with a security context" in guest.proxy.log()) is hidden


def test_host_sees_whose_window_it_is(sway: Sway, make_guest: MakeGuest) -> None:
    guest = make_guest(sway, "--title-prefix", "[work] ", "--app-id-prefix", "work.")
    if guest.proxy is None:
        pytest.skip("needs the proxy")
    foot = guest.start("foot", "--title", "notes", "sh", "-c", "sleep 1000")
    window = sway.wait_for_window(foot, "work.foot")
    assert window.title == "[work] notes"


def test_trace_reads_like_wayland_debug(sway: Sway, make_guest: MakeGuest, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    guest = make_guest(sway, f"--trace={trace}")
    if guest.proxy is None:
        pytest.skip("needs the proxy")
    foot = guest.start("foot", "--title", "traced", "sh", "-c", "sleep 1000")
    sway.wait_for_window(foot, "foot")
    text = trace.read_text()
    assert re.search(r'xdg_toplevel[@#]\d+\.set_title\("traced"\)', text), text[-2000:]
    assert re.search(r"xdg_surface[@#]\d+\.configure\(\d+\)", text), text[-2000:]


def test_x11_window_by_way_of_xwayland(sway: Sway, make_guest: MakeGuest, tmp_path: Path) -> None:
    """An X server is a large Wayland client; what it shows comes from an X11 client of ours."""
    require("Xwayland")
    guest = make_guest(sway)
    sway.park_pointer()
    reports = tmp_path / "display"
    # It picks a free display number, and writes it to the file once it serves.
    server = guest.start("sh", "-c", f"exec Xwayland -displayfd 1 -ac > {reports}")
    server.wait_until(lambda: reports.exists() and reports.read_text().endswith("\n"), "Xwayland to serve")
    client = guest.start_python("x11_window.py", f":{reports.read_text().strip()}")
    client.wait_until(lambda: "shown" in client.log(), "the X11 client's window")
    window: Window = sway.wait_for_window(server)
    sway.wait_for_picture(has_colours(((200, 40, 90), 0.14)), "an X11 window", box=window.box, app=server)
    client.end()
    server.end()
    wait_until(lambda: not sway.windows(), "the window to go")
