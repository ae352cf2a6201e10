"""What the last run of the tests started of the system's programs: a name a line.

usage: python -m tests.programs

``tests/conftest.py`` notes them in pytest's cache. A fresh machine with the packages of apt-packages.txt has to have them all.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

CACHE_KEY = "waylend/programs"
_NOTED = Path(__file__).parents[1] / ".pytest_cache" / "v" / CACHE_KEY
_SYSTEM = {Path(folder) for folder in ("/bin", "/sbin", "/usr/bin", "/usr/sbin")}


def of_the_system(noted: Iterable[str]) -> Iterator[str]:
    """Not what an environment, a checkout or a test itself brought."""
    for name in noted:
        path = shutil.which(name)
        if path is not None and Path(path).parent in _SYSTEM:
            yield Path(path).name


if __name__ == "__main__":
    print("\n".join(sorted(set(of_the_system(json.loads(_NOTED.read_text()))))))
