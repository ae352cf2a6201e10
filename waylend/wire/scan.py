"""One pass over a chunk of messages: every header is checked, the object map is kept, and what needs a closer look gets it.

This is the hot path of the relay, and knows no socket. A chunk is what has arrived so far, as words; the pass tells how many
of them are whole messages. Most messages cost two look-ups (``Kind``); the others are decoded as far as needed and shown to
the *hook* of their name, which may change or drop them. What comes out is the chunk as it is, and a list of edits to it.

Fds arrive in order beside the bytes, and belong to the messages that have fd arguments, in order. They are tokens
here; a scanner holds those that no message has claimed yet, and those that the scanned messages claimed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Generic, NamedTuple, TypeVar

from waylend.errors import CompositorError, LimitExceeded, Malformed, PeerError, ProtocolError
from waylend.wire.codec import Value, decode, encode
from waylend.wire.objects import CLOSER_LOOK, DELETE_ID, DISPLAY_ID, Kind, Look, ObjectMap
from waylend.wire.spec import HEADER_BYTES, ArgType, MessageSpec

Fd = TypeVar("Fd")


class Message(Generic[Fd]):
    """A message that gets a closer look: its raw bytes with the header, and its fds, which the hook may exchange."""

    __slots__ = ("_args", "fds", "object_id", "raw", "spec")

    def __init__(self, object_id: int, spec: MessageSpec, raw: bytes, fds: list[Fd]) -> None:
        self.object_id = object_id
        self.spec = spec
        self.raw = raw
        self.fds = fds
        self._args: list[Value] | None = None

    @property
    def args(self) -> list[Value]:
        """Decoded on first use (``codec.decode``). Raises Malformed."""
        if self._args is None:
            self._args = decode(self.spec, self.raw[HEADER_BYTES:], self.fds)
        return self._args

    def with_args(self, *args: Value) -> bytes:
        """The bytes of the same message with other arguments, as a hook returns them. Raises ValueError (``codec.encode``).

        What stands for an fd among them is not looked at: the message's fds are in ``fds``.
        """
        return encode(self.spec, self.object_id, args)[0]


#: Called for each interposed message. Returns None to pass it on, other bytes to send instead, or b"" to drop it (then the
#: hook has taken the message's fds, too). It may raise ProtocolError.
Hook = Callable[[Message[Fd]], bytes | None]


class NotYet(Exception):
    """Raised by a hook that can't say yet what becomes of its message, which stays where it is, with its fds."""


class Edit(NamedTuple):
    """Words ``start`` .. ``end`` of the chunk are to be replaced by ``replacement``."""

    start: int
    end: int
    replacement: bytes


