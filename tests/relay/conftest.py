"""The relay under test, made anew for each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.relay.between import Between, open_fds
from waylend.policy import Policy
from waylend.relay.interpose import MakesInterposer


@pytest.fixture
def policy() -> Policy:
    return Policy()


@pytest.fixture
def embedded() -> tuple[MakesInterposer, ...]:
    """An embedder's own interposers."""
    return ()


@pytest.fixture
def between(policy: Policy, embedded: tuple[MakesInterposer, ...]) -> Iterator[Between]:
    """A relay under ``policy`` (override that fixture, or ``embedded``); afterwards nothing of it may be left."""
    before = open_fds()
    made = Between(policy, embedded=embedded)
    try:
        yield made
    finally:
        made.close()
    assert open_fds() == before
