"""The kernel's interface to KVM, as far as waylend uses it: ioctl numbers and structures as bytes (linux/kvm.h, x86-64).

Numbers and shapes only: nothing here opens, maps or keeps anything. What each call does is in the kernel's
Documentation/virt/kvm/api.rst.
"""

from __future__ import annotations

import struct
from typing import Final

GET_API_VERSION: Final = 0xAE00
CREATE_VM: Final = 0xAE01
CHECK_EXTENSION: Final = 0xAE03
GET_VCPU_MMAP_SIZE: Final = 0xAE04
CREATE_VCPU: Final = 0xAE41
SET_USER_MEMORY_REGION: Final = 0x4020AE46
RUN: Final = 0xAE80
GET_REGS: Final = 0x8090AE81
SET_REGS: Final = 0x4090AE82
GET_SREGS: Final = 0x8138AE83
SET_SREGS: Final = 0x4138AE84
SET_SIGNAL_MASK: Final = 0x4004AE8B

API_VERSION: Final = 12
#: KVM_CAP_SYNC_MMU: what the host unmaps is unmapped for the guest at once (MMU notifiers). Without it nothing can be lent.
CAP_SYNC_MMU: Final = 16

#: struct kvm_userspace_memory_region: slot, flags, guest address, size, host address.
MEMORY_REGION: Final = struct.Struct("=IIQQQ")
#: struct kvm_regs: rax rbx rcx rdx rsi rdi rsp rbp r8..r15 rip rflags.
REGS: Final = struct.Struct("=18Q")
REG_NAMES: Final = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"),
    *("rip", "rflags"),
)
#: struct kvm_segment: base, limit, selector, type, present, dpl, db, s, l, g, avl, unusable.
SEGMENT: Final = struct.Struct("=QIH9Bx")
#: struct kvm_sregs: eight segments (cs ds es fs gs ss tr ldt), gdt and idt, then the control registers from here on:
#: cr0 cr2 cr3 cr4 cr8 efer apic_base.
SREGS_BYTES: Final = 312
CONTROL_REGISTERS: Final = struct.Struct("=7Q")
CONTROL_REGISTERS_AT: Final = 8 * SEGMENT.size + 32

# struct kvm_run, the page that a vCPU shares with its owner.
RUN_IMMEDIATE_EXIT_AT: Final = 1
RUN_EXIT_REASON_AT: Final = 8
RUN_EXIT_REASON: Final = struct.Struct("=I")
#: The exit's own part begins here.
RUN_EXIT_AT: Final = 32
#: For EXIT_IO: direction (1: out), size in bytes, port, count, where in kvm_run the bytes are.
RUN_IO: Final = struct.Struct("=BBHIQ")
#: For EXIT_MMIO: guest address, content, length, whether it is a store.
RUN_MMIO: Final = struct.Struct("=Q8sIB")
#: For EXIT_MEMORY_FAULT: flags, guest address, size in bytes.
RUN_MEMORY_FAULT: Final = struct.Struct("=QQQ")

EXIT_IO: Final = 2
EXIT_HLT: Final = 5
EXIT_MMIO: Final = 6
EXIT_SHUTDOWN: Final = 8
EXIT_INTERNAL_ERROR: Final = 17
EXIT_MEMORY_FAULT: Final = 39

assert (MEMORY_REGION.size, REGS.size, SEGMENT.size) == (32, 144, 24)
