"""KVM guests for tests: a few instructions each, put together by hand, in a virtual machine of this process.

A guest touches lent memory from within KVM_RUN, which holds no interpreter lock, so it may live in the process that serves it.
"""

from __future__ import annotations

import struct
import threading
from types import TracebackType

from waylend.domain.kvm.domain import KvmDomain
from waylend.domain.kvm.vm import Exit, ExitKind, KvmVcpu, VirtualMachine
from waylend.lending.pages import PAGE_SIZE

#: Where the aperture is in these guests, and what they have of their own.
WINDOW = 0x10000000
OWN_BYTES = 0x40000
CODE, PAGE_TABLES, MAILBOX, SCRATCH, SCRATCH_BYTES = 0x1000, 0x2000, 0x8000, 0x10000, 0x20000
#: How much is identity-mapped, in pages of 2 MiB, by three tables of a page each.
MAPPED_BYTES = 1 << 30

#: Copies rcx bytes from rsi to rdi.
COPY = bytes.fromhex("f3a4 f4")  # rep movsb; hlt
#: Reads the byte at rsi, for ever.
SPIN_READ = bytes.fromhex("8a06 ebfc")  # next: mov al, [rsi]; jmp next
#: Writes the byte at rsi, for ever.
SPIN_WRITE = bytes.fromhex("c60607 ebfb")  # next: mov byte [rsi], 7; jmp next
#: Counts at rdi, for ever, and in ecx.
COUNT = bytes.fromhex("ff07 ffc1 ebfa")  # next: inc dword [rdi]; inc ecx; jmp next
#: Halts when what is at rdi is older than what was at rbx just before; counts at rsi how often it looked.
WATCH = bytes.fromhex(
    "8b03"  # next: mov eax, [rbx]
    "8b17"  # mov edx, [rdi]
    "ff06"  # inc dword [rsi]
    "39c2"  # cmp edx, eax
    "73f6"  # jae next
    "f4"  # hlt
)


def page_tables(at: int, mapped_bytes: int) -> bytes:
    """Three tables for address ``at`` that map as much (at most 1 GiB) identically, all of it writable."""
    large_pages = [address | 0x83 for address in range(0, mapped_bytes, 2 << 20)]
    tables = [[at + 0x1003], [at + 0x2003], large_pages]
    return b"".join(struct.pack(f"<{len(table)}Q", *table).ljust(PAGE_SIZE, b"\0") for table in tables)


class Guest:
    """A virtual machine with memory of its own at 0 and all of ``domain``'s aperture at WINDOW.

    Its vCPUs are in long mode, which a processor runs by itself where other modes may be emulated. With ``own_memory``
    false it has nothing but the aperture, which is at 0, and its vCPUs are in flat mode.
    """

    def __init__(self, domain: KvmDomain, *, vcpu_count: int = 1, own_memory: bool = True) -> None:
        self.vm = VirtualMachine()
        try:
            if own_memory:
                self.memory = self.vm.add_memory(0, 0, OWN_BYTES)
                self.load(page_tables(PAGE_TABLES, MAPPED_BYTES), PAGE_TABLES)
            self.vcpus = [self.vm.add_vcpu() for _ in range(vcpu_count)]
            for vcpu in self.vcpus:
                if own_memory:
                    vcpu.enter_long_mode(PAGE_TABLES)
                else:
                    vcpu.enter_flat_mode()
            self._detach = domain.attach(self.vm.fd, slot=1, guest_address=WINDOW if own_memory else 0)
        except BaseException:
            self.vm.close()
            raise
        self._runs: list[Run] = []
        self._closed = False

    def load(self, program: bytes, at: int = CODE) -> int:
        self.memory[at : at + len(program)] = program
        return at

    def run(self, program: bytes, **registers: int) -> Exit:
        """Runs ``program`` to its exit, with a deadline: not on this thread, which might be in the kernel for ever."""
        return self.start(program, **registers).exit()

    def start(self, program: bytes, *, vcpu: int = 0, **registers: int) -> Run:
        """Runs ``program`` on a thread of its own."""
        return self.begin(vcpu=vcpu, rip=self.load(program, CODE + vcpu * 0x100), **registers)

    def begin(self, *, vcpu: int = 0, **registers: int) -> Run:
        """Runs what is there already, on a thread of its own."""
        self.vcpus[vcpu].set_registers(**registers)
        self._runs.append(Run(self.vcpus[vcpu]))
        return self._runs[-1]

    def read(self, address: int, size_bytes: int) -> bytes | Exit:
        """What the guest reads there, or how that ended."""
        assert size_bytes <= SCRATCH_BYTES
        done = self.run(COPY, rsi=address, rdi=SCRATCH, rcx=size_bytes)
        return self.memory[SCRATCH : SCRATCH + size_bytes] if done.kind is ExitKind.HALTED else done

    def write(self, address: int, content: bytes) -> Exit:
        assert len(content) <= SCRATCH_BYTES
        self.memory[SCRATCH : SCRATCH + len(content)] = content
        return self.run(COPY, rsi=SCRATCH, rdi=address, rcx=len(content))

    def word(self, at: int) -> int:
        """A word of its own memory."""
        value: int = struct.unpack_from("<I", self.memory, at)[0]
        return value

    def set_word(self, at: int, value: int) -> None:
        struct.pack_into("<I", self.memory, at, value)

    def close(self) -> None:
        """Stops its vCPUs wherever they are. Idempotent."""
        if self._closed:
            return
        self._closed = True
        for run in self._runs:
            run.stop()
        self._detach()
        self.vm.close()

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self.close()


class Run:
    """A vCPU that runs on a thread of its own, until its first exit."""

    def __init__(self, vcpu: KvmVcpu) -> None:
        self._vcpu = vcpu
        self._exits: list[Exit] = []
        self._thread = threading.Thread(target=lambda: self._exits.append(vcpu.run()), daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def exit(self, deadline_s: float = 30.0) -> Exit:
        """How it ended; waits for that."""
        self._thread.join(deadline_s)
        assert self._exits, f"the guest runs on after {deadline_s:g} s"
        return self._exits[0]

    def stop(self) -> Exit:
        if self.running:
            self._vcpu.stop()
        return self.exit()
