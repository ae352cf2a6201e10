"""A pywayland whose private parts are not as the shim expects them: one line that says so, and no crash."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from compositor_shim import pywayland_parts

BREAKAGES = {
    "dispatcher_func": """
import pywayland
class Without:
    def __getattr__(self, name):
        if name == "dispatcher_func":
            raise AttributeError(name)
        return getattr(whole, name)
whole, pywayland.lib = pywayland.lib, Without()
""",
    "no Resource._handle": """
from pywayland.protocol_core.resource import Resource
made = Resource.__init__
def init(self, *args, **options):
    made(self, *args, **options)
    self.kept = self.__dict__.pop("_handle")
Resource.__init__ = init
""",
    "no Dispatcher.messages": """
from pywayland.dispatcher import Dispatcher
made = Dispatcher.__init__
def init(self, *args, **options):
    made(self, *args, **options)
    self.kept = self.__dict__.pop("messages")
Dispatcher.__init__ = init
""",
    "'_ptr'": """
from pywayland.server.display import Display
Display.__setattr__ = lambda self, name, value: object.__setattr__(self, name.replace("_ptr", "pointer"), value)
""",
    "'pywayland.scanner' is not a package": """
import sys
sys.modules["pywayland.scanner"] = None
""",
}


@pytest.mark.parametrize("missing", BREAKAGES)
def test_what_is_missing_is_said_at_start(missing: str, tmp_path: Path) -> None:
    program = BREAKAGES[missing] + "from compositor_shim.cli import main\nmain(['--', 'true'])\n"
    environment = os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert re.fullmatch(r"compositor-shim: .*; it needs pywayland\S+: .*\n", done.stderr), done.stderr
    assert missing in done.stderr
    assert os.listdir(tmp_path) == []


def test_the_installed_one_is_as_expected() -> None:
    pywayland_parts.check()


def test_the_next_version_may_be_anything() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    (needed,) = (needed for needed in project["dependencies"] if needed.startswith("pywayland"))
    assert needed.endswith(",<0.5")
