"""A small VMM: one virtual machine, its vCPUs, and memory of its own that nobody lends.

What a guest needs besides lent memory, and no more: no devices, no firmware. A larger VMM uses ``KvmDomain`` without
it. Behaviour as in the kernel's Documentation/virt/kvm/api.rst.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import errno
import fcntl
import mmap
import os
import platform
import signal
import struct
import threading
from dataclasses import dataclass
from typing import Final

from waylend import linux
from waylend.domain.kvm import abi
from waylend.errors import Unavailable

#: Gets a vCPU out of KVM_RUN. It is blocked everywhere else and taken off at once, so it needs no handler.
_KICK: Final = signal.SIGRTMIN + 5
#: What the kernel says where a memory slot's page can't be had.
_REFUSALS = (errno.EFAULT, linux.EHWPOISON)
#: An access has at most that many, each an exit of its own: 32 bytes across a page's edge, 8 at a time.
_PARTS_OF_AN_ACCESS = 8


def open_kvm() -> int:
    """A descriptor of /dev/kvm, close-on-exec. Raises Unavailable, saying why there is none that memory can be lent with."""
    if platform.machine() != "x86_64":
        raise Unavailable(f"lending to KVM guests is not written for {platform.machine()}", "use the fuse domain")
    try:
        kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Unavailable(
            "there is no /dev/kvm", "load the module kvm_intel or kvm_amd; in a VM, allow nesting"
        ) from None
    except OSError as error:
        raise Unavailable(f"can't open /dev/kvm: {error.strerror}", "add this user to the group kvm") from error
    try:
        version = fcntl.ioctl(kvm, abi.GET_API_VERSION, 0)
        if version != abi.API_VERSION:
            raise Unavailable(f"/dev/kvm speaks version {version} instead of {abi.API_VERSION}")
        if not fcntl.ioctl(kvm, abi.CHECK_EXTENSION, abi.CAP_SYNC_MMU):
            raise Unavailable("this KVM doesn't follow what the host unmaps (KVM_CAP_SYNC_MMU)")
    except OSError as error:
        os.close(kvm)
        raise Unavailable(f"/dev/kvm is not KVM: {error.strerror}") from error
    except BaseException:
        os.close(kvm)
        raise
    return kvm


def set_memory_slot(vm_fd: int, slot: int, guest_address: int, size_bytes: int, host_address: int) -> None:
    """Maps host memory into a guest, or with size 0 takes the slot away. Raises OSError."""
    region = abi.MEMORY_REGION.pack(slot, 0, guest_address, size_bytes, host_address)
    fcntl.ioctl(vm_fd, abi.SET_USER_MEMORY_REGION, region)


class ExitKind(enum.Enum):
    #: The guest executed HLT.
    HALTED = "halted"
    #: The guest used an I/O port.
    PORT = "port"
    #: The guest touched memory that nobody lends it (any more), that it may only read, or that was lost.
    REFUSED = "refused"
    #: ``KvmVcpu.stop`` was called.
    STOPPED = "stopped"
    #: The guest is at its end (a triple fault), or KVM can't go on with it.
    BROKEN = "broken"


@dataclass(frozen=True)
class Exit:
    """Why a vCPU came back. ``guest_address`` is where it was refused, None where KVM doesn't say."""

    kind: ExitKind
    guest_address: int | None = None
    is_write: bool = False
    port: int = 0
    content: bytes = b""


