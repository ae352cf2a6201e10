"""The two ends of a channel: object 1 of a link, seen from the host half and from the guest half. They know no Wayland."""

from __future__ import annotations

import hmac
import logging
import secrets
import struct
import time
from collections import deque
from collections.abc import Callable

from waylend.channel import clocks
from waylend.channel.attachments import Attachments
from waylend.channel.connection import ChannelConnection
from waylend.channel.link import EventLoop, Link
from waylend.channel.messages import CHANNEL_ID, VERSION, ChannelObject
from waylend.channel.streams import Stream
from waylend.errors import ChannelError

logger = logging.getLogger(__name__)

#: What ends a message that a dead predecessor may have left half sent on the same port.
PADDING = bytes(65536)
#: The first three words of the hello event: object 1, its size in bytes and opcode 0, the nonce.
_HELLO_BEGINS = struct.Struct("=III")
_HELLO_BYTES = 24
#: One guest half after the other may begin on a port, but not faster than programs start.
_MOST_BEGINNINGS = 8
_BEGINNINGS_WITHIN_S = 10.0


class _End(ChannelObject):
    """What both have: the pulse, and all connections and streams of the link."""

    interface = "waylend_channel_v1"

    def __init__(self, link: Link) -> None:
        super().__init__(link, CHANNEL_ID)
        self.channel = link
        link.add(self)

    def on_ping(self, serial: int) -> None:
        self.tell("pong", serial)

    def on_pong(self, serial: int) -> None:
        """That it came is what it says, and that all before its ping did."""
        self.channel.answer(serial)

    def beat(self, elapsed_s: float) -> None:
        """To be called every ``elapsed_s``, some seconds, while there is the link: asks whether the other half is there.

        Timers of the loop would do, but each makes every wait of the loop's a little dearer.
        """
        self.channel.beat(lambda serial: self.tell("ping", serial), elapsed_s)

    def end_all(self) -> None:
        """Every connection finds its end, and every pipe. Nothing of that is told to the other half."""
        self.channel.hush(True)
        for spoken in list(self.channel.objects.values()):
            if isinstance(spoken, ChannelConnection):
                spoken.link_closed()
            elif isinstance(spoken, Stream):
                spoken.close()
        self.channel.hush(False)

    def close(self) -> None:
        """Idempotent."""
        self.channel.close()
        self.end_all()


class HostEnd(_End):
    """Checks the guest half's hello, and hands over each connection that it makes.

    ``on_connection`` takes it, and is called in the loop; ``on_over(why)`` when the link has ended by itself.
    """

    def __init__(
        self,
        loop: EventLoop,
        fd: int,
        *,
        attachments_of: Callable[[ChannelConnection], Attachments],
        page_count: int,
        on_connection: Callable[[ChannelConnection], None],
        on_over: Callable[[str], None],
        token: str = "",
        silence_s: float = 0.0,
        max_objects: int = 1 << 16,
    ) -> None:
        self._attachments_of = attachments_of
        self._page_count = page_count
        self._on_connection = on_connection
        self._on_over = on_over
        self._token = token.encode()
        self._nonce = 0
        self._beginnings: deque[float] = deque(maxlen=_MOST_BEGINNINGS)
        link = Link(loop, fd, is_host=True, on_end=self._over, silence_s=silence_s, max_objects=max_objects)
        super().__init__(link)

    def handle(self, opcode: int, body: memoryview) -> None:
        if not self.channel.greeted and opcode:
            raise ChannelError("the guest half did not say hello: that is not waylend's channel")
        super().handle(opcode, body)

    def on_hello(self, version: int, features: int, nonce: int, token: bytes) -> None:
        if not hmac.compare_digest(token, self._token):
            raise ChannelError("the guest half gave a wrong token")
        if self.channel.greeted:
            self._begin_anew(nonce)
        self._nonce = nonce
        self.tell("hello", nonce, min(version, VERSION), features & clocks.FEATURE, self._page_count)
        if not version:
            raise ChannelError(f"the guest half speaks no version of the channel; this half speaks {VERSION}")
        self.channel.greeted = True

    def _begin_anew(self, nonce: int) -> None:
        """A guest half took over a port on which its predecessor died: it has to begin with padding, and chose another nonce.

        Raises ChannelError: nobody else says hello twice.
        """
        if not self.channel.padded or nonce == self._nonce:
            raise ChannelError("a second hello, which is none of another guest half")
        now = time.monotonic()
        if len(self._beginnings) == _MOST_BEGINNINGS and now - self._beginnings[0] < _BEGINNINGS_WITHIN_S:
            raise ChannelError(f"{_MOST_BEGINNINGS} guest halves began within {_BEGINNINGS_WITHIN_S:g} s")
        self._beginnings.append(now)
        logger.warning("the guest half began anew")
        self.end_all()
        self.channel.forget_all()

    def on_get_clock(self, clock_id: int) -> None:
        if clock_id not in clocks.CLOCK_IDS:
            raise ChannelError(f"there is no clock {clock_id} that a compositor could tell the time of")
        self.tell("clock", clock_id, *clocks.Timespec.of(clocks.now_ns(clock_id)))

    def on_connect(self, object_id: int) -> None:
        self.channel.check_new_id(object_id)
        self._on_connection(ChannelConnection(self.channel, object_id, self._attachments_of))

    def _over(self, why: str) -> None:
        self.end_all()
        self.channel.forget_all()
        self._on_over(why)


