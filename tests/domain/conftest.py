"""Every mechanism in turn, for the tests of the contract."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.domain.borrowers import DOMAINS, Kind, opened
from tests.domain.contract import Borrowers
from waylend.domain.base import Domain


@pytest.fixture(params=DOMAINS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


@pytest.fixture
def domain(kind: Kind) -> Iterator[Domain]:
    with opened(kind.make, aperture_pages=1024) as made:
        yield made


@pytest.fixture
def borrowers(kind: Kind, domain: Domain) -> Iterator[Borrowers]:
    made = Borrowers(kind)
    yield made
    made.kill()
