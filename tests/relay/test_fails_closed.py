"""Whatever nobody foresaw ends the one session that met it: with a reason, once in the log, and nothing of it goes on."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from typing import ClassVar

import pytest

from tests.relay.between import Between, Peer, begin, bind
from waylend import Interposer, LeaseEnded, Message, NoSpace
from waylend.errors import WaylendError
from waylend.relay.endpoint import Endpoint
from waylend.relay.events import SessionEnded
from waylend.relay.interpose import MakesInterposer
from waylend.relay.session import Trace
from waylend.wire.objects import DISPLAY_ID

FAILURES: list[Exception] = [
    KeyError("a mistake"),
    OSError(errno.EMFILE, "Too many open files"),
    NoSpace("the aperture is full"),
    LeaseEnded("it is over"),
    MemoryError(),
]


class Failing(Interposer):
    """Fails at the second pool, with what the test says."""

    REQUESTS: ClassVar = ("wl_shm.create_pool",)
    error: ClassVar[Exception]

    def create_pool(self, message: Message[int]) -> None:
        if message.args[0] == 21:
            raise self.error


class FailingAtItsEnd(Interposer):
    def close(self) -> None:
        raise RuntimeError("a mistake at the end")


class Dropping(Interposer):
    """Drops a pool's request, and forgets its descriptor."""

    REQUESTS: ClassVar = ("wl_shm.create_pool", "wl_surface.commit")

    def create_pool(self, _message: Message[int]) -> bytes:
        return b""

    def commit(self, _message: Message[int]) -> bytes:
        return b""


class Twice(Interposer):
    REQUESTS: ClassVar = ("wl_shm.create_pool",)

    def create_pool(self, message: Message[int]) -> bytes:
        return message.raw * 2


def with_shm(between: Between) -> tuple[Peer, Peer]:
    client, compositor = between.open()
    begin(client, compositor, (1, "wl_shm", 1), (2, "wl_compositor", 4))
    bind(client, compositor, 1, "wl_shm", 1, 3)
    bind(client, compositor, 2, "wl_compositor", 4, 4)
    return client, compositor


def create_pool(client: Peer, object_id: int) -> None:
    fd = os.memfd_create("pool")
    os.ftruncate(fd, 4096)
    client.send("wl_shm.create_pool", 3, object_id, "", 4096, fds=(fd,))
    os.close(fd)


