"""Leases that were given back: who may have them again, and when they end."""

from __future__ import annotations

import itertools
import queue
import time
from collections.abc import Iterator

import pytest

from tests.processes import wait_until
from waylend.host_half import recycler
from waylend.host_half.recycler import LeaseRecycler
from waylend.lending.lease import Lease, LossPolicy, Protection
from waylend.lending.pages import PAGE_SIZE, PageRange

LONG_S = 3600.0


class Domain:
    """Leases that were ended, in order."""

    def __init__(self) -> None:
        self.ended: queue.SimpleQueue[Lease] = queue.SimpleQueue()

    def end(self, lease: Lease) -> None:
        self.ended.put(lease)


@pytest.fixture
def domain() -> Domain:
    return Domain()


@pytest.fixture
def kept(domain: Domain) -> Iterator[LeaseRecycler]:
    running = LeaseRecycler(domain)  # type: ignore[arg-type]
    yield running
    running.close()


_ids = itertools.count(1)


def lease_of(page_count: int) -> Lease:
    number = next(_ids)
    gfns = PageRange(number * 100_000, number * 100_000 + page_count)
    return Lease(number, "", "test", gfns, page_count * PAGE_SIZE, "", 0, Protection.READ_WRITE, LossPolicy.ZERO)


def test_what_was_just_given_back_is_nobody_elses(kept: LeaseRecycler, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compositor may be about to look at it once more."""
    monkeypatch.setattr(recycler, "_LINGER_S", LONG_S)
    kept.add(lease_of(10))
    assert kept.take(10) is None


def test_then_it_is_the_next_ones_and_only_once(kept: LeaseRecycler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recycler, "_LINGER_S", 0.0)
    lease = lease_of(10)
    kept.add(lease)
    assert kept.take(10) is lease
    assert kept.take(10) is None


@pytest.mark.parametrize(("asked", "fits"), [(7, False), (8, True), (9, True), (10, True), (11, False), (12, False)])
def test_only_who_asks_for_about_as_much_gets_it(
    kept: LeaseRecycler, monkeypatch: pytest.MonkeyPatch, asked: int, fits: bool
) -> None:
    monkeypatch.setattr(recycler, "_LINGER_S", 0.0)
    kept.add(lease_of(10))
    assert (kept.take(asked) is not None) is fits


def test_one_that_nobody_asks_for_ends(domain: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recycler, "_KEPT_S", 0.3)
    kept = LeaseRecycler(domain)  # type: ignore[arg-type]
    try:
        begun = time.monotonic()
        lease = lease_of(10)
        kept.add(lease)
        assert domain.ended.get(timeout=10) is lease
        assert time.monotonic() - begun >= 0.3
        assert kept.take(10) is None
    finally:
        kept.close()


def test_what_is_too_much_to_keep_ends_as_soon_as_nobody_looks_at_it(
    kept: LeaseRecycler, domain: Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recycler, "_MAX_KEPT_BYTES", 25 * PAGE_SIZE)
    monkeypatch.setattr(kept, "_kept_s", LONG_S)
    leases = [lease_of(10) for _ in range(3)]
    begun = time.monotonic()
    for lease in leases:
        kept.add(lease)
    assert domain.ended.get(timeout=10) is leases[0]
    assert time.monotonic() - begun >= recycler._LINGER_S
    assert kept.take(10) is leases[1]
    assert domain.ended.empty()


def test_nothing_is_kept_without_a_guest_half(
    kept: LeaseRecycler, domain: Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recycler, "_KEPT_S", LONG_S)
    monkeypatch.setattr(kept, "_kept_s", LONG_S)
    lease = lease_of(10)
    kept.add(lease)
    kept.keep(False)
    assert domain.ended.get(timeout=10) is lease


def test_all_end_at_once_where_room_is_needed(kept: LeaseRecycler, domain: Domain) -> None:
    leases = [lease_of(10) for _ in range(3)]
    for lease in leases:
        kept.add(lease)
    assert kept.end_all()
    wait_until(lambda: domain.ended.qsize() == 3, "all to end")
    assert not kept.end_all()
