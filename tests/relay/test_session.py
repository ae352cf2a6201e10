"""What a client and its compositor see of the relay between them: nothing, as long as both keep to the protocol."""

from __future__ import annotations

import os

import pytest

from tests.relay.between import REGISTRY, TABLES, Between, Peer, begin, bind
from waylend.policy import Limits, Policy
from waylend.relay import waiting
from waylend.relay.events import (
    LeaseLent,
    LeaseReturned,
    SessionEnded,
    SessionOpened,
    WindowClosed,
    WindowNamed,
    WindowOpened,
)
from waylend.wire.codec import MAX_MESSAGE_BYTES
from waylend.wire.objects import DISPLAY_ID


class TestPassingOn:
    def test_ids_and_bytes_are_the_clients_own(self, between: Between) -> None:
        client, compositor = between.open()
        client.send("wl_display.sync", DISPLAY_ID, 7)
        assert compositor.receive("wl_display.sync") == (DISPLAY_ID, [7])
        compositor.send("wl_callback.done", 7, 99)
        compositor.send("wl_display.delete_id", DISPLAY_ID, 7)
        assert client.receive("wl_callback.done") == (7, [99])
        assert client.receive("wl_display.delete_id") == (DISPLAY_ID, [7])

    def test_a_message_that_comes_in_pieces_goes_on_whole(self, between: Between) -> None:
        client, compositor = between.open()
        client.send("wl_display.sync", DISPLAY_ID, 2)
        compositor.receive("wl_display.sync")
        octets = b"\x01\0\0\0\0\0\x0c\0\x03\0\0\0"
        for octet in octets:
            client.send_raw(bytes([octet]))
        assert compositor.receive("wl_display.sync") == (DISPLAY_ID, [3])

    def test_the_largest_message(self, between: Between) -> None:
        client, compositor = between.open()
        begin(client, compositor, (1, "wl_data_device_manager", 3))
        bind(client, compositor, 1, "wl_data_device_manager", 3, 3)
        client.send("wl_data_device_manager.create_data_source", 3, 4)
        compositor.receive("wl_data_device_manager.create_data_source")
        mime = b"m" * (MAX_MESSAGE_BYTES - 8 - 4 - 1)
        client.send("wl_data_source.offer", 4, mime)
        assert compositor.receive("wl_data_source.offer") == (4, [mime])

    def test_more_than_a_socket_holds_waits_until_it_is_read(self, between: Between) -> None:
        client, compositor = between.open()
        requests = b"".join(b"\x01\0\0\0\0\0\x0c\0" + one.to_bytes(4, "little") for one in range(2, 50_000))
        client.send_raw(requests)
        assert compositor.read(len(requests)) == requests
        events = b"".join(one.to_bytes(4, "little") + b"\0\0\x0c\0\x07\0\0\0" for one in range(2, 50_000))
        compositor.send_raw(events)
        assert client.read(len(events)) == events

    def test_fds_arrive_with_their_messages(self, between: Between) -> None:
        client, compositor = between.open()
        begin(client, compositor, (1, "wl_shm", 1))
        bind(client, compositor, 1, "wl_shm", 1, 3)
        pool = os.memfd_create("pool")
        os.ftruncate(pool, 4096)
        client.send("wl_shm.create_pool", 3, 4, "", 4096, fds=(pool,))
        client.send("wl_display.sync", DISPLAY_ID, 5)
        compositor.receive("wl_shm.create_pool")
        compositor.receive("wl_display.sync")
        (arrived,) = compositor.fds
        assert os.fstat(arrived).st_ino == os.fstat(pool).st_ino  # the very file: no copy
        os.close(pool)

    def test_fds_that_come_before_their_message(self, between: Between) -> None:
        client, compositor = between.open()
        begin(client, compositor, (1, "wl_shm", 1))
        bind(client, compositor, 1, "wl_shm", 1, 3)
        pools = [os.memfd_create("pool") for _ in range(28)]
        client.send("wl_display.sync", DISPLAY_ID, 100, fds=tuple(pools))
        for number in range(28):
            client.send("wl_shm.create_pool", 3, 4 + number, "", 4096)
        compositor.receive("wl_display.sync")
        for _ in pools:
            compositor.receive("wl_shm.create_pool")
        assert len(compositor.fds) == 28
        for pool in pools:
            os.close(pool)


