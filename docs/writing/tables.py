"""Tables of ``docs/policy.md`` whose rows are the code's: the globals and the limits. The last column is the writer's own.

A table stands between two comments. It is read before it is written: what somebody has said in the last column of a row stays
with that row's name, and a new row has an empty one, which ``unsaid`` finds.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from waylend.policy import HIGHEST_VERSIONS, NOT_ACROSS_MACHINES, Limits, Policy
from waylend.wire.tables import load_tables

PAGE = Path(__file__).parents[1] / "policy.md"

_TABLE = "<!-- made: {name} -->\n{rows}<!-- end -->"


def written(page: str) -> str:
    """The page with its tables as the code has them."""
    for name, heading, rows in (
        ("shown", ("interface", "version", "other machine", "why"), _globals(shown=True)),
        ("hidden", ("interface", "version", "other machine", "why"), _globals(shown=False)),
        ("limits", ("limit", "default", "what it bounds"), _limits()),
    ):
        pattern = re.compile(re.escape(f"<!-- made: {name} -->\n") + "(.*?)" + re.escape("<!-- end -->"), re.DOTALL)
        found = pattern.search(page)
        if found is None:
            raise ValueError(f"{PAGE.name} has no place for the table {name!r}")
        said = _last_column(found[1])
        lines = [_row(heading), _row(["---"] * len(heading))]
        lines += [_row([f"`{row[0]}`", *row[1:], said.get(row[0], "")]) for row in rows]
        page = page[: found.start()] + _TABLE.format(name=name, rows="".join(lines)) + page[found.end() :]
    return page


def unsaid(page: str) -> list[str]:
    """The rows of all tables about which nobody has said anything yet."""
    return [name for name, said in _last_column(page).items() if not said]


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def _last_column(text: str) -> dict[str, str]:
    rows = (line.strip("|").split("|") for line in text.splitlines() if line.startswith("| `"))
    return {cells[0].strip(" `"): cells[-1].strip() for cells in rows}


def _globals(*, shown: bool) -> list[Sequence[str]]:
    """By name: interface, the highest version, whether it can cross to another machine."""
    tables, policy = load_tables(), Policy()
    return [
        (name, f"{HIGHEST_VERSIONS.get(name, tables[name].version)}", "no" if name in NOT_ACROSS_MACHINES else "yes")
        for name in sorted(tables.globals)
        if policy.announces(name) is shown
    ]


def _limits() -> list[Sequence[str]]:
    return [(field.name, f"{getattr(Limits(), field.name)}") for field in dataclasses.fields(Limits)]
