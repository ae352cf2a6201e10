"""What holds for every test: no program that it starts outlives it."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Iterator

import pytest

from tests.processes import adopt_orphans, descendants, note_programs, programs, survivors
from tests.programs import CACHE_KEY


def pytest_configure(config: pytest.Config) -> None:
    adopt_orphans()
    note_programs()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Leaves what `tests/programs.py` reads."""
    cache = getattr(session.config, "cache", None)  # mutants are tried without one
    if cache is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a checkout that can't be written to, as in the VM of test_vm.py
            cache.set(CACHE_KEY, sorted(programs))


@pytest.fixture(autouse=True)
def no_program_outlives_its_test() -> Iterator[None]:
    """Compositors of a wider scope were started before, so they and theirs may stay."""
    before = frozenset(descendants(os.getpid()))
    yield
    left = survivors(before)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, f"still running after the test: {left}"
