"""The states of a lease's pages as a short text, for whoever draws a map of them: bounded, however a borrower touches them.

``GROUP:RUNS``, like ``1:20a4p1d``: twenty cells of absent pages, four of present ones, a dirty one, each of ``GROUP`` pages.
Where the runs are too many, pages are taken together, and a cell is what the most telling of its pages is: absent, being
resolved, present, dirty or lost, the last of these that occurs.
"""

from __future__ import annotations

import re

from waylend.lending.lease import ABSENT, DIRTY, LOST, PRESENT, RESOLVING

#: The letter of each state; their order is how telling they are.
LETTERS = {ABSENT: "a", RESOLVING: "r", PRESENT: "p", DIRTY: "d", LOST: "l"}
MOST_RUNS = 128

_STATE_OF = {letter: state for state, letter in LETTERS.items()}
_RUN = re.compile(rb"(.)\1*", re.DOTALL)
_TEXT = re.compile(r"([1-9]\d{0,7}):((?:[1-9]\d{0,7}[arpdl])*)")
_MOST_CELLS = 4 * MOST_RUNS


def encoded(pages: bytes | bytearray) -> str:
    """``pages`` has a byte for each page, its state. O(pages), and quick where there are few runs."""
    cells, group = bytes(pages), 1
    while (runs := _runs(cells)) is None:
        group = max(2 * group, -(-len(pages) // _MOST_CELLS))
        cells = bytes(max(pages[start : start + group]) for start in range(0, len(pages), group))
    return f"{group}:{''.join(runs)}"


def _runs(cells: bytes) -> list[str] | None:
    runs: list[str] = []
    for found in _RUN.finditer(cells):
        if len(runs) == MOST_RUNS:
            return None
        start, end = found.span()
        runs.append(f"{end - start}{LETTERS[cells[start]]}")
    return runs


def decoded(text: str, page_count: int) -> tuple[int, bytes]:
    """How many pages a cell has, and the state of each cell. Raises ValueError for what isn't ``page_count`` pages."""
    whole = _TEXT.fullmatch(text)
    if whole is None:
        raise ValueError("no states of pages")
    group = int(whole[1])
    runs = [(int(count), letter) for count, letter in re.findall(r"(\d+)(\w)", whole[2])]
    if sum(count for count, _ in runs) != -(-page_count // group):
        raise ValueError(f"not the states of {page_count} pages")
    return group, b"".join(bytes((_STATE_OF[letter],)) * count for count, letter in runs)
