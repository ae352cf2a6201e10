"""From inside the jail each forbidden thing is tried, and refused; what the process lives on works. docs/jail.md."""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from waylend.errors import Unavailable
from waylend.jail import landlock, profiles, seccomp

ATTEMPTS = Path(__file__).with_name("attempts.py")
ROOT = Path(__file__).parents[2]


def seccomp_is_there() -> bool:
    try:
        seccomp.check_available()
    except Unavailable:
        return False
    return True


needs_both = pytest.mark.skipif(
    not landlock.version() or not seccomp_is_there() or platform.machine() != "x86_64",
    reason="this kernel has no Landlock, there is no libseccomp, or the numbers of system calls are others",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("jail")
    for folder in ("mount", "own", "names"):
        (path / folder).mkdir()
    for file in ("secret", "used", "mount/inside", "names/wayland-0"):
        (path / file).touch()
    return path


def tried(kind: str, place: Path) -> dict[str, str]:
    with socket.socket(socket.AF_UNIX) as listening:
        (place / "socket").unlink(missing_ok=True)
        listening.bind(f"{place}/socket")
        listening.listen()
        done = subprocess.run(
            [sys.executable, str(ATTEMPTS), kind, str(place)],
            capture_output=True, text=True, check=False, timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    outcomes: dict[str, str] = json.loads(done.stdout)
    return outcomes


@needs_both
class TestServing:
    def test_it_can_only_serve(self, place: Path) -> None:
        outcomes = tried("serving", place)
        allowed = {name for name, outcome in outcomes.items() if outcome == "done"}
        assert allowed == {"a thread", "a memory file", "a file of its mount"}
        assert outcomes["execute"] == outcomes["fork"] == outcomes["trace"] == outcomes["mount"] == "EPERM"
        assert outcomes["read a file"] == outcomes["read a file in a thread"] == "EACCES"
        assert outcomes["much memory"] == "ENOMEM"


@needs_both
class TestRelay:
    def test_it_can_only_relay(self, place: Path) -> None:
        outcomes = tried("relay", place)
        allowed = {name for name, outcome in outcomes.items() if outcome == "done"}
        assert allowed == {
            "a thread",
            "a memory file",
            "a process that closes",
            "a unix socket",  # the compositor comes back
            "signal a parent",  # APP of `waylend run` is to be ended
            "read a library",
            "use /dev/null",
            "use what it uses again",
            "look at itself",
            "make a name of its own",
            "remove its socket",
        }
        assert (
            outcomes["execute"] == outcomes["trace"] == outcomes["mount"] == outcomes["become another user"] == "EPERM"
        )
        assert outcomes["read a file"] == outcomes["read a parent's memory"] == "EACCES"


@needs_both
@pytest.mark.parametrize("missing", ["landlock", "seccomp"])
def test_where_one_wall_is_missing_the_other_stands_and_it_is_said(missing: str) -> None:
    program = f"""
import os
from waylend.errors import Unavailable
from waylend.jail import landlock, profiles, seccomp
def absent(*_): raise Unavailable("there is no libseccomp")
if {missing!r} == "landlock": landlock.version = lambda: 0
else: seccomp.Filter = absent
held = profiles.enter(profiles.relaying())
print(held.holds, held.missing)
for attempt in (lambda: os.open("/etc/passwd", os.O_RDONLY), lambda: os.execv("/bin/true", ["true"])):
    try: attempt()
    except OSError as error: print(error.errno)
    else: print("done")
print(open("/proc/self/status").read().partition("NoNewPrivs:")[2].split()[0])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    said, reading, executing, privileges = done.stdout.splitlines()
    assert ("Landlock" if missing == "landlock" else "libseccomp") in said.partition(") (")[2]
    assert (reading, executing) == (("done", "1") if missing == "landlock" else ("13", "13"))
    assert privileges == "1"


def test_a_rule_for_what_is_not_there_gives_no_right(tmp_path: Path) -> None:
    if not landlock.version():
        pytest.skip("this kernel has no Landlock")
    rules = [landlock.Rule(f"{tmp_path}/nothing", landlock.READ), landlock.Rule(f"{tmp_path}", landlock.READ)]
    before = len(os.listdir("/proc/self/fd"))
    landlock.Ruleset(rules, signals_within=False).close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_nothing_is_both_allowed_and_refused() -> None:
    for profile in (profiles.serving(0), profiles.relaying()):
        assert not {call for call in profile.calls if isinstance(call, str)} & set(profiles.REFUSED)
