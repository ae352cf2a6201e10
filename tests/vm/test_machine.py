"""What can be known of a VM without booting one: its plan, its kernel, and that nothing of what it says is taken on trust."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import anyio
import pytest

from waylend.errors import Unavailable, UsageError, WaylendError
from waylend.service.environment import CLEAN
from waylend.vm import machine


def told(*pieces: bytes) -> machine._Console:
    console = machine._Console()
    for piece in pieces:
        console.feed(piece)
    return console


def test_the_serial_line_says_how_it_went() -> None:
    console = told(b"[ 0.1] Linux\r\nwaylend-", b"vm: ready\r\nwaylend-vm: stat", b"us 7\r\n")
    assert console.alive.is_set() and console.ready.is_set()
    assert console.status == 7


@pytest.mark.parametrize(
    "line", [b"status 256", b"status -1", b"status x", b"status", b"statuses 1", b"", b"\xff\xfe 1"]
)
def test_what_makes_no_sense_is_nothing(line: bytes) -> None:
    console = told(b"waylend-vm: " + line + b"\n")
    assert console.status is None and not console.error and not console.ready.is_set()


def test_a_serial_line_without_end_is_bounded() -> None:
    console = told(*[b"x" * 100_000] * 20)
    assert len(console.tail) <= 64 * 1024 and len(console._line) <= 64 * 1024


def test_what_a_terminal_would_obey_is_not_shown() -> None:
    console = told(b"\x1b]0;title\x07 panic\n", b"waylend-vm: error \x1b[2Jgone\n")
    assert "\x1b" not in console.last_lines() + console.error
    assert "panic" in console.last_lines()
    assert console.error == "[2Jgone"


def test_an_app_gets_no_secrets_of_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "SSH_AUTH_SOCK", "DBUS_SESSION_BUS_ADDRESS", "DISPLAY", "LD_PRELOAD"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("LC_TIME", "C")
    plan = machine._plan_of(["foot", "-e"], machine.Machine())
    assert set(plan["environment"]) <= {*CLEAN, "LC_TIME"}
    assert plan["environment"]["LC_TIME"] == "C"
    assert (plan["argv"], plan["uid"]) == (["foot", "-e"], os.getuid())


def test_a_kernel_has_its_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boot, modules = tmp_path / "boot", tmp_path / "modules"
    boot.mkdir()
    monkeypatch.setattr(machine, "_BOOT", boot)
    monkeypatch.setattr(machine, "_MODULES", modules)
    (boot / "vmlinuz-6.9-none").touch()
    with pytest.raises(Unavailable, match="linux-image-amd64"):
        machine.find_kernel()
    (boot / "vmlinuz-6.1-there").touch()
    (modules / "6.1-there").mkdir(parents=True)
    assert machine.find_kernel() == f"{boot}/vmlinuz-6.1-there"
    with pytest.raises(UsageError, match="nope"):
        machine.find_kernel("/nope")


def test_missing_programs_are_named_with_what_installs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_path", lambda: "/nowhere")
    with pytest.raises(Unavailable) as raised:
        machine.check_programs()
    assert all(
        part in str(raised.value)
        for part in ("qemu-system-x86", "busybox-static", "-m pip install virtme-ng", "install file")
    )
    assert "iproute2" not in str(raised.value)


def test_what_the_machine_would_not_see_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """virtme-ng mounts an empty folder over /root, unless it is root who asks."""
    monkeypatch.setattr(sys, "executable", "/root/waylend/.venv/bin/python")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    machine.check_place()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(Unavailable, match=r"an empty /root .* /root/waylend/\.venv/bin/python is in there"):
        machine.check_place()


def test_a_network_needs_a_program_more(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("qemu-system-x86_64", "vng", "busybox", "file"):
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setattr(machine, "_path", lambda: f"{tmp_path}")
    machine.check_programs()
    with pytest.raises(Unavailable, match=r"a VM with a network needs ip\b.*iproute2"):
        machine.check_programs(network=True)


@pytest.mark.parametrize(("give_up", "outcome"), [(True, None), (False, "ended before its app did")])
def test_a_qemu_that_dies_at_once_is_no_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, give_up: bool, outcome: str | None
) -> None:
    """Where there is something else to try, that is what is done: KVM may be there, and not run this kernel."""
    (tmp_path / "vng").write_text("#!/bin/sh\nexit 134\n")
    (tmp_path / "vng").chmod(0o755)
    monkeypatch.setattr(machine, "_path", lambda: f"{tmp_path}:{os.environ['PATH']}")

    async def boot() -> int | None:
        with anyio.open_signal_receiver(signal.SIGUSR1) as signals:
            return await machine._boot(
                "kernel", "kvm", machine.Machine(), [], tmp_path, anyio.Event(), signals, print, give_up=give_up
            )

    if outcome is None:
        assert anyio.run(boot) is None
    else:
        with pytest.raises(WaylendError, match=outcome):
            anyio.run(boot)
