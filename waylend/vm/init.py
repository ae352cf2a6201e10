"""What runs as root in a VM that ``waylend.vm.machine`` boots: the guest half and the app, both as the user whose VM it is.

The plan comes through QEMU's firmware configuration device (Documentation/ABI/testing/sysfs-firmware-qemu_fw_cfg); how it went
is told through a serial line, as lines that begin with ``waylend-vm:``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from waylend.channel.transport import PORT_PATH
from waylend.errors import Unavailable, WaylendError
from waylend.guest_half.bar import find_bar

#: The name of the plan, and of the serial line that takes what is to be told.
PLAN_NAME = "opt/org.waylend.vm"
MARK = "waylend-vm:"
_PLAN = Path(f"/sys/firmware/qemu_fw_cfg/by_name/{PLAN_NAME}/raw")
_SERIAL = "/dev/ttyS1"
_DEVICES_S = 30.0
_SOCKET_S = 60.0
_RESTART_S = 0.5


def main() -> int:
    with open(_SERIAL, "w", encoding="utf-8", buffering=1) as serial:

        def tell(what: str) -> None:
            serial.write(f"\n{MARK} {what}\n")

        try:
            status = _carry_out(_plan(), tell)
        except (WaylendError, OSError) as error:
            tell(f"error {error}")
            return 1
        tell(f"status {status}")
        return 0


def _plan() -> dict[str, Any]:
    subprocess.run(["modprobe", "qemu_fw_cfg"], check=False, stderr=subprocess.DEVNULL)
    plan = json.loads(_PLAN.read_bytes())
    assert isinstance(plan, dict)
    return plan


def _carry_out(plan: dict[str, Any], tell: Any) -> int:
    uid, gid, groups = plan["uid"], plan["gid"], plan["groups"]
    bar = find_bar()
    _wait_for(PORT_PATH, _DEVICES_S)
    for device in (bar, PORT_PATH):
        os.chown(device, uid, gid)
    runtime_dir = f"/run/user/{uid}"
    os.makedirs(runtime_dir, mode=0o700, exist_ok=True)
    os.chown(runtime_dir, uid, gid)
    environment = {**plan["environment"], "XDG_RUNTIME_DIR": runtime_dir, "WAYLAND_DISPLAY": "wayland-0"}
    python = {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    as_user: dict[str, Any] = {"user": uid, "group": gid, "extra_groups": groups}

    def start_half() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "waylend",
                *["-v"] * plan["verbose"],
                "guest",
                "--listen",
                "wayland-0",
                "--bar",
                bar,
            ],
            env=environment | python,
            stdin=subprocess.DEVNULL,
            **as_user,
        )

    half = start_half()
    try:
        _wait_for(f"{runtime_dir}/wayland-0", _SOCKET_S, half)
        tell("ready")
        cwd = plan["cwd"] if os.access(plan["cwd"], os.X_OK) else "/"
        try:
            app = subprocess.Popen(plan["argv"], env=environment, cwd=cwd, start_new_session=True, **as_user)
        except OSError as error:
            print(f"waylend: can't run {plan['argv'][0]}: {error.strerror}", file=sys.stderr, flush=True)
            return 127 if isinstance(error, FileNotFoundError) else 126
        while True:
            pid, wait_status = os.wait()
            if pid == app.pid:
                status = os.waitstatus_to_exitcode(wait_status)
                return status if status >= 0 else 128 - status
            if pid == half.pid:
                # Its clients have got their end; the next ones find a new half.
                time.sleep(_RESTART_S)
                half = start_half()
    finally:
        half.send_signal(signal.SIGTERM)
        half.wait()


def _wait_for(path: str, deadline_s: float, maker: subprocess.Popen[bytes] | None = None) -> None:
    give_up_at = time.monotonic() + deadline_s
    while not os.path.exists(path):
        if maker is not None and maker.poll() is not None:
            raise Unavailable(f"the guest half ended with status {maker.returncode}")
        if time.monotonic() > give_up_at:
            raise Unavailable(f"the machine has no {path} after {deadline_s:g} s")
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main())
