"""A client behind a guest half that is played by hand, with its compositor: what the tests of the host half stand on."""

from __future__ import annotations

from tests.host_half.hosting import GuestByHand, Hosting
from tests.relay.between import Peer, begin

CONNECTION = 2
LEASE = 3
SHM, POOL, BUFFER, OTHER_POOL = 3, 4, 5, 6


class ChannelClient(Peer):
    """A client's side of a connection through the channel, as a Peer: Wayland messages go and come as the channel's bytes."""

    def __init__(self, guest: GuestByHand, object_id: int) -> None:
        super().__init__(guest.sock)
        self._guest = guest
        self._id = object_id

    def send_raw(self, octets: bytes, fds: tuple[int, ...] = ()) -> None:
        assert not fds
        self._guest.client(self._id, octets)

    def read(self, size_bytes: int) -> bytes:
        while len(self.arrived) < size_bytes:
            (content,) = self._guest.expect("waylend_connection_v1.bytes")
            assert isinstance(content, bytes)
            self.arrived += content
        octets, self.arrived = self.arrived[:size_bytes], self.arrived[size_bytes:]
        return octets


def connected(hosting: Hosting, guest: GuestByHand, object_id: int = CONNECTION) -> tuple[ChannelClient, Peer]:
    guest.tell("waylend_channel_v1.connect", 1, object_id)
    return ChannelClient(guest, object_id), hosting.compositors.get(timeout=10)


def with_pool(hosting: Hosting, guest: GuestByHand, connection: int = CONNECTION) -> tuple[ChannelClient, Peer]:
    """A client that has bound wl_shm and made a pool of the aperture."""
    client, compositor = connected(hosting, guest, connection)
    begin(client, compositor, (1, "wl_shm", 1))
    client.send("wl_registry.bind", 2, 1, b"wl_shm", 1, SHM)
    compositor.receive("wl_registry.bind")
    guest.tell("waylend_connection_v1.attach_aperture", connection)
    client.send("wl_shm.create_pool", SHM, POOL, "fd", 4096)
    return client, compositor


def granted(guest: GuestByHand, object_id: int, page_count: int, connection: int = CONNECTION) -> int:
    guest.tell("waylend_connection_v1.lease", connection, object_id, page_count)
    (gfn,) = guest.expect("waylend_lease_v1.granted")
    assert isinstance(gfn, int)
    return gfn


def refused(client: ChannelClient) -> str:
    """The error that the client gets."""
    _, (_, _, text) = client.receive("wl_display.error")
    assert isinstance(text, bytes)
    return text.decode()
