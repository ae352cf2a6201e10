"""Leases of the aperture as the host half gives them: memory that a guest's connection may write to."""

from __future__ import annotations

from collections.abc import Callable

from waylend.channel.link import Link
from waylend.channel.messages import ChannelObject


class LeaseGiven(ChannelObject):
    """The host half's side. ``on_give_back`` is called once the guest half has given it back."""

    interface = "waylend_lease_v1"

    def __init__(self, link: Link, object_id: int, give_back: Callable[[LeaseGiven], None]) -> None:
        super().__init__(link, object_id)
        self._link = link
        self._give_back = give_back
        link.add(self)

    def on_give_back(self) -> None:
        self._link.remove(self.object_id)
        self._give_back(self)

    def refuse(self, reason: str) -> None:
        self.tell("refused", reason.encode(errors="replace")[:512].replace(b"\0", b"?"))
        self._link.remove(self.object_id)
