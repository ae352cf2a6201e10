"""The fault / invalidate protocol, model-checked: lending.pml says what must hold, and what must not go unnoticed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.processes import require

MODEL = Path(__file__).with_name("lending.pml")
#: How the faults of the two vCPUs are resolved.
WAYS = {
    "one whole, one split": {},
    "both split": {"FIRST_WHOLE": "false", "SECOND_WHOLE": "false"},
    "both whole": {"FIRST_WHOLE": "true", "SECOND_WHOLE": "true"},
}
FALSE = "assertion violated"
STUCK = "invalid end state"
MUTANTS = {
    "NO_RECHECK": FALSE,
    "BUMP_FIRST": FALSE,
    "NOT_WIDENED": FALSE,
    "NO_FLUSH": FALSE,
    "NO_NOTIFY": STUCK,
    "SLEEP_LATE": STUCK,
    "RESET_RESOLVING": FALSE,
}


def checked(folder: Path, defines: dict[str, str], *flags: str, compiler_flag: str) -> str:
    """What the model checker that spin makes of the model says after its exhaustive search."""
    shutil.copy(MODEL, folder)
    defined = [f"-D{name}={value}" if value else f"-D{name}" for name, value in defines.items()]
    steps = (
        [require("spin"), "-a", *defined, MODEL.name],
        [require("gcc"), "-O2", compiler_flag, "-DCOLLAPSE", "-w", "-o", "pan", "pan.c"],
        ["./pan", "-m100000", *flags],
    )
    for step in steps:
        done = subprocess.run(step, cwd=folder, capture_output=True, text=True, timeout=110, check=False)
        assert done.returncode == 0, f"{step}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("way", WAYS)
def test_no_stale_page_and_no_lost_wake_up(tmp_path: Path, way: str) -> None:
    said = checked(tmp_path, WAYS[way], compiler_flag="-DSAFETY")
    assert "errors: 0" in said
    # An exhaustive search of all that matters, not of a corner.
    assert int(re.findall(r"(\d+) states, stored", said)[0]) > 1_000_000
    if way == "one whole, one split":
        assert said.count("(0 of ") == 2, f"a part of the model was never reached:\n{said}"


def test_every_access_and_every_invalidation_ends(tmp_path: Path) -> None:
    """No cycle at all: nothing is started again for ever."""
    once = {"FIRST_TOUCHES": "1", "SECOND_TOUCHES": "1"}
    assert "errors: 0" in checked(tmp_path, once, "-l", compiler_flag="-DNP")


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_are_caught(tmp_path: Path, mutant: str) -> None:
    way = "both whole" if mutant == "RESET_RESOLVING" else "one whole, one split"
    said = checked(tmp_path, {mutant: "", **WAYS[way]}, compiler_flag="-DSAFETY")
    assert "errors: 1" in said
    assert MUTANTS[mutant] in said
