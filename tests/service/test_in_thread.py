"""What stands around the relay's thread: its events reach the event loop's, whatever is done there with them."""

from __future__ import annotations

import anyio
import pytest

from waylend.relay.events import RelayEvent, SessionEnded
from waylend.service.in_thread import called_in_this_thread

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