class GuestEnd(_End):
    """Says hello, and makes connections once the host half has answered.

    ``on_ready(page_count)`` and ``on_over(why)`` are called in the loop; so is ``on_file_ended(lease)``. A link that is not
    answered within ``deadline_s`` is over.
    """

    def __init__(
        self,
        loop: EventLoop,
        fd: int,
        *,
        attachments_of: Callable[[ChannelConnection], Attachments],
        on_ready: Callable[[int], None],
        on_file_ended: Callable[[int], None],
        on_over: Callable[[str], None],
        token: str = "",
        is_port: bool = False,
        deadline_s: float = 5.0,
        silence_s: float = 0.0,
    ) -> None:
        self._attachments_of = attachments_of
        self._on_ready = on_ready
        self._on_file_ended = on_file_ended
        self._on_over = on_over
        self.ready = False
        #: How far the host's clocks are ahead, of each that was asked for.
        self.clocks: dict[int, clocks.ClockDifference] = {}
        self._asked_clocks: dict[int, int] = {}  # when, by our own
        self._tells_clocks = False
        self._error = ""
        super().__init__(Link(loop, fd, is_host=False, on_end=self._over, silence_s=silence_s))
        self._nonce = secrets.randbits(32)
        if is_port:
            self.channel.sync_to = _HELLO_BEGINS.pack(CHANNEL_ID, _HELLO_BYTES << 16, self._nonce)
            self.channel.send(self.outbox, PADDING)
        self.tell("hello", VERSION, clocks.FEATURE, self._nonce, token.encode())
        self._deadline = loop.call_later(deadline_s, lambda: self._check_answer(deadline_s))

    def _check_answer(self, deadline_s: float) -> None:
        if not self.ready:
            self.channel.fail(f"the host half did not answer within {deadline_s:g} s")

    def handle(self, opcode: int, body: memoryview) -> None:
        if not self.ready and opcode > 1:
            raise ChannelError("the host half did not answer hello: that is not waylend's channel")
        super().handle(opcode, body)

    def on_hello(self, nonce: int, version: int, features: int, page_count: int) -> None:
        if self.ready or nonce != self._nonce:
            raise ChannelError("the host half answered a hello that nobody said")
        if version != VERSION:
            raise ChannelError(f"the host half speaks version {version} of the channel, this half speaks {VERSION}")
        self.ready = self.channel.greeted = True
        self._deadline.cancel()
        self._tells_clocks = bool(features & clocks.FEATURE)
        self.want_clock(time.CLOCK_MONOTONIC)
        self._on_ready(page_count)

    def beat(self, elapsed_s: float) -> None:
        super().beat(elapsed_s)
        for clock_id in self.clocks:
            self._ask_clock(clock_id)

    def want_clock(self, clock_id: int) -> None:
        """From now on its difference is asked for, and known in a moment."""
        if clock_id in clocks.CLOCK_IDS and clock_id not in self.clocks:
            self.clocks[clock_id] = clocks.ClockDifference()
            self._ask_clock(clock_id)

    def _ask_clock(self, clock_id: int) -> None:
        if self._tells_clocks and clock_id not in self._asked_clocks:
            self._asked_clocks[clock_id] = clocks.now_ns(clock_id)
            self.tell("get_clock", clock_id)

    def on_clock(self, clock_id: int, tv_sec_hi: int, tv_sec_lo: int, tv_nsec: int) -> None:
        asked_ns = self._asked_clocks.pop(clock_id, None)
        if asked_ns is None:
            raise ChannelError(f"the host half told clock {clock_id}, which nobody asked for")
        theirs_ns = clocks.Timespec(tv_sec_hi, tv_sec_lo, tv_nsec).nanoseconds
        self.clocks[clock_id].add(asked_ns, theirs_ns, clocks.now_ns(clock_id))

    def on_error(self, message: bytes) -> None:
        self._error = f"the host half ended the channel: {message.decode(errors='replace')}"

    def on_file_ended(self, lease: int) -> None:
        self._on_file_ended(lease)

    def connect(self) -> ChannelConnection:
        """A new connection to the compositor. Raises ConnectionRefusedError while there is no host half."""
        if not self.ready or self.channel.closed:
            raise ConnectionRefusedError(0, "the host half is not there")
        connection = ChannelConnection(self.channel, self.channel.new_id(), self._attachments_of)
        # In the connection's own outbox, so that nothing of it overtakes this.
        self.channel.send(connection.outbox, self.encode("connect", connection.object_id))
        return connection

    def _over(self, why: str) -> None:
        self.ready = False
        self._deadline.cancel()
        self.end_all()
        self._on_over(self._error or why)
