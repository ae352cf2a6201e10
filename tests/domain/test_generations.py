"""No borrower ever sees a page that is older than the last acknowledged invalidation of it, whatever goes on at the same time."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from bench.hammer import FileOwner, Owner, VramOwner, hammer
from tests.processes import absent
from waylend.domain.base import Domain
from waylend.domain.fuse.domain import FuseDomain
from waylend.domain.process.caller import ProcessDomain
from waylend.errors import Unavailable

FAULTS = int(os.environ.get("HAMMER_FAULTS", "20000"))


@pytest.mark.timeout(FAULTS // 100 + 120)
@pytest.mark.parametrize(
    ("make_domain", "make_owner"),
    [(FuseDomain, FileOwner), (FuseDomain, VramOwner), (ProcessDomain, FileOwner)],
    ids=["fuse, file", "fuse, vram", "process, file"],
)
def test_no_page_is_older_than_what_was_acknowledged(
    make_domain: Callable[..., Domain], make_owner: Callable[[], Owner]
) -> None:
    try:
        result = hammer(make_domain, make_owner, faults=FAULTS, deadline_s=FAULTS / 100 + 60)
    except Unavailable as missing:
        absent(str(missing))
    assert result.stale == []
    assert result.faults >= FAULTS, result
    assert min(result.changes, result.disturbances, result.touches // 1000) > 10, result
