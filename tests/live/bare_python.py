"""Runs the command ``waylend`` where only anyio and click are installed: every other module that isn't Python's own is missing.

usage: bare_python.py ARGUMENTS...
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

#: anyio's own needs stand behind it.
INSTALLED = {"waylend", "anyio", "click", "idna", "sniffio", "typing_extensions"}


class NotInstalled(MetaPathFinder):
    """Asked before all others; says that a module isn't there."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None, /
    ) -> ModuleSpec | None:
        top = fullname.partition(".")[0]
        if top in INSTALLED or top in sys.stdlib_module_names:
            return None
        raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


if __name__ == "__main__":
    sys.meta_path.insert(0, NotInstalled())
    from waylend.cli import main

    main()
