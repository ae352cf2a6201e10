"""No file descriptor stays behind, and a pair of joined halves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.channel.joined import Joined
from tests.relay.between import open_fds


@pytest.fixture(autouse=True)
def no_fd_stays() -> Iterator[None]:
    before = open_fds()
    yield
    assert open_fds() == before


@pytest.fixture
def joined(no_fd_stays: None) -> Iterator[Joined]:
    pair = Joined()
    yield pair
    pair.close()
