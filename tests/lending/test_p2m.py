"""The fault / invalidate protocol: each race is played step by step, in the order that would break it."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from waylend.errors import BackingLost, LeaseEnded
from waylend.lending.lease import ABSENT, LOST, PRESENT, Lease, LeaseState, LeaseTable, LossPolicy, Protection
from waylend.lending.p2m import P2M, EventLog, Invalidation, LendingEvent, LendingEventKind, Verdict
from waylend.lending.pages import PAGE_SIZE, PageRange

DEADLINE_S = 10.0


def lease_of(pages: int = 8, loss: LossPolicy = LossPolicy.FAULT) -> Lease:
    table = LeaseTable("d", 64)
    return table.add(
        backing_key="x", backing_start=100, size_bytes=pages * PAGE_SIZE, protection=Protection.READ, loss=loss
    )


def never() -> None:
    raise AssertionError("this fault isn't to be served again")


def nothing_to_unmap(invalidation: Invalidation) -> None:
    pass


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


class Page:
    """A p2m of one page, and a backing of one page that has a generation."""

    def __init__(self) -> None:
        self.p2m = P2M()
        self.lease = lease_of()
        self.generation = 1
        self.installed: bytes | None = None

    def fetch(self, pages: PageRange) -> bytes:
        assert pages == (103, 104), "the backing is asked for its own page"
        return b"%d" % self.generation

    def install(self, content: bytes) -> None:
        self.installed = content

    def unmap(self, invalidation: Invalidation) -> None:
        self.installed = None

    def fault(self) -> bool:
        return self.p2m.fault(self.lease, 3, self.fetch, self.install)

    def invalidate(self) -> int:
        return self.p2m.invalidate(self.lease, PageRange(3, 4), self.unmap)


def test_a_fault_installs_and_an_invalidation_takes_away() -> None:
    page = Page()
    assert page.fault()
    assert page.installed == b"1"
    assert page.lease.pages_present == 1
    assert not page.fault(), "it is present: nothing to resolve"
    assert page.invalidate() == 1
    assert page.installed is None
    assert page.lease.pages_present == 0
    assert page.invalidate() == 0


def test_an_invalidation_during_the_fetch_starts_the_fault_again() -> None:
    page = Page()
    fetches = []

    def fetch(pages: PageRange) -> bytes:
        content = page.fetch(pages)
        fetches.append(content)
        if len(fetches) == 1:  # the owner changes the page right behind our read
            page.invalidate()
            page.generation = 2
        return content

    page.p2m.fault(page.lease, 3, fetch, page.install)
    assert fetches == [b"1", b"2"]
    assert page.installed == b"2"


def test_a_fault_during_an_invalidation_waits_for_its_end() -> None:
    page = Page()
    faulting: list[threading.Thread] = []

    def unmap(invalidation: Invalidation) -> None:
        faulting.append(in_thread(page.fault))
        faulting[0].join(0.05)
        assert page.installed is None, "nothing is installed while the invalidation is in progress"
        page.generation = 2

    page.p2m.invalidate(page.lease, PageRange(0, 8), unmap)
    faulting[0].join(DEADLINE_S)
    assert page.installed == b"2"


def test_faults_on_one_page_resolve_once() -> None:
    page = Page()
    fetching, go_on = threading.Event(), threading.Event()
    fetches = []

    def fetch(pages: PageRange) -> bytes:
        fetches.append(pages)
        fetching.set()
        assert go_on.wait(DEADLINE_S)
        return b"x"

    resolved: list[bool] = []
    threads = [in_thread(lambda: resolved.append(page.p2m.fault(page.lease, 3, fetch, page.install))) for _ in range(4)]
    assert fetching.wait(DEADLINE_S)
    go_on.set()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert len(fetches) == 1
    assert sorted(resolved) == [False, False, False, True]


def test_a_fault_that_must_start_again_still_resolves_its_page_alone() -> None:
    """Were the page free between, a second fault would install it too, over what the borrower has stored by then."""
    page = Page()
    fetching, go_on = threading.Event(), threading.Event()
    installs: list[bytes] = []

    def slow_fetch(pages: PageRange) -> bytes:
        content = page.fetch(pages)
        fetching.set()
        assert go_on.wait(DEADLINE_S)
        return content

    def fault(fetch: Callable[[PageRange], bytes]) -> bool:
        return page.p2m.fault(page.lease, 3, fetch, installs.append)

    first = in_thread(lambda: fault(slow_fetch))
    assert fetching.wait(DEADLINE_S)
    page.invalidate()
    second = in_thread(lambda: fault(page.fetch))
    second.join(0.05)
    assert second.is_alive(), "it waits for the first"
    go_on.set()
    first.join(DEADLINE_S)
    second.join(DEADLINE_S)
    assert len(installs) == 1


def test_a_backing_that_raises_what_it_should_not_leaves_the_page_as_it_was() -> None:
    page = Page()

    def broken(pages: PageRange) -> bytes:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError):
        page.p2m.fault(page.lease, 3, broken, page.install)
    assert page.lease.faults_in_flight == 0
    assert page.fault()
    assert page.installed == b"1"


def test_overlapping_invalidations_end_in_any_order() -> None:
    page = Page()
    page.fault()
    inner = PageRange(3, 4)

    def unmap_outer(outer: Invalidation) -> None:
        page.p2m.invalidate(page.lease, inner, page.unmap)
        assert page.lease.in_progress == [PageRange(0, 8)]

    page.p2m.invalidate(page.lease, PageRange(0, 8), unmap_outer)
    assert page.lease.in_progress == []
    assert page.lease.sequence == 2
    assert page.fault()


def test_an_invalidation_that_fails_is_closed_in_good_order() -> None:
    page = Page()

    def unmap(invalidation: Invalidation) -> None:
        raise OSError("the mechanism broke")

    with pytest.raises(OSError, match="the mechanism broke"):
        page.p2m.invalidate(page.lease, PageRange(3, 4), unmap)
    assert page.lease.in_progress == []
    assert page.fault()


@pytest.mark.parametrize("loss", LossPolicy)
def test_what_the_backing_cannot_deliver(loss: LossPolicy) -> None:
    page = Page()
    page.lease.loss = loss

    def fetch(pages: PageRange) -> bytes:
        raise BackingLost("unplugged")

    if loss is LossPolicy.ZERO:
        assert page.p2m.fault(page.lease, 3, fetch, page.install)
        assert page.installed == bytes(PAGE_SIZE)
    else:
        with pytest.raises(BackingLost, match="unplugged"):
            page.p2m.fault(page.lease, 3, fetch, page.install)
        assert page.installed is None
    assert page.lease.pages[3] == LOST
    assert page.lease.faults_in_flight == 0


def test_an_ended_lease_has_no_faults() -> None:
    page = Page()
    page.lease.state = LeaseState.ENDED
    with pytest.raises(LeaseEnded):
        page.fault()
    with pytest.raises(LeaseEnded):
        page.p2m.begin(page.lease)


# -- where the unmapping waits for faults: step by step


def settle(p2m: P2M, lease: Lease, pages: PageRange, again: Callable[[], None] = never) -> Verdict:
    return p2m.settle(lease, pages, p2m.begin(lease), again)


def test_a_fault_that_began_before_an_invalidation_and_settles_after_it_starts_again() -> None:
    p2m, lease = P2M(), lease_of()
    sequence = p2m.begin(lease)
    p2m.invalidate(lease, PageRange(0, 8), nothing_to_unmap)
    assert p2m.settle(lease, PageRange(0, 1), sequence, never) is Verdict.AGAIN
    assert lease.pages[0] == ABSENT


def test_where_the_unmapping_is_faults_are_answered_and_unmapped_again() -> None:
    p2m, lease = P2M(), lease_of()

    def unmap(invalidation: Invalidation) -> None:
        assert settle(p2m, lease, PageRange(2, 4)) is Verdict.INSTALL
        assert settle(p2m, lease, PageRange(4, 5)) is Verdict.INSTALL
        assert settle(p2m, lease, PageRange(7, 8)) is Verdict.INSTALL
        assert invalidation.next_round() == [(2, 5), (7, 8)]
        invalidation.plan([])
        assert invalidation.next_round() == []

    p2m.invalidate(lease, PageRange(0, 8), unmap)
    assert lease.pages_present == 0


def test_ahead_of_the_unmapping_faults_are_answered_and_behind_it_they_wait_for_the_end() -> None:
    p2m, lease = P2M(), lease_of()
    served: list[str] = []
    low, high = PageRange(0, 4), PageRange(4, 8)

    def unmap(invalidation: Invalidation) -> None:
        invalidation.plan([low, high])
        invalidation.enter(low, lease.faults_begun, holding=False)
        assert settle(p2m, lease, PageRange(5, 6)) is Verdict.INSTALL, "its unmapping is still to come"
        assert settle(p2m, lease, PageRange(3, 5)) is Verdict.INSTALL, "the unmapping may wait for it"
        invalidation.enter(high, lease.faults_begun, holding=False)
        assert settle(p2m, lease, PageRange(0, 1), lambda: served.append("again")) is Verdict.PARKED
        invalidation.leave()
        assert invalidation.next_round() == [(3, 5)]
        assert settle(p2m, lease, PageRange(7, 8), lambda: served.append("again")) is Verdict.PARKED
        assert served == []

    p2m.invalidate(lease, PageRange(0, 8), unmap)
    assert served == ["again", "again"]


def test_a_fault_across_what_is_ahead_and_what_is_done_is_answered_and_late() -> None:
    invalidation = Invalidation(PageRange(0, 8))
    invalidation.plan([PageRange(4, 8)])
    assert invalidation.answers(PageRange(2, 6), 1)
    assert invalidation.next_round() == [(2, 6)]


def test_a_fault_for_which_the_unmapping_waits_is_let_through_and_its_page_unmapped_again() -> None:
    p2m, lease = P2M(), lease_of()
    page = PageRange(1, 2)
    served: list[Verdict] = []

    def serve_again() -> None:
        served.append(settle(p2m, lease, page, serve_again))

    def unmap(invalidation: Invalidation) -> None:
        invalidation.plan([page])
        invalidation.enter(page, lease.faults_begun, holding=True)
        assert settle(p2m, lease, page, serve_again) is Verdict.PARKED
        for again in invalidation.let_through():
            again()
        assert served == [Verdict.INSTALL]
        after = PageRange(0, 2)
        assert settle(p2m, lease, after, lambda: served.append(Verdict.AGAIN)) is Verdict.PARKED, "others still wait"
        invalidation.leave()
        assert invalidation.next_round() == [page]

    p2m.invalidate(lease, PageRange(0, 8), unmap)
    assert served == [Verdict.INSTALL, Verdict.AGAIN]


def test_a_fault_parked_on_what_will_be_unmapped_again_goes_on_before() -> None:
    p2m, lease = P2M(), lease_of()
    page = PageRange(1, 2)
    served: list[Verdict] = []

    def unmap(invalidation: Invalidation) -> None:
        invalidation.plan([])
        assert settle(p2m, lease, page, lambda: served.append(settle(p2m, lease, page))) is Verdict.PARKED
        invalidation.plan([page])
        for again in invalidation.waiting_on(page):
            again()
        assert served == [Verdict.INSTALL], "it is ahead now"
        invalidation.enter(page, lease.faults_begun, holding=True)

    p2m.invalidate(lease, PageRange(0, 8), unmap)
    assert served == [Verdict.INSTALL]


def test_a_fault_that_began_before_its_stretch_is_answered_and_not_late_as_the_unmapping_waits_for_it() -> None:
    p2m, lease = P2M(), lease_of()
    page = PageRange(1, 2)

    def unmap(invalidation: Invalidation) -> None:
        invalidation.plan([page])
        begun = p2m.begin(lease)
        invalidation.enter(page, lease.faults_begun, holding=True)
        assert p2m.settle(lease, page, begun, never) is Verdict.INSTALL
        invalidation.leave()
        assert invalidation.next_round() == []

    p2m.invalidate(lease, PageRange(0, 8), unmap)


def test_faults_outside_of_the_invalidated_range_go_on() -> None:
    p2m, lease = P2M(), lease_of()

    def unmap(invalidation: Invalidation) -> None:
        invalidation.plan([])
        assert settle(p2m, lease, PageRange(4, 8)) is Verdict.INSTALL

    p2m.invalidate(lease, PageRange(0, 4), unmap)
    assert bytes(lease.pages) == bytes([ABSENT] * 4 + [PRESENT] * 4)


def test_the_last_fault_in_flight_says_that_the_lease_is_idle() -> None:
    p2m, lease = P2M(), lease_of()
    first, second = p2m.begin(lease), p2m.begin(lease)
    idle: list[str] = []
    lease.on_idle = lambda: idle.append("idle")
    p2m.settle(lease, PageRange(0, 1), first, never)
    assert idle == []
    p2m.settle(lease, PageRange(0, 1), second, never)
    assert idle == ["idle"]


# -- events


def test_events_tell_the_life_of_a_page() -> None:
    page = Page()
    seen: list[LendingEvent] = []
    unwatch = page.p2m.events.watch(seen.append)
    page.fault()
    assert [(event.kind, event.page, event.page_count) for event in seen] == [
        (LendingEventKind.FAULTED, 3, 1),
        (LendingEventKind.SERVED, 3, 1),
    ]
    assert seen[0].time_ns <= seen[1].time_ns
    unwatch()
    assert not page.p2m.events.watched
    page.invalidate()
    page.fault()
    assert len(seen) == 2


def test_the_log_keeps_the_last_events() -> None:
    log, lease = EventLog(keep=2), lease_of()
    for kind in (LendingEventKind.LENT, LendingEventKind.REVOKED, LendingEventKind.ENDED):
        log.emit(kind, lease, PageRange(0, 8))
    assert [event.kind for event in log.recent()] == [LendingEventKind.REVOKED, LendingEventKind.ENDED]
