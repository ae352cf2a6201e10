"""A guest half that is hostile: whatever it sends, the host half goes on or ends the channel, and nothing stays.

With a real domain, whose aperture the compositors get; clients' bytes go all the way through the relay.
"""

from __future__ import annotations

import functools
import socket
import struct
from dataclasses import dataclass, field

from tests.fuzz.contract import Unforeseen, nothing_stays, open_fd_count
from tests.fuzz.inputs import Input
from tests.fuzz.peers import TABLES, FakeCompositor, TurnedLoop, message, request, specs_of
from waylend.domain.process.caller import ProcessDomain
from waylend.host_half.half import HostHalf
from waylend.policy import Limits, Policy
from waylend.relay.events import RelayEvent

_HELLO = request("waylend_channel_v1.hello", 1, 1, 0, 9, b"")
_CONNECT = request("waylend_channel_v1.connect", 1, 2)
_POLICY = Policy(limits=Limits(leases=16, aperture_bytes=1 << 22, objects_per_client=300, buffered_bytes=1 << 16))
_LOOK_EVERY = 100
_INTERFACES = ("waylend_channel_v1", "waylend_connection_v1", "waylend_lease_v1", "waylend_stream_v1")

# Steps of an input, as their first byte says.
_CHANNEL, _CLIENT, _EVENT, _WORDS, _SEND, _CUT, _LEASE, _WINDOW = range(8)

SEEDS = [
    bytes((_LEASE, 4, _CLIENT, 1, 0, 1, 0, 1, _WINDOW, 2, 3, _SEND)),
    bytes((_CLIENT, 1, 0, 1, 0, 1, _SEND, _CHANNEL, 1, 2, 5, _CHANNEL, 2, 1, 0, _SEND)),
    bytes((_CHANNEL, 0, 1, _CHANNEL, 1, 4, 1, 9, _CHANNEL, 3, 3, 1, 1, _SEND, _EVENT, 0, 1, 2)),
    bytes((_WORDS, 3, 4, 1, 4, 2, 4, 3, _SEND, _CUT, 5, _SEND)),
    bytes((_WINDOW, 1, 1, _WINDOW, 4, 9, _WINDOW, 2, 2, _SEND, _CLIENT, 3, 1, 1, 1, _SEND, _LEASE, 9, _SEND)),
]


@dataclass
class _World:
    """A host half that lives as long as the process."""

    loop: TurnedLoop
    half: HostHalf
    domain: ProcessDomain
    compositors: list[FakeCompositor] = field(default_factory=list)
    inputs: int = 0
    fd_count: int = 0

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

    def connect() -> socket.socket:
        ours, its = socket.socketpair()
        world.compositors.append(FakeCompositor(ours))
        its.setblocking(False)
        return its

    def observe(_happened: RelayEvent) -> None:
        pass

    domain = ProcessDomain("fuzz", aperture_pages=1024, lease_limit=16, gap_zeros=True)
    half = HostHalf(loop, tables=TABLES, policy=_POLICY, domain=domain, connect=connect, observer=observe)
    world = _World(loop, half, domain)
    world.settle()
    world.fd_count = open_fd_count()
    return world


def close() -> None:
    """What the inputs had in common."""
    world = _world()
    world.half.close()
    world.loop.close()
    world.domain.close()
    _world.cache_clear()


def one_input(octets: bytes) -> None:
    world = _world()
    # Leases and connections to the compositor end on threads, in their time: that is waited for now and then.
    world.inputs += 1
    with nothing_stays(world.fd_count if world.inputs % _LOOK_EVERY == 1 else 1 << 20):
        ours, its = socket.socketpair()
        ours.setblocking(False)
        world.half.take_in(its.detach())
        try:
            _send(ours, _HELLO + _CONNECT)
            world.settle()
            _play(world, ours, Input(octets))
            world.settle()
        finally:
            ours.close()
            world.settle()
        if world.half.relay.sessions or world.half.clients:
            raise Unforeseen(f"stays: {world.half.relay.sessions} {world.half.clients}")
        for compositor in world.compositors:
            compositor.close()
        world.compositors.clear()
        world.settle()


