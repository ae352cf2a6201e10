"""What each object id of one connection is: its interface, its version, and which of its messages need a closer look.

A :class:`Kind` is an interface at a version, compiled so that a pass over a chunk of messages costs two dictionary
look-ups a message (``scan.py``). An :class:`ObjectMap` says of which kind each id is. Ids follow the Wayland protocol's
rules: the client's own are 1 .. 0xfeffffff, and stay taken after a destructor until the compositor says ``delete_id``
(events that were on their way may still arrive: a *zombie*); the compositor's own begin at 0xff000000, get no
``delete_id``, and may be used again as soon as the client has destroyed them. No bytes and no sockets here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from waylend.errors import ProtocolError
from waylend.wire.spec import ArgType, InterfaceSpec, MessageSpec

DISPLAY_ID = 1
SERVER_ID_START = 0xFF000000

#: What a look-up in ``Kind.requests`` or ``Kind.events`` gives for a message that needs a closer look.
CLOSER_LOOK = 0
#: ... and for ``wl_display.delete_id``, the one event that changes the map by itself.
DELETE_ID = -1


class Look(NamedTuple):
    """What a closer look at a message needs, in one place: this is the second-hottest path."""

    spec: MessageSpec
    full_name: str
    size_bytes: int | None
    fd_count: int
    changes_objects: bool


def looks_of(messages: tuple[MessageSpec, ...]) -> tuple[Look, ...]:
    return tuple(Look(one, one.full_name, one.size_bytes, one.fd_count, one.changes_objects) for one in messages)


class Kind:
    """An interface at a version, as a scan needs it: the requests of that version, and all events that the tables know.

    ``requests`` and ``events`` map the header's second word (size << 16 | opcode) of every message of fixed size to

    - its size in words (> 0): nothing to do but to pass it on;
    - ``CLOSER_LOOK``: it carries fds, is interposed, or is otherwise special;
    - a negative key of ``Catalogue.effects``: it creates one object or destroys its own, and that is all;
    - ``DELETE_ID``.

    Other words are not there: a message of varying size, or one that breaks the protocol. ``request_looks`` and
    ``event_looks`` have every message by its opcode. ``zombie`` is the same kind after its destructor: events still have
    their meaning, requests have none.
    """

    __slots__ = ("event_looks", "events", "request_looks", "requests", "spec", "version", "zombie")

    def __init__(self, spec: InterfaceSpec, version: int) -> None:
        self.spec = spec
        self.version = version
        self.requests: dict[int, int] = {}
        self.events: dict[int, int] = {}
        self.request_looks: tuple[Look, ...] = ()
        self.event_looks = looks_of(spec.events)
        self.zombie: Kind = self

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def is_zombie(self) -> bool:
        return self.zombie is self

    def __repr__(self) -> str:
        return f"<Kind {self.name} v{self.version}{' zombie' if self.is_zombie else ''}>"


class Catalogue:
    """All kinds that a set of tables and interposed messages give; shared by the connections that use that set.

    ``interposed_requests`` and ``interposed_events`` are messages by full name (``wl_registry.bind``) that get a closer
    look each time. With ``closer_look_at_all`` every message does (tracing).
    """

    def __init__(
        self,
        tables: Mapping[str, InterfaceSpec],
        *,
        interposed_requests: Collection[str] = (),
        interposed_events: Collection[str] = (),
        closer_look_at_all: bool = False,
    ) -> None:
        self.tables = tables
        self._interposed_requests = frozenset(interposed_requests)
        self._interposed_events = frozenset(interposed_events)
        self._closer_look_at_all = closer_look_at_all
        self._kinds: dict[tuple[str, int], Kind] = {}
        #: Negative code -> (size in words, word that holds the new id, kind of the new object); 0, None: a destructor.
        self.effects: dict[int, tuple[int, int, Kind | None]] = {}
        self._codes: dict[tuple[int, int, Kind | None], int] = {}
        self.display = self.kind("wl_display", 1)

    def kind(self, interface: str, version: int) -> Kind:
        """The interface at that version, compiled on first use. Raises KeyError for an interface that nothing describes."""
        kind = self._kinds.get((interface, version))
        if kind is None:
            known = self.tables[interface]
            kind = Kind(known.at_version(version), version)
            kind.request_looks = looks_of(kind.spec.requests)
            kind.zombie = Kind(kind.spec, version)
            # Requests are held to the version. Events are not: compositors send later ones (wl_output.done to version 1, for
            # xdg-output), and libwayland hands a client all that its own tables know.
            kind.event_looks = kind.zombie.event_looks = looks_of(known.events)
            self._kinds[interface, version] = kind  # before the children: an interface may create its own kind
            for request in kind.spec.requests:
                self._compile(kind, request, kind.requests, f"{request}" in self._interposed_requests)
            for event in known.events:
                self._compile(kind, event, kind.events, f"{event}" in self._interposed_events)
            kind.zombie.events = kind.events
        return kind

    def _compile(self, kind: Kind, message: MessageSpec, table: dict[int, int], interposed: bool) -> None:
        size_bytes = message.size_bytes
        if size_bytes is None:
            return
        new_ids = [at for at, arg in enumerate(message.args) if arg.type is ArgType.NEW_ID]
        is_event = table is kind.events
        step = size_bytes // 4
        code = step
        if interposed or self._closer_look_at_all or message.fd_count or (is_event and new_ids):
            code = CLOSER_LOOK
        elif f"{message}" == "wl_display.delete_id":
            code = DELETE_ID
        elif new_ids and not is_event:
            child = message.args[new_ids[0]].interface
            simple = child is not None and len(new_ids) == 1 and not message.destructor
            # No fds are among the arguments, so the n-th argument is the n-th word behind the header.
            code = self._effect(step, 2 + new_ids[0], self.kind(child, kind.version)) if simple and child else 0
        elif message.destructor and not is_event:
            code = self._effect(step, 0, None)
        table[size_bytes << 16 | message.opcode] = code

    def _effect(self, *effect: *tuple[int, int, Kind | None]) -> int:
        code = self._codes.setdefault(effect, DELETE_ID - 1 - len(self._codes))
        self.effects[code] = effect
        return code


class ObjectMap:
    """Object id -> Kind, for one connection, in both id ranges.

    Invariants: id 1 is the display and never goes away; 0 is never there; a zombie's id is never given to a new object
    before ``delete`` (client range) or before the compositor makes a new object of it (server range).
    """

    __slots__ = ("catalogue", "kinds")

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        self.kinds: dict[int, Kind] = {DISPLAY_ID: catalogue.display}

    def __len__(self) -> int:
        return len(self.kinds)

    def label(self, object_id: int) -> str:
        """``wl_surface#7``, the way that errors name an object."""
        kind = self.kinds.get(object_id)
        return f"{kind.name if kind else 'unknown'}#{object_id}"

    def create_by_client(self, object_id: int, kind: Kind) -> None:
        """A request made a new object. Raises ProtocolError for an id that the client may not use now."""
        if not DISPLAY_ID < object_id < SERVER_ID_START:
            raise ProtocolError(
                DISPLAY_ID,
                ProtocolError.INVALID_OBJECT,
                f"new id {object_id} for {kind.name} is not in the client's range",
            )
        if object_id in self.kinds:
            raise ProtocolError(
                DISPLAY_ID,
                ProtocolError.INVALID_OBJECT,
                f"new id {object_id} for {kind.name} is still taken by {self.label(object_id)}",
            )
        self.kinds[object_id] = kind

    def create_by_compositor(self, object_id: int, kind: Kind) -> None:
        """An event made a new object. Raises ValueError for an id out of the compositor's range.

        An id that is taken is no error: the compositor knows what it destroyed, and gives no ``delete_id`` for its own.
        """
        if not SERVER_ID_START <= object_id <= 0xFFFFFFFF:
            raise ValueError(f"new id {object_id} for {kind.name} is not in the compositor's range")
        self.kinds[object_id] = kind

    def destroy(self, object_id: int) -> None:
        """The client sent the object's destructor: from now on it is a zombie."""
        self.kinds[object_id] = self.kinds[object_id].zombie

    def delete(self, object_id: int) -> None:
        """The compositor said ``delete_id``: the id is free again."""
        if object_id != DISPLAY_ID:
            self.kinds.pop(object_id, None)

    def check(self) -> None:
        """Walks the invariants. Raises AssertionError. O(objects)."""
        assert self.kinds[DISPLAY_ID] is self.catalogue.display
        for object_id, kind in self.kinds.items():
            assert 0 < object_id <= 0xFFFFFFFF
            assert kind.zombie.is_zombie
