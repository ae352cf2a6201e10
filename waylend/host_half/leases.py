"""Leases of the aperture as the host half gives them: memory that a guest's connection may write to."""

from __future__ import annotations

from collections.abc import Callable

from waylend.channel.connection import ChannelConnection
from waylend.channel.link import Link
from waylend.channel.messages import ChannelObject, message_of
from waylend.lending.lease import Lease


class LeaseGiven(ChannelObject):
    """The host half's side of one. ``on_over`` is called once the guest half has given it back."""

    interface = "waylend_lease_v1"

    def __init__(self, link: Link, object_id: int, lease: Lease, on_over: Callable[[LeaseGiven], None]) -> None:
        super().__init__(link, object_id)
        self.lease = lease
        self._on_over = on_over
        link.add(self)

    def on_give_back(self) -> None:
        self.link.remove(self.object_id)
        self._on_over(self)


def refuse(connection: ChannelConnection, object_id: int, reason: str) -> None:
    """There is no such lease: the guest half hears why, and the object is gone."""
    text = reason.encode(errors="replace")[:512].replace(b"\0", b"?")
    refusal = message_of(connection.channel, LeaseGiven.interface, "refused", object_id, text)
    connection.channel.send(connection.outbox, refusal)