class TestGlobals:
    def test_hidden_and_unknown_globals_are_never_announced(self, between: Between) -> None:
        client, compositor = between.open()
        begin(client, compositor)
        compositor.send("wl_registry.global", REGISTRY, 1, b"zwlr_screencopy_manager_v1", 1)
        compositor.send("wl_registry.global", REGISTRY, 2, b"acme_unheard_of", 1)
        compositor.send("wl_registry.global", REGISTRY, 3, b"wl_shm", 1)
        compositor.send("wl_registry.global_remove", REGISTRY, 1)
        compositor.send("wl_registry.global_remove", REGISTRY, 3)
        assert client.receive("wl_registry.global") == (REGISTRY, [3, b"wl_shm", 1])
        assert client.receive("wl_registry.global_remove") == (REGISTRY, [3])

    def test_versions_are_capped_to_what_the_tables_know(self, between: Between) -> None:
        client, compositor = between.open()
        for registry in (REGISTRY, 3):
            client.send("wl_display.get_registry", DISPLAY_ID, registry)
            compositor.receive("wl_display.get_registry")
            compositor.send("wl_registry.global", registry, 1, b"wl_shm", 1000)
            object_id, (_, _, version) = client.receive("wl_registry.global")
            assert object_id == registry
            assert version == TABLES["wl_shm"].version

    def test_versions_that_ask_a_client_to_know_all_globals_are_not_announced(self, between: Between) -> None:
        """Whoever binds wl_fixes 2 owes an acknowledgement for each global that goes, also for those that are hidden."""
        client, compositor = between.open()
        begin(client, compositor)
        compositor.send("wl_registry.global", REGISTRY, 1, b"wl_fixes", 2)
        assert client.receive("wl_registry.global") == (REGISTRY, [1, b"wl_fixes", 1])

    @pytest.mark.parametrize("policy", [Policy(allow=("zwlr_*",), deny=("zwlr_gamma*", "wl_shm"))])
    def test_the_policy_decides(self, between: Between) -> None:
        client, compositor = between.open()
        begin(client, compositor)
        compositor.send("wl_registry.global", REGISTRY, 1, b"wl_shm", 1)
        compositor.send("wl_registry.global", REGISTRY, 2, b"zwlr_gamma_control_manager_v1", 1)
        compositor.send("wl_registry.global", REGISTRY, 3, b"zwlr_screencopy_manager_v1", 1)
        assert client.receive("wl_registry.global") == (REGISTRY, [3, b"zwlr_screencopy_manager_v1", 1])


@pytest.mark.parametrize("policy", [Policy(title_prefix="[work] ", app_id_prefix="work.")])
class TestPrefixes:
    @pytest.fixture
    def opened(self, between: Between) -> tuple[Peer, Peer]:
        """A client and its compositor, with a window that has no name yet, but the marks."""
        client, compositor = between.open()
        open_window(client, compositor)
        assert compositor.receive("xdg_toplevel.set_title") == (7, [b"[work] "])
        assert compositor.receive("xdg_toplevel.set_app_id") == (7, [b"work."])
        return client, compositor

    def test_titles_and_app_ids_carry_it(self, opened: tuple[Peer, Peer]) -> None:
        client, compositor = opened
        client.send("xdg_toplevel.set_title", 7, "señal".encode())
        client.send("xdg_toplevel.set_app_id", 7, b"org.app")
        assert compositor.receive("xdg_toplevel.set_title") == (7, ["[work] señal".encode()])
        assert compositor.receive("xdg_toplevel.set_app_id") == (7, [b"work.org.app"])

    def test_a_long_title_is_cut_between_characters(self, opened: tuple[Peer, Peer]) -> None:
        client, compositor = opened
        client.send("xdg_toplevel.set_title", 7, "é".encode() * 2040)
        _, (title,) = compositor.receive("xdg_toplevel.set_title")
        assert isinstance(title, bytes)
        assert len(title) <= 4096 - 13
        assert title.decode().startswith("[work] éé")

    @pytest.mark.parametrize(
        ("shell", "makes_surface", "makes_window", "class_"),
        [
            ("zxdg_shell_v6", "zxdg_shell_v6.get_xdg_surface", "zxdg_surface_v6.get_toplevel", "zxdg_toplevel_v6"),
            ("wl_shell", None, "wl_shell.get_shell_surface", "wl_shell_surface"),
        ],
    )
    def test_windows_of_other_shells_carry_it(
        self, between: Between, shell: str, makes_surface: str | None, makes_window: str, class_: str
    ) -> None:
        client, compositor = between.open()
        begin(client, compositor, (1, "wl_compositor", 4), (2, shell, 1))
        bind(client, compositor, 1, "wl_compositor", 4, 4)
        bind(client, compositor, 2, shell, 1, 3)
        client.send("wl_compositor.create_surface", 4, 5)
        compositor.receive("wl_compositor.create_surface")
        if makes_surface is not None:
            client.send(makes_surface, 3, 6, 5)
            compositor.receive(makes_surface)
        client.send(makes_window, *((3, 7, 5) if makes_surface is None else (6, 7)))
        compositor.receive(makes_window)
        assert compositor.receive(f"{class_}.set_title") == (7, [b"[work] "])
        naming = f"{class_}.set_class" if class_ == "wl_shell_surface" else f"{class_}.set_app_id"
        assert compositor.receive(naming) == (7, [b"work."])


