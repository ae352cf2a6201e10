"""The guest's side of the model of a hypervisor: a domain, its p2m, and its vCPUs, which pause at a lent page that isn't there.

What others may do to a domain, its lender included, is ``xen_hypervisor``'s. Each domain has a lock of its own, so a thousand
domains don't wait for each other.
"""

from __future__ import annotations

import enum
import errno
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator

from waylend.domain.xen.operations import FaultRecord, HypercallError
from waylend.errors import LendingError
from waylend.lending.pages import PAGE_SHIFT, PAGE_SIZE, PageRange


class GuestFault(LendingError):
    """The access was a fault that the guest gets: nothing is there, it is read-only, or its page is lost."""


class P2MType(enum.Enum):
    """What a guest frame number stands for."""

    RAM = "ram"
    #: Lent, and no page there: an access pauses the vCPU.
    LENT_ABSENT = "lent, absent"
    LENT = "lent"
    #: Lent, and lost: an access is a fault in the guest, until the page is revoked.
    LENT_LOST = "lent, lost"


class Frame:
    """A page of the host."""

    __slots__ = ("content", "dirty")

    def __init__(self, content: bytes = bytes(PAGE_SIZE)) -> None:
        self.content = bytearray(content)
        self.dirty = False


class Entry:
    """What is in the p2m for one gfn."""

    __slots__ = ("frame", "kind", "writable")

    def __init__(self, kind: P2MType, frame: Frame | None, writable: bool) -> None:
        self.kind = kind
        self.frame = frame
        self.writable = writable


class XenVcpu:
    """A virtual CPU. ``touch`` is one access, tried once; ``read`` and ``write`` wait for as long as it is kept paused."""

    def __init__(self, domain: GuestDomain, vcpu_id: int) -> None:
        self._domain = domain
        self.vcpu_id = vcpu_id
        self.paused_at: int | None = None
        self.killed = False

    def touch(self, address: int, size_bytes: int = 1, content: bytes | None = None) -> bytes | None:
        """Reads (or with ``content`` writes) within one page. None: the vCPU is paused now. Raises GuestFault."""
        gfn, offset_bytes = address >> PAGE_SHIFT, address & (PAGE_SIZE - 1)
        if offset_bytes + (size_bytes if content is None else len(content)) > PAGE_SIZE:
            raise ValueError(f"an access at {address:#x} that crosses a page's end")
        with self._domain.lock:
            entry = None if self._domain.dead else self._domain.p2m.get(gfn)
            if entry is None or entry.kind is P2MType.LENT_LOST or (content is not None and not entry.writable):
                raise GuestFault(f"gfn {gfn:#x}")
            if entry.frame is None:
                self._pause(FaultRecord(self.vcpu_id, gfn, content is not None))
                return None
            if content is None:
                return bytes(entry.frame.content[offset_bytes : offset_bytes + size_bytes])
            entry.frame.content[offset_bytes : offset_bytes + len(content)] = content
            entry.frame.dirty = True
            return content

    def _pause(self, record: FaultRecord) -> None:
        if self.paused_at is None:
            self.paused_at = record.gfn
            waiting = self._domain.waiting.setdefault(record.gfn, [])
            waiting.append(self)
            if len(waiting) == 1:  # one fault a page is told; whoever comes later waits with the first
                self._domain.faults.append(record)
                self._domain.changed.notify_all()

    def read(self, address: int, size_bytes: int) -> bytes:
        """Raises GuestFault."""
        return b"".join(self._settled(at, size, None) for at, size, _ in pieces_of(address, size_bytes))

    def write(self, address: int, content: bytes) -> None:
        """Raises GuestFault."""
        for at, size, start in pieces_of(address, len(content)):
            self._settled(at, size, content[start : start + size])

    def _settled(self, address: int, size_bytes: int, content: bytes | None) -> bytes:
        while True:
            done = self.touch(address, size_bytes, content)
            if done is not None:
                return done
            with self._domain.changed:
                while self.paused_at is not None and not self.killed:
                    self._domain.changed.wait()
            if self.killed:
                raise GuestFault("the vCPU was killed")

    def kill(self) -> None:
        """It is gone, wherever it was. Idempotent."""
        with self._domain.changed:
            if self.killed:
                return
            self.killed = True
            if self.paused_at is not None:
                self._domain.waiting[self.paused_at].remove(self)
                self.paused_at = None
            self._domain.changed.notify_all()
            self._domain.vcpus.discard(self)
            idle = not self._domain.vcpus
        if idle:
            self._domain.on_idle()


class GuestDomain:
    """A domain, as the hypervisor has it. Guarded by ``lock``; ``changed`` is told of faults and of whoever goes on."""

    def __init__(self, domain_id: int, ram_pages: int, owner_id: int | None) -> None:
        self.domain_id = domain_id
        self.owner_id = owner_id
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)
        self.p2m: dict[int, Entry] = {gfn: Entry(P2MType.RAM, Frame(), True) for gfn in range(ram_pages)}
        self.lent: dict[int, PageRange] = {}
        self.faults: deque[FaultRecord] = deque()
        self.waiting: dict[int, list[XenVcpu]] = {}
        self.iommu: set[int] = set()
        #: The capability to lend to it, which is one at a time.
        self.lending: object | None = None
        self.dead = False
        self.vcpus: set[XenVcpu] = set()
        #: Called when the last vCPU has gone.
        self.on_idle: Callable[[], None] = lambda: None
        self._vcpu_ids = itertools.count()

    def add_vcpu(self) -> XenVcpu:
        vcpu = XenVcpu(self, next(self._vcpu_ids))
        with self.lock:
            self.vcpus.add(vcpu)
        return vcpu

    def let_go_on(self, gfn: int) -> None:
        """Whoever waits at ``gfn`` tries again. Under the lock."""
        for vcpu in self.waiting.pop(gfn, ()):
            vcpu.paused_at = None
        self.changed.notify_all()

    def ram(self, gfn: int) -> Frame:
        """The page behind a gfn for somebody else's purposes: lent memory is as absent as no memory. Raises HypercallError."""
        entry = self.p2m.get(gfn)
        if entry is None or entry.kind is not P2MType.RAM or entry.frame is None:
            raise HypercallError(errno.EFAULT, f"domain {self.domain_id} has no memory of its own at gfn {gfn:#x}")
        return entry.frame


def pieces_of(address: int, size_bytes: int) -> Iterator[tuple[int, int, int]]:
    """(address, size, offset from the start) of the parts of a range that lie within one page each."""
    done = 0
    while done < size_bytes:
        size = min(size_bytes - done, PAGE_SIZE - (address + done) % PAGE_SIZE)
        yield address + done, size, done
        done += size
