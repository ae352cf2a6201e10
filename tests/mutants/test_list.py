"""The list of mutants keeps true, and the runner tells what is caught from what is not."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from tests.mutants.__main__ import main
from tests.mutants.listed import ROOT, Mutant, NotFound, read_mutants


@pytest.mark.parametrize("mutant", read_mutants(), ids=lambda mutant: mutant.name)
def test_each_line_of_the_list_is_there_once_and_its_test_too(mutant: Mutant) -> None:
    """Who changes a line of defence, or its test, says in tests/mutants/*.toml how it reads now."""
    mutant.check(ROOT)
    assert mutant.broken != mutant.line


SOURCE = """\
def small(number):
    if number > 9:
        return False
    return True


def large(
    number,
):
    if number > 9:
        return True

    return False
"""
TESTS = """\
from source import large, small


def test_small():
    assert not small(10)


def test_large():
    assert large(10) in (True, False)
"""


@pytest.mark.parametrize(
    ("within", "line", "expected"),
    [
        ("def small(", "if number > 9:", "def small(number):\n    broken\n"),
        ("def large(", "if number > 9:", "):\n    broken\n        return True"),
        ("", "return True", ""),
        ("", "if number > 9:", ""),
        ("", "return None", ""),
        ("def medium(", "return False", ""),
    ],
)
def test_a_line_is_found_once_or_not_at_all(within: str, line: str, expected: str) -> None:
    mutant = Mutant("a name", "source.py", line, "broken", "test_source.py::test_small", within)
    if expected:
        assert expected in mutant.applied(SOURCE)
        assert mutant.applied(SOURCE).count("broken") == 1
    else:
        with pytest.raises(NotFound, match="a name"):
            mutant.applied(SOURCE)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A program of two functions, and a test of each: that of ``large`` can't fail."""
    root = tmp_path / "tree"
    root.mkdir()
    (root / "source.py").write_text(SOURCE)
    (root / "test_source.py").write_text(TESTS)
    (root / "list.toml").write_text(
        textwrap.dedent(
            """
            [[mutant]]
            name = "small"
            file = "source.py"
            within = "def small("
            line = "if number > 9:"
            broken = "if False:"
            test = "test_source.py::test_small"

            [[mutant]]
            name = "large"
            file = "source.py"
            within = "def large("
            line = "if number > 9:"
            broken = "if False:"
            test = "test_source.py::test_large"
            """
        )
    )
    return root


def test_the_runner_says_which_survived(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([], root=tree, folder=tree) == 1
    said = capsys.readouterr().out
    assert "1 of 2 mutants were caught" in said
    assert "survived: large" in said
    assert "survived: small" not in said
    assert (tree / "source.py").read_text() == SOURCE
    assert main(["--only", "small"], root=tree, folder=tree) == 0


def test_a_list_that_no_longer_fits_is_an_error(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tree / "source.py").write_text(SOURCE.replace("number > 9", "number >= 10", 1))
    assert main([], root=tree, folder=tree) == 1
    assert "small: source.py has the line 0 times" in capsys.readouterr().out


def test_a_test_that_fails_anyway_proves_nothing(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tree / "test_source.py").write_text(TESTS.replace("not small", "small"))
    assert main(["--only", "small"], root=tree, folder=tree) == 1
    assert "fail before a line is broken" in capsys.readouterr().out


def test_a_test_that_is_gone_is_an_error(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tree / "test_source.py").write_text(TESTS.replace("test_small", "test_tiny"))
    assert main(["--only", "small"], root=tree, folder=tree) == 1
    assert "has no test test_small" in capsys.readouterr().out
