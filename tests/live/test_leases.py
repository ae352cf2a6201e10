"""What the compositor hands out reaches a client as lent memory: the same bytes, read-only, and to be taken back."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.live.compositors import Sway
from tests.live.conftest import MakeGuest
from tests.live.guest import WAYLEND, Guest, Proxy
from tests.processes import Process, descendants, wait_until


@pytest.fixture
def guest(make_guest: MakeGuest, sway: Sway) -> Guest:
    guest = make_guest(sway)
    if guest.proxy is None:
        pytest.skip("there are no leases without waylend")
    return guest


@contextmanager
def _keymap_client(guest: Guest, *arguments: str, direct: bool = False) -> Iterator[tuple[Process, str]]:
    """tests/live/clients/keymap.py and the line that it printed; it stays connected until the context is left."""
    reader, writer = os.pipe()
    try:
        client = guest.start_python("keymap.py", *arguments, direct=direct, stdin=reader)
        os.close(reader)
        line = client.wait_until(lambda: client.log().endswith("\n") and client.log(), "a keymap")
        yield client, str(line).strip()
    finally:
        os.close(writer)
    assert client.wait() == 0, client.log()


def _proxy(guest: Guest) -> Proxy:
    assert guest.proxy is not None
    return guest.proxy


def test_keymap_is_lent_and_reads_as_the_compositors_own(guest: Guest) -> None:
    with _keymap_client(guest, direct=True) as (_, directly):
        pass
    with _keymap_client(guest) as (client, lent):
        size, privately, shared, read = lent.split()
        assert lent == directly
        assert privately == shared == read
        (lease,) = _proxy(guest).leases()
        assert lease["size_bytes"] == int(size)
        assert lease["page_count"] == -(-int(size) // 4096)
        assert lease["pages_present"] == lease["page_count"]
        assert client.running


def test_clients_cannot_change_what_is_lent(guest: Guest) -> None:
    with _keymap_client(guest) as (_, before):
        pass
    with _keymap_client(guest, "write") as (_, ends):
        assert "done" not in ends, ends
    with _keymap_client(guest, direct=True) as (_, after):
        assert after == before


def test_same_keymap_is_one_lease_for_all(guest: Guest) -> None:
    with _keymap_client(guest), _keymap_client(guest), _keymap_client(guest):
        assert len(_proxy(guest).leases()) == 1
    wait_until(lambda: not _proxy(guest).leases(), "the lease to end with its last client")


def test_revoked_pages_are_served_again(guest: Guest) -> None:
    with _keymap_client(guest) as (_, before):
        (lease,) = _proxy(guest).leases()
        assert lease["pages_present"] > 0
        assert "1 leases" in _proxy(guest).ask("revoke", "--all")
        (revoked,) = _proxy(guest).leases()
        if _proxy(guest).domains()[0]["mechanism"] == "fuse":
            assert (revoked["pages_present"], revoked["revocations"]) == (0, 1)
        with _keymap_client(guest) as (_, again):
            assert again == before
        (served,) = _proxy(guest).leases()
        assert served["pages_present"] == lease["pages_present"]
        assert served["faults_served"] > lease["faults_served"] or served["revocations"] == 0


def test_leases_can_be_read_by_a_person(guest: Guest) -> None:
    proxy = _proxy(guest)
    with _keymap_client(guest):
        shown = proxy.ask("leases")
        assert "keymap" in shown
        assert str(proxy.process.pid) in shown


def test_leases_can_be_watched(guest: Guest, tmp_path: Path) -> None:
    proxy = _proxy(guest)
    with _keymap_client(guest):
        looks = proxy.ask("top", "--count", "2", "--interval", "0.1", "--json").splitlines()
        assert [json.loads(look)[0]["pid"] for look in looks] == [proxy.process.pid] * 2
        assert proxy.ask("top", "--count", "2", "--interval", "0.1").count("keymap") == 2
        in_background = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh"]  # as a script's `&` does it
        command = [*in_background, *WAYLEND, "top", "--control", str(proxy.control)]
        with Process(command, tmp_path / "log", os.environ) as watching:
            watching.wait_until(lambda: "keymap" in watching.log(), "a look")
            watching.send(signal.SIGINT)
            assert watching.wait() == 0
            assert "Traceback" not in watching.log()


def test_new_clients_are_lent_to_after_the_serving_process_was_killed(guest: Guest) -> None:
    """A guest can't do that, but the kernel short of memory can: who comes later finds everything as it was."""
    with _keymap_client(guest) as (_, before):
        pass
    waylend = _proxy(guest).process
    serving = [pid for pid in descendants(waylend.pid) if "waylend.domain.process.server" in command_of(pid)]
    assert len(serving) == 1
    os.kill(serving[0], signal.SIGKILL)
    wait_until(lambda: _keymap_of(guest) == before, "a new client to be lent the keymap")
    assert waylend.running


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except FileNotFoundError:
        return ""


def _keymap_of(guest: Guest) -> str:
    """What a client makes of it; a client that comes in the very moment may be ended."""
    with suppress(AssertionError), _keymap_client(guest) as (_, line):
        return line
    return ""
