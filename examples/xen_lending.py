#!/usr/bin/env python3
"""The story of one GPU buffer that a host lends to a Xen guest, step by step, on models of the card and of the hypervisor.

xen_lending.py           tells it
xen_lending.py --many    then lends a thousand leases to each of a thousand domains, and says how long that takes
"""

from __future__ import annotations

import argparse
import contextlib
import threading
import time
from collections.abc import Callable

from waylend import (
    PAGE_SIZE,
    BackingIndex,
    GuestFault,
    HypercallError,
    Hypervisor,
    LendingEvent,
    LossPolicy,
    PageRange,
    Protection,
    VramHeap,
    XenModelDomain,
)

PAGES = 4


def say(text: str) -> None:
    print(f"\n{text}", flush=True)


def tell(event: LendingEvent) -> None:
    print(f"    [{event.kind.value}: {event.page_count} page(s) from page {event.page}]", flush=True)


def story() -> None:
    hypervisor = Hypervisor()
    guest = hypervisor.create_domain()
    lender = XenModelDomain(
        "guest", aperture_pages=1024, operations=hypervisor.open_lending(0, guest.domain_id), first_gfn=0x100000
    )
    silence = lender.events.watch(tell)
    card = VramHeap(vram_pages=16, visible_pages=8, system_pages=16)

    say("The host makes a buffer in VRAM and draws into it.")
    buffer = card.allocate(PAGES)
    buffer.draw(PageRange(0, PAGES), b"blue" * (PAGES * PAGE_SIZE // 4))

    say("It lends the buffer to the guest, for writing. No page is touched, pinned or copied yet.")
    lease = lender.lend(buffer, protection=Protection.READ_WRITE, loss=LossPolicy.FAULT, name="a buffer")
    address = lender.guest_address(lease)
    print(f"    at guest address {address:#x}, {lease.pages_present} of {lease.page_count} pages present")

    say("The guest reads the first page: its vCPU pauses, the lender resolves the fault, the vCPU goes on.")
    vcpu = guest.add_vcpu()
    print(f"    the guest reads {vcpu.read(address, 4)!r}")

    say("The guest writes to the second page.")
    vcpu.write(address + PAGE_SIZE, b"red!")

    say("The card is short of VRAM: the buffer is evicted. Its pages leave the guest before their frames are reused,")
    print("and what the guest wrote goes along.")
    card.evict(buffer)
    print(f"    {lease.pages_present} pages present; the buffer is in {buffer.place.name} memory")

    say("The guest reads on, as if nothing had happened: other pages, the same content.")
    print(f"    the guest reads {vcpu.read(address + PAGE_SIZE, 8)!r}")

    say("The guest is hostile: it points a hypercall into lent memory, grants it, gives it to a device.")
    hand_on(hypervisor, guest.domain_id, address)

    say("It spins on a page without a pause, and the host takes the lease back all the same.")
    silence()
    spinner = guest.add_vcpu()
    revoke_under(lambda: spinner.read(address, 1), lambda: lender.revoke(lease))
    lender.events.watch(tell)

    say("Somebody pulls the card out: the buffer's content is gone. The lease says that the guest gets a fault then.")
    card.unplug()
    try:
        vcpu.read(address, 1)
    except GuestFault as fault:
        print(f"    a fault in the guest, at {fault}")

    say("The lease ends. The guest addresses are free again.")
    lender.end(lease)
    lender.close()
    card.close()


def hand_on(hypervisor: Hypervisor, domain_id: int, address: int) -> None:
    """What a guest might do with memory that isn't its own."""
    gfn = address // PAGE_SIZE
    for what, call in (
        ("hypercall", lambda: hypervisor.copy_from_guest(domain_id, address, 4)),
        ("grant", lambda: hypervisor.grant(domain_id, gfn, 0)),
        ("device", lambda: hypervisor.map_in_iommu(domain_id, gfn)),
        ("migration", lambda: hypervisor.save(domain_id)),
    ):
        try:
            call()
        except HypercallError as error:
            print(f"    {what}: {error}")


def revoke_under(touch: Callable[[], object], revoke: Callable[[], object]) -> None:
    """Takes pages while somebody touches them without end."""
    stopping = threading.Event()

    def spin() -> None:
        with contextlib.suppress(GuestFault):
            while not stopping.is_set():
                touch()

    spinning = threading.Thread(target=spin)
    spinning.start()
    began = time.perf_counter()
    revoke()
    print(f"    revoked in {(time.perf_counter() - began) * 1e6:.0f} us")
    stopping.set()
    spinning.join()


def many(domain_count: int = 1000, lease_count: int = 1000) -> None:
    hypervisor, index = Hypervisor(), BackingIndex()
    card = VramHeap(vram_pages=domain_count, visible_pages=domain_count, system_pages=1)
    began = time.perf_counter()
    lenders = []
    for number in range(domain_count):
        guest = hypervisor.create_domain()
        operations = hypervisor.open_lending(0, guest.domain_id)
        lender = XenModelDomain(
            f"guest-{number}", aperture_pages=lease_count, thread_count=0, by_backing=index, operations=operations
        )
        buffer = card.allocate(1)
        for _ in range(lease_count):
            lender.lend(buffer)
        lenders.append((guest, lender))
    lent_s = time.perf_counter() - began
    began = time.perf_counter()
    faults = 0
    for guest, lender in lenders:
        vcpu = guest.add_vcpu()
        for page in range(0, lease_count, 10):
            vcpu.touch((lender.first_gfn + page) * PAGE_SIZE)
            faults += lender.serve_pending()
    served_s = time.perf_counter() - began
    print(f"\n{domain_count} domains with {lease_count} leases each: lent in {lent_s:.1f} s, ", end="")
    print(f"{faults:,} faults served in {served_s:.1f} s ({served_s / faults * 1e6:.1f} us each)")
    for _, lender in lenders:
        lender.close()
    card.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--many", action="store_true", help="simulate a thousand domains, too")
    options = parser.parse_args()
    story()
    if options.many:
        many()
