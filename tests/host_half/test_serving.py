"""Running a host half: it ends with what it can't do without, and says so."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import anyio
import pytest

from tests.processes import wait_until
from waylend.errors import LendingError
from waylend.host_half.serving import serve_guest
from waylend.policy import Limits, Policy


async def serve_until_lost(channel: Path, number: signal.Signals) -> None:
    ours, compositor = socket.socketpair()
    with ours, compositor:
        async with serve_guest(
            channel=f"unix:{channel}",
            compositor=compositor,
            policy=Policy(limits=Limits(aperture_bytes=1 << 22)),
            control=False,
        ) as half:
            os.kill(half.domain.pid, number)
            with anyio.fail_after(10):
                await anyio.sleep_forever()


def test_a_host_half_whose_aperture_is_lost_ends_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(LendingError, match="the aperture is lost"):
        anyio.run(serve_until_lost, tmp_path / "channel", signal.SIGKILL)
    wait_until(lambda: not (tmp_path / "channel").exists(), "the channel's socket to be gone")
