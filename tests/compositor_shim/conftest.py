"""One shim for the whole package, and players that connect to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from compositor_shim import Shim
from tests.compositor_shim.player import Player


@pytest.fixture(scope="package")
def one_shim() -> Iterator[Shim]:
    with Shim(size=(400, 300)) as shim:
        yield shim


@pytest.fixture
def shim(one_shim: Shim) -> Iterator[Shim]:
    """Shared by the tests: what one test's clients leave behind would show in the next."""
    yield one_shim
    one_shim.wait_for_no_window()
    one_shim.protocol_errors()  # raises if a bug of the shim's own came to light


@pytest.fixture
def connect(shim: Shim) -> Iterator[Callable[[], Player]]:
    players: list[Player] = []

    def make() -> Player:
        players.append(Player(shim.socket))
        return players[-1]

    yield make
    for player in players:
        player.close()


@pytest.fixture
def player(connect: Callable[[], Player]) -> Player:
    return connect()
