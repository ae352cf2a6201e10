"""Regions of leases: disjoint, within them, and leases go back when nothing is in them."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.guest_half.work import lines_run
from waylend.guest_half.arena import MIN_LEASE_PAGES, Arena, LentRegion


class Asked:
    """A lease that the host grants at once, unless it is told to wait."""

    next_gfn = 0

    def __init__(self, page_count: int) -> None:
        self.page_count = page_count
        self.gfn = Asked.next_gfn
        Asked.next_gfn += page_count
        self.failure = ""
        self.given_back = False

    def give_back(self) -> None:
        assert not self.given_back
        self.given_back = True
        self.failure = "given back"


def arena(later: list[Callable[[], None]] | None = None) -> tuple[Arena, list[Asked]]:
    """``later`` gets what is to be called later."""
    leases: list[Asked] = []
    calls = [] if later is None else later

    def ask(page_count: int) -> Asked:
        leases.append(Asked(page_count))
        return leases[-1]

    return Arena(ask, lambda _delay_s, call: calls.append(call)), leases


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 200), st.integers(0, 30)), max_size=60))
def test_regions_are_disjoint_and_in_leases_that_are_ours(steps: list[tuple[bool, int, int]]) -> None:
    book, leases = arena()
    regions: list[LentRegion] = []
    for takes, page_count, which in steps:
        if takes or not regions:
            regions.append(book.take(page_count))
        else:
            regions.pop(which % len(regions)).free()
        book.check()
        pages = [page for region in regions for page in range(region.gfn, region.gfn + region.page_count)]
        assert len(pages) == len(set(pages))
        ours = {page for one in leases if not one.given_back for page in range(one.gfn, one.gfn + one.page_count)}
        assert set(pages) <= ours
    for region in regions:
        region.free()
    # One may be kept for the next buffer.
    assert sum(not lease.given_back for lease in leases) <= 1


def test_small_regions_share_a_lease() -> None:
    book, leases = arena()
    for _ in range(MIN_LEASE_PAGES):
        book.take(1)
    assert len(leases) == 1
    book.take(1)
    assert len(leases) == 2


def test_many_small_regions_are_not_many_leases() -> None:
    book, leases = arena()
    for _ in range(8000):
        book.take(1)
    assert len(leases) < 40
    assert sum(lease.page_count for lease in leases) < 8000 * 1.3


def test_a_lease_without_regions_goes_back_after_a_while() -> None:
    later: list[Callable[[], None]] = []
    book, leases = arena(later)
    book.take(1000).free()
    assert not leases[0].given_back
    again = book.take(1000)
    assert len(leases) == 1, "it was kept for the next of its size"
    later.pop(0)()
    again.free()
    later.pop(0)()
    assert leases[0].given_back


def test_a_timer_is_for_the_lease_that_was_spare_then() -> None:
    later: list[Callable[[], None]] = []
    book, leases = arena(later)
    book.take(1000).free()
    book.take(1000).free()
    later.pop(0)()
    assert not leases[0].given_back, "it has been spare for no time at all"
    later.pop(0)()
    assert leases[0].given_back


def test_a_lease_that_is_over_is_not_used_again() -> None:
    book, leases = arena()
    region = book.take(100)
    leases[0].failure = "the host has ended the lease"
    assert region.failure
    assert not book.take(100).failure
    region.free()
    book.check()
    assert not leases[0].given_back


def work_of(count: int) -> int:
    """Of as many small buffers, taken and freed, the last one first."""
    book, _ = arena()
    regions: list[LentRegion] = []

    def run() -> None:
        regions.extend(book.take(1 + number % 3) for number in range(count))
        while regions:
            regions.pop().free()

    return lines_run(run)


def test_the_work_hardly_grows_with_how_many_there_are() -> None:
    """Finding room is O(log n)."""
    assert work_of(4000) <= 13 * work_of(400)