class Scanner(Generic[Fd]):
    """What both directions share. ``edits`` and ``claimed`` are of the last pass; who forwards the chunk empties them."""

    is_request: bool

    def __init__(
        self,
        objects: ObjectMap,
        hooks: Mapping[str, Hook[Fd]],
        *,
        trace: Callable[[Message[Fd]], None] | None = None,
        max_unclaimed_fds: int = 1024,
        enough: Callable[[], bool] = lambda: False,
    ) -> None:
        self.objects = objects
        self.hooks = hooks
        self.trace = trace
        self.max_unclaimed_fds = max_unclaimed_fds
        self.edits: list[Edit] = []
        self.claimed: list[Fd] = []
        #: Asked after each closer look at a request: whether the pass is to stop there, though more is there.
        self.enough = enough
        #: The last pass stopped at a message whose hook raised NotYet; who sees to it resets it.
        self.waits = False
        #: The next closer look is at the message at which the last pass stopped.
        self._waited = False
        #: The last pass stopped since it was enough (``waits`` is set, too); who sees to it resets it.
        self.stopped = False
        self.unclaimed: deque[Fd] = deque()

    def scan(self, words: memoryview, octets: memoryview, word_count: int) -> int:
        """Passes over ``words[:word_count]`` (``octets`` are the same memory), and returns how many are whole messages.

        Raises ProtocolError (requests) or CompositorError (events) at the first message that breaks the protocol; nothing
        of the chunk may be forwarded then.
        """
        raise NotImplementedError

    def _fail(self, object_id: int, code: int, what: str) -> PeerError:
        raise NotImplementedError

    def _looks_of(self, kind: Kind) -> tuple[Look, ...]:
        raise NotImplementedError

    def _create(self, object_id: int, kind: Kind) -> None:
        raise NotImplementedError

    def _look_closer(self, words: memoryview, octets: memoryview, start: int, word_count: int) -> int:
        """Handles the message at ``start`` by the book. Returns where the next begins, or -1 if it isn't whole yet."""
        object_id, word = words[start], words[start + 1]
        kind = self.objects.kinds.get(object_id)
        looks = self._looks_of(kind) if kind is not None else ()
        opcode = word & 0xFFFF
        if kind is None or opcode >= len(looks):
            raise self._unknown(kind, object_id, opcode)
        spec, full_name, known_bytes, fd_count, changes_objects = looks[opcode]
        size_bytes = word >> 16
        if size_bytes != known_bytes and (known_bytes or size_bytes < HEADER_BYTES or size_bytes % 4):
            expected = f"{known_bytes}" if known_bytes else "a multiple of 4, at least 8"
            raise self._broken(object_id, spec, f"size is {size_bytes} bytes, should be {expected}")
        end = start + (size_bytes >> 2)
        if end > word_count:
            return -1
        fds = self._claim(object_id, spec) if fd_count else []
        message = Message(object_id, spec, bytes(octets[start << 2 : end << 2]), fds)
        try:
            if self.is_request and known_bytes is None:
                message.args  # noqa: B018 (a client's strings and arrays are checked before anybody counts on them)
            seen, self._waited = self._waited, False
            if self.trace is not None and not seen:
                self.trace(message)
            hook = self.hooks.get(full_name)
            if hook is not None:
                replacement = hook(message)
                if replacement is not None:
                    self.edits.append(Edit(start, end, replacement))
            if changes_objects:
                self._apply(message, kind)
        except NotYet:
            self.unclaimed.extendleft(reversed(fds))
            fds = []
            self.waits = self._waited = True
            return -1
        except Malformed as error:
            raise self._broken(object_id, spec, f"{error}") from None
        finally:
            if fds:
                self.claimed += fds
        return end

    def _apply(self, message: Message[Fd], kind: Kind) -> None:
        """What the message does to the object map."""
        spec = message.spec
        at = 0
        for arg in spec.args:
            if arg.type is ArgType.NEW_ID:
                interface, version = arg.interface, kind.version
                if interface is None:  # typeless: name, version, id
                    interface, version = _text(message.args[at]), _uint(message.args[at + 1])
                    at += 2
                self._create(_uint(message.args[at]), self._child(interface, version))
            at += 1
        if spec.destructor and self.is_request:
            self.objects.destroy(message.object_id)
        elif spec.full_name == "wl_display.delete_id":
            self.objects.delete(_uint(message.args[0]))

    def _child(self, interface: str, version: int) -> Kind:
        try:
            return self.objects.catalogue.kind(interface, version)
        except KeyError:
            raise Malformed(f"nobody knows the interface {interface!r}") from None

    def _unknown(self, kind: Kind | None, object_id: int, opcode: int) -> PeerError:
        label = self.objects.label(object_id)
        if kind is None or (self.is_request and kind.is_zombie):
            gone = "a destroyed" if kind else "an unknown"
            return self._fail(DISPLAY_ID, ProtocolError.INVALID_OBJECT, f"{label}: message {opcode} to {gone} object")
        newest = self.objects.catalogue.tables[kind.name]
        later = (newest.requests if self.is_request else newest.events)[opcode : opcode + 1]
        if later:
            what = f"{label}.{later[0].name}: needs version {later[0].since}, but version {kind.version} was bound"
        else:
            what = f"{label}: unknown opcode {opcode}"
        return self._fail(object_id, ProtocolError.INVALID_METHOD, what)

    def _claim(self, object_id: int, spec: MessageSpec) -> list[Fd]:
        missing = spec.fd_count - len(self.unclaimed)
        if missing > 0:
            raise self._broken(object_id, spec, f"{missing} of {spec.fd_count} file descriptors did not come with it")
        take = self.unclaimed.popleft
        return [take()] if spec.fd_count == 1 else [take() for _ in range(spec.fd_count)]

    def _broken(self, object_id: int, spec: MessageSpec, why: str) -> PeerError:
        return self._fail(
            object_id, ProtocolError.INVALID_METHOD, f"{self.objects.label(object_id)}.{spec.name}: {why}"
        )

    def _check_unclaimed(self) -> None:
        if len(self.unclaimed) > self.max_unclaimed_fds:
            raise self._too_many_fds(
                f"wl_display#1: {len(self.unclaimed)} file descriptors came with no message for them "
                f"(limit queued_fds = {self.max_unclaimed_fds})"
            )

    def _too_many_fds(self, what: str) -> PeerError:
        return self._fail(DISPLAY_ID, ProtocolError.IMPLEMENTATION, what)


