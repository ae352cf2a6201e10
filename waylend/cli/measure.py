"""How fast lent pages come and go, and how fast the lender's book is: what ``waylend bench faults`` prints.

Every figure is taken through a real domain: the toucher is a process of its own, which measures itself. Figures depend on
the machine and on what else it does; compare them within one run only.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from waylend.backing.file import FileBacking
from waylend.domain.base import Domain
from waylend.lending.intervals import IntervalMap
from waylend.lending.lease import Lease, Protection
from waylend.lending.pages import PAGE_SIZE

MIB_PAGES = (1 << 20) // PAGE_SIZE

#: The toucher: maps descriptor 1 of its arguments, touches as it is told on stdin, prints what it measured.
TOUCHER = r"""
import json, mmap, os, sys, time
fd, writable = int(sys.argv[1]), sys.argv[2] == "1"
size = os.fstat(fd).st_size
view = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0))
now = time.perf_counter_ns
for line in sys.stdin:
    how, count = line.split()
    count = int(count)
    if how == "scattered":  # one page at a time, each once, far apart, without read-ahead
        view.madvise(mmap.MADV_RANDOM)
        times = []
        for i in range(count):
            at = i * 2654435761 % count * 4096
            before = now()
            view[at]
            times.append(now() - before)
        times.sort()
        answer = {"p50_us": times[count // 2] / 1e3, "p99_us": times[count * 99 // 100] / 1e3, "max_us": times[-1] / 1e3}
    else:
        view.madvise(mmap.MADV_NORMAL)
        before = now()
        if how == "dirty":
            for at in range(0, count * 4096, 4096):
                view[at] = 7
        else:
            for at in range(0, count * 4096, 4096):
                view[at]
        answer = {"pages_per_s": count / ((now() - before) / 1e9)}
    print(json.dumps(answer), flush=True)
"""


class Toucher:
    """A borrower that touches pages in a process of its own."""

    def __init__(self, domain: Domain, lease: Lease) -> None:
        fd = domain.open_lease(lease)
        self._process = subprocess.Popen(
            [sys.executable, "-c", TOUCHER, str(fd), str(int(lease.writable))],
            pass_fds=[fd],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        os.close(fd)

    def __call__(self, how: str, page_count: int) -> dict[str, float]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{how} {page_count}\n")
        self._process.stdin.flush()
        measured: dict[str, float] = json.loads(self._process.stdout.readline())
        return measured

    def __enter__(self) -> Toucher:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.communicate()


@contextmanager
def lent_memory(
    make_domain: Callable[..., Domain], page_count: int, *, writable: bool = False
) -> Iterator[tuple[Domain, Lease, Toucher]]:
    """A domain with one lease of a memfd, and a toucher that has mapped it."""
    fd = os.memfd_create("bench", os.MFD_CLOEXEC)
    for page in range(0, page_count, MIB_PAGES):
        os.pwrite(fd, b"\x42" * (1 << 20), page * PAGE_SIZE)
    domain = make_domain("bench", aperture_pages=page_count)
    try:
        protection = Protection.READ_WRITE if writable else Protection.READ
        lease = domain.lend(
            FileBacking(fd, size_bytes=page_count * PAGE_SIZE, writable=writable), protection=protection
        )
        with Toucher(domain, lease) as touch:
            yield domain, lease, touch
    finally:
        domain.close()


def measure_faults(make_domain: Callable[..., Domain], *, page_count: int = 16384, rounds: int = 3) -> dict[str, float]:
    """One-page faults, and sequential touching with clustering; medians of ``rounds``."""
    scattered, sequential = [], []
    with lent_memory(make_domain, page_count) as (domain, lease, touch):
        for _ in range(rounds):
            scattered.append(touch("scattered", page_count))
            domain.revoke(lease)
            sequential.append(touch("sequential", page_count)["pages_per_s"])
            domain.revoke(lease)
    result = {key: statistics.median(one[key] for one in scattered) for key in scattered[0]}
    return {**result, "sequential_pages_per_s": statistics.median(sequential)}


def measure_revoking(make_domain: Callable[..., Domain], *, rounds: int = 3) -> dict[str, float]:
    """Milliseconds to take pages away: one page, 64 MiB and 256 MiB that are present, 256 MiB that are dirty."""

    def timed(domain: Domain, lease: Lease) -> float:
        before = time.perf_counter()
        domain.revoke(lease)
        return (time.perf_counter() - before) * 1e3

    result = {}
    for name, page_count, how, repeat in (
        ("one page", 1, "sequential", 100 * rounds),
        ("64 MiB", 64 * MIB_PAGES, "sequential", rounds),
        ("256 MiB", 256 * MIB_PAGES, "sequential", rounds),
        ("256 MiB dirty", 256 * MIB_PAGES, "dirty", rounds),
    ):
        with lent_memory(make_domain, page_count, writable=how == "dirty") as (domain, lease, touch):
            times = []
            for _ in range(repeat):
                touch(how, page_count)
                times.append(timed(domain, lease))
            result[name] = statistics.median(times)
    return result


def measure_lookups(
    *, sizes: tuple[int, ...] = (10**3, 10**4, 10**5, 10**6), lookups: int = 100_000
) -> dict[int, float]:
    """Microseconds to find the lease of a random gfn among that many."""
    result = {}
    for size in sizes:
        ranges: IntervalMap[int] = IntervalMap()
        for index in range(size):
            ranges.insert(index * 20, index * 20 + 16, index)
        gfns = random.choices(range(size * 20), k=lookups)  # noqa: S311 (no secret)
        stab = ranges.stab
        before = time.perf_counter()
        for gfn in gfns:
            stab(gfn)
        result[size] = (time.perf_counter() - before) / lookups * 1e6
    return result
