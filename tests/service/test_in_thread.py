"""What stands around the relay's thread: its events reach the event loop's, whatever is done there with them."""

from __future__ import annotations

import anyio
import pytest

from waylend.errors import WaylendError
from waylend.relay.events import RelayEvent, SessionEnded
from waylend.relay.loop import Loop
from waylend.service.in_thread import called_in_this_thread, running, single_errors

DEADLINE_S = 10.0


def test_what_on_event_raises_is_logged_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[RelayEvent] = []

    def on_event(event: RelayEvent) -> None:
        heard.append(event)
        if event.session_id == 1:
            raise KeyError("somebody else's mistake")

    async def main() -> None:
        async with called_in_this_thread(on_event) as observe:
            with anyio.fail_after(DEADLINE_S):
                for session_id in (1, 2):
                    observe(SessionEnded(session_id, ""))
                    while len(heard) < session_id:
                        await anyio.sleep(0.001)
            observe(SessionEnded(1, "the last"))

    anyio.run(main)
    assert heard == [SessionEnded(1, ""), SessionEnded(2, ""), SessionEnded(1, "the last")]
    assert "on_event failed for SessionEnded(session_id=1, reason='')" in caplog.text


class TestTheThread:
    def test_one_that_dies_ends_the_context_with_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = Loop()
        closed: list[str] = []

        def broken(_wait_s: float | None = None) -> bool:
            raise OSError(9, "Bad file descriptor")

        async def main() -> None:
            async with single_errors(), running(loop, lambda: closed.append("closed")):
                with anyio.fail_after(DEADLINE_S):
                    await anyio.sleep_forever()

        monkeypatch.setattr(loop, "turn", broken)
        with pytest.raises(WaylendError, match=r"the relay.s thread has ended: OSError.*Bad file descriptor"):
            anyio.run(main)
        assert closed == ["closed"]

    def test_leaving_the_context_ends_it(self) -> None:
        loop = Loop()
        closed: list[str] = []

        async def main() -> None:
            async with single_errors(), running(loop, lambda: closed.append("closed")):
                assert not closed

        anyio.run(main)
        assert closed == ["closed"]

    def test_a_close_that_fails_is_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        def close() -> None:
            raise RuntimeError("a mistake of ours")

        async def main() -> None:
            async with single_errors(), running(Loop(), close):
                pass

        anyio.run(main)
        assert "not everything of the relay could be closed" in caplog.text
