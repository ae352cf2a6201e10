"""The channel's messages: which there are (``protocol-xml/waylend-channel-v1.xml``), and how an object on a link takes them."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from typing import ClassVar, Protocol

from waylend.errors import ChannelError, Malformed
from waylend.wire.codec import decode, encode
from waylend.wire.spec import MessageSpec
from waylend.wire.tables import load_tables

VERSION = 1
CHANNEL_ID = 1
#: New ids of the host half begin here; the guest half's are below.
HOST_IDS_START = 0xFF000000
#: What one message can carry in its array: the header, the array's length, and 16 bits for the size.
MAX_CONTENT_BYTES = 65532 - 12
#: How much of a connection's bytes, or of a stream's data, may be on its way without credit.
CONNECTION_WINDOW_BYTES = 1 << 20
STREAM_WINDOW_BYTES = 1 << 18


class Sender(Protocol):
    """What an object needs of the link that it lives on."""

    is_host: bool

    def send(self, source: Outbox, octets: bytes) -> None: ...
    def send_array(self, source: Outbox, object_id: int, content: memoryview) -> None: ...
    def remove(self, object_id: int) -> None: ...


#: What a waiting message costs besides its bytes.
_MESSAGE_COST_BYTES = 64


class Outbox:
    """What one source of messages has yet to send; the link takes from all that have some in turn, a message each.

    ``waiting_bytes`` is about the memory that they take. ``on_empty`` is called when the last is on its way.
    """

    __slots__ = ("on_empty", "taking_turns", "waiting", "waiting_bytes")

    def __init__(self) -> None:
        self.waiting: deque[bytes] = deque()
        self.waiting_bytes = 0
        self.taking_turns = False
        self.on_empty: Callable[[], None] | None = None

    def put(self, message: bytes) -> int:
        """Returns what it costs."""
        self.waiting.append(message)
        cost = len(message) + _MESSAGE_COST_BYTES
        self.waiting_bytes += cost
        return cost

    def take(self) -> tuple[bytes, int]:
        """A message and what it has cost."""
        message = self.waiting.popleft()
        cost = len(message) + _MESSAGE_COST_BYTES
        self.waiting_bytes -= cost
        return message, cost

    def drop(self) -> None:
        """Nothing waits any more."""
        self.waiting.clear()
        self.waiting_bytes = 0
        self.taking_turns = False


@functools.cache
def _specs(interface: str, requests: bool) -> tuple[MessageSpec, ...]:
    spec = load_tables()[interface]
    return spec.requests if requests else spec.events


@functools.cache
def _by_name(interface: str, requests: bool) -> dict[str, MessageSpec]:
    return {spec.name: spec for spec in _specs(interface, requests)}


def message_of(link: Sender, interface: str, name: str, object_id: int, *args: object) -> bytes:
    """A message of an object that this side doesn't have, or not any more."""
    return encode(_by_name(interface, not link.is_host)[name], object_id, args)[0]


class ChannelObject:
    """An object on a link. For each message that may come it has a method ``on_NAME``, which takes its arguments.

    Which of them may come is the tables' business: a host half gets requests, a guest half events.
    """

    interface: ClassVar[str]

    def __init__(self, link: Sender, object_id: int) -> None:
        self.link = link
        self.object_id = object_id
        self.outbox = Outbox()
        self._incoming = _specs(self.interface, link.is_host)
        self._outgoing = _by_name(self.interface, not link.is_host)

    def handle(self, opcode: int, body: memoryview) -> None:
        """Takes a message apart and calls its method. Raises ChannelError."""
        if opcode >= len(self._incoming):
            raise ChannelError(f"{self}: there is no message {opcode}")
        spec = self._incoming[opcode]
        try:
            args = decode(spec, body)
        except Malformed as error:
            raise ChannelError(f"{self}.{spec.name}: {error}") from None
        getattr(self, f"on_{spec.name}")(*args)

    def feed(self, _words: memoryview, _octets: memoryview, _count: int) -> bool:
        """Message 0, an array of ``count`` bytes that came alone, may be taken here; False: it has to be ``handle``d."""
        return False

    def tell(self, name: str, *args: object) -> None:
        """Sends the message of that name, after all that this object has sent before."""
        self.link.send(self.outbox, self.encode(name, *args))

    def encode(self, name: str, *args: object) -> bytes:
        """The message of that name, for another's outbox."""
        return encode(self._outgoing[name], self.object_id, args)[0]

    def __str__(self) -> str:
        return f"{self.interface}#{self.object_id}"
