"""A FUSE domain of 1024 pages."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.domain.borrowers import opened
from waylend.domain.fuse.domain import FuseDomain


@pytest.fixture
def domain() -> Iterator[FuseDomain]:
    with opened(FuseDomain, aperture_pages=1024) as made:
        yield made
