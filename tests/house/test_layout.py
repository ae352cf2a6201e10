"""The house keeps its shape: small files and functions, a name for each class, and a first line in each room."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = (ROOT / "waylend", ROOT / "compositor-shim" / "compositor_shim")
SOURCES = (*PACKAGES, ROOT / "protocol-xml", ROOT / "bench", ROOT / "examples", ROOT / "docs", ROOT / "tests")

FILE_LINES = 450
FUNCTION_LINES = 60

#: What stands in the package's root beside its folders.
AT_THE_ROOT = {"__init__.py", "__main__.py", "errors.py", "linux.py", "policy.py", "py.typed"}


def modules(*folders: Path) -> Iterator[tuple[Path, str]]:
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            yield path, path.read_text()


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def functions(scope: ast.AST, within: str = "") -> Iterator[tuple[str, int]]:
    """Every function in ``scope`` with its dotted name and its count of lines, from ``def`` to the end."""
    for node in ast.iter_child_nodes(scope):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno is not None
            yield within + node.name, node.end_lineno - node.lineno + 1
        named = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        yield from functions(node, f"{within}{node.name}." if named else within)  # type: ignore[attr-defined]


def is_interface(definition: ast.ClassDef) -> bool:
    return any(ast.unparse(base).partition("[")[0] in ("Protocol", "ABC") for base in definition.bases)


def test_a_file_fits_in_one_head() -> None:
    long = {name_of(path) for path, text in modules(*SOURCES) if len(text.splitlines()) > FILE_LINES}
    assert not long, f"over {FILE_LINES} lines"


def test_a_function_fits_on_a_screen() -> None:
    long = {
        f"{name_of(path)}: {name}"
        for path, text in modules(*SOURCES)
        for name, line_count in functions(ast.parse(text))
        if line_count > FUNCTION_LINES
    }
    assert not long


def test_a_class_name_is_one_class() -> None:
    """But an interface and what implements it may share one."""
    found: defaultdict[str, list[tuple[str, bool]]] = defaultdict(list)
    for path, text in modules(*PACKAGES):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef):
                found[node.name].append((name_of(path), is_interface(node)))
    twice = {
        name: [path for path, _ in places]
        for name, places in found.items()
        if len(places) - any(interface for _, interface in places) > 1
    }
    assert not twice


def test_the_root_holds_what_all_floors_may_use_and_folders() -> None:
    files = {path.name for path in (ROOT / "waylend").iterdir() if path.is_file()}
    assert files <= AT_THE_ROOT, f"give it a room: {sorted(files - AT_THE_ROOT)}"


@pytest.mark.parametrize(
    "folder",
    [folder for package in PACKAGES for folder in (package, *package.rglob("*")) if any(folder.glob("*.py"))],
    ids=name_of,
)
def test_a_folder_says_first_what_lives_there(folder: Path) -> None:
    first = folder / "__init__.py"
    assert first.is_file(), "no folder without a first line"
    assert ast.get_docstring(ast.parse(first.read_text()))


def test_a_module_says_first_what_it_is_for() -> None:
    silent = [name_of(path) for path, text in modules(*SOURCES) if not ast.get_docstring(ast.parse(text))]
    assert not silent
