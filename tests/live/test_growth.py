"""What a hostile guest half can make of a host half: bounded memory, few descriptors, and nothing that stays.

Each flood lasts a moment here. ``GROWTH_SECONDS=60 pytest tests/live/test_growth.py`` is the long run.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.host_half.hosting import GuestByHand, request
from tests.live.compositors import OurShim
from tests.live.halves import Halves
from tests.processes import wait_until
from waylend.channel.messages import CHANNEL_ID

SECONDS = float(os.environ.get("GROWTH_SECONDS", "1.5"))
MOST_BYTES = 120 << 20
MOST_FDS = 600

CONNECT = "waylend_channel_v1.connect"
LEASE = "waylend_connection_v1.lease"
STREAM = "waylend_connection_v1.attach_stream"
APERTURE = "waylend_connection_v1.attach_aperture"
BYTES = "waylend_connection_v1.bytes"
HELLO = "waylend_channel_v1.hello"
PING = "waylend_channel_v1.ping"

Ids = Iterator[int]
Flood = Callable[[list[int], Ids], bytes]


def syncs(count: int) -> bytes:
    return b"".join(request("wl_display.sync", 1, number) for number in range(2, count + 2))


#: How many clients a flood has, and a piece of it: made of their connections' ids, and of new ones.
FLOODS: dict[str, tuple[int, Flood]] = {
    "pings": (0, lambda _, __: request(PING, CHANNEL_ID, 7) * 4000),
    "hellos": (0, lambda _, __: request(HELLO, CHANNEL_ID, 1, 0, 5, b"") * 2000),
    "hellos behind padding": (
        0, lambda _, ids: b"".join(bytes(8) + request(HELLO, CHANNEL_ID, 1, 0, next(ids), b"") for _ in range(1000)),
    ),
    "clients": (0, lambda _, ids: b"".join(request(CONNECT, CHANNEL_ID, next(ids)) for _ in range(2000))),
    "leases of nothing": (1, lambda c, ids: b"".join(request(LEASE, c[0], next(ids), 0) for _ in range(2000))),
    "leases": (1, lambda c, ids: b"".join(request(LEASE, c[0], next(ids), 1) for _ in range(300))),
    "leases of many": (200, lambda c, ids: b"".join(request(LEASE, one, next(ids), 1) for one in c)),
    "pipes": (1, lambda c, ids: b"".join(request(STREAM, c[0], next(ids)) for _ in range(50))),
    "pipes of many": (100, lambda c, ids: b"".join(request(STREAM, one, next(ids)) for one in c)),
    "attachments": (1, lambda c, _: request(APERTURE, c[0]) * 300),
    "attachments of many": (200, lambda c, _: b"".join(request(APERTURE, one) for one in c)),
    "attachments with empty bytes": (1, lambda c, _: (request(APERTURE, c[0]) * 28 + request(BYTES, c[0], b"")) * 20),
    "bytes of many": (60, lambda c, _: b"".join(request(BYTES, one, syncs(1000)) for one in c)),
}  # fmt: skip


class HostHalfAlone(Halves):
    def start_guest(self) -> None:
        """The test plays it."""

    def _guest_fds(self) -> list[str]:
        return []

    def resident_bytes(self) -> int:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="module")
def shim() -> Iterator[OurShim]:
    running = OurShim()
    running.start()
    yield running
    running.shim.stop()


@pytest.fixture
def host_half(shim: OurShim) -> Iterator[HostHalfAlone]:
    running = HostHalfAlone(shim)
    yield running
    running.process.end()


def opened(host_half: HostHalfAlone, client_count: int) -> tuple[GuestByHand, list[int], Ids]:
    """A guest half that said hello, its clients' connections, and ids for more."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(str(host_half.channel))
    guest, ids = GuestByHand(sock), itertools.count(2)
    guest.tell(HELLO, CHANNEL_ID, 1, 0, 1, b"")
    guest.expect(HELLO)
    clients = [next(ids) for _ in range(client_count)]
    for connection in clients:
        guest.tell(CONNECT, CHANNEL_ID, connection)
    sock.settimeout(0.1)
    return guest, clients, ids


def flood(host_half: HostHalfAlone, client_count: int, piece_of: Flood) -> tuple[int, int]:
    """Floods it and reads nothing, from the beginning again when it hangs up. Returns the most bytes and descriptors it had."""
    most_bytes = most_fds = 0
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        with contextlib.suppress(EOFError, OSError):
            guest, clients, ids = opened(host_half, client_count)
            try:
                piece = b""
                while time.monotonic() < end:
                    piece = piece or piece_of(clients, ids)
                    with contextlib.suppress(TimeoutError):
                        piece = piece[guest.sock.send(piece) :]
                    most_bytes = max(most_bytes, host_half.resident_bytes())
                    most_fds = max(most_fds, len(host_half.process.fds()))
            finally:
                guest.close()
    return most_bytes, most_fds


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_of_the_channel_leaves_the_host_half_bounded(host_half: HostHalfAlone, name: str) -> None:
    fds_before = len(host_half.process.fds())
    most_bytes, most_fds = flood(host_half, *FLOODS[name])
    assert most_bytes < MOST_BYTES, f"{most_bytes >> 20} MiB"
    assert most_fds < MOST_FDS, f"{most_fds} descriptors"
    wait_until(lambda: len(host_half.process.fds()) <= fds_before, "its descriptors to be closed")
    guest, _, _ = opened(host_half, 1)
    guest.close()
    assert host_half.process.running
    assert "Traceback" not in host_half.process.log()
