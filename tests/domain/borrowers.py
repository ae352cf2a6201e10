"""Borrowers for the contract tests: each touches lent memory in a process of its own, or in a guest, never in this one.

A new kind of domain joins the contract tests with one entry in ``DOMAINS``: how to make it, how to borrow from it, and what its
docstring says that it can't do.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import pytest

from tests.domain.guests import SPIN_READ, SPIN_WRITE, WINDOW, Guest
from waylend.domain.base import Domain
from waylend.domain.fuse.domain import FuseDomain
from waylend.domain.kvm.domain import KvmDomain
from waylend.domain.kvm.vm import Exit, ExitKind
from waylend.domain.memfd import MemfdDomain
from waylend.domain.process.caller import ProcessDomain
from waylend.errors import Unavailable
from waylend.lending.lease import Lease
from waylend.lending.pages import PAGE_SIZE
from waylend.models.xen_domain import XenModelDomain
from waylend.models.xen_guest import GuestFault

DEADLINE_S = 30.0


class Faulted(Exception):
    """The borrower's access was a fault that nobody resolved. It is gone now."""


class Borrower(Protocol):
    """Somebody who has a lease, in another process. Offsets are in bytes from the lease's start."""

    def read(self, offset_bytes: int, size_bytes: int) -> bytes:
        """Raises Faulted."""

    def write(self, offset_bytes: int, content: bytes) -> None:
        """Raises Faulted."""

    def spin(self, offset_bytes: int) -> None:
        """From now on touches that byte without a pause, in a process that nobody waits for."""

    def kill(self) -> None:
        """SIGKILL. Idempotent; after it the borrower has nothing any more."""


_PROGRAM = r"""
import json, mmap, os, sys
fd, prot, shared = (int(x) for x in sys.argv[1:4])
size = os.fstat(fd).st_size
view = mmap.mmap(fd, size, mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE, prot)
print("ready", flush=True)
for line in sys.stdin:
    order = json.loads(line)
    at, count = order["at"], order.get("count", 1)
    if order["do"] == "read":
        print(json.dumps({"content": view[at : at + count].hex()}), flush=True)
    elif order["do"] == "write":
        content = bytes.fromhex(order["content"])
        view[at : at + len(content)] = content
        print("{}", flush=True)
    elif order["do"] == "pread":
        print(json.dumps({"content": os.pread(fd, count, at).hex()}), flush=True)
    elif order["do"] == "sum":
        print(json.dumps({"content": bytes(view[p] for p in range(at, at + count, 4096)).hex()}), flush=True)
    elif order["do"] == "spin":
        print("{}", flush=True)
        writes = prot & mmap.PROT_WRITE
        while True:
            for page in range(at, at + count, 4096):
                if writes:
                    view[page] = 7
                else:
                    view[page]
"""


