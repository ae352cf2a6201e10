"""Fuzzes waylend's targets, one after the other, each in a process of its own.

    python -m tests.fuzz [--seconds N] [--only TARGET]

With atheris (dependency group ``fuzz``) it is guided by coverage; without, the same inputs are changed at random, and it says
so. What breaks a target's contract is written to a file that ``--replay`` takes. Exit status 1 if something did.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

TARGETS = ("scanner", "requests", "host_channel", "guest_channel", "control", "fuse_wire", "policy")
#: Inputs that once reached something new, a line each.
CORPUS = Path(__file__).parent / "corpus"
#: More than this much of memory is a leak.
_MEMORY_LIMIT_MB = 700
_ONE_INPUT_S = 20


def seeds_of(name: str) -> Iterator[bytes]:
    """What a target begins with: its own seeds, and the corpus."""
    yield from importlib.import_module(f"tests.fuzz.targets.{name}").SEEDS
    yield from map(bytes.fromhex, (CORPUS / f"{name}.hex").read_text().split())


@contextlib.contextmanager
def playing(name: str) -> Iterator[Callable[[bytes], None]]:
    """What plays one input; in the end all that the inputs had in common is closed."""
    module = importlib.import_module(f"tests.fuzz.targets.{name}")
    try:
        yield module.one_input
    finally:
        module.close()


def changed(octets: bytes, other: bytes, chance: random.Random) -> bytes:
    """A copy with some bytes changed, cut out, put in, or the end of another input."""
    content = bytearray(octets)
    for _ in range(chance.randrange(1, 6)):
        at = chance.randrange(len(content) + 1)
        kind = chance.randrange(5)
        if kind == 0 and at < len(content):
            content[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        elif kind == 1:
            content[at:at] = chance.randbytes(chance.randrange(1, 9))
        elif kind == 2:
            del content[at : at + chance.randrange(1, 9)]
        elif kind == 3 and at < len(content):
            content[at] ^= 1 << chance.randrange(8)
        elif kind == 4:
            content[at:] = other[chance.randrange(len(other) + 1) :]
    return bytes(content[:4096])


def fuzz_at_random(name: str, one_input: Callable[[bytes], None], seconds: float, seed: int) -> int:
    """How many inputs it played."""
    inputs = list(seeds_of(name))
    chance = random.Random(seed)
    end = time.monotonic() + seconds
    count = 0
    while time.monotonic() < end:
        octets = changed(chance.choice(inputs), chance.choice(inputs), chance)
        try:
            one_input(octets)
        except BaseException:
            path = Path(tempfile.gettempdir()) / f"waylend-fuzz-{name}-{seed}-{count}"
            path.write_bytes(octets)
            print(f"the input is in {path}", file=sys.stderr)
            raise
        count += 1
    return count


def _run_here(name: str, seconds: float, folder: Path) -> None:
    """In a process for this target alone."""
    try:
        import atheris  # noqa: PLC0415 (not everywhere)
    except ImportError:
        with playing(name) as one_input:
            count = fuzz_at_random(name, one_input, seconds, os.getpid())
        print(f"{name}: {count} inputs, at random: atheris is not installed")
        return
    with atheris.instrument_imports(include=["waylend"]):
        one_input = importlib.import_module(f"tests.fuzz.targets.{name}").one_input
    for number, octets in enumerate(seeds_of(name)):
        (folder / f"seed-{number}").write_bytes(octets)
    flags = [f"-max_total_time={int(seconds)}", f"-rss_limit_mb={_MEMORY_LIMIT_MB}", f"-timeout={_ONE_INPUT_S}"]
    flags += [f"-artifact_prefix={tempfile.gettempdir()}/waylend-fuzz-{name}-", "-max_len=4096", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *flags, str(folder)], one_input)
    atheris.Fuzz()


def _run_each(names: Sequence[str], seconds: float, keep: str | None) -> int:
    failed = []
    for name in names:
        folder = Path(tempfile.mkdtemp(prefix=f"waylend-fuzz-{name}-"))
        try:
            command = [sys.executable, "-m", "tests.fuzz", "--here", str(folder), "--only", name]
            done = subprocess.run([*command, "--seconds", f"{seconds / len(names):.0f}"], check=False)
            if done.returncode:
                failed.append(name)
            if keep is not None:
                shutil.copytree(folder, Path(keep) / name, dirs_exist_ok=True)
        finally:
            shutil.rmtree(folder)
    print(f"{len(names) - len(failed)} of {len(names)} targets kept their contract" + f"; not {failed}" * bool(failed))
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60, help="in all (default 60)")
    parser.add_argument("--only", choices=TARGETS, help="this target alone")
    parser.add_argument("--keep", metavar="FOLDER", help="where to put the inputs that reached something new")
    parser.add_argument("--replay", metavar="FILE", help="play one input, with --only")
    parser.add_argument("--here", metavar="FOLDER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = [options.only] if options.only else list(TARGETS)
    if options.replay:
        with playing(names[0]) as one_input:
            one_input(Path(options.replay).read_bytes())
        return 0
    if options.here:
        _run_here(names[0], options.seconds, Path(options.here))
        return 0
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed (dependency group fuzz): inputs are changed at random, not guided by coverage")
    return _run_each(names, options.seconds, options.keep)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
