"""How fast faults on a KVM domain's window are served. ``python -m bench.kvm_faults [--pin CPU] [--limit PROGRAM] [--json]``.

The toucher is a few instructions of machine code that this program assembles: it reads one page after the other, each
once, far apart, with the time stamp counter around each, and holds no interpreter lock, so that what is measured is
the serving alone. ``guest`` is the same by a real KVM guest, world switches included. ``--limit PROGRAM`` is a server
in C that does the same with a constant page and prints JSON: with it, the figure is also given as a multiple of that
limit, both taken in turns in one run. Nothing here asserts anything: targets belong to the reader.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import statistics
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from waylend.backing.file import FileBacking
from waylend.domain.kvm.domain import KvmDomain
from waylend.domain.kvm.vm import ExitKind, VirtualMachine
from waylend.lending.lease import Lease, Protection
from waylend.lending.pages import PAGE_SIZE

MIB_PAGES = (1 << 20) // PAGE_SIZE
#: An odd stride visits every page once, far apart; page counts are powers of two.
STRIDE = 2654435761
GUEST_WINDOW = 0x10000000

#: touch(rdi: base, rsi: mask, rdx: times, rcx: count, r8: stride): times[i] = ticks to read page (i * stride & mask).
TOUCH = bytes.fromhex(
    "53"  # push rbx
    "4989d1"  # mov r9, rdx             ; times
    "4531d2"  # xor r10d, r10d          ; i * stride
    # next:
    "0faee8"  # lfence
    "0f31"  # rdtsc
    "48c1e220"  # shl rdx, 32
    "4809c2"  # or rdx, rax
    "4889d3"  # mov rbx, rdx            ; before
    "4c89d0"  # mov rax, r10
    "4821f0"  # and rax, rsi
    "48c1e00c"  # shl rax, 12
    "8a0407"  # mov al, [rdi + rax]
    "0faee8"  # lfence
    "0f31"  # rdtsc
    "48c1e220"  # shl rdx, 32
    "4809c2"  # or rdx, rax
    "4829da"  # sub rdx, rbx
    "498911"  # mov [r9], rdx
    "4983c108"  # add r9, 8
    "4d01c2"  # add r10, r8
    "48ffc9"  # dec rcx
    "75c6"  # jnz next
    "5b"  # pop rbx
    "c3"  # ret
)

#: rdi: base, esi: count, edx: stride in pages, ebp: mask in pages; HLT at the end.
GUEST_TOUCH = bytes.fromhex(
    "31db"  # xor ebx, ebx
    # next:
    "89d8"  # mov eax, ebx
    "21e8"  # and eax, ebp
    "c1e00c"  # shl eax, 12
    "8a0407"  # mov al, [rdi + rax]
    "01d3"  # add ebx, edx
    "ffce"  # dec esi
    "75f0"  # jnz next
    "f4"  # hlt
)
#: The guest's own memory, and in it its page tables: an identity map of the first GiB in pages of 2 MiB.
GUEST_BYTES, GUEST_CODE, GUEST_TABLES = 1 << 16, 0x1000, 0x2000

#: The time stamp counter, as a function.
TICKS = bytes.fromhex("0f3148c1e2204809d0c3")  # rdtsc; shl rdx, 32; or rax, rdx; ret
TICKS_AT = 256


class NativeToucher:
    """``TOUCH`` as a function of this process."""

    def __init__(self) -> None:
        self._code = mmap.mmap(-1, PAGE_SIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._code[: len(TOUCH)] = TOUCH
        self._code[TICKS_AT : TICKS_AT + len(TICKS)] = TICKS
        self._pin = ctypes.c_char.from_buffer(self._code)
        address = ctypes.addressof(self._pin)
        # Foreign calls, which let the interpreter lock go.
        self._touch = ctypes.CFUNCTYPE(None, *[ctypes.c_uint64] * 5)(address)
        ticks = ctypes.CFUNCTYPE(ctypes.c_uint64)(address + TICKS_AT)
        before, before_ns = ticks(), time.perf_counter_ns()
        time.sleep(0.2)
        self._ticks_per_us = (ticks() - before) / ((time.perf_counter_ns() - before_ns) / 1e3)

    def __call__(self, address: int, page_count: int) -> dict[str, float]:
        """Microseconds to read each of ``page_count`` (a power of two) pages."""
        ticks = (ctypes.c_uint64 * page_count)()
        self._touch(address, page_count - 1, ctypes.addressof(ticks), page_count, STRIDE)
        times = sorted(ticks)
        at = {"p50": page_count // 2, "p99": page_count * 99 // 100, "max": page_count - 1}
        return {f"{name}_us": times[index] / self._ticks_per_us for name, index in at.items()}


@contextmanager
def lent_window(page_count: int, *, writable: bool = False, thread_count: int = 2) -> Iterator[tuple[KvmDomain, Lease]]:
    """A domain with one lease of a memfd, at gfn 0."""
    fd = os.memfd_create("bench", os.MFD_CLOEXEC)
    for page in range(0, page_count, MIB_PAGES):
        os.pwrite(fd, b"\x42" * (1 << 20), page * PAGE_SIZE)
    domain = KvmDomain("bench", aperture_pages=page_count, thread_count=thread_count)
    try:
        backing = FileBacking(fd, size_bytes=page_count * PAGE_SIZE, writable=writable)
        yield domain, domain.lend(backing, protection=Protection.READ_WRITE if writable else Protection.READ)
    finally:
        domain.close()


def measure_faults(*, page_count: int = 16384, rounds: int = 3, thread_count: int = 2) -> dict[str, float]:
    """One-page faults of this process; medians of ``rounds``."""
    touch = NativeToucher()
    measured = []
    with lent_window(page_count, thread_count=thread_count) as (domain, lease):
        for _ in range(rounds):
            measured.append(touch(domain.host_address, page_count))
            if domain.revoke(lease) != page_count:
                raise RuntimeError("not every touch was a fault")
    return {name: statistics.median(one[name] for one in measured) for name in measured[0]}


def measure_guest_faults(*, page_count: int = 16384, rounds: int = 3) -> dict[str, float]:
    """The mean of a guest's one-page faults, and of its touches of pages that are present; medians of ``rounds``."""
    faults, touches = [], []
    with lent_window(page_count) as (domain, lease):
        vm = VirtualMachine()
        detach = domain.attach(vm.fd, slot=1, guest_address=GUEST_WINDOW)
        try:
            memory = vm.add_memory(0, 0, GUEST_BYTES)
            memory[GUEST_CODE : GUEST_CODE + len(GUEST_TOUCH)] = GUEST_TOUCH
            large_pages = [address | 0x83 for address in range(0, 1 << 30, 2 << 20)]
            for level, table in enumerate([[GUEST_TABLES + 0x1003], [GUEST_TABLES + 0x2003], large_pages]):
                struct.pack_into(f"<{len(table)}Q", memory, GUEST_TABLES + level * PAGE_SIZE, *table)
            vcpu = vm.add_vcpu()
            vcpu.enter_long_mode(GUEST_TABLES)

            def touched_us() -> float:
                vcpu.set_registers(
                    rip=GUEST_CODE, rdi=GUEST_WINDOW, rsi=page_count, rdx=STRIDE & 0xFFFFFFFF, rbp=page_count - 1
                )
                before = time.perf_counter()
                if vcpu.run().kind is not ExitKind.HALTED:
                    raise RuntimeError("the guest did not come to its end")
                return (time.perf_counter() - before) / page_count * 1e6

            for _ in range(rounds):
                faults.append(touched_us())
                touches.append(touched_us())
                domain.revoke(lease)
        finally:
            detach()
            vm.close()
    return {"mean_us": statistics.median(faults), "present_us": statistics.median(touches)}


