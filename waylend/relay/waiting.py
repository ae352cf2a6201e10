"""Clients for which there is no compositor just now: held until it is there, and turned away when that takes too long.

A compositor is away while it restarts, and so is a guest's host half; a busy one has its backlog full for a moment.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from waylend.relay.endpoint import End
from waylend.relay.loop import EPOLLIN, Loop, Timer

#: How long a client is held. Longer, and whoever started it takes it for hung.
_HELD_S = 10.0
_RETRY_S = 0.02
_MAX_RETRY_S = 0.25
#: What connecting fails with while a compositor is away or busy. Everything else will not be better in a moment.
_AWAY = (BlockingIOError, ConnectionRefusedError, ConnectionResetError, FileNotFoundError)


class WaitingRoom:
    """Lives in the loop's thread. ``connect`` makes a connection to the compositor, without waiting, and may raise OSError.

    ``begin(client, compositor)`` and ``turn_away(client, why)`` own what they are given. Clients are let in in the order in
    which they came; how many may wait is for the caller to limit (``len``). One that leaves meanwhile is closed.
    """

    def __init__(
        self,
        loop: Loop,
        *,
        connect: Callable[[], End],
        begin: Callable[[End, End], None],
        turn_away: Callable[[End, str], None],
    ) -> None:
        self._loop = loop
        self._connect = connect
        self._begin = begin
        self._turn_away = turn_away
        #: Each with when its time is over.
        self._waiting: OrderedDict[End, float] = OrderedDict()
        self._retry_s = _RETRY_S
        self._timer: Timer | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def take_in(self, client: End) -> None:
        """Lets it in at once if it can, and owns it until then."""
        if not self._waiting:
            self._retry_s = _RETRY_S
            if self._let_in(client):
                return
            self._look_again_later()
        self._waiting[client] = time.monotonic() + _HELD_S
        client.join(self._loop, lambda _events: self._left(client), lambda _words, _octets, _count: None)
        client.watch(0)  # that it has hung up is told always

    def _let_in(self, client: End, *, last_chance: bool = False) -> bool:
        """Whether it need not wait any longer: it is in, or has been turned away."""
        try:
            compositor = self._connect()
        except OSError as error:
            if isinstance(error, _AWAY) and not last_chance:
                return False
            self._release(client)
            self._turn_away(client, f"can't connect to the compositor: {error.strerror or error}")
        else:
            self._release(client)
            self._begin(client, compositor)
        return True

    def let_in(self) -> None:
        """Lets in whom it can: to be called when the compositor may have come; it looks from time to time by itself."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting:
            client, until = next(iter(self._waiting.items()))
            if not self._let_in(client, last_chance=time.monotonic() >= until):
                self._look_again_later()
                return

    def _look_again_later(self) -> None:
        self._timer = self._loop.call_later(self._retry_s, self.let_in)
        self._retry_s = min(self._retry_s * 1.5, _MAX_RETRY_S)

    def _release(self, client: End) -> None:
        if self._waiting.pop(client, None) is not None:
            client.watch(EPOLLIN)  # a channel's remembers it
            client.leave()

    def _left(self, client: End) -> None:
        self._release(client)
        client.close()

    def close(self) -> None:
        """Closes those that wait."""
        if self._timer is not None:
            self._timer.cancel()
        while self._waiting:
            self._left(next(iter(self._waiting)))