class TestAHook:
    @pytest.fixture
    def embedded(self) -> tuple[MakesInterposer, ...]:
        return (Failing,)

    @pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
    def test_that_raises_ends_its_session_and_nothing_goes_on(
        self, between: Between, error: Exception, caplog: pytest.LogCaptureFixture
    ) -> None:
        Failing.error = error
        bystander, its_compositor = with_shm(between)
        client, compositor = with_shm(between)
        create_pool(client, 20)
        compositor.receive("wl_shm.create_pool")
        create_pool(client, 21)
        _, (object_id, code, text) = client.receive("wl_display.error")
        what = f"{error}" if isinstance(error, OSError | WaylendError) else f"{type(error).__name__}: {error}"
        assert (object_id, code, text) == (1, 3, f"wl_display#1: waylend failed: {what}".encode())
        assert compositor.is_at_end()
        assert len(compositor.fds) == 1  # the first pool's; not the second's, which nobody took
        assert between.wait_for(SessionEnded) == SessionEnded(2, text.decode() if isinstance(text, bytes) else "")
        bystander.send("wl_display.sync", DISPLAY_ID, 20)
        its_compositor.receive("wl_display.sync")
        (said,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert said.getMessage() == f"client 2: ended by waylend: wl_display#1: waylend failed: {what}"


class TestAnInterposer:
    @pytest.mark.parametrize("embedded", [(FailingAtItsEnd,)])
    def test_that_fails_at_the_end_keeps_nothing(self, between: Between, caplog: pytest.LogCaptureFixture) -> None:
        client, compositor = between.open()
        client.close()
        assert compositor.is_at_end()
        between.wait_for(SessionEnded)
        assert between.in_loop(lambda: dict(between.relay.sessions)) == {}
        assert "at its end FailingAtItsEnd.close failed: RuntimeError('a mistake at the end')" in caplog.text

    @pytest.mark.parametrize("embedded", [(Dropping,)])
    def test_that_drops_all_of_a_chunk_leaves_nothing_of_it(self, between: Between) -> None:
        client, compositor = with_shm(between)
        create_pool(client, 20)
        client.send("wl_display.sync", DISPLAY_ID, 30)
        assert compositor.receive("wl_display.sync") == (DISPLAY_ID, [30])  # an empty chunk is no end
        assert compositor.fds == []

    @pytest.mark.parametrize("embedded", [(Twice,)])
    def test_whose_replacement_others_cannot_see_ends_the_session(self, between: Between) -> None:
        client, compositor = with_shm(between)
        create_pool(client, 20)
        _, (_, _, text) = client.receive("wl_display.error")
        assert isinstance(text, bytes)
        assert b"waylend failed: ValueError: wl_shm.create_pool: an interposer made another message of it" in text
        assert compositor.is_at_end()

    def test_that_cannot_be_made_ends_its_session_only(
        self, between: Between, caplog: pytest.LogCaptureFixture
    ) -> None:
        made = between.relay.interposers_for

        def broken(session: object) -> object:
            raise RuntimeError("a mistake at the beginning")

        between.relay.interposers_for = broken  # type: ignore[assignment, method-assign]
        client, compositor = between.open()
        assert client.is_at_end()
        assert compositor.is_at_end()
        assert "its session could not begin: RuntimeError('a mistake at the beginning')" in caplog.text
        between.relay.interposers_for = made  # type: ignore[method-assign]
        client, compositor = between.open()
        client.send("wl_display.sync", DISPLAY_ID, 2)
        compositor.receive("wl_display.sync")


class TestTheTrace:
    lines: ClassVar[list[str]] = []

    @pytest.fixture
    def trace(self) -> Trace:
        self.lines.clear()

        def full(session_id: int, _is_request: bool, message: Message[int]) -> None:
            self.lines.append(f"{session_id} {message.spec}")
            raise OSError(errno.ENOSPC, "No space left on device")

        return full

    def test_is_switched_off_by_its_first_error(self, between: Between, caplog: pytest.LogCaptureFixture) -> None:
        client, compositor = with_shm(between)
        create_pool(client, 20)
        compositor.receive("wl_shm.create_pool")
        assert self.lines == ["1 wl_display.get_registry"]
        said = [record.getMessage() for record in caplog.records if "trace" in record.getMessage()]
        assert said == ["the trace is switched off: [Errno 28] No space left on device"]


class TestASend:
    @pytest.mark.parametrize("number", [errno.ETOOMANYREFS, errno.ENOBUFS, errno.EINVAL])
    def test_that_fails_ends_the_session_and_its_descriptors(
        self, between: Between, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        client, compositor = with_shm(between)

        class Refusing:
            """The compositor's socket, which takes no descriptors."""

            def __init__(self, sock: object) -> None:
                self._sock = sock

            def sendmsg(self, *_arguments: object) -> int:
                raise OSError(number, os.strerror(number))

            def __getattr__(self, name: str) -> object:
                return getattr(self._sock, name)

        end = between.relay.sessions[1].compositor
        assert isinstance(end, Endpoint)
        refusing = Refusing(end.sock)
        between.in_loop(lambda: setattr(end, "sock", refusing))
        create_pool(client, 20)
        _, (_, _, text) = client.receive("wl_display.error")
        assert text == f"wl_display#1: waylend failed: [Errno {number}] {os.strerror(number)}".encode()
        between.wait_for(SessionEnded)
        assert not compositor.fds


ENDS: list[tuple[str, Callable[[Peer, Peer], None], str, int]] = [
    (
        "the client goes",
        lambda client, _: client.close(),
        "ended by the client: it closed the connection",
        logging.INFO,
    ),
    (
        "the client breaks the protocol",
        lambda client, _: client.send_raw(b"\x63\0\0\0\0\0\x08\0"),
        "ended by the client: unknown#99: message 0 to an unknown object",
        logging.INFO,
    ),
    (
        "the compositor goes",
        lambda _, compositor: compositor.close(),
        "ended by the compositor: the compositor closed the connection",
        logging.INFO,
    ),
    (
        "the compositor is not understood",
        lambda _, compositor: compositor.send("wl_surface.enter", 99, 0),
        "ended by the compositor: compositor: unknown#99: message 0 to an unknown object",
        logging.WARNING,
    ),
]


@pytest.mark.parametrize(("do", "said", "level"), [case[1:] for case in ENDS], ids=[case[0] for case in ENDS])
def test_each_end_is_said_once_with_its_side(
    between: Between, do: Callable[[Peer, Peer], None], said: str, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    do(*between.open())
    between.wait_for(SessionEnded)
    ends = [record for record in caplog.records if "ended by" in record.getMessage()]
    assert [(record.levelno, record.getMessage()) for record in ends] == [(level, f"client 1: {said}")]
