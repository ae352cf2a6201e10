"""A fuzzer's bytes, taken apart into choices, with and without atheris. Where the bytes are used up, all choices are 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Input:
    def __init__(self, octets: bytes) -> None:
        self._octets = octets
        self._at = 0

    def __bool__(self) -> bool:
        """Whether there is more."""
        return self._at < len(self._octets)

    def number(self, below: int) -> int:
        """0 <= number < ``below``, from a byte, or from four where a byte holds too little."""
        if below <= 1:
            return 0
        return int.from_bytes(self.octets(1 if below <= 256 else 4), "little") % below

    def word(self) -> int:
        """32 bits: as a rule a small number or one at an edge, sometimes any."""
        kind = self.number(8)
        if kind < 4:
            return self.number(64)
        if kind < 7:
            return self.choice(EDGES)
        return int.from_bytes(self.octets(4), "little")

    def choice(self, values: Sequence[T]) -> T:
        return values[self.number(len(values))]

    def octets(self, count: int) -> bytes:
        """At most ``count``."""
        found = self._octets[self._at : self._at + count]
        self._at += count
        return found

    def rest(self) -> bytes:
        return self.octets(len(self._octets))


EDGES = (
    0, 1, 4095, 4096, 4097, 65535, 65536, 1 << 20, (1 << 31) - 1, 1 << 31, 0xFEFFFFFF, 0xFF000000, 0xFF000001,
    0xFFFFFFFE, 0xFFFFFFFF,
)  # fmt: skip
