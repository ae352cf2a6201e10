"""Prints what the compositor hands out as the keymap: its size, and a checksum of it mapped privately, shared, and read.

It waits for a keymap, prints `SIZE PRIVATE SHARED READ` for each that comes, and for a line on stdin before it ends.
With the argument `write` it prints what each way to change the keymap ends in, instead.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import sys
from collections.abc import Callable
from typing import Any

from pywayland.client.display import Display
from pywayland.protocol.wayland import WlSeat


def checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def look_at(fd: int, size_bytes: int) -> str:
    with mmap.mmap(fd, size_bytes, mmap.MAP_PRIVATE, mmap.PROT_READ) as private:
        privately = checksum(private[:])
    with mmap.mmap(fd, size_bytes, mmap.MAP_SHARED, mmap.PROT_READ) as shared:
        together = checksum(shared[:])
    return f"{size_bytes} {privately} {together} {checksum(os.pread(fd, size_bytes, 0))}"


def try_to_change(fd: int, size_bytes: int) -> str:
    attempts: dict[str, Callable[[], object]] = {
        "write": lambda: os.pwrite(fd, b"x", 0),
        "map": lambda: mmap.mmap(fd, size_bytes, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE),
        "grow": lambda: os.truncate(fd, size_bytes + 4096),
        "shrink": lambda: os.truncate(fd, 0),
        "reopen": lambda: os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDWR)),
    }
    ends = []
    for name, attempt in attempts.items():
        try:
            attempt()
            ends.append(f"{name}=done")
        except OSError as error:
            ends.append(f"{name}={errno.errorcode[error.errno or 0]}")
    return " ".join(ends)


def main() -> None:
    look = try_to_change if sys.argv[1:] == ["write"] else look_at
    display = Display()
    display.connect()
    registry = display.get_registry()
    bound: list[Any] = []
    keymaps: list[int] = []

    def keymap(keyboard: Any, kind: int, fd: int, size_bytes: int) -> None:
        print(look(fd, size_bytes), flush=True)
        keymaps.append(fd)

    def announced(registry: Any, name: int, interface: str, version: int) -> None:
        if interface == WlSeat.name:
            seat = registry.bind(name, WlSeat, min(version, 5))
            keyboard = seat.get_keyboard()
            keyboard.dispatcher["keymap"] = keymap
            bound.extend((seat, keyboard))

    registry.dispatcher["global"] = announced
    while not keymaps:
        display.dispatch(block=True)
    sys.stdin.readline()
    display.disconnect()


if __name__ == "__main__":
    main()
