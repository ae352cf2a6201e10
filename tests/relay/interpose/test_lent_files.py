"""Files that the compositor hands out, when there are many of them: keymaps come and go for as long as a client is there."""

from __future__ import annotations

import contextlib
import os

import pytest

from tests.relay.between import Between, Peer, begin, bind
from waylend.errors import NoSpace
from waylend.policy import Limits, Policy
from waylend.relay.interpose import lent_files
from waylend.wire.objects import DISPLAY_ID


def keyboard(between: Between) -> tuple[Peer, Peer]:
    client, compositor = between.open()
    begin(client, compositor, (1, "wl_seat", 7))
    bind(client, compositor, 1, "wl_seat", 7, 3)
    client.send("wl_seat.get_keyboard", 3, 4)
    compositor.receive("wl_seat.get_keyboard")
    return client, compositor


def keymap(client: Peer, compositor: Peer, content: bytes) -> int:
    """A new keymap comes; what the client got of it."""
    theirs = os.memfd_create("keymap")
    os.write(theirs, content)
    compositor.send("wl_keyboard.keymap", 4, 1, "", len(content), fds=(theirs,))
    os.close(theirs)
    assert client.receive("wl_keyboard.keymap") == (4, [1, "fd", len(content)])
    return client.fds.pop()


@pytest.mark.parametrize("policy", [Policy(limits=Limits(leases=20))])
def test_thousands_of_them_one_after_the_other(between: Between) -> None:
    client, compositor = keyboard(between)
    for number in range(3000):
        content = b"keymap %d" % number
        fd = keymap(client, compositor, content)
        assert os.read(fd, 100) == content
        os.close(fd)
    assert len(between.domain.stats().leases) == lent_files._KEPT_OF_A_SORT


def test_one_that_comes_again_is_the_same_lease(between: Between) -> None:
    client, compositor = keyboard(between)
    theirs = [os.memfd_create("keymap") for _ in range(2)]
    for fd in theirs:
        os.write(fd, b"keymap")
    for _ in range(10):
        for fd in theirs:
            compositor.send("wl_keyboard.keymap", 4, 1, "", 6, fds=(fd,))
            client.receive("wl_keyboard.keymap")
    assert len({lease.lease_id for lease in between.domain.stats().leases}) == 2
    for fd in theirs:
        os.close(fd)


@pytest.mark.parametrize("policy", [Policy(limits=Limits(leases=20))])
def test_what_a_client_keeps_cannot_use_up_what_others_need(between: Between) -> None:
    greedy, its_compositor = keyboard(between)
    with contextlib.ExitStack() as stack:
        for number in range(100):
            stack.callback(os.close, keymap(greedy, its_compositor, b"keymap %d" % number))
        client, compositor = keyboard(between)
        fd = keymap(client, compositor, b"an innocent's")
        assert os.read(fd, 100) == b"an innocent's"
        os.close(fd)


def test_none_is_ended_under_a_client_that_lags_behind(between: Between, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has not looked at yet stays readable; what comes beyond a bound is a copy, and no lease."""
    ended: list[object] = []
    monkeypatch.setattr(lent_files, "_MOST_UNUSED", 5)
    monkeypatch.setattr(between.domain, "end_when_unused", lambda lease: None)  # the client has all of them open
    monkeypatch.setattr(between.domain, "end", ended.append)
    client, compositor = keyboard(between)
    for number in range(20):
        fd = keymap(client, compositor, b"keymap %d" % number)
        assert os.read(fd, 100) == b"keymap %d" % number
        os.close(fd)
    assert not ended
    assert len(between.domain.stats().leases) < 5 + 2 * lent_files._KEPT_OF_A_SORT


def test_where_no_lease_is_to_be_had_it_is_a_copy_and_no_end(
    between: Between, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client, compositor = keyboard(between)

    def full(*_arguments: object, **_options: object) -> None:
        raise NoSpace("no gap of that size")

    monkeypatch.setattr(between.domain, "lend", full)
    fd = keymap(client, compositor, b"a keymap")
    assert os.read(fd, 100) == b"a keymap"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(fd, b"x")
    os.close(fd)
    assert "client 1 gets a copy of its keymap: no gap of that size" in caplog.text
    client.send("wl_display.sync", DISPLAY_ID, 20)
    compositor.receive("wl_display.sync")
