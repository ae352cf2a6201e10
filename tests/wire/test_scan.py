"""A pass over a chunk: the same result however the chunk is cut, every rule of the protocol held, and nothing half done."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waylend.errors import CompositorError, LimitExceeded, ProtocolError
from waylend.wire.codec import encode
from waylend.wire.objects import SERVER_ID_START, Catalogue, ObjectMap
from waylend.wire.scan import Edit, EventScanner, Message, RequestScanner, Scanner
from waylend.wire.tables import load_tables

TABLES = load_tables()
CATALOGUE = Catalogue(TABLES, interposed_requests={"xdg_toplevel.set_title"}, interposed_events={"wl_registry.global"})
SURFACE, SHM, SEAT, TOPLEVEL, REGISTRY, DEVICE = 3, 4, 5, 6, 2, 7


def objects() -> ObjectMap:
    known = ObjectMap(CATALOGUE)
    for object_id, interface, version in (
        (REGISTRY, "wl_registry", 1),
        (SURFACE, "wl_surface", 4),
        (SHM, "wl_shm", 1),
        (SEAT, "wl_seat", 7),
        (TOPLEVEL, "xdg_toplevel", 3),
        (DEVICE, "wl_data_device", 3),
    ):
        known.kinds[object_id] = CATALOGUE.kind(interface, version)
    return known


def request(name: str, object_id: int, *args: object) -> bytes:
    interface, message = name.split(".")
    return encode(next(spec for spec in TABLES[interface].requests if spec.name == message), object_id, args)[0]


def event(name: str, object_id: int, *args: object) -> bytes:
    interface, message = name.split(".")
    return encode(next(spec for spec in TABLES[interface].events if spec.name == message), object_id, args)[0]


def feed(scanner: Scanner[str], chunk: bytes) -> int:
    """One pass; how many bytes were whole messages."""
    memory = memoryview(bytearray(chunk + bytes(-len(chunk) % 4)))
    return 4 * scanner.scan(memory.cast("I"), memory, len(chunk) // 4)


def requests(
    known: ObjectMap | None = None, hooks: dict[str, Callable[[Message[str]], bytes | None]] | None = None
) -> RequestScanner[str]:
    return RequestScanner(known or objects(), hooks or {})


TRAFFIC = [
    request("wl_surface.damage", SURFACE, 1, 2, 3, 4),
    request("wl_surface.frame", SURFACE, 10),
    request("wl_surface.commit", SURFACE),
    request("wl_display.sync", 1, 11),
    request("xdg_toplevel.set_title", TOPLEVEL, b"a title of some length"),
    request("wl_seat.get_pointer", SEAT, 12),
    request("wl_pointer.release", 12),
    request("wl_registry.bind", REGISTRY, 1, b"wl_compositor", 4, 13),
    request("wl_compositor.create_region", 13, 14),
    request("wl_region.destroy", 14),
]


class TestChunks:
    def test_all_messages_of_a_chunk(self) -> None:
        known = objects()
        chunk = b"".join(TRAFFIC)
        assert feed(requests(known), chunk) == len(chunk)
        assert known.kinds[10].name == "wl_callback"
        assert known.kinds[12].is_zombie
        assert (known.kinds[13].name, known.kinds[13].version) == ("wl_compositor", 4)
        assert known.kinds[14].is_zombie

    @pytest.mark.parametrize("cut", range(0, len(b"".join(TRAFFIC)), 1))
    def test_cut_at_every_byte(self, cut: int) -> None:
        chunk = b"".join(TRAFFIC)
        whole, known = objects(), objects()
        feed(requests(whole), chunk)
        scanner = requests(known)
        done = feed(scanner, chunk[:cut])
        assert done <= cut
        assert done + feed(scanner, chunk[done:]) == len(chunk)
        assert known.kinds == whole.kinds

    @given(st.lists(st.integers(1, 40), max_size=30))
    def test_arriving_in_any_pieces(self, piece_sizes: list[int]) -> None:
        chunk = TRAFFIC[0] * 5 + TRAFFIC[4] * 2 + TRAFFIC[2] * 3
        scanner = requests()
        done = arrived = 0
        for size in [*piece_sizes, len(chunk)]:
            arrived = min(arrived + size, len(chunk))
            done += feed(scanner, chunk[done:arrived])
        assert done == len(chunk)

    def test_half_a_message_changes_nothing(self) -> None:
        known = objects()
        assert feed(requests(known), TRAFFIC[1][:8]) == 0
        assert feed(requests(known), request("wl_pointer.release", SEAT)[:4]) == 0
        assert known.kinds == objects().kinds


class TestRules:
    @pytest.mark.parametrize(
        ("chunk", "complaint"),
        [
            (request("wl_surface.commit", 99), "unknown#99: message 6 to an unknown object"),
            (request("wl_surface.commit", 0), "unknown#0"),
            (request("wl_surface.commit", SERVER_ID_START), "to an unknown object"),
            (struct.pack("=II", SURFACE, 8 << 16 | 77), "wl_surface#3: unknown opcode 77"),
            (
                request("wl_surface.offset", SURFACE, 0, 0),
                r"wl_surface#3.offset: needs version 5, but version 4 was bound",
            ),
            (struct.pack("=III", SURFACE, 12 << 16 | 6, 0), r"wl_surface#3.commit: size is 12 bytes, should be 8"),
            (struct.pack("=II", SURFACE, 4 << 16 | 6), r"wl_surface#3.commit: size is 4"),
            (struct.pack("=II", SURFACE, 6), r"wl_surface#3.commit: size is 0"),
            (
                struct.pack("=III", TOPLEVEL, 7 << 16 | 2, 0),
                r"xdg_toplevel#6.set_title: size is 7 bytes, should be a multiple",
            ),
            (
                struct.pack("=III", TOPLEVEL, 12 << 16 | 2, 50),
                r"xdg_toplevel#6.set_title: a string of 50 bytes reaches",
            ),
            (struct.pack("=II", TOPLEVEL, 8 << 16 | 2), r"xdg_toplevel#6.set_title: 8 bytes are too few"),
            (request("wl_display.sync", 1, 0), "new id 0"),
            (request("wl_display.sync", 1, 1), "new id 1 for wl_callback is"),
            (request("wl_display.sync", 1, SURFACE), "still taken by wl_surface#3"),
            (request("wl_display.sync", 1, SERVER_ID_START), "not in the client's range"),
            (request("wl_registry.bind", REGISTRY, 1, b"wl_nothing", 1, 20), "wl_registry#2.bind: nobody knows"),
            (request("wl_registry.bind", REGISTRY, 1, b"wl_shm", 1, SHM), "still taken by wl_shm#4"),
            (request("wl_shm.create_pool", SHM, 20, "fd", 4096), r"wl_shm#4.create_pool: 1 of 1 file descriptors"),
            (request("wl_surface.destroy", SURFACE) + request("wl_surface.commit", SURFACE), "to a destroyed object"),
        ],
    )
    def test_what_breaks_the_protocol(self, chunk: bytes, complaint: str) -> None:
        with pytest.raises(ProtocolError, match=complaint):
            feed(requests(), chunk)

    def test_an_id_is_free_again_after_delete_id_only(self) -> None:
        known = objects()
        feed(requests(known), request("wl_surface.destroy", SURFACE))
        with pytest.raises(ProtocolError, match="still taken"):
            feed(requests(known), request("wl_display.sync", 1, SURFACE))
        assert feed(EventScanner(known, {}), event("wl_surface.enter", SURFACE, 0)) == 12  # it was on its way
        feed(EventScanner(known, {}), event("wl_display.delete_id", 1, SURFACE))
        feed(requests(known), request("wl_display.sync", 1, SURFACE))
        assert known.kinds[SURFACE].name == "wl_callback"


class TestEvents:
    def test_objects_that_the_compositor_makes(self) -> None:
        known = objects()
        offer = SERVER_ID_START
        chunk = event("wl_data_device.data_offer", DEVICE, offer) + event("wl_data_offer.offer", offer, b"text/plain")
        assert feed(EventScanner(known, {}), chunk) == len(chunk)
        assert (known.kinds[offer].name, known.kinds[offer].version) == ("wl_data_offer", 3)
        feed(requests(known), request("wl_data_offer.destroy", offer))
        # No delete_id for these: the compositor may give the id to another object at once.
        feed(EventScanner(known, {}), event("wl_data_device.data_offer", DEVICE, offer))
        assert not known.kinds[offer].is_zombie

    def test_the_display_stays_whatever_the_compositor_deletes(self) -> None:
        known = objects()
        feed(EventScanner(known, {}), event("wl_display.delete_id", 1, 1))
        known.check()

    @pytest.mark.parametrize(
        "chunk",
        [
            event("wl_surface.enter", 99, 0),
            struct.pack("=II", SURFACE, 8 << 16 | 99),
            event("wl_data_device.data_offer", DEVICE, 50),
            struct.pack("=II", SURFACE, 4 << 16),
        ],
    )
    def test_a_compositor_that_is_not_understood(self, chunk: bytes) -> None:
        with pytest.raises(CompositorError):
            feed(EventScanner(objects(), {}), chunk)


class TestFds:
    def test_fds_go_to_the_messages_that_have_them_in_order(self) -> None:
        scanner = requests()
        scanner.unclaimed.extend(["one", "two", "three"])
        chunk = request("wl_shm.create_pool", SHM, 20, "", 4096) + request("wl_shm.create_pool", SHM, 21, "", 4096)
        feed(scanner, chunk)
        assert scanner.claimed == ["one", "two"]
        assert list(scanner.unclaimed) == ["three"]

    def test_a_message_that_is_not_whole_claims_nothing(self) -> None:
        scanner = requests()
        scanner.unclaimed.append("one")
        assert feed(scanner, request("wl_shm.create_pool", SHM, 20, "", 4096)[:12]) == 0
        assert list(scanner.unclaimed) == ["one"]

    def test_too_many_fds_without_a_message(self) -> None:
        scanner = requests()
        scanner.unclaimed.extend(["fd"] * 1025)
        with pytest.raises(LimitExceeded, match="queued_fds = 1024"):
            feed(scanner, TRAFFIC[0])


class TestHooks:
    def test_a_hook_may_replace_or_drop(self) -> None:
        changed = request("xdg_toplevel.set_title", TOPLEVEL, b"[work] a")
        scanner = requests(hooks={"xdg_toplevel.set_title": lambda message: changed})
        first = request("wl_surface.commit", SURFACE)
        title = request("xdg_toplevel.set_title", TOPLEVEL, b"a")
        feed(scanner, first + title + first)
        assert scanner.edits == [Edit(len(first) // 4, (len(first) + len(title)) // 4, changed)]

    def test_a_hook_sees_the_arguments(self) -> None:
        seen: list[object] = []
        scanner = requests(hooks={"xdg_toplevel.set_title": lambda message: seen.extend(message.args)})
        feed(scanner, request("xdg_toplevel.set_title", TOPLEVEL, b"hello"))
        assert seen == [b"hello"]

    def test_fds_are_not_lost_when_a_hook_refuses(self) -> None:
        catalogue = Catalogue(TABLES, interposed_requests={"wl_shm.create_pool"})

        def refuse(message: Message[str]) -> None:
            raise ProtocolError(SHM, 2, "no")

        known = ObjectMap(catalogue)
        known.kinds[SHM] = catalogue.kind("wl_shm", 1)
        scanner = requests(known, {"wl_shm.create_pool": refuse})
        scanner.unclaimed.append("fd")
        with pytest.raises(ProtocolError, match="no"):
            feed(scanner, request("wl_shm.create_pool", SHM, 20, "", 4096))
        assert scanner.claimed == ["fd"]


@given(st.binary(max_size=200), st.integers(0, 30))
def test_any_bytes_pass_or_break_the_protocol(chunk: bytes, fds: int) -> None:
    scanner = requests()
    scanner.unclaimed.extend(["fd"] * fds)
    try:
        done = feed(scanner, chunk)
    except ProtocolError:
        return
    assert 0 <= done <= len(chunk)