def measure_revoking(*, rounds: int = 3) -> dict[str, float]:
    """Milliseconds to take pages away: one page, 64 MiB and 256 MiB that are present, 256 MiB that are dirty."""
    touch = NativeToucher()
    result = {}
    for name, page_count, dirty, repeat in (
        ("one page", 1, False, 100 * rounds),
        ("64 MiB", 64 * MIB_PAGES, False, rounds),
        ("256 MiB", 256 * MIB_PAGES, False, rounds),
        ("256 MiB dirty", 256 * MIB_PAGES, True, rounds),
    ):
        times = []
        with lent_window(page_count, writable=dirty) as (domain, lease):
            for _ in range(repeat):
                if dirty:  # the kernel does the storing, with the interpreter lock let go
                    zeros = os.open("/dev/zero", os.O_RDONLY | os.O_CLOEXEC)
                    size_bytes = page_count * PAGE_SIZE
                    window = (ctypes.c_char * size_bytes).from_address(domain.host_address)
                    os.readv(zeros, [window])
                    os.close(zeros)
                else:
                    touch(domain.host_address, page_count)
                before = time.perf_counter()
                taken = domain.revoke(lease)
                times.append((time.perf_counter() - before) * 1e3)
                if taken != page_count:
                    raise RuntimeError(f"{taken} of {page_count} pages were there")
        result[name] = statistics.median(times)
    return result


def measure_limit(program: str, page_count: int = 16384) -> dict[str, float]:
    """What the C program reaches."""
    done = subprocess.run([program, "uffd", str(page_count)], capture_output=True, check=True)
    measured: dict[str, float] = json.loads(done.stdout)["fault_us"]
    return {f"{name}_us": value for name, value in measured.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--pin", type=int, help="run everything on this CPU")
    parser.add_argument("--limit", help="a program that measures the limit in C")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="serving threads")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.pin is not None:
        os.sched_setaffinity(0, {options.pin})
    result: dict[str, Any] = {}
    limits, faults = [], []
    for _ in range(options.rounds):
        if options.limit:
            limits.append(measure_limit(options.limit))
        faults.append(measure_faults(rounds=1, thread_count=options.threads))
    if limits:
        result["limit"] = {name: statistics.median(one[name] for one in limits) for name in limits[0]}
    result["faults"] = {name: statistics.median(one[name] for one in faults) for name in faults[0]}
    if limits:
        result["faults"]["p50_by_limit"] = result["faults"]["p50_us"] / result["limit"]["p50_us"]
    result["guest"] = measure_guest_faults()
    result["revoking_ms"] = measure_revoking()
    if options.json:
        print(json.dumps(result))
        return
    for section, figures in result.items():
        for name, value in figures.items():
            print(f"{section:12} {name:24} {value:14,.3f}")


if __name__ == "__main__":
    main()
