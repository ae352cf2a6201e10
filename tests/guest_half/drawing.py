"""A client that draws, for interposers of the guest half, and an aperture for it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import cast

from tests.relay.between import TABLES, spec_of
from waylend.guest_half.arena import AskedLease
from waylend.guest_half.buffers import ApertureAccess, Buffers
from waylend.guest_half.commits import Commits
from waylend.guest_half.pools import Pools
from waylend.lending.pages import PAGE_SIZE
from waylend.policy import Policy
from waylend.relay.interpose import Client, FdMessage
from waylend.wire.codec import encode
from waylend.wire.objects import Catalogue, ObjectMap

SHM, POOL, BUFFER, COMPOSITOR, SURFACE = 3, 4, 5, 9, 10
WIDTH, HEIGHT = 8, 4
SIZE_BYTES = WIDTH * HEIGHT * 4
AT = 64  # where the buffer is in its pool
GFN = 7


class Granted:
    """A lease that is there at once."""

    def __init__(self, page_count: int) -> None:
        self.page_count = page_count
        self.gfn = GFN
        self.failure = ""

    def give_back(self) -> None: ...


class Memory:
    """An aperture in this process's memory; every lease is granted at once, at the same place. ``lose`` takes all away."""

    def __init__(self) -> None:
        self.octets = bytearray(100 * PAGE_SIZE)
        self._lost: list[Callable[[], None]] = []
        #: Why copying doesn't work.
        self.fails = ""
        #: What was to be called later.
        self.later: list[Callable[[], None]] = []

    def lose(self) -> None:
        self.octets[:] = bytes(len(self.octets))
        for lost in self._lost:
            lost()

    def ask(self, page_count: int, _on_change: Callable[[], None], on_loss: Callable[[AskedLease], None]) -> AskedLease:
        lease = Granted(page_count)
        self._lost.append(lambda: on_loss(lease))
        return lease

    def copy_in(self, fd: int, file_offset: int, aperture_offset: int, spans: Iterable[tuple[int, int]]) -> str:
        if self.fails:
            return self.fails
        for offset, size_bytes in spans:
            start = aperture_offset + offset
            self.octets[start : start + size_bytes] = os.pread(fd, size_bytes, file_offset + offset)
        return ""

    def copy_out(self, fd: int, file_offset: int, aperture_offset: int, size_bytes: int) -> str:
        try:
            os.pwrite(fd, self.octets[aperture_offset : aperture_offset + size_bytes], file_offset)
        except OSError as error:
            return f"{error}"
        return ""

    def call_later(self, _delay_s: float, call: Callable[[], None]) -> None:
        self.later.append(call)


class Drawing:
    """A client with one buffer in a pool of its own."""

    def __init__(self) -> None:
        self.memory = Memory()
        objects = ObjectMap(Catalogue(TABLES, interposed_requests=set(), interposed_events=set()))
        self.client = cast(
            "Client", SimpleNamespace(session_id=1, policy=Policy(), objects=objects, resume=lambda: None)
        )
        memory: ApertureAccess = self.memory
        self.buffers = Buffers(self.client, memory)
        self.pools = Pools(self.client, self.buffers)
        self.commits = Commits(self.client, self.buffers)
        self.fd = os.memfd_create("pool", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, PAGE_SIZE)
        self.pools.create_pool(message("wl_shm.create_pool", SHM, POOL, PAGE_SIZE, fd=self.fd))
        self.pools.create_buffer(message("wl_shm_pool.create_buffer", POOL, BUFFER, AT, WIDTH, HEIGHT, WIDTH * 4, 0))
        self.commits.create_surface(message("wl_compositor.create_surface", COMPOSITOR, SURFACE))

    @property
    def lent(self) -> slice:
        return slice(GFN * PAGE_SIZE, GFN * PAGE_SIZE + SIZE_BYTES)

    @property
    def shown(self) -> bytes:
        """What the compositor sees of the buffer."""
        return bytes(self.memory.octets[self.lent])

    @property
    def content(self) -> bytes:
        """What is in the client's pool."""
        return os.pread(self.fd, SIZE_BYTES, AT)

    def draw(self, octet: int) -> None:
        os.pwrite(self.fd, bytes([octet]) * SIZE_BYTES, AT)

    def close(self) -> None:
        self.commits.close()
        self.pools.close()
        os.close(self.fd)


def message(name: str, object_id: int, *args: object, fd: int | None = None) -> FdMessage:
    spec = spec_of(name)
    raw, _ = encode(spec, object_id, args if fd is None else (args[0], fd, args[1]))
    return FdMessage(object_id, spec, raw, [] if fd is None else [fd])
