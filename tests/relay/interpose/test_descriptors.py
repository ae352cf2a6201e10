"""What each request may carry: the table has them all, and nothing goes on that could make the compositor wait."""

from __future__ import annotations

import contextlib
import os
import pty
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.foreign.strange import fuse_file, lingering_socket
from tests.relay.between import TABLES, Between, Peer, begin, bind, spec_of
from waylend.foreign.kinds import Descriptor, DescriptorKind
from waylend.policy import DEFAULT_GLOBALS
from waylend.relay.events import SessionEnded
from waylend.relay.interpose.descriptors import REQUESTS, TRANSFERS, Descriptors
from waylend.wire.objects import DISPLAY_ID


class TestTheTable:
    def test_has_every_request_that_carries_descriptors(self) -> None:
        """No new one is forgotten: whoever adds a protocol says here what it may carry."""
        carry = {spec.full_name for table in TABLES.values() for spec in table.requests if spec.fd_count}
        assert carry == {*REQUESTS, *TRANSFERS} == set(Descriptors.REQUESTS)

    def test_a_transfer_is_a_request_with_one_descriptor(self) -> None:
        assert all(spec_of(name).fd_count == 1 and name.endswith(".receive") for name in TRANSFERS)

    def test_lets_nothing_through_that_it_does_not_know(self) -> None:
        assert all(DescriptorKind.OTHER not in carries.kinds for carries in REQUESTS.values())

    def test_what_is_mapped_or_read_is_no_pipe_and_no_terminal(self) -> None:
        waits = {DescriptorKind.PIPE, DescriptorKind.LOCAL_DEVICE}
        assert all(not carries.kinds & waits for carries in REQUESTS.values())

    def test_is_about_globals_that_a_guest_may_see(self) -> None:
        assert "wl_shm" in DEFAULT_GLOBALS


@contextlib.contextmanager
def a_file(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def of_two(made: tuple[int, int]) -> Iterator[int]:
    try:
        yield made[1]
    finally:
        for fd in made:
            os.close(fd)


def sockets() -> tuple[int, int]:
    first, second = socket.socketpair()
    return first.detach(), second.detach()


#: What a client pastes into, and whether whoever has the selection gets that very descriptor.
INTO: list[tuple[str, Callable[[Path], contextlib.AbstractContextManager[int]], bool]] = [
    ("pipe", lambda _: of_two(os.pipe()), True),
    ("memfd", lambda _: of_two((os.memfd_create("unused"), os.memfd_create("m"))), True),
    ("file", lambda folder: a_file(folder / "pasted"), True),
    ("null", lambda _: a_file(Path(os.devnull)), True),
    ("terminal", lambda _: of_two(pty.openpty()), True),
    ("socket", lambda _: of_two(sockets()), False),
    ("eventfd", lambda _: of_two((os.eventfd(0), os.eventfd(0))), False),
    ("lingering socket", lambda _: lingering_socket(), False),
    ("stranger's file", lambda _: fuse_file("flush"), False),
]


@pytest.fixture
def pasting(between: Between) -> tuple[Peer, Peer]:
    """With an offer 0xff000000."""
    client, compositor = between.open()
    begin(client, compositor, (1, "wl_seat", 7), (2, "wl_data_device_manager", 3), (3, "wl_shm", 1))
    bind(client, compositor, 1, "wl_seat", 7, 3)
    bind(client, compositor, 2, "wl_data_device_manager", 3, 4)
    bind(client, compositor, 3, "wl_shm", 1, 6)
    client.send("wl_data_device_manager.get_data_device", 4, 5, 3)
    compositor.receive("wl_data_device_manager.get_data_device")
    compositor.send("wl_data_device.data_offer", 5, OFFER)
    client.receive("wl_data_device.data_offer")
    return client, compositor


OFFER = 0xFF000000


class TestPastes:
    @pytest.mark.parametrize(("into", "goes_on"), [case[1:] for case in INTO], ids=[case[0] for case in INTO])
    def test_work_or_end_alone(
        self,
        pasting: tuple[Peer, Peer],
        into: Callable[[Path], contextlib.AbstractContextManager[int]],
        goes_on: bool,
        tmp_path: Path,
    ) -> None:
        client, compositor = pasting
        with into(tmp_path) as fd:
            client.send("wl_data_offer.receive", OFFER, b"text/plain", "", fds=(fd,))
            assert compositor.receive("wl_data_offer.receive") == (OFFER, [b"text/plain", "fd"])
            (arrived,) = compositor.fds
            if goes_on:
                assert os.path.sameopenfile(arrived, fd)
            else:
                with pytest.raises(BrokenPipeError):
                    os.write(arrived, b"nobody reads this")
        client.send("wl_display.sync", DISPLAY_ID, 20)  # and its client goes on
        compositor.receive("wl_display.sync")

    @pytest.mark.parametrize("kind", ["flush", "linger"])
    def test_a_pool_that_could_make_the_compositor_wait_ends_its_client(
        self, between: Between, pasting: tuple[Peer, Peer], kind: str
    ) -> None:
        client, compositor = pasting
        with fuse_file("flush") if kind == "flush" else lingering_socket() as fd:
            client.send("wl_shm.create_pool", 6, 20, "", 4096, fds=(fd,))
            _, (object_id, code, text) = client.receive("wl_display.error")
            assert isinstance(text, bytes)
            assert (object_id, code) == (6, 2)
            assert text.startswith(b"wl_shm#6.create_pool: the file descriptor is a ")
            assert text.endswith(b", not a file on disk or shared memory")
            assert compositor.is_at_end()
            assert not compositor.fds
            between.wait_for(SessionEnded)

    def test_a_pool_may_be_cut_short_or_grow_as_without_us(self, pasting: tuple[Peer, Peer]) -> None:
        client, compositor = pasting
        with of_two((os.memfd_create("unused"), os.memfd_create("m"))) as fd:
            client.send("wl_shm.create_pool", 6, 20, "", 4096, fds=(fd,))
            compositor.receive("wl_shm.create_pool")
            assert os.path.sameopenfile(compositor.fds[0], fd)


def test_a_descriptor_is_a_number_like_another() -> None:
    seen = Descriptor(7, DescriptorKind.PIPE)
    assert (seen, seen.what) == (7, "a pipe")
