"""Breaks each line of the list in turn, in a copy of the tree, and runs the one test that must catch it.

    python -m tests.mutants [--only PART_OF_A_NAME]

Says which mutants survived. The exit status is 0 if none did; 1 if one did, or if the list no longer fits the tree.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.mutants.listed import LISTS, ROOT, Mutant, NotFound, read_mutants

#: A test that hangs when a line is broken has noticed it, too.
DEADLINE_S = 30
_NOT_COPIED = (".git", ".venv", "__pycache__", "*.pyc", ".*_cache", ".hypothesis", "build", "dist")
_FAILED, _PASSED = 1, 0  # pytest's exit statuses; any other: there was nothing to run, or it couldn't


@contextmanager
def copied(root: Path) -> Iterator[Path]:
    """A copy of the tree that is gone afterwards, with what a killed test left mounted in it."""
    folder = Path(tempfile.mkdtemp(prefix="waylend-mutants-")).resolve()
    folder.chmod(0o711)  # tests that become another user must get through
    try:
        shutil.copytree(root, folder / "tree", ignore=shutil.ignore_patterns(*_NOT_COPIED), symlinks=True)
        (folder / "tmp").mkdir()
        yield folder / "tree"
    finally:
        points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for point in points:
            if Path(point).is_relative_to(folder):
                subprocess.run(["umount", "--lazy", point], check=False, stderr=subprocess.DEVNULL)
        shutil.rmtree(folder, ignore_errors=True)


def run_tests(tree: Path, nodes: Sequence[str], deadline_s: float) -> tuple[int, str]:
    """pytest's exit status (``_FAILED`` at the deadline) and what it printed."""
    environment = os.environ | {
        "PYTHONPATH": f"{tree}:{tree / 'compositor-shim'}",
        # A line broken and mended within a second, to the same length, would be taken from the cache.
        "PYTHONDONTWRITEBYTECODE": "1",
        "TMPDIR": str(tree.parent / "tmp"),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--no-header", *nodes]
    # In a group of its own, which ends with it: whatever a broken program has started.
    with subprocess.Popen(
        command, cwd=tree, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            output, _ = process.communicate(timeout=deadline_s)
            return process.returncode, output
        except subprocess.TimeoutExpired:
            return _FAILED, f"not within {deadline_s:g} s"
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


def outcome_of(tree: Path, mutant: Mutant) -> str:
    """What became of a mutant: "" if the test caught it, else what is wrong. Mends the tree again."""
    path = tree / mutant.file
    source = path.read_text()
    path.write_text(mutant.applied(source))
    try:
        status, output = run_tests(tree, [mutant.test], DEADLINE_S)
    finally:
        path.write_text(source)
    if status == _FAILED:
        return ""
    return "SURVIVED" if status == _PASSED else f"the test could not be run:\n{output}"


def main(arguments: Sequence[str] | None = None, *, root: Path = ROOT, folder: Path = LISTS) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", metavar="TEXT", help="those with this in their name or their file's")
    only = parser.parse_args(arguments).only
    mutants = [mutant for mutant in read_mutants(folder) if only in mutant.name or only in mutant.file]
    if not mutants:
        print(f"no mutant has {only!r} in its name")
        return 1
    wrong = []
    for mutant in mutants:
        try:
            mutant.check(root)
        except NotFound as error:
            wrong.append(f"{error}")
    if wrong:
        print("\n".join([*wrong, "say in tests/mutants/*.toml how the line reads now, or what its test is called"]))
        return 1
    begun = time.monotonic()
    with copied(root) as tree:
        nodes = sorted({mutant.test for mutant in mutants})
        status, output = run_tests(tree, nodes, DEADLINE_S + 10 * len(nodes))
        if status != _PASSED:
            print(f"the tests fail before a line is broken:\n{output}")
            return 1
        for mutant in mutants:
            since = time.monotonic()
            print(f"{mutant.name:60.60s} ", end="", flush=True)
            outcome = outcome_of(tree, mutant)
            print(outcome or f"caught, {time.monotonic() - since:.1f} s", flush=True)
            if outcome:
                wrong.append(
                    f"{mutant.name}\n    {mutant.file}: {mutant.line}\n    as {mutant.broken}\n    not caught by {mutant.test}"
                )
    print(f"{len(mutants) - len(wrong)} of {len(mutants)} mutants were caught, {time.monotonic() - begun:.0f} s")
    for one in wrong:
        print(f"survived: {one}")
    return 1 if wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