def _play(world: _World, ours: socket.socket, choices: Input) -> None:
    chunk = b""
    fresh, client_fresh = 3, 3
    objects = {
        "waylend_channel_v1": [1],
        "waylend_connection_v1": [2],
        "waylend_lease_v1": [3],
        "waylend_stream_v1": [3],
    }
    while choices:
        step = choices.number(8)
        if step == _CHANNEL:
            interface = choices.choice(_INTERFACES)
            object_id = choices.choice(objects[interface])
            made = message(choices, specs_of(TABLES[interface], events=False), object_id, [object_id], fresh)
            chunk += made
            for names in objects.values():
                names.append(fresh)
            fresh += 1
        elif step in (_CLIENT, _WINDOW):
            chunk += _of_a_client(world, choices, step == _WINDOW, client_fresh)
            client_fresh += 1
        elif step == _EVENT and world.compositors:
            world.compositors[-1].say(_an_event(world, choices))
        elif step == _WORDS:
            chunk += b"".join(struct.pack("=I", choices.word()) for _ in range(choices.number(6)))
        elif step == _CUT:
            chunk = chunk[: max(0, len(chunk) - choices.number(16))]
        elif step == _LEASE:
            chunk += request("waylend_connection_v1.lease", 2, fresh, choices.number(40))
            objects["waylend_lease_v1"].append(fresh)
            fresh += 1
        if step == _SEND or len(chunk) > 8192:
            _send(ours, chunk)
            chunk = b""
            world.settle()
            _read(ours)
    _send(ours, chunk)


def _of_a_client(world: _World, choices: Input, window: bool, fresh: int) -> bytes:
    """``bytes`` of connection 2, with what a client says; ``window``: the steps that lead to a buffer."""
    sessions = list(world.half.relay.sessions.values())
    if not sessions:
        return b""
    kinds = sessions[0].objects.kinds
    attached = b""
    if window:
        said = (
            request("wl_display.get_registry", 1, 2),
            request("wl_registry.bind", 2, 2, b"wl_shm", 1, 3),
            request("wl_shm.create_pool", 3, 4 + choices.number(3), "fd", choices.word() >> 1),
            request("wl_shm_pool.create_buffer", 4 + choices.number(3), 8 + choices.number(4), choices.number(1 << 16) - 64,
                    choices.number(70), choices.number(70), choices.number(300), choices.number(2)),
            request("wl_shm_pool.destroy", 4 + choices.number(3)),
        )[choices.number(5)]  # fmt: skip
    else:
        ids = sorted(kinds)
        object_id = choices.choice(ids)
        specs = kinds[object_id].spec.requests
        said = message(choices, specs, object_id, ids, fresh) if specs else b""
    for _ in range((0, 1, 1, 2, 30)[choices.number(5)]):
        kind = choices.number(3)
        attached += request("waylend_connection_v1.attach_aperture", 2) if kind else b""
    return attached + request("waylend_connection_v1.bytes", 2, said)


def _an_event(world: _World, choices: Input) -> bytes:
    sessions = list(world.half.relay.sessions.values())
    if not sessions:
        return b""
    kinds = sessions[0].objects.kinds
    ids = sorted(kinds)
    object_id = choices.choice(ids)
    specs = kinds[object_id].spec.events
    return message(choices, specs, object_id, ids, 0xFF000000 + choices.number(3)) if specs else b""


def _send(ours: socket.socket, chunk: bytes) -> None:
    try:
        ours.sendall(chunk)
    except OSError:
        pass  # it was hung up on


def _read(ours: socket.socket) -> None:
    try:
        while ours.recv(1 << 18):
            pass
    except OSError:
        pass
