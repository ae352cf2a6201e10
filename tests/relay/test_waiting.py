"""Clients that come while the compositor is away: held, let in when it comes, turned away with a reason when it doesn't."""

from __future__ import annotations

import errno

import pytest

from tests.processes import wait_until
from tests.relay.between import REGISTRY, Between
from waylend.policy import Limits, Policy
from waylend.relay import waiting
from waylend.relay.endpoint import Endpoint
from waylend.wire.objects import DISPLAY_ID


@pytest.fixture
def policy() -> Policy:
    return Policy(limits=Limits(clients=3))


def test_who_comes_early_is_held_and_let_in_with_all_that_it_has_said(between: Between) -> None:
    client = between.take_in()
    client.send("wl_display.get_registry", DISPLAY_ID, REGISTRY)
    assert between.in_loop(lambda: (len(between.relay.waiting), len(between.relay.sessions))) == (1, 0)
    compositor = between.compositor_comes()
    assert compositor.receive("wl_display.get_registry") == (DISPLAY_ID, [REGISTRY])
    compositor.send("wl_registry.global", REGISTRY, 1, b"wl_compositor", 4)
    client.receive("wl_registry.global")


def test_the_one_who_came_first_is_let_in_first(between: Between) -> None:
    clients = [between.take_in() for _ in range(2)]
    for number, client in enumerate(clients):
        client.send("wl_display.get_registry", DISPLAY_ID, REGISTRY + number)
    for number in range(2):
        assert between.compositor_comes().receive("wl_display.get_registry") == (DISPLAY_ID, [REGISTRY + number])


def test_who_waits_too_long_is_told_why(between: Between, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_HELD_S", 0.05)
    client = between.take_in()
    _, (_, _, why) = client.receive("wl_display.error")
    assert b"can't connect to the compositor" in bytes(why)  # type: ignore[call-overload]
    assert client.is_at_end()


def test_what_will_not_be_better_in_a_moment_is_told_at_once(between: Between, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> Endpoint:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(between.relay.waiting, "_connect", fails)
    _, (_, _, why) = between.take_in().receive("wl_display.error")
    assert b"can't connect to the compositor: Permission denied" in bytes(why)  # type: ignore[call-overload]


def test_who_leaves_while_it_waits_is_not_waited_for(between: Between) -> None:
    client, other = between.take_in(), between.take_in()
    client.send("wl_display.get_registry", DISPLAY_ID, REGISTRY)
    client.sock.close()
    wait_until(
        lambda: between.in_loop(lambda: len(between.relay.waiting)) == 1, "the client that left to be closed", 5.0
    )
    other.send("wl_display.get_registry", DISPLAY_ID, REGISTRY + 1)
    assert between.compositor_comes().receive("wl_display.get_registry") == (DISPLAY_ID, [REGISTRY + 1])


def test_who_waits_counts_as_a_client(between: Between) -> None:
    for _ in range(3):
        between.take_in()
    _, (_, _, why) = between.take_in().receive("wl_display.error")
    assert b"limit clients = 3" in bytes(why)  # type: ignore[call-overload]


def test_the_end_of_the_relay_is_the_end_of_those_who_wait(between: Between) -> None:
    client = between.take_in()
    between.in_loop(between.relay.close)
    assert client.is_at_end()
    assert between.take_in().is_at_end()
