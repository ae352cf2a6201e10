"""Captures in a guest half: what a compositor writes into lent memory is in the client's own file when it hears of it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import cast

import pytest

from tests.relay.between import TABLES, spec_of
from waylend.errors import ProtocolError
from waylend.lending.pages import PAGE_SIZE
from waylend.policy import Policy
from waylend.relay.interpose import Client, FdMessage
from waylend.relay.interpose.arena import Lease
from waylend.relay.interpose.capture import Captures
from waylend.relay.interpose.pools import Aperture, Pools
from waylend.wire.codec import encode
from waylend.wire.objects import Catalogue, ObjectMap

SHM, POOL, BUFFER, FRAME = 3, 4, 5, 6
WIDTH, HEIGHT = 8, 4
SIZE_BYTES = WIDTH * HEIGHT * 4
AT = 64  # where the buffer is in its pool
GFN = 7


class Memory:
    """An aperture in this process's memory; every lease is granted at once."""

    def __init__(self) -> None:
        self.octets = bytearray(100 * PAGE_SIZE)

    def pool_passed(self, fd: int) -> None: ...

    def ask(self, _session_id: int, page_count: int, _on_change: Callable[[], None]) -> Lease:
        return cast("Lease", SimpleNamespace(page_count=page_count, gfn=GFN, failure="", give_back=lambda: None))

    def copy_in(self, fd: int, file_offset: int, aperture_offset: int, spans: Iterable[tuple[int, int]]) -> str:
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

    def call_later(self, _delay_s: float, _call: Callable[[], None]) -> None: ...


class Capturing:
    """A client with one buffer in a pool of its own."""

    def __init__(self) -> None:
        self.memory = Memory()
        objects = ObjectMap(Catalogue(TABLES, interposed_requests=set(), interposed_events=set()))
        client = SimpleNamespace(session_id=1, policy=Policy(), objects=objects, resume=lambda: None)
        self.pools = Pools(cast("Client", client), cast("Aperture", self.memory))
        self.captures = Captures(self.pools)
        self.fd = os.memfd_create("pool", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, PAGE_SIZE)
        self.pools.create_pool(message("wl_shm.create_pool", SHM, POOL, PAGE_SIZE, fd=self.fd))
        self.pools.create_buffer(message("wl_shm_pool.create_buffer", POOL, BUFFER, AT, WIDTH, HEIGHT, WIDTH * 4, 0))

    @property
    def lent(self) -> slice:
        return slice(GFN * PAGE_SIZE, GFN * PAGE_SIZE + SIZE_BYTES)

    @property
    def content(self) -> bytes:
        return os.pread(self.fd, SIZE_BYTES, AT)


def message(name: str, object_id: int, *args: object, fd: int | None = None) -> FdMessage:
    spec = spec_of(name)
    raw, _ = encode(spec, object_id, args if fd is None else (args[0], fd, args[1]))
    return FdMessage(object_id, spec, raw, [] if fd is None else [fd])


@pytest.fixture
def capturing() -> Iterator[Capturing]:
    capturing = Capturing()
    yield capturing
    capturing.captures.close()
    capturing.pools.close()
    os.close(capturing.fd)


def test_a_whole_picture_comes_back(capturing: Capturing) -> None:
    picture = bytes(range(SIZE_BYTES))
    capturing.captures.copy(message("zwlr_screencopy_frame_v1.copy", FRAME, BUFFER))
    capturing.memory.octets[capturing.lent] = picture
    assert capturing.content == bytes(SIZE_BYTES)
    capturing.captures.ready(message("zwlr_screencopy_frame_v1.ready", FRAME, 0, 0, 0))
    assert capturing.content == picture


def test_what_the_compositor_leaves_alone_stays_the_clients(capturing: Capturing) -> None:
    for drawn in (b"\1", b"\2"):  # and again, without a word of it
        os.pwrite(capturing.fd, drawn * SIZE_BYTES, AT)
        capturing.captures.attach_buffer(message("ext_image_copy_capture_frame_v1.attach_buffer", FRAME, BUFFER))
        capturing.captures.capture(message("ext_image_copy_capture_frame_v1.capture", FRAME))
        capturing.memory.octets[capturing.lent.start] = 9
        capturing.captures.ready(message("ext_image_copy_capture_frame_v1.ready", FRAME))
        assert capturing.content == b"\x09" + drawn * (SIZE_BYTES - 1)


@pytest.mark.parametrize("ends_with", ["failed", "destroy"])
def test_what_came_to_nothing_changes_nothing(capturing: Capturing, ends_with: str) -> None:
    capturing.captures.copy(message("zwlr_screencopy_frame_v1.copy", FRAME, BUFFER))
    capturing.memory.octets[capturing.lent] = b"\5" * SIZE_BYTES
    getattr(capturing.captures, ends_with)(message(f"zwlr_screencopy_frame_v1.{ends_with}", FRAME))
    capturing.captures.ready(message("zwlr_screencopy_frame_v1.ready", FRAME, 0, 0, 0))
    assert capturing.content == bytes(SIZE_BYTES)


def test_a_buffer_of_another_kind_or_of_nobody_is_the_compositors_business(capturing: Capturing) -> None:
    capturing.captures.copy(message("zwlr_screencopy_frame_v1.copy", FRAME, 99))
    capturing.captures.capture(message("ext_image_copy_capture_frame_v1.capture", FRAME))
    capturing.captures.ready(message("zwlr_screencopy_frame_v1.ready", FRAME, 0, 0, 0))


def test_a_buffer_that_was_destroyed_meanwhile_gets_nothing(capturing: Capturing) -> None:
    capturing.captures.copy(message("zwlr_screencopy_frame_v1.copy", FRAME, BUFFER))
    capturing.pools.destroy(message("wl_buffer.destroy", BUFFER))
    capturing.captures.ready(message("zwlr_screencopy_frame_v1.ready", FRAME, 0, 0, 0))
    assert capturing.content == bytes(SIZE_BYTES)


def test_a_pool_that_takes_nothing_ends_its_client(capturing: Capturing) -> None:
    capturing.captures.copy(message("zwlr_screencopy_frame_v1.copy", FRAME, BUFFER))
    f_add_seals, f_seal_write = 1033, 8  # fcntl(2)
    fcntl.fcntl(capturing.fd, f_add_seals, f_seal_write)
    with pytest.raises(ProtocolError, match="can't copy what was captured"):
        capturing.captures.ready(message("zwlr_screencopy_frame_v1.ready", FRAME, 0, 0, 0))
