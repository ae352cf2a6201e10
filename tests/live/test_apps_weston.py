"""Real applications through waylend on weston."""

from __future__ import annotations

import pytest

from tests.live.compositors import Weston
from tests.live.conftest import MakeGuest
from tests.live.guest import Guest
from tests.live.picture import Picture


@pytest.fixture
def guest(make_guest: MakeGuest, weston: Weston) -> Guest:
    return make_guest(weston)


@pytest.mark.parametrize("client", ["weston-simple-shm", "weston-simple-damage"])
def test_simple_client_draws_and_moves(weston: Weston, guest: Guest, client: str) -> None:
    app = guest.start(client)

    def drawn(picture: Picture) -> bool:
        return picture.share_of(weston.background, 2) < 0.95 and len(picture.colours()) > MANY[client]

    first = weston.wait_for_picture(drawn, client)
    weston.wait_for_picture(
        lambda picture: drawn(picture) and picture.difference(first) > 0, f"{client} a little later"
    )
    assert app.running, app.log()


MANY = {"weston-simple-shm": 100, "weston-simple-damage": 1}
