"""The list of mutants (a TOML file for each room): lines of defence, each with its broken form and the test that must catch it.

A line is named by its text, without its indentation, and must be in its file exactly once; where the same line is there more
than once, ``within`` names the line that begins the block (a function, a class) that is meant.
"""

from __future__ import annotations

import ast
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
LISTS = Path(__file__).parent


class NotFound(Exception):
    """The list no longer says what is in the tree: the line, or the test, is not there, or the line is there more than once."""


@dataclass(frozen=True)
class Mutant:
    """``line`` of ``file`` becomes ``broken``, and then ``test`` (a pytest node) must fail."""

    name: str
    file: str
    line: str
    broken: str
    test: str
    within: str = ""

    def applied(self, source: str) -> str:
        """The text of the file with the line broken. Raises NotFound."""
        lines = source.splitlines(keepends=True)
        first, end = self._block(lines)
        found = [at for at in range(first, end) if lines[at].strip() == self.line]
        if len(found) != 1:
            raise NotFound(f"{self.name}: {self.file} has the line {len(found)} times, not once: {self.line}")
        old = lines[found[0]]
        lines[found[0]] = old[: len(old) - len(old.lstrip())] + self.broken + "\n"
        return "".join(lines)

    def _block(self, lines: list[str]) -> tuple[int, int]:
        """Where to look: the lines of the block ``within``, or all."""
        if not self.within:
            return 0, len(lines)
        begins = [at for at, line in enumerate(lines) if line.strip().startswith(self.within)]
        if len(begins) != 1:
            raise NotFound(f"{self.name}: {self.file} has {len(begins)} lines that begin with: {self.within}")
        at = begins[0] + 1
        while at < len(lines) and (_indentation(lines[at]) > _indentation(lines[begins[0]]) or _continues(lines[at])):
            at += 1
        return begins[0] + 1, at

    def check(self, root: Path) -> None:
        """Whether the line is there and the test, too. Raises NotFound."""
        self.applied(_text(root / self.file, self.name))
        path, *names = self.test.split("[", 1)[0].split("::")
        body = ast.parse(_text(root / path, self.name)).body
        for name in names:
            found = [node for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name]
            if len(found) != 1:
                raise NotFound(f"{self.name}: {path} has no test {name}")
            body = found[0].body


def read_mutants(folder: Path = LISTS) -> list[Mutant]:
    """The lists of a folder. Raises TypeError for an entry with a key too many or too few, ValueError for a name
    that comes twice.
    """
    mutants = [
        Mutant(**entry) for path in sorted(folder.glob("*.toml")) for entry in tomllib.loads(path.read_text())["mutant"]
    ]
    names = [mutant.name for mutant in mutants]
    if len(set(names)) < len(names):
        raise ValueError(f"a name comes twice: {sorted(name for name in set(names) if names.count(name) > 1)}")
    return mutants


def _indentation(line: str) -> int:
    return len(line) - len(line.lstrip())


def _continues(line: str) -> bool:
    """Empty lines, and the end of a signature that takes several lines."""
    return not line.strip() or line.lstrip().startswith(")")


def _text(path: Path, name: str) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        raise NotFound(f"{name}: there is no file {path}") from None