class FdBorrower:
    """Maps a descriptor, as a local client does."""

    def __init__(self, fd: int, *, writable: bool = False, shared: bool = True) -> None:
        """Passes ``fd`` on and closes it here."""
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(fd), "3" if writable else "1", str(int(shared))],
            pass_fds=[fd],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        os.close(fd)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    @property
    def pid(self) -> int:
        return self._process.pid

    def _ask(self, **order: object) -> Mapping[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            assert self._process.wait(DEADLINE_S) == -signal.SIGBUS
            raise Faulted
        result: Mapping[str, Any] = json.loads(answer)
        return result

    def read(self, offset_bytes: int, size_bytes: int) -> bytes:
        return bytes.fromhex(self._ask(do="read", at=offset_bytes, count=size_bytes)["content"])

    def pread(self, offset_bytes: int, size_bytes: int) -> bytes:
        return bytes.fromhex(self._ask(do="pread", at=offset_bytes, count=size_bytes)["content"])

    def first_bytes(self, page_count: int) -> bytes:
        """Touches that many pages: the first byte of each."""
        return bytes.fromhex(self._ask(do="sum", at=0, count=page_count * PAGE_SIZE)["content"])

    def write(self, offset_bytes: int, content: bytes) -> None:
        self._ask(do="write", at=offset_bytes, content=content.hex())

    def spin(self, offset_bytes: int, page_count: int = 1) -> None:
        self._ask(do="spin", at=offset_bytes, count=page_count * PAGE_SIZE)

    def stop(self) -> None:
        """SIGSTOP: it neither faults nor answers nor dies."""
        self._process.send_signal(signal.SIGSTOP)

    def wait(self) -> int:
        """For its end by itself; the status."""
        return self._process.wait(DEADLINE_S)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(DEADLINE_S)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def __enter__(self) -> FdBorrower:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self.kill()


class BarBorrower(FdBorrower):
    """Maps the file of the whole aperture, as a VMM does, and uses one lease of it."""

    def __init__(self, fd: int, lease: Lease) -> None:
        super().__init__(fd, writable=lease.writable)
        self._base = lease.gfns.start * PAGE_SIZE

    def read(self, offset_bytes: int, size_bytes: int) -> bytes:
        return super().read(self._base + offset_bytes, size_bytes)

    def write(self, offset_bytes: int, content: bytes) -> None:
        super().write(self._base + offset_bytes, content)

    def spin(self, offset_bytes: int, page_count: int = 1) -> None:
        super().spin(self._base + offset_bytes, page_count)


class GuestBorrower:
    """A KVM guest that has the domain's aperture, of which it uses one lease."""

    def __init__(self, domain: KvmDomain, lease: Lease) -> None:
        self._base = WINDOW + lease.gfns.start * PAGE_SIZE
        self._writable = lease.writable
        self._guest = Guest(domain)

    def read(self, offset_bytes: int, size_bytes: int) -> bytes:
        found = self._guest.read(self._base + offset_bytes, size_bytes)
        if isinstance(found, Exit):
            raise self._refused(found)
        return found

    def write(self, offset_bytes: int, content: bytes) -> None:
        done = self._guest.write(self._base + offset_bytes, content)
        if done.kind is not ExitKind.HALTED:
            raise self._refused(done)

    @staticmethod
    def _refused(done: Exit) -> Faulted:
        assert done.kind is ExitKind.REFUSED, done
        return Faulted()

    def spin(self, offset_bytes: int) -> None:
        self._guest.start(SPIN_WRITE if self._writable else SPIN_READ, rsi=self._base + offset_bytes)

    def kill(self) -> None:
        self._guest.close()


class ModelBorrower:
    """A vCPU of the model's guest. What it waits for, it waits for in a thread, until its deadline."""

    def __init__(self, domain: XenModelDomain, lease: Lease) -> None:
        assert domain.guest is not None
        self._vcpu = domain.guest.add_vcpu()
        self._base = domain.guest_address(lease)
        self._writable = lease.writable
        self._spinning: threading.Thread | None = None

    def _run(self, access: Callable[[], object]) -> object:
        done: queue.SimpleQueue[object] = queue.SimpleQueue()

        def run() -> None:
            try:
                done.put(access())
            except GuestFault as fault:
                done.put(fault)

        threading.Thread(target=run, daemon=True).start()
        found = done.get(timeout=DEADLINE_S)
        if isinstance(found, GuestFault):
            raise Faulted
        return found

    def read(self, offset_bytes: int, size_bytes: int) -> bytes:
        found = self._run(lambda: self._vcpu.read(self._base + offset_bytes, size_bytes))
        assert isinstance(found, bytes)
        return found

    def write(self, offset_bytes: int, content: bytes) -> None:
        self._run(lambda: self._vcpu.write(self._base + offset_bytes, content))

    def spin(self, offset_bytes: int) -> None:
        address = self._base + offset_bytes

        def run() -> None:
            with contextlib.suppress(GuestFault):
                while not self._vcpu.killed:
                    if self._writable:
                        self._vcpu.write(address, b"\7")
                    else:
                        self._vcpu.read(address, 1)

        self._spinning = threading.Thread(target=run)
        self._spinning.start()

    def kill(self) -> None:
        self._vcpu.kill()
        if self._spinning is not None:
            self._spinning.join(DEADLINE_S)


@dataclass(frozen=True)
class Kind:
    """One mechanism in the contract tests."""

    name: str
    make: Callable[..., Domain]
    borrow: Callable[[Domain, Lease], Borrower]
    #: Pages come on first touch, and again after they were taken away.
    serves_faults: bool = True
    #: Takes a part of a lease's pages.
    takes_parts: bool = True
    #: Knows when the last borrower has let go.
    knows_unused: bool = True
    #: Whoever has a lease that ends when it is unused keeps it.
    keeps_unused: bool = True
    #: Lends what is no file, too.
    lends_any_backing: bool = True


def borrow_fd(domain: Domain, lease: Lease) -> Borrower:
    return FdBorrower(domain.open_lease(lease), writable=lease.writable)


def borrow_bar(domain: Domain, lease: Lease) -> Borrower:
    assert isinstance(domain, (FuseDomain, ProcessDomain))
    return BarBorrower(domain.open_bar(writable=lease.writable), lease)


def borrow_by_guest(domain: Domain, lease: Lease) -> Borrower:
    assert isinstance(domain, KvmDomain)
    return GuestBorrower(domain, lease)


def borrow_by_model(domain: Domain, lease: Lease) -> Borrower:
    assert isinstance(domain, XenModelDomain)
    return ModelBorrower(domain, lease)


DOMAINS = [
    Kind("fuse", FuseDomain, borrow_fd),
    Kind("fuse, bar", FuseDomain, borrow_bar, knows_unused=False, keeps_unused=False),
    Kind("process", ProcessDomain, borrow_fd, lends_any_backing=False),
    Kind("process, bar", ProcessDomain, borrow_bar, lends_any_backing=False, knows_unused=False, keeps_unused=False),
    Kind("kvm", KvmDomain, borrow_by_guest),
    Kind("xen_model", XenModelDomain, borrow_by_model),
    Kind("memfd", MemfdDomain, borrow_fd, serves_faults=False, takes_parts=False, knows_unused=False),
]


@contextlib.contextmanager
def opened(make: Callable[..., Domain], **options: object) -> Iterator[Any]:
    """A domain for a test; skips where the machine lacks the mechanism, but not in CI. Nothing of it may stay."""
    before = sorted(os.listdir("/proc/self/fd"))
    try:
        domain = make("test", **options)
    except Unavailable as missing:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(missing))
    try:
        yield domain
    finally:
        domain.close()
    assert sorted(os.listdir("/proc/self/fd")) == before, "the domain left descriptors behind"


def file_backing_fd(page_count: int, *, tail: bytes = b"") -> int:
    """A memfd whose page N is full of the byte N + 1, and ``tail`` behind."""
    fd = os.memfd_create("backing", os.MFD_CLOEXEC)
    for page in range(page_count):
        os.pwrite(fd, bytes(((page + 1) % 256,)) * PAGE_SIZE, page * PAGE_SIZE)
    os.pwrite(fd, tail, page_count * PAGE_SIZE)
    return fd
