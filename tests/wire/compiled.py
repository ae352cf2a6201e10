"""Reads the interface tables that wayland-scanner compiled into a program or library, from its ELF file.

wayland-scanner makes a ``struct wl_interface`` of each interface: name, version, and arrays of ``struct wl_message`` (name,
signature, types), all held together by pointers. In a position-independent file every pointer is a relocation, so the
tables can be found by following relocations, without symbols and without running anything. Numbers are those of elf.h.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import NamedTuple

# e_machine -> (a relocation that adds the load address, one that adds a symbol's address)
RELOCATIONS = {62: (8, 1), 183: (1027, 257)}
PT_LOAD, SHT_RELA, SHT_DYNSYM = 1, 4, 11
IDENTIFIER = re.compile(rb"[a-z][a-z0-9_]*")
SIGNATURE = re.compile(rb"\d*(\??[iufsonah])*")
UNKNOWN = "?"  # a type that the program takes from a library, by a symbol that is not in its own file


class CompiledMessage(NamedTuple):
    name: str
    signature: str
    types: tuple[str | None, ...]  # the interface of each letter of the signature; None where it has none


class CompiledInterface(NamedTuple):
    name: str
    version: int
    requests: tuple[CompiledMessage, ...]
    events: tuple[CompiledMessage, ...]


class Image:
    """An ELF file as it will lie in memory: what is at an address, and where a pointer points."""

    def __init__(self, path: Path) -> None:
        self.content = path.read_bytes()
        self.segments: list[tuple[int, int, int]] = []  # address, size in the file, offset in the file
        self.pointers: dict[int, int] = {}  # address -> the address that is stored there
        self.imported: set[int] = set()  # addresses that get a pointer into another file
        if self.content[:6] != b"\x7fELF\x02\x01":
            return
        machine, _, _, phoff, shoff, _, _, phentsize, phnum, shentsize, shnum = struct.unpack_from(
            "<HIQQQIHHHHH", self.content, 18
        )
        for at in range(phoff, phoff + phnum * phentsize, phentsize):
            kind, _, offset, address, _, size = struct.unpack_from("<IIQQQQ", self.content, at)
            if kind == PT_LOAD:
                self.segments.append((address, size, offset))
        sections = [struct.unpack_from("<IIQQQQI", self.content, shoff + n * shentsize) for n in range(shnum)]
        dynsym = next((section[4] for section in sections if section[1] == SHT_DYNSYM), 0)
        for _, kind, _, _, offset, size, _ in sections:
            if kind == SHT_RELA and machine in RELOCATIONS:
                self._relocate(offset, size, dynsym, *RELOCATIONS[machine])

    def _relocate(self, offset: int, size: int, dynsym: int, relative: int, absolute: int) -> None:
        for where, info, addend in struct.iter_unpack("<QQq", self.content[offset : offset + size]):
            kind, symbol = info & 0xFFFFFFFF, info >> 32
            if kind == relative:
                self.pointers[where] = addend
            elif kind == absolute:
                (value,) = struct.unpack_from("<8xQ", self.content, dynsym + symbol * 24)
                if value:
                    self.pointers[where] = value + addend
                else:
                    self.imported.add(where)

    def offset(self, address: int, size: int) -> int | None:
        for start, length, offset in self.segments:
            if start <= address and address + size <= start + length:
                return offset + address - start
        return None

    def int32(self, address: int) -> int:
        offset = self.offset(address, 4)
        return -1 if offset is None else struct.unpack_from("<i", self.content, offset)[0]

    def text(self, address: int | None, pattern: re.Pattern[bytes]) -> str | None:
        """The C string at an address, if there is one of that form."""
        offset = None if address is None else self.offset(address, 1)
        if offset is None:
            return None
        found = pattern.match(self.content, offset)
        return found[0].decode() if found and self.content[found.end() : found.end() + 1] == b"\0" else None


def compiled_interfaces(path: Path) -> list[CompiledInterface]:
    """Every ``struct wl_interface`` in the file at ``path``; none if it isn't an ELF file of 64 bits."""
    image = Image(path)
    candidates = (_interface(image, address) for address in image.pointers)
    return [interface for interface in candidates if interface is not None]


def _interface(image: Image, address: int) -> CompiledInterface | None:
    name = image.text(image.pointers[address], IDENTIFIER)
    version, request_count, event_count = (image.int32(address + n) for n in (8, 12, 24))
    if name is None or not (0 < version < 100 and 0 <= request_count < 100 and 0 <= event_count < 100):
        return None
    requests = _messages(image, image.pointers.get(address + 16), request_count)
    events = _messages(image, image.pointers.get(address + 32), event_count)
    if requests is None or events is None or not (requests or events):
        return None
    return CompiledInterface(name, version, requests, events)


def _messages(image: Image, address: int | None, count: int) -> tuple[CompiledMessage, ...] | None:
    if count == 0:
        return ()
    messages: list[CompiledMessage] = []
    for at in range(address or 0, (address or 0) + 24 * count, 24):
        name = image.text(image.pointers.get(at), IDENTIFIER)
        signature = image.text(image.pointers.get(at + 8), SIGNATURE)
        types = image.pointers.get(at + 16)
        if name is None or signature is None:
            return None
        letters = len(re.sub(r"[0-9?]", "", signature))
        messages.append(CompiledMessage(name, signature, tuple(_type(image, types, n) for n in range(letters))))
    return tuple(messages)


def _type(image: Image, types: int | None, index: int) -> str | None:
    if types is None or types + 8 * index in image.imported:
        return UNKNOWN
    interface = image.pointers.get(types + 8 * index)
    if interface is None:
        return None
    return image.text(image.pointers.get(interface), IDENTIFIER) or UNKNOWN
