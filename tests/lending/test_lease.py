"""LeaseTable against a page bitmap, and its reverse index against a scan of everything."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from waylend.errors import LeaseEnded, NoSpace, QuotaExceeded
from waylend.lending.lease import BackingIndex, Lease, LeaseState, LeaseTable, LossPolicy, Protection
from waylend.lending.pages import PAGE_SIZE, PageRange

APERTURE = 64
LEASES = 8
PAGES = 50


def add(table: LeaseTable, key: str, start: int, size_bytes: int, gfn: int | None = None, alignment: int = 1) -> Lease:
    return table.add(
        backing_key=key,
        backing_start=start,
        size_bytes=size_bytes,
        protection=Protection.READ,
        loss=LossPolicy.FAULT,
        gfn=gfn,
        alignment_pages=alignment,
    )


def gap_width(bitmap: list[Lease | None], at: int) -> int:
    """How wide the gap is that holds ``at``: what is lent goes into the narrowest that takes it."""
    start = end = at
    while start > 0 and bitmap[start - 1] is None:
        start -= 1
    while end < len(bitmap) and bitmap[end] is None:
        end += 1
    return end - start


class AgainstBitmap(RuleBasedStateMachine):
    """Two domains that share a reverse index. The oracle: which lease has each gfn, and a list of all leases."""

    def __init__(self) -> None:
        super().__init__()
        self.index = BackingIndex()
        self.tables = [
            LeaseTable(name, APERTURE, lease_limit=LEASES, page_limit=PAGES, by_backing=self.index) for name in "ab"
        ]
        self.bitmaps: list[list[Lease | None]] = [[None] * APERTURE for _ in self.tables]

    def leases(self) -> list[Lease]:
        found: dict[int, Lease] = {}
        for bitmap in self.bitmaps:
            found.update((id(lease), lease) for lease in bitmap if lease)
        return list(found.values())

    @rule(
        which=st.integers(0, 1),
        key=st.sampled_from(["x", "y"]),
        start=st.integers(0, 20),
        size_bytes=st.integers(1, 20 * PAGE_SIZE),
        gfn=st.none() | st.integers(0, APERTURE),
        alignment=st.sampled_from([1, 8]),
    )
    def lend(self, which: int, key: str, start: int, size_bytes: int, gfn: int | None, alignment: int) -> None:
        table, bitmap = self.tables[which], self.bitmaps[which]
        count = -(-size_bytes // PAGE_SIZE)
        taken = sum(lease is not None for lease in bitmap)
        places = range(0, APERTURE, alignment) if gfn is None else [gfn]
        fits = [at for at in places if at + count <= APERTURE and not any(bitmap[at : at + count])]
        fits.sort(key=lambda at: (gap_width(bitmap, at), at))
        if len(table) == LEASES or taken + count > PAGES:
            with pytest.raises(QuotaExceeded):
                add(table, key, start, size_bytes, gfn, alignment)
        elif not fits:
            with pytest.raises(NoSpace):
                add(table, key, start, size_bytes, gfn, alignment)
        else:
            lease = add(table, key, start, size_bytes, gfn, alignment)
            assert lease.gfns == (fits[0], fits[0] + count)
            bitmap[lease.gfns.start : lease.gfns.end] = [lease] * count

    @precondition(lambda self: self.leases())
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(self.leases()))
        which = "ab".index(lease.domain_name)
        self.tables[which].remove(lease)
        assert lease.state is LeaseState.ENDED
        self.bitmaps[which] = [None if one is lease else one for one in self.bitmaps[which]]
        with pytest.raises(LeaseEnded):
            self.tables[which].remove(lease)

    @rule(key=st.sampled_from(["x", "y", "z"]), start=st.integers(0, 45), count=st.integers(0, 10))
    def find_in_reverse(self, key: str, start: int, count: int) -> None:
        pages = PageRange(start, start + count)
        touched = set(range(start, start + count))
        expected = [
            lease for lease in self.leases() if lease.backing_key == key and touched & set(range(*lease.backing_pages))
        ]
        assert set(self.index.overlapping(key, pages)) == set(expected)
        for name, table in zip("ab", self.tables, strict=True):
            own = {lease for lease in expected if lease.domain_name == name}
            assert set(table.on_backing(key, pages)) == own
            for lease in own:
                common = {lease.backing_start + page for page in range(*lease.from_backing(pages))}
                assert common == touched & set(range(*lease.backing_pages))

    @invariant()
    def the_same_everywhere(self) -> None:
        assert len(self.index) == len(self.leases())
        for table, bitmap in zip(self.tables, self.bitmaps, strict=True):
            table.check()
            assert [table.at(gfn) for gfn in range(APERTURE)] == bitmap
            assert set(table) == {lease for lease in bitmap if lease}
            assert [gfn for gap in table.gaps() for gfn in range(*gap)] == [
                gfn for gfn, lease in enumerate(bitmap) if lease is None
            ]
            assert all(table.by_id(lease.lease_id) is lease for lease in table)
            assert table.overlapping(PageRange(0, APERTURE)) == list(dict.fromkeys(one for one in bitmap if one))


TestAgainstBitmap = AgainstBitmap.TestCase
TestAgainstBitmap.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)


def test_ids_are_never_used_again() -> None:
    table = LeaseTable("d", 10)
    seen = set()
    for _ in range(3):
        leases = [add(table, "x", 0, 10) for _ in range(3)]
        for lease in leases[:2]:
            table.remove(lease)
        seen |= {lease.lease_id for lease in leases}
    assert len(seen) == 9


@pytest.mark.parametrize(("start", "size_bytes"), [(0, 0), (0, -1), (-1, 10)])
def test_nothing_is_no_lease(start: int, size_bytes: int) -> None:
    with pytest.raises(ValueError, match="can't lend"):
        add(LeaseTable("d", 10), "x", start, size_bytes)


def test_limits_of_leases_and_pages() -> None:
    table = LeaseTable("d", 10, lease_limit=2, page_limit=5)
    first = add(table, "x", 0, 4 * PAGE_SIZE)
    with pytest.raises(QuotaExceeded, match="5 pages"):
        add(table, "x", 4, 2 * PAGE_SIZE)
    add(table, "x", 4, PAGE_SIZE)
    with pytest.raises(QuotaExceeded, match="2 leases"):
        add(table, "x", 5, PAGE_SIZE)
    table.remove(first)
    add(table, "x", 0, 4 * PAGE_SIZE)
    table.check()
