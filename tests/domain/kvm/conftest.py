"""A KVM domain, a guest of it, and a file to lend."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.domain.borrowers import file_backing_fd, opened
from tests.domain.guests import Guest
from tests.domain.kvm.lent import PAGES
from waylend.domain.kvm.domain import KvmDomain


@pytest.fixture
def domain() -> Iterator[KvmDomain]:
    with opened(KvmDomain, aperture_pages=256) as made:
        yield made


@pytest.fixture
def owner_fd() -> Iterator[int]:
    """The lent file, as its owner has it: page N is full of the byte N + 1."""
    fd = file_backing_fd(PAGES)
    yield fd
    os.close(fd)


@pytest.fixture
def guest(domain: KvmDomain) -> Iterator[Guest]:
    with Guest(domain, vcpu_count=2) as made:
        yield made
