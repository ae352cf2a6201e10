"""The relay under test, made anew for each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.processes import wait_until
from tests.relay.between import Between, open_fds
from waylend.policy import Policy
from waylend.relay.interpose import MakesInterposer
from waylend.relay.session import Trace


@pytest.fixture
def policy() -> Policy:
    return Policy()


@pytest.fixture
def embedded() -> tuple[MakesInterposer, ...]:
    """An embedder's own interposers."""
    return ()


@pytest.fixture
def trace() -> Trace | None:
    return None


@pytest.fixture
def between(policy: Policy, embedded: tuple[MakesInterposer, ...], trace: Trace | None) -> Iterator[Between]:
    """A relay under ``policy`` (override that fixture, or another); afterwards nothing of it may be left."""
    before = open_fds()
    made = Between(policy, embedded=embedded, trace=trace)
    try:
        yield made
    finally:
        made.close()
    with contextlib.suppress(AssertionError):
        wait_until(lambda: open_fds() == before, "what hung to be let go", 2.0)
    assert open_fds() == before
