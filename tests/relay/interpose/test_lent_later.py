"""Files that are lent by a domain whose answers take their time: only the event that needs one waits, and what is behind it."""

from __future__ import annotations

import os
import queue
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import pytest

from tests.processes import wait_until
from tests.relay.between import Between, Peer, begin, bind
from waylend.backing.base import Backing
from waylend.domain.memfd import MemfdDomain
from waylend.errors import NoSpace, QuotaExceeded
from waylend.lending.lease import Lease
from waylend.wire.objects import DISPLAY_ID

T = TypeVar("T")


class Later:
    """Has a domain's answers come when the test says so."""

    def __init__(self, domain: MemfdDomain) -> None:
        self._steps: queue.Queue[tuple[str, Callable[[], None]]] = queue.Queue()
        self.failing: list[Exception] = []
        later: Any = domain
        later.lend_later = lambda backing, name="": self._later("lend", lambda: self._lend(domain, backing, name))
        later.open_lease_later = lambda lease: self._later("open", lambda: domain.open_lease(lease))
        later.end_later = lambda lease: self._later("end", lambda: domain.end(lease))

    def _lend(self, domain: MemfdDomain, backing: Backing, name: str) -> Lease:
        if self.failing:
            raise self.failing.pop()
        return domain.lend(backing, name=name)

    def _later(self, name: str, call: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()

        def step() -> None:
            try:
                future.set_result(call())
            except Exception as error:
                future.set_exception(error)

        self._steps.put((name, step))
        return future

    def step(self, expected: str) -> None:
        """The next answer comes."""
        name, step = self._steps.get(timeout=10)
        assert name == expected
        step()

    @property
    def is_asked(self) -> bool:
        return not self._steps.empty()


@pytest.fixture
def later(between: Between) -> Later:
    return Later(between.domain)


def keyboard(between: Between) -> tuple[Peer, Peer]:
    client, compositor = between.open()
    begin(client, compositor, (1, "wl_seat", 7))
    bind(client, compositor, 1, "wl_seat", 7, 3)
    client.send("wl_seat.get_keyboard", 3, 4)
    compositor.receive("wl_seat.get_keyboard")
    return client, compositor


def send_keymap(compositor: Peer, content: bytes = b"keymap") -> int:
    """Of a file that is the caller's."""
    fd = os.memfd_create("keymap")
    os.write(fd, content)
    compositor.send("wl_keyboard.keymap", 4, 1, "", len(content), fds=(fd,))
    return fd


def read_keymap(client: Peer) -> bytes:
    client.receive("wl_keyboard.keymap")
    fd = client.fds.pop()
    content = os.read(fd, 100)
    os.close(fd)
    return content


def round_trip(client: Peer, compositor: Peer, callback: int) -> None:
    client.send("wl_display.sync", DISPLAY_ID, callback)
    compositor.receive("wl_display.sync")
    compositor.send("wl_callback.done", callback, 0)
    client.receive("wl_callback.done")


def test_only_its_client_waits_and_only_for_events(between: Between, later: Later) -> None:
    client, compositor = keyboard(between)
    other, its_compositor = keyboard(between)
    os.close(send_keymap(compositor))
    compositor.send("wl_keyboard.repeat_info", 4, 25, 600)
    wait_until(lambda: later.is_asked, "the lease is asked for")
    round_trip(other, its_compositor, 20)
    client.send("wl_display.sync", DISPLAY_ID, 20)
    compositor.receive("wl_display.sync")
    compositor.send("wl_callback.done", 20, 0)
    later.step("lend")
    later.step("open")
    assert read_keymap(client) == b"keymap"
    assert client.receive("wl_keyboard.repeat_info") == (4, [25, 600]), "nothing overtakes it"
    client.receive("wl_callback.done")
    round_trip(client, compositor, 21)


def test_two_that_want_the_same_wait_for_the_same(between: Between, later: Later) -> None:
    first, second = keyboard(between), keyboard(between)
    fd = send_keymap(first[1])
    second[1].send("wl_keyboard.keymap", 4, 1, "", 6, fds=(fd,))
    os.close(fd)
    wait_until(lambda: later.is_asked, "the lease is asked for")
    for client, compositor in (first, second):  # both have been looked at
        client.send("wl_display.sync", DISPLAY_ID, 20)
        compositor.receive("wl_display.sync")
    later.step("lend")
    later.step("open")
    later.step("open")
    assert [read_keymap(client) for client, _ in (first, second)] == [b"keymap"] * 2
    assert len(between.domain.stats().leases) == 1


def test_what_comes_for_a_client_that_has_left_ends(between: Between, later: Later) -> None:
    client, compositor = keyboard(between)
    os.close(send_keymap(compositor))
    wait_until(lambda: later.is_asked, "the lease is asked for")
    client.sock.close()
    assert compositor.is_at_end()
    later.step("lend")
    wait_until(lambda: not between.domain.stats().leases, "the lease ends")


def test_a_descriptor_that_comes_for_a_client_that_has_left_is_closed(between: Between, later: Later) -> None:
    client, compositor = keyboard(between)
    os.close(send_keymap(compositor))
    later.step("lend")
    wait_until(lambda: later.is_asked, "the descriptor is asked for")
    client.sock.close()
    assert compositor.is_at_end()
    later.step("open")  # that nothing is left of it is looked at for every test


def test_a_lease_that_cannot_be_had_is_a_copy_and_no_end(between: Between, later: Later) -> None:
    client, compositor = keyboard(between)
    later.failing.append(NoSpace("no gap of that size"))
    os.close(send_keymap(compositor))
    later.step("lend")
    assert read_keymap(client) == b"keymap"
    round_trip(client, compositor, 20)


def test_what_nobody_was_told_to_use_makes_room_for_it(
    between: Between, later: Later, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(between.domain, "end_when_unused", lambda lease: None)  # somebody has it open still
    client, compositor = keyboard(between)
    os.close(send_keymap(compositor, b"old"))
    later.step("lend")
    later.step("open")
    assert read_keymap(client) == b"old"
    (old,) = between.domain.stats().leases
    client.sock.close()
    assert compositor.is_at_end()
    client, compositor = keyboard(between)
    later.failing.append(QuotaExceeded("too many"))
    os.close(send_keymap(compositor, b"new"))
    for step in ("lend", "end", "lend", "open"):
        later.step(step)
    assert read_keymap(client) == b"new"
    assert old.lease_id not in {stats.lease_id for stats in between.domain.stats().leases}
