"""What the tests of the wire share."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest


@pytest.fixture(scope="session")
def require() -> Callable[[object, str], None]:
    """``require(there, what)``: without ``what`` a test is skipped; in CI, where all must be installed, it fails."""

    def check(there: object, what: str) -> None:
        if not there:
            (pytest.fail if os.environ.get("CI") else pytest.skip)(f"needs {what}")

    return check
