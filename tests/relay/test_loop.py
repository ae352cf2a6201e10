"""The loop: handlers, timers and calls from other threads, each guarded from what the others raise."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

from waylend.relay.loop import EPOLLIN, Loop

DEADLINE_S = 10.0


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    os.close(reading)
    os.close(writing)


def wrong() -> None:
    raise RuntimeError("a mistake of ours")


class TestATurn:
    def test_handles_what_is_there_and_says_so(self, loop: Loop, pipe: tuple[int, int]) -> None:
        seen: list[int] = []
        loop.add(pipe[0], EPOLLIN, seen.append)
        assert not loop.turn(0)
        os.write(pipe[1], b"x")
        assert loop.turn(DEADLINE_S)
        assert seen == [EPOLLIN]
        loop.remove(pipe[0])
        assert not loop.turn(0)

    def test_waits_no_longer_than_told_nor_than_the_next_timer(self, loop: Loop) -> None:
        begun = time.monotonic()
        assert not loop.turn(0.02)
        assert time.monotonic() - begun >= 0.02
        ran: list[str] = []
        loop.call_later(0.01, lambda: ran.append("timer"))
        loop.call_later(DEADLINE_S, wrong).cancel()
        assert loop.turn(DEADLINE_S)
        assert ran == ["timer"]
        assert time.monotonic() - begun < DEADLINE_S

    def test_is_not_held_up_by_calls_that_make_calls(self, loop: Loop, pipe: tuple[int, int]) -> None:
        seen: list[int] = []
        loop.add(pipe[0], EPOLLIN, seen.append)
        os.write(pipe[1], b"x")

        def again() -> None:
            if not seen:
                loop.call(again)

        loop.call(again)
        deadline = time.monotonic() + DEADLINE_S
        while not seen:
            assert time.monotonic() < deadline
            loop.turn(0)


class TestWhatRaises:
    """Nothing that is called from the loop ends it, or keeps what comes behind it from its turn."""

    def test_a_handler(self, loop: Loop, pipe: tuple[int, int], caplog: pytest.LogCaptureFixture) -> None:
        loop.add(pipe[0], EPOLLIN, lambda _events: wrong())
        os.write(pipe[1], b"x")
        assert loop.turn(0)
        assert "a handler failed" in caplog.text

    def test_a_timer(self, loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
        ran: list[str] = []
        loop.call_later(0.0, wrong)
        loop.call_later(0.0, lambda: ran.append("the next"))
        loop.turn(DEADLINE_S)
        assert ran == ["the next"]
        assert "a timer failed" in caplog.text

    def test_a_call_from_another_thread(self, loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
        ran: list[str] = []
        thread = threading.Thread(target=loop.run)
        thread.start()
        loop.call(wrong)
        loop.call(lambda: ran.append("the next"))
        loop.stop()
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
        assert ran == ["the next"]
        assert "a call from another thread failed" in caplog.text


def test_a_closed_loop_takes_no_calls() -> None:
    closed = Loop()
    closed.close()
    closed.call(wrong)
