"""Leases of the aperture as the guest half asks for them: memory that a connection may write to."""

from __future__ import annotations

from collections.abc import Callable

from waylend.channel.attachments import Attachment
from waylend.channel.connection import ChannelConnection
from waylend.channel.messages import ChannelObject
from waylend.errors import ChannelError


class LeaseAsked(ChannelObject):
    """One lease, from asking to giving back. ``gfn`` is -1 until it is granted; ``failure`` says why it is not to be had.

    ``on_change`` is called when either has changed, ``on_loss`` when what was stored there is lost, ``on_over`` once.
    """

    interface = "waylend_lease_v1"

    def __init__(
        self,
        connection: ChannelConnection,
        page_count: int,
        *,
        aperture_pages: int,
        on_change: Callable[[], None],
        on_loss: Callable[[LeaseAsked], None],
        on_over: Callable[[LeaseAsked], None],
    ) -> None:
        super().__init__(connection.channel, connection.channel.new_id())
        self.page_count = page_count
        self.gfn = -1
        self.failure = ""
        self._aperture_pages = aperture_pages
        self._connection = connection
        self._on_change = on_change
        self._on_loss = on_loss
        self._on_over = on_over
        connection.channel.add(self)
        connection.tell("lease", self.object_id, page_count)

    def on_granted(self, gfn: int) -> None:
        if self.gfn >= 0:
            raise ChannelError(f"{self}: granted twice")
        if gfn + self.page_count > self._aperture_pages:
            raise ChannelError(f"{self}: {self.page_count} pages at page {gfn} are not in the aperture")
        self.gfn = gfn
        self._on_change()

    def on_refused(self, reason: bytes) -> None:
        self._gone(reason.decode(errors="replace"))

    def on_revoked(self) -> None:
        self._on_loss(self)

    def on_ended(self) -> None:
        self._gone("the host has ended the lease")

    def _gone(self, why: str) -> None:
        self._end(why or "refused")
        self._on_change()

    def give_back(self) -> None:
        """The lease is over, by our will. Idempotent."""
        if not self.failure:
            # After all that was said of buffers in it.
            self.link.send(self._connection.outbox, self.encode("give_back"))
            self._end("given back")

    def forget(self) -> None:
        """Its connection is over, and so is the lease."""
        self._end("the connection is over")

    def _end(self, failure: str) -> None:
        self.failure = failure
        self.link.remove(self.object_id)
        self._on_over(self)


class WholeAperture(Attachment):
    """A client's pool, which is the whole aperture on the other side."""

    def tell(self, connection: ChannelConnection) -> None:
        connection.tell("attach_aperture")
