"""Completions for bash, zsh and fish, as click makes them: they ask the program itself, so they never fall behind it."""

from __future__ import annotations

import importlib
from pathlib import Path

from click.shell_completion import ShellComplete, get_completion_class

from docs.writing.man_pages import PROGRAMS

FOLDER = Path(__file__).parents[1] / "completions"

#: Shell -> the name of a program's file, as the shell looks for it.
_NAMES = {"bash": "{}", "zsh": "_{}", "fish": "{}.fish"}


def scripts() -> dict[str, str]:
    """Path below the folder -> script."""
    found = {}
    for program, (module, name) in PROGRAMS.items():
        command = getattr(importlib.import_module(module), name)
        variable = f"_{program.replace('-', '_').upper()}_COMPLETE"
        for shell, file_name in _NAMES.items():
            kind = get_completion_class(shell)
            assert kind is not None
            # Not the shell's own class, which would ask the bash of this machine for its version.
            script = ShellComplete.source(kind(command, {}, program, variable))
            found[f"{shell}/{file_name.format(program)}"] = script.strip() + "\n"
    return found