class TestTitles:
    @pytest.mark.parametrize(
        ("title", "shown"),
        [
            ("plain ♥ नमस्ते 👩\u200d👩\u200d👧", "plain ♥ नमस्ते 👩\u200d👩\u200d👧"),
            ("a\nb\r\tc", "a\ufffdb\ufffd\ufffdc"),
            ("\x1b]0;x\x07", "\ufffd]0;x\ufffd"),
            ("a\x7f\x85\x9fb", "a\ufffd\ufffd\ufffdb"),
            ("a\u2028b\u2029c", "a\ufffdb\ufffdc"),
            ("\u202e]knab[ moc.knab", "\ufffd]knab[ moc.knab"),
            ("\u2066\u2067\u2068\u2069\u200e\u200f\u061c\u202ax", "\ufffd" * 8 + "x"),
        ],
    )
    @pytest.mark.parametrize("what", ["set_title", "set_app_id"])
    def test_what_cannot_be_shown_in_one_line_is_replaced(
        self, between: Between, what: str, title: str, shown: str
    ) -> None:
        client, compositor = between.open()
        open_window(client, compositor)
        client.send(f"xdg_toplevel.{what}", 7, title.encode())
        assert compositor.receive(f"xdg_toplevel.{what}") == (7, [shown.encode()])
        named = between.wait_for(WindowNamed)
        assert isinstance(named, WindowNamed)
        assert named.text == shown

    def test_bytes_that_are_no_text_are_replaced(self, between: Between) -> None:
        client, compositor = between.open()
        open_window(client, compositor)
        client.send("xdg_toplevel.set_title", 7, b"a\xff\xed\xa0\x80b")
        assert compositor.receive("xdg_toplevel.set_title") == (7, ["a\ufffd\ufffd\ufffd\ufffdb".encode()])

    def test_a_title_that_grows_by_it_stays_within_a_message(self, between: Between) -> None:
        client, compositor = between.open()
        open_window(client, compositor)
        client.send("xdg_toplevel.set_title", 7, b"\n" * 4000)
        _, (title,) = compositor.receive("xdg_toplevel.set_title")
        assert isinstance(title, bytes)
        assert title == "\ufffd".encode() * (4083 // 3)


def open_window(client: Peer, compositor: Peer) -> None:
    """xdg_wm_base 3, surface 5, xdg_surface 6, xdg_toplevel 7."""
    begin(client, compositor, (1, "wl_compositor", 4), (2, "xdg_wm_base", 3))
    bind(client, compositor, 1, "wl_compositor", 4, 4)
    bind(client, compositor, 2, "xdg_wm_base", 3, 3)
    for name, object_id, args in (
        ("wl_compositor.create_surface", 4, (5,)),
        ("xdg_wm_base.get_xdg_surface", 3, (6, 5)),
        ("xdg_surface.get_toplevel", 6, (7,)),
    ):
        client.send(name, object_id, *args)
        compositor.receive(name)


class TestObserver:
    def test_sessions_and_windows_come_and_go(self, between: Between) -> None:
        client, compositor = between.open()
        assert between.wait_for(SessionOpened) == SessionOpened(1, os.getpid(), os.getuid())
        open_window(client, compositor)
        client.send("xdg_toplevel.set_title", 7, b"hello")
        assert between.wait_for(WindowOpened) == WindowOpened(1, 7)
        assert between.wait_for(WindowNamed) == WindowNamed(1, 7, "title", "hello")
        client.send("xdg_toplevel.destroy", 7)
        assert between.wait_for(WindowClosed) == WindowClosed(1, 7)
        client.close()
        assert between.wait_for(SessionEnded) == SessionEnded(1, "")

    def test_windows_end_with_their_client(self, between: Between) -> None:
        client, compositor = between.open()
        open_window(client, compositor)
        client.close()
        assert between.wait_for(WindowClosed) == WindowClosed(1, 7)


class TestLentFiles:
    def keyboard(self, between: Between) -> tuple[Peer, Peer]:
        client, compositor = between.open()
        begin(client, compositor, (1, "wl_seat", 7))
        bind(client, compositor, 1, "wl_seat", 7, 3)
        client.send("wl_seat.get_keyboard", 3, 4)
        compositor.receive("wl_seat.get_keyboard")
        return client, compositor

    def test_a_keymap_is_lent_and_the_compositors_fd_stays_here(self, between: Between) -> None:
        content = b"xkb_keymap {};\0"
        theirs = os.memfd_create("keymap")
        os.write(theirs, content)
        client, compositor = self.keyboard(between)
        compositor.send("wl_keyboard.keymap", 4, 1, "", len(content), fds=(theirs,))
        client.receive("wl_keyboard.keymap")
        (ours,) = client.fds
        assert os.fstat(ours).st_size == len(content)
        assert os.read(ours, 100) == content
        assert os.fstat(ours).st_ino != os.fstat(theirs).st_ino
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(ours, b"x")
        lent = between.wait_for(LeaseLent)
        assert isinstance(lent, LeaseLent)
        assert (lent.name, lent.size_bytes) == ("keymap", len(content))
        assert len(between.domain.stats().leases) == 1
        client.close()
        between.wait_for(LeaseReturned)
        between.wait_for(SessionEnded)
        assert between.domain.stats().leases == ()
        os.close(theirs)

    def test_the_same_file_is_the_same_lease_for_all(self, between: Between) -> None:
        theirs = os.memfd_create("keymap")
        os.write(theirs, b"k" * 5000)
        for _ in range(2):
            client, compositor = self.keyboard(between)
            for _ in range(3):
                compositor.send("wl_keyboard.keymap", 4, 1, "", 5000, fds=(theirs,))
                client.receive("wl_keyboard.keymap")
        assert len(between.domain.stats().leases) == 1
        os.close(theirs)

    def test_no_keymap_has_nothing_to_lend(self, between: Between) -> None:
        client, compositor = self.keyboard(between)
        with open(os.devnull, "rb") as nothing:
            compositor.send("wl_keyboard.keymap", 4, 0, "", 0, fds=(nothing.fileno(),))
        client.receive("wl_keyboard.keymap")
        assert os.read(client.fds[0], 1) == b""
        assert between.domain.stats().leases == ()


class TestEnds:
    def test_the_client_goes(self, between: Between) -> None:
        client, compositor = between.open()
        client.send("wl_display.sync", DISPLAY_ID, 2)
        client.close()
        compositor.receive("wl_display.sync")  # what it said before still arrives
        assert compositor.is_at_end()
        assert between.wait_for(SessionEnded) == SessionEnded(1, "")

    def test_the_compositor_goes_and_its_last_words_arrive(self, between: Between) -> None:
        client, compositor = between.open()
        compositor.send("wl_display.error", DISPLAY_ID, 1, 3, b"no more")
        compositor.close()
        assert client.receive("wl_display.error") == (DISPLAY_ID, [1, 3, b"no more"])
        assert client.is_at_end()
        assert between.wait_for(SessionEnded) == SessionEnded(
            1, 'the compositor closed the connection: error 3 of wl_display#1: "no more"'
        )

    def test_a_compositor_that_is_not_understood_ends_that_session_only(self, between: Between) -> None:
        client, compositor = between.open()
        other, its_compositor = between.open()
        compositor.send("wl_surface.enter", 99, 0)
        assert client.is_at_end()
        other.send("wl_display.sync", DISPLAY_ID, 2)
        its_compositor.receive("wl_display.sync")

    def test_no_compositor_no_session(self, between: Between, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(waiting, "_HELD_S", 0.0)
        client = between.take_in()
        _, (object_id, _, text) = client.receive("wl_display.error")
        assert (object_id, text) == (1, b"wl_display#1: can't connect to the compositor: Connection refused")
        assert client.is_at_end()

    def test_everybody_ends_when_the_relay_closes(self, between: Between) -> None:
        client, compositor = between.open()
        between.in_loop(between.relay.close)
        assert client.is_at_end()
        assert compositor.is_at_end()
        assert between.wait_for(SessionEnded) == SessionEnded(1, "waylend stops")


@pytest.mark.parametrize("policy", [Policy(limits=Limits(clients=1))])
def test_one_client_too_many_is_told_so(between: Between) -> None:
    between.open()
    second, _ = between.open()
    _, (_, _, text) = second.receive("wl_display.error")
    assert text == b"wl_display#1: 1 clients are here already (limit clients = 1)"
    assert second.is_at_end()
