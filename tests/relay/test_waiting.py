"""Clients that come while the compositor is away: held, let in when it comes, turned away with a reason when it doesn't."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

import pytest

from tests.processes import wait_until
from tests.relay.between import REGISTRY, Between, Peer, open_fds
from waylend.policy import Limits, Policy
from waylend.relay import waiting
from waylend.relay.endpoint import Endpoint
from waylend.wire.objects import DISPLAY_ID


@pytest.fixture
def between() -> Iterator[Between]:
    before = open_fds()
    relayed = Between(Policy(limits=Limits(clients=3)))
    yield relayed
    relayed.close()
    assert open_fds() == before


def comes(between: Between) -> Peer:
    """A client, for whom there is no compositor yet."""
    ours, relays = socket.socketpair()
    peer = Peer(ours)
    between.peers.append(peer)
    between.in_loop(lambda: between.relay.take_in(Endpoint(relays)))
    return peer


def compositor_comes(between: Between) -> Peer:
    ours, its = socket.socketpair()
    peer = Peer(ours)
    between.peers.append(peer)
    between.in_loop(lambda: between.compositor_ends.append(its))
    return peer


def test_who_comes_early_is_held_and_let_in_with_all_that_it_has_said(between: Between) -> None:
    client = comes(between)
    client.send("wl_display.get_registry", DISPLAY_ID, REGISTRY)
    assert between.in_loop(lambda: (len(between.relay.waiting), len(between.relay.sessions))) == (1, 0)
    compositor = compositor_comes(between)
    assert compositor.receive("wl_display.get_registry") == (DISPLAY_ID, [REGISTRY])
    compositor.send("wl_registry.global", REGISTRY, 1, b"wl_compositor", 4)
    client.receive("wl_registry.global")


def test_the_one_who_came_first_is_let_in_first(between: Between) -> None:
    clients = [comes(between) for _ in range(2)]
    for number, client in enumerate(clients):
        client.send("wl_display.get_registry", DISPLAY_ID, REGISTRY + number)
    for number in range(2):
        assert compositor_comes(between).receive("wl_display.get_registry") == (DISPLAY_ID, [REGISTRY + number])


def test_who_waits_too_long_is_told_why(between: Between, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_HELD_S", 0.05)
    client = comes(between)
    _, (_, _, why) = client.receive("wl_display.error")
    assert b"can't connect to the compositor" in bytes(why)  # type: ignore[call-overload]
    assert client.is_at_end()


def test_what_will_not_be_better_in_a_moment_is_told_at_once(between: Between, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> Endpoint:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(between.relay.waiting, "_connect", fails)
    _, (_, _, why) = comes(between).receive("wl_display.error")
    assert b"can't connect to the compositor: Permission denied" in bytes(why)  # type: ignore[call-overload]


def test_who_leaves_while_it_waits_is_not_waited_for(between: Between) -> None:
    client, other = comes(between), comes(between)
    client.send("wl_display.get_registry", DISPLAY_ID, REGISTRY)
    client.sock.close()
    wait_until(
        lambda: between.in_loop(lambda: len(between.relay.waiting)) == 1, "the client that left to be closed", 5.0
    )
    other.send("wl_display.get_registry", DISPLAY_ID, REGISTRY + 1)
    assert compositor_comes(between).receive("wl_display.get_registry") == (DISPLAY_ID, [REGISTRY + 1])


def test_who_waits_counts_as_a_client(between: Between) -> None:
    for _ in range(3):
        comes(between)
    _, (_, _, why) = comes(between).receive("wl_display.error")
    assert b"limit clients = 3" in bytes(why)  # type: ignore[call-overload]


def test_the_end_of_the_relay_is_the_end_of_those_who_wait(between: Between) -> None:
    client = comes(between)
    between.in_loop(between.relay.close)
    assert client.is_at_end()
    assert comes(between).is_at_end()