class KvmVcpu:
    """One vCPU. ``run`` by one thread at a time, ``stop`` from any."""

    def __init__(self, fd: int, run_bytes: int) -> None:
        """Owns ``fd``."""
        self._fd = fd
        self._run = mmap.mmap(fd, run_bytes)
        self._lock = threading.Lock()
        self._runner: int | None = None
        self._stopping = False
        self._kicked = False
        #: The last exit left an instruction half done.
        self._pending = False

    def set_registers(self, **registers: int) -> None:
        """Sets the named registers and zeros all others; rflags is sane unless given."""
        self._complete()
        wanted = {"rflags": 2, **registers}
        fcntl.ioctl(self._fd, abi.SET_REGS, abi.REGS.pack(*(wanted.get(name, 0) for name in abi.REG_NAMES)))

    def registers(self) -> dict[str, int]:
        content = bytearray(abi.REGS.size)
        fcntl.ioctl(self._fd, abi.GET_REGS, content)
        return dict(zip(abi.REG_NAMES, abi.REGS.unpack(content), strict=True))

    def enter_flat_mode(self) -> None:
        """32 bits, no paging, all segments from 0 to 4 GiB: an address is a guest physical address."""
        self._enter(cr0=0x11)

    def enter_long_mode(self, page_tables: int) -> None:
        """64 bits, with the page tables at guest address ``page_tables`` (CR3)."""
        self._enter(cr0=0x80050033, cr3=page_tables, cr4=0x20, efer=0x500, long=True)

    def _enter(self, *, cr0: int, cr3: int = 0, cr4: int = 0, efer: int = 0, long: bool = False) -> None:
        sregs = bytearray(abi.SREGS_BYTES)
        fcntl.ioctl(self._fd, abi.GET_SREGS, sregs)
        size = abi.SEGMENT.size
        # base, limit, selector, type, present, dpl, db, s, l, g, avl, unusable
        sregs[:size] = abi.SEGMENT.pack(0, 0xFFFFFFFF, 8, 11, 1, 0, int(not long), 1, int(long), 1, 0, 0)
        for index in range(1, 6):
            sregs[index * size : (index + 1) * size] = abi.SEGMENT.pack(0, 0xFFFFFFFF, 16, 3, 1, 0, 1, 1, 0, 1, 0, 0)
        *_, cr8, _, apic_base = abi.CONTROL_REGISTERS.unpack_from(sregs, abi.CONTROL_REGISTERS_AT)
        abi.CONTROL_REGISTERS.pack_into(sregs, abi.CONTROL_REGISTERS_AT, cr0, 0, cr3, cr4, cr8, efer, apic_base)
        fcntl.ioctl(self._fd, abi.SET_SREGS, bytes(sregs))

    def run(self) -> Exit:
        """Runs the guest until it needs its owner. The interpreter lock is not held meanwhile.

        Raises OSError for what is neither the guest's nor the lender's doing.
        """
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {_KICK})
        try:
            allowed = sum(1 << (number - 1) for number in blocked - {_KICK})
            fcntl.ioctl(self._fd, abi.SET_SIGNAL_MASK, struct.pack("=IQ", 8, allowed))
            with self._lock:
                self._runner = threading.get_ident()
            abi.RUN_EXIT_REASON.pack_into(self._run, abi.RUN_EXIT_REASON_AT, 0)
            failure = self._enter_guest()
            with self._lock:
                self._runner = None
                stopped, self._stopping = self._stopping, False
                kicked, self._kicked = self._kicked, False
                self._run[abi.RUN_IMMEDIATE_EXIT_AT] = 0
            if kicked:
                signal.sigtimedwait({_KICK}, 0)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        found = self._exit(failure)
        # A wait for a page that the kick cut short may look like a refusal.
        return Exit(ExitKind.STOPPED) if stopped and found.kind in (ExitKind.REFUSED, ExitKind.STOPPED) else found

    def _enter_guest(self) -> int:
        """KVM_RUN. Returns an errno, 0 for none."""
        while True:
            try:
                fcntl.ioctl(self._fd, abi.RUN, 0)
            except InterruptedError:
                if self._stopping:
                    return errno.EINTR
                # Somebody else's signal: its handler has run.
            except OSError as error:
                return error.errno or errno.EIO
            else:
                return 0

    def _complete(self) -> None:
        """Ends the access that the last exit was in the middle of, as KVM asks for before the state is changed."""
        if not self._pending:
            return
        self._run[abi.RUN_IMMEDIATE_EXIT_AT] = 1
        for _ in range(_PARTS_OF_AN_ACCESS):
            try:
                fcntl.ioctl(self._fd, abi.RUN, 0)
            except OSError:  # EINTR: complete, and back before the guest runs
                break
        self._pending = False
        with self._lock:
            self._run[abi.RUN_IMMEDIATE_EXIT_AT] = int(self._stopping)

    def _exit(self, failure: int) -> Exit:
        self._pending = False
        (reason,) = abi.RUN_EXIT_REASON.unpack_from(self._run, abi.RUN_EXIT_REASON_AT)
        if reason == abi.EXIT_MEMORY_FAULT:
            _, guest_address, _ = abi.RUN_MEMORY_FAULT.unpack_from(self._run, abi.RUN_EXIT_AT)
            return Exit(ExitKind.REFUSED, guest_address)
        if failure == errno.EINTR:
            return Exit(ExitKind.STOPPED)
        if failure in _REFUSALS:
            return Exit(ExitKind.REFUSED)
        if failure:
            raise OSError(failure, f"KVM_RUN: {os.strerror(failure)}")
        if reason == abi.EXIT_HLT:
            return Exit(ExitKind.HALTED)
        self._pending = reason in (abi.EXIT_MMIO, abi.EXIT_IO)
        if reason == abi.EXIT_MMIO:
            guest_address, content, length, is_write = abi.RUN_MMIO.unpack_from(self._run, abi.RUN_EXIT_AT)
            return Exit(ExitKind.REFUSED, guest_address, bool(is_write), content=content[: min(length, 8)])
        if reason == abi.EXIT_IO:
            out, size, port, count, at = abi.RUN_IO.unpack_from(self._run, abi.RUN_EXIT_AT)
            return Exit(ExitKind.PORT, is_write=bool(out), port=port, content=self._run[at : at + size * count])
        return Exit(ExitKind.BROKEN)

    def stop(self) -> None:
        """Gets the vCPU out of ``run``, or out of the next one if it isn't in it.

        A wait for a lent page is cut short too (Linux 6.2 or later), unless it is an access that KVM emulates: the kernel
        takes no signal in the middle of these, so that one ends when the page is there, or refused.
        """
        with self._lock:
            self._stopping = True
            self._run[abi.RUN_IMMEDIATE_EXIT_AT] = 1
            if self._runner is not None and not self._kicked:
                self._kicked = True  # one signal, as one is taken off
                signal.pthread_kill(self._runner, _KICK)

    def close(self) -> None:
        """Not while it runs. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._run.close()
            os.close(fd)


class VirtualMachine:
    """One virtual machine. Raises Unavailable as ``open_kvm`` does. Owns its vCPUs and its own memory."""

    def __init__(self) -> None:
        kvm = open_kvm()
        try:
            self._run_bytes = fcntl.ioctl(kvm, abi.GET_VCPU_MMAP_SIZE, 0)
            self.fd = fcntl.ioctl(kvm, abi.CREATE_VM, 0)
        except OSError as error:
            raise Unavailable(f"KVM makes no virtual machine: {error.strerror}") from error
        finally:
            os.close(kvm)
        self._vcpus: list[KvmVcpu] = []
        self._memory: list[tuple[mmap.mmap, ctypes.c_char]] = []

    def add_memory(self, slot: int, guest_address: int, size_bytes: int) -> mmap.mmap:
        """Memory of the guest's own, zeroed, lent by nobody: it may be touched through the mapping."""
        memory = mmap.mmap(-1, size_bytes)
        pin = ctypes.c_char.from_buffer(memory)
        set_memory_slot(self.fd, slot, guest_address, size_bytes, ctypes.addressof(pin))
        self._memory.append((memory, pin))
        return memory

    def add_vcpu(self) -> KvmVcpu:
        vcpu = KvmVcpu(fcntl.ioctl(self.fd, abi.CREATE_VCPU, len(self._vcpus)), self._run_bytes)
        self._vcpus.append(vcpu)
        return vcpu

    def close(self) -> None:
        """Not while a vCPU runs. Memory lent into it must have been detached before. Idempotent."""
        fd, self.fd = self.fd, -1
        for vcpu in self._vcpus:
            vcpu.close()
        if fd >= 0:
            os.close(fd)
        memories = [memory for memory, _ in self._memory]
        self._memory.clear()  # and with it the pins, without which they can be closed
        for memory in memories:
            with contextlib.suppress(BufferError):  # somebody has a view of it; it goes with that
                memory.close()
