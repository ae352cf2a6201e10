"""The states of pages as text: what it says is what there is, and it is short whatever a borrower did."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waylend.lending.lease import ABSENT, DIRTY, LOST, PRESENT, RESOLVING
from waylend.lending.page_states import MOST_RUNS, decoded, encoded

STATES = st.sampled_from((ABSENT, RESOLVING, PRESENT, DIRTY, LOST))
#: Runs, as borrowers make them, and single pages in any order.
PAGES = st.lists(st.tuples(STATES, st.integers(1, 200)), min_size=1, max_size=40).map(
    lambda runs: b"".join(bytes((state,)) * count for state, count in runs)
) | st.lists(STATES, min_size=1, max_size=2000).map(bytes)


@pytest.mark.parametrize(
    ("pages", "text"),
    [
        (bytes((ABSENT,)) * 20 + bytes((PRESENT,)) * 4 + bytes((DIRTY, LOST, RESOLVING)), "1:20a4p1d1l1r"),
        (bytes((PRESENT,)), "1:1p"),
    ],
)
def test_runs_of_pages_are_a_count_and_a_letter(pages: bytes, text: str) -> None:
    assert encoded(pages) == text
    assert decoded(text, len(pages)) == (1, pages)


@given(PAGES)
def test_each_cell_is_the_most_telling_of_its_pages(pages: bytes) -> None:
    group, cells = decoded(encoded(pages), len(pages))
    assert list(cells) == [max(pages[at : at + group]) for at in range(0, len(pages), group)]


@pytest.mark.parametrize("page_count", [MOST_RUNS, 4 * MOST_RUNS + 1, 1 << 16, (1 << 19) - 1])
def test_a_borrower_that_touches_every_other_page_makes_no_long_text(page_count: int) -> None:
    pages = (bytes((ABSENT, PRESENT)) * page_count)[:page_count]
    text = encoded(pages)
    assert len(text) <= MOST_RUNS * 8
    group, cells = decoded(text, page_count)
    assert (group == 1) == (page_count <= MOST_RUNS)
    assert len(cells) * group >= page_count


@pytest.mark.parametrize(
    "text", ["", "1", "1:", "0:4a", "1:3a", "1:5a", "1:4x", "1:0a4a", "-1:4a", "1:4a ", "1:999999999a", "3:4a"]
)
def test_what_is_no_text_of_four_pages_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="states of"):
        decoded(text, 4)
