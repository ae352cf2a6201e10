"""What `waylend` names is what embedders may use: all of it is there, typed as it is at run time, and enough for the examples."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path

import pytest

import waylend
from waylend import errors

ROOT = Path(__file__).parents[1]


def names_for_type_checkers() -> dict[str, str]:
    """Name -> module, as the block under TYPE_CHECKING has it."""
    tree = ast.parse(Path(waylend.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    found = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        assert node.module
        found.update({alias.name: node.module for alias in node.names})
    return found


def test_type_checkers_and_programs_see_the_same() -> None:
    assert names_for_type_checkers() == waylend._MODULE_OF
    assert sorted(waylend.__all__) == sorted(waylend._MODULE_OF)


@pytest.mark.parametrize("name", waylend.__all__)
def test_each_name_is_there_and_documented(name: str) -> None:
    value = getattr(waylend, name)
    assert value is getattr(importlib.import_module(waylend._MODULE_OF[name]), name)
    assert name.isupper() or inspect.getdoc(value), f"{name} has no docstring"


def test_every_error_is_named() -> None:
    all_errors = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, errors.WaylendError)
    }
    assert all_errors <= set(waylend.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'relay_everything'"):
        waylend.relay_everything  # noqa: B018


@pytest.mark.parametrize("example", sorted(ROOT.glob("examples/*.py")), ids=lambda path: path.name)
def test_examples_import_from_waylend_alone(example: Path) -> None:
    for node in ast.walk(ast.parse(example.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            assert not node.module.startswith("waylend."), f"{example.name} imports {node.module}"
        elif isinstance(node, ast.Import):
            assert not any(alias.name.startswith("waylend.") for alias in node.names)
