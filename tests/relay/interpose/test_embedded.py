"""An embedder's own interposers: they stand before waylend's, and what they leave is still held to the policy."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

import anyio
import pytest

from tests.relay.between import REGISTRY, TABLES, Between, Peer, begin, bind
from waylend import Client, Denied, Interposer, MakesInterposer, Message, ProtocolError, UsageError, serve
from waylend.policy import Policy
from waylend.relay.events import SessionEnded, WindowNamed
from waylend.relay.interpose import check_interposers
from waylend.wire.objects import DISPLAY_ID


class Shouting(Interposer):
    """Titles in capitals; closes are counted."""

    REQUESTS: ClassVar = ("xdg_toplevel.set_title",)
    closed: ClassVar[list[int]] = []

    def set_title(self, message: Message[int]) -> bytes | None:
        (title,) = message.args
        assert isinstance(title, bytes)
        if title == b"secret":
            self.refuse(message, ProtocolError.IMPLEMENTATION, "not to be told", Denied)
        if title == b"nothing":
            return b""
        return None if title.isupper() else message.with_args(title.upper())

    def close(self) -> None:
        self.closed.append(self.client.session_id)


class Polite:
    """A factory: what it adds is its own to say."""

    REQUESTS = ("xdg_toplevel.set_title",)
    EVENTS: tuple[str, ...] = ()

    def __init__(self, ending: bytes) -> None:
        self.ending = ending

    def __call__(self, client: Client) -> Interposer:
        ending = self.ending

        class Adding(Interposer):
            REQUESTS: ClassVar = Polite.REQUESTS

            def set_title(self, message: Message[int]) -> bytes:
                (title,) = message.args
                assert isinstance(title, bytes)
                return message.with_args(title + ending)

        return Adding(client)


class Liar(Interposer):
    """Makes a bind of what the client asked into one of what the policy hides."""

    REQUESTS: ClassVar = ("wl_registry.bind",)

    def bind(self, message: Message[int]) -> bytes:
        return message.with_args(9, b"zwlr_screencopy_manager_v1", 1, message.args[-1])


class OwnKeymap(Interposer):
    """Gives every client a keymap of the embedder's."""

    EVENTS: ClassVar = ("wl_keyboard.keymap",)

    def keymap(self, message: Message[int]) -> bytes:
        fd = os.memfd_create("ours")
        os.write(fd, b"mine")
        os.dup2(fd, message.fds[0], inheritable=False)
        os.close(fd)
        return message.with_args(1, "", 4)


@pytest.fixture
def embedded() -> tuple[MakesInterposer, ...]:
    return (Shouting, Polite(b", please"))


@pytest.fixture
def policy() -> Policy:
    return Policy(title_prefix="[work] ")


def set_title(between: Between, title: bytes) -> tuple[Peer, Peer]:
    client, compositor = between.open()
    begin(client, compositor, (1, "wl_compositor", 4), (4, "xdg_wm_base", 3))
    bind(client, compositor, 1, "wl_compositor", 4, 5)
    bind(client, compositor, 4, "xdg_wm_base", 3, 6)
    for name, object_id, args in (
        ("wl_compositor.create_surface", 5, (3,)),
        ("xdg_wm_base.get_xdg_surface", 6, (7, 3)),
        ("xdg_surface.get_toplevel", 7, (8,)),
    ):
        client.send(name, object_id, *args)
        compositor.receive(name)
    assert compositor.receive("xdg_toplevel.set_title") == (8, [b"[work] "])  # every window has the mark
    client.send("xdg_toplevel.set_title", 8, title)
    return client, compositor


class TestTheOrder:
    def test_each_sees_what_the_one_before_it_left_and_the_policy_comes_last(self, between: Between) -> None:
        _, compositor = set_title(between, b"hello")
        assert compositor.receive("xdg_toplevel.set_title") == (8, [b"[work] HELLO, please"])
        assert between.wait_for(WindowNamed) == WindowNamed(1, 8, "title", "HELLO, please")

    def test_what_is_dropped_nobody_behind_sees(self, between: Between) -> None:
        client, compositor = set_title(between, b"nothing")
        client.send("wl_display.sync", DISPLAY_ID, 20)
        assert compositor.receive("wl_display.sync") == (DISPLAY_ID, [20])

    @pytest.mark.parametrize("embedded", [(Liar,)])
    def test_what_the_policy_hides_stays_hidden(self, between: Between) -> None:
        client, compositor = between.open()
        begin(client, compositor, (1, "wl_compositor", 4))
        client.send("wl_registry.bind", REGISTRY, 1, b"wl_compositor", 4, 5)
        _, (_, _, text) = client.receive("wl_display.error")
        assert text == b"wl_registry#2.bind: no global 9 ('zwlr_screencopy_manager_v1')"
        assert compositor.is_at_end()

    @pytest.mark.parametrize("embedded", [(OwnKeymap,)])
    def test_a_file_of_the_embedders_is_lent_like_the_compositors(self, between: Between) -> None:
        client, compositor = between.open()
        begin(client, compositor, (1, "wl_seat", 7))
        bind(client, compositor, 1, "wl_seat", 7, 3)
        client.send("wl_seat.get_keyboard", 3, 4)
        compositor.receive("wl_seat.get_keyboard")
        with open(os.devnull, "rb") as nothing:
            compositor.send("wl_keyboard.keymap", 4, 0, "", 0, fds=(nothing.fileno(),))
        assert client.receive("wl_keyboard.keymap")[1][0] == 1
        assert os.read(client.fds[0], 10) == b"mine"
        assert [lease.size_bytes for lease in between.domain.stats().leases] == [4]


class TestEnds:
    def test_a_refusal_names_the_object_and_the_message(self, between: Between) -> None:
        client, _ = set_title(between, b"secret")
        _, (object_id, code, text) = client.receive("wl_display.error")
        assert (object_id, code, text) == (8, 3, b"xdg_toplevel#8.set_title: not to be told")

    def test_it_hears_of_its_clients_end(self, between: Between) -> None:
        Shouting.closed.clear()
        client, _ = between.open()
        client.close()
        between.wait_for(SessionEnded)
        assert Shouting.closed == [1]


class TestWhatCannotBe:
    @pytest.mark.parametrize(
        ("requests", "events", "why"),
        [
            (("xdg_toplevel.set_titel",), (), "no request 'xdg_toplevel.set_titel' is known"),
            (("wl_keyboard.keymap",), (), "no request 'wl_keyboard.keymap' is known"),
            ((), ("acme.event",), "no event 'acme.event' is known"),
            (("wl_surface.commit",), (), "it wants wl_surface.commit, but has no method commit"),
            ((), ("wl_registry.global",), "it wants wl_registry.global, but has no method global_"),
        ],
    )
    def test_is_refused_at_start(self, requests: tuple[str, ...], events: tuple[str, ...], why: str) -> None:
        kind: type[Interposer] = type("Mistaken", (Interposer,), {"REQUESTS": requests, "EVENTS": events})
        with pytest.raises(UsageError, match=f"^interposer Mistaken: {why}"):
            check_interposers((kind,), TABLES)

    def test_before_anything_listens(self, tmp_path: Path) -> None:
        class Mistaken(Interposer):
            EVENTS: ClassVar = ("acme.event",)

        async def main() -> None:
            listen = f"{tmp_path}/wayland-9"
            async with serve(listen=listen, compositor=f"{tmp_path}/none", control=False, interposers=(Mistaken,)):
                raise AssertionError("it serves")

        with pytest.raises(UsageError, match="acme"):
            anyio.run(main)