class RequestScanner(Scanner[Fd]):
    """From a client, who is hostile."""

    is_request = True

    def scan(self, words: memoryview, octets: memoryview, word_count: int) -> int:
        kinds = self.objects.kinds
        effects = self.objects.catalogue.effects
        at = here = 0
        last = word_count - 1  # a header has two words
        while at < last:
            here = at
            try:
                kind = kinds[words[at]]
                code = kind.requests[words[at + 1]]
            except KeyError:
                code = CLOSER_LOOK
            if code > 0:
                at += code
                continue
            if code < 0:
                step, new_id_word, child = effects[code]
                if at + step > word_count:
                    break
                if child is None:
                    kinds[words[at]] = kind.zombie
                else:
                    new_id = words[at + new_id_word]
                    if new_id in kinds or not 0 < new_id < 0xFF000000:
                        self.objects.create_by_client(new_id, child)  # says what is wrong with it
                    kinds[new_id] = child
                at += step
                continue
            end = self._look_closer(words, octets, at, word_count)
            if end < 0:
                break
            at = end
            if self.enough():
                self.waits = self.stopped = at < last
                break
        if self.unclaimed:
            self._check_unclaimed()
        return here if at > word_count else at

    def _looks_of(self, kind: Kind) -> tuple[Look, ...]:
        return kind.request_looks

    def _create(self, object_id: int, kind: Kind) -> None:
        self.objects.create_by_client(object_id, kind)

    def _fail(self, object_id: int, code: int, what: str) -> PeerError:
        return ProtocolError(object_id, code, what)

    def _too_many_fds(self, what: str) -> PeerError:
        return LimitExceeded(DISPLAY_ID, ProtocolError.IMPLEMENTATION, what)


class EventScanner(Scanner[Fd]):
    """From the compositor, who is trusted, but may be newer than our tables, or dying."""

    is_request = False

    def scan(self, words: memoryview, octets: memoryview, word_count: int) -> int:
        kinds = self.objects.kinds
        at = here = 0
        last = word_count - 1
        while at < last:
            here = at
            try:
                code = kinds[words[at]].events[words[at + 1]]
            except KeyError:
                code = CLOSER_LOOK
            if code > 0:
                at += code
                continue
            if code == DELETE_ID:
                if at + 3 > word_count:
                    break
                if words[at + 2] != DISPLAY_ID:
                    kinds.pop(words[at + 2], None)
                at += 3
                continue
            end = self._look_closer(words, octets, at, word_count)
            if end < 0:
                break
            at = end
        if self.unclaimed:
            self._check_unclaimed()
        return here if at > word_count else at

    def _looks_of(self, kind: Kind) -> tuple[Look, ...]:
        return kind.event_looks

    def _create(self, object_id: int, kind: Kind) -> None:
        try:
            self.objects.create_by_compositor(object_id, kind)
        except ValueError as error:
            raise CompositorError(f"{error}") from None

    def _fail(self, _object_id: int, _code: int, what: str) -> PeerError:
        return CompositorError(what)


def _uint(value: Value) -> int:
    assert isinstance(value, int)
    return value


def _text(value: Value) -> str:
    assert isinstance(value, bytes)
    return value.decode(errors="replace")
