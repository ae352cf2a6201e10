"""A client of a relay: requests of all objects that there are, torn, repeated and made up, with descriptors of all kinds.

Every input is a session of its own: it goes on, or ends with ``wl_display.error`` and one reason, and its neighbour notices
nothing of it.
"""

from __future__ import annotations

import functools
import os
import socket
import struct
from dataclasses import dataclass, field

from tests.fuzz.contract import Unforeseen, nothing_stays
from tests.fuzz.inputs import Input
from tests.fuzz.peers import FILES, TABLES, FakeCompositor, TurnedLoop, descriptors, message, request, specs_of
from waylend.domain.memfd import MemfdDomain
from waylend.local.interposers import for_local_guests
from waylend.policy import Limits, Policy
from waylend.relay.endpoint import Endpoint
from waylend.relay.events import RelayEvent, SessionEnded
from waylend.relay.relay import Relay

_REGISTRY = 2
_BEGINNING = request("wl_display.get_registry", 1, _REGISTRY)
_POLICY = Policy(title_prefix="[fuzz] ", limits=Limits(leases=8, objects_per_client=300, buffered_bytes=1 << 16))

# Steps of an input, as their first byte says.
_REQUEST, _EVENT, _WORDS, _FDS, _SEND, _CUT = range(6)


def _seed(*steps: tuple[int, ...]) -> bytes:
    return b"".join(bytes(step) for step in steps)


SEEDS = [
    # bind something, and use it
    _seed((_REQUEST, 1, 0, 1, 0, 1), (_SEND,), (_REQUEST, 2, 0, 1, 2, 3), (_SEND,)),
    _seed((_REQUEST, 1, 0, 0, 1, 0, 0), (_FDS, 1, 0), (_REQUEST, 2, 0, 0, 1), (_SEND,), (_REQUEST, 3, 0, 0), (_SEND,)),
    _seed((_FDS, 5, 3), (_FDS, 7, 9), (_REQUEST, 1, 0), (_SEND,), (_CUT, 3), (_SEND,)),
    _seed((_EVENT, 0, 1, 2, 3, 4, 5), (_WORDS, 3, 4, 1, 4, 2, 4, 3), (_SEND,)),
    _seed(*((_REQUEST, object_id, spec, 0, 3, 1) for object_id in range(4) for spec in range(4)), (_SEND,)),
]


@dataclass
class _World:
    """A relay that lives as long as the process, with a client that is nobody's enemy."""

    loop: TurnedLoop
    relay: Relay
    domain: MemfdDomain
    compositors: list[FakeCompositor] = field(default_factory=list)
    ended: list[SessionEnded] = field(default_factory=list)
    bystander: socket.socket = field(init=False)
    syncs: int = 0

    def client(self) -> socket.socket:
        ours, its = socket.socketpair()
        ours.setblocking(False)
        self.relay.take_in(Endpoint(its))
        return ours

    def settle(self) -> None:
        for _ in range(2):
            self.loop.turn_all(2)
            for compositor in self.compositors:
                compositor.turn()
        self.loop.turn_all(1)


@functools.cache
def _world() -> _World:
    loop = TurnedLoop()
    world: _World

    def connect() -> Endpoint:
        ours, its = socket.socketpair()
        world.compositors.append(FakeCompositor(ours))
        return Endpoint(its)

    def observe(happened: RelayEvent) -> None:
        if isinstance(happened, SessionEnded):
            world.ended.append(happened)

    domain = MemfdDomain("fuzz", read_only=True, lease_limit=8)
    interposers = for_local_guests(TABLES, _POLICY, domain)
    relay = Relay(
        loop, tables=TABLES, policy=_POLICY, interposers=interposers, connect=connect, observer=observe
    )  # fmt: skip
    world = _World(loop, relay, domain)
    world.bystander = world.client()
    descriptors()
    world.settle()
    return world


def close() -> None:
    """What the inputs had in common."""
    world = _world()
    world.bystander.close()
    for compositor in world.compositors:
        compositor.close()
    world.relay.close()
    world.loop.close()
    world.domain.close()
    _world.cache_clear()


def one_input(octets: bytes) -> None:
    world = _world()
    with nothing_stays():
        world.ended.clear()
        client = world.client()
        client.send(_BEGINNING)
        world.settle()
        try:
            _play(world, client, Input(octets))
            world.settle()
            heard = _heard(client)
        finally:
            client.close()
            world.settle()
        if len(world.relay.sessions) != 1 or len(world.ended) != 1:
            raise Unforeseen(f"sessions {list(world.relay.sessions)}, ended {world.ended}")
        if not world.ended[0].reason and heard.startswith(struct.pack("=IH", 1, 0)):
            raise Unforeseen("an error without a reason")
        for compositor in world.compositors[1:]:
            compositor.close()
        del world.compositors[1:]
    _bystander_is_well(world)


def _play(world: _World, client: socket.socket, choices: Input) -> None:
    session = world.relay.sessions[max(world.relay.sessions)]
    chunk, fds = b"", []
    fresh = 3
    while choices:
        step = choices.number(6)
        ids = sorted(session.objects.kinds)
        object_id = choices.choice(ids)
        kind = session.objects.kinds[object_id]
        specs = specs_of(kind.spec, events=step == _EVENT)
        if step in (_REQUEST, _EVENT) and specs:
            made = message(choices, specs, object_id, ids, fresh)
            fresh += 1
            fd_count = 1 if choices.number(4) else choices.number(3)
            # The compositor is trusted: what it hands out are files.
            kinds = descriptors()[:FILES] if step == _EVENT else descriptors()
            some = [choices.choice(kinds) for _ in range(fd_count if any(spec.fd_count for spec in specs) else 0)]
            if step == _EVENT:
                world.compositors[-1].say(made, some)
                world.settle()
            else:
                chunk += made
                fds += some
        elif step == _WORDS:
            chunk += b"".join(struct.pack("=I", choices.word()) for _ in range(choices.number(6)))
        elif step == _FDS:
            fds += [choices.choice(descriptors())] * choices.number(33)
        elif step == _CUT:
            chunk = chunk[: max(0, len(chunk) - choices.number(16))]
        if (step == _SEND or len(chunk) > 8192) and chunk:
            _send(client, chunk, fds)
            chunk, fds = b"", []
            world.settle()
    if chunk:
        _send(client, chunk, fds)


def _send(client: socket.socket, chunk: bytes, fds: list[int]) -> None:
    try:
        socket.send_fds(client, [chunk], fds[:250])
    except OSError:
        pass  # it was hung up on


def _heard(client: socket.socket) -> bytes:
    """The last that it hears."""
    heard = b""
    try:
        while octets := client.recvmsg(1 << 16)[0]:
            heard = octets
    except OSError:
        pass
    return heard


def _bystander_is_well(world: _World) -> None:
    world.syncs += 1
    object_id = 2 + world.syncs % 2
    world.bystander.send(request("wl_display.sync", 1, object_id))
    world.settle()
    try:
        answered = os.read(world.bystander.fileno(), 4096)
    except BlockingIOError:
        raise Unforeseen("the neighbour got no answer") from None
    if len(answered) != 24:
        raise Unforeseen(f"the neighbour got {answered!r}")
