"""Leases of the aperture as the host half gives them: memory that a guest's connection may write to."""

from __future__ import annotations

from collections.abc import Callable

from waylend.channel.connection import ChannelConnection
from waylend.channel.messages import ChannelObject, message_of
from waylend.lending.lease import Lease

_INTERFACE = "waylend_lease_v1"


class LeaseWanted(ChannelObject):
    """One that was asked for, until it is granted or refused. The guest half may have given it back by then."""

    interface = _INTERFACE

    def __init__(self, connection: ChannelConnection, object_id: int, page_count: int) -> None:
        super().__init__(connection.channel, object_id)
        self.page_count = page_count
        self.given_back = False
        self._connection = connection
        connection.channel.add(self)

    def on_give_back(self) -> None:
        self.given_back = True
        self.link.remove(self.object_id)

    def refuse(self, reason: str) -> None:
        """The guest half hears why, and the object is gone."""
        self.link.remove(self.object_id)
        refuse(self._connection, self.object_id, reason)


class LeaseGiven(ChannelObject):
    """The host half's side of one. ``on_over`` is called once the guest half has given it back."""

    interface = _INTERFACE

    def __init__(
        self, connection: ChannelConnection, object_id: int, lease: Lease, on_over: Callable[[LeaseGiven], None]
    ) -> None:
        super().__init__(connection.channel, object_id)
        self.lease = lease
        #: How many buffers of the compositor are in it: as long as there are any it isn't lent to anybody else.
        self.buffer_count = 0
        self.given_back = False
        self._on_over = on_over
        connection.channel.remove(object_id)  # as it was wanted
        connection.channel.add(self)
        connection.channel.send(connection.outbox, self.encode("granted", lease.gfns.start))

    def on_give_back(self) -> None:
        self.link.remove(self.object_id)
        self.given_back = True
        self._on_over(self)

    def tell_revoked(self) -> None:
        """The host took the pages away. Said once where the guest half hasn't even heard of the last time."""
        if not self.outbox.waiting:
            self.tell("revoked")


def refuse(connection: ChannelConnection, object_id: int, reason: str) -> None:
    """There is no such lease: the guest half hears why, and the object is gone."""
    text = reason.encode(errors="replace")[:512].replace(b"\0", b"?")
    connection.channel.send(connection.outbox, message_of(connection.channel, _INTERFACE, "refused", object_id, text))
