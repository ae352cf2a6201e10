"""What is short is shared: each client of a guest has its limits, all together have theirs, and who holds most goes first.

So whoever takes a lot is refused or ended, and never the next one who asks for a little.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import Protocol

from waylend.errors import LimitExceeded, ProtocolError
from waylend.lending.pages import PAGE_SHIFT
from waylend.policy import Limits
from waylend.wire.objects import DISPLAY_ID

logger = logging.getLogger(__name__)


class Holder(Protocol):
    """One client, and what it holds."""

    @property
    def fd_count(self) -> int:
        """Descriptors: its connection, its pipes, what its compositor hasn't taken yet, files that are lent to it."""

    @property
    def lease_count(self) -> int: ...

    @property
    def page_count(self) -> int: ...

    @property
    def waiting_bytes(self) -> int:
        """What has come from it and its compositor hasn't taken yet."""

    def evict(self, error: ProtocolError) -> None:
        """Ends it at once, with that error."""


class Shares:
    """``clients`` are those that are there. ``other_fds()`` says how many descriptors are held for those that have left;

    ``drop_one()`` closes one of them, and says whether it could.
    """

    def __init__(
        self,
        limits: Limits,
        clients: Collection[Holder],
        other_fds: Callable[[], int],
        drop_one: Callable[[], bool],
    ) -> None:
        self._limits = limits
        self._clients = clients
        self._other_fds = other_fds
        self._drop_one = drop_one

    def descriptor(self, client: Holder, count: int = 1) -> None:
        """The client is about to hold so many more. Raises LimitExceeded, and then it is ended."""
        self._check(client, client.fd_count + count, "descriptors", "fds_per_client")
        while self._total(lambda holder: holder.fd_count, self._other_fds) + count > self._limits.fds:
            if not self._drop_one():
                break
        self._share(client, lambda holder: holder.fd_count, count, self._other_fds, "descriptors", "fds")

    def stream(self, client: Holder, stream_count: int) -> None:
        """The client has so many pipes, and is about to have another. Raises LimitExceeded, and then it is ended."""
        self._check(client, stream_count + 1, "pipes", "streams_per_client")

    def sink(self, client: Holder, stream_count: int) -> None:
        """The compositor asks the client for data, and it has so many pipes already. Raises LimitExceeded; nobody is ended."""
        self._limit(stream_count + 1, "pipes", "streams_per_client")
        self._limit(client.fd_count + 1, "descriptors", "fds_per_client")
        self._limit(self._total(lambda holder: holder.fd_count, self._other_fds) + 1, "descriptors", "fds")

    def lease(self, client: Holder, page_count: int) -> None:
        """The client is about to have another lease. Raises LimitExceeded, which may be answered with a refusal."""
        self._limit(client.lease_count + 1, "leases", "leases_per_client")
        lent_bytes = (client.page_count + page_count) << PAGE_SHIFT
        self._limit(lent_bytes, "bytes of lent memory", "lent_bytes_per_client")
        if sum(holder.lease_count for holder in self._clients) + 1 > self._limits.leases:
            self.make_room(client, lambda holder: holder.lease_count, self._error("leases", "leases"))

    def waiting(self, client: Holder) -> None:
        """More has come from the client than its compositor takes. Ends who has most of that where all have too much."""
        self._share(client, lambda holder: holder.waiting_bytes, 0, lambda: 0, "bytes that wait", "waiting_bytes")

    def make_room(self, client: Holder, held: Callable[[Holder], int], error: ProtocolError, more: int = 1) -> None:
        """Ends the one who holds most, with that error. Raises it where that is the client itself, which isn't ended here."""
        holder = max(self._clients, key=held, default=client)
        if holder is client or held(holder) <= held(client) + more:
            raise error
        logger.warning("who holds most is ended, as others have none left: %s", error)
        holder.evict(error)

    def _share(
        self, client: Holder, held: Callable[[Holder], int], more: int, others: Callable[[], int], what: str, limit: str
    ) -> None:
        while self._total(held, others) + more > getattr(self._limits, limit):
            try:
                self.make_room(client, held, self._error(what, limit), more)
            except LimitExceeded as error:
                client.evict(error)
                raise

    def _total(self, held: Callable[[Holder], int], others: Callable[[], int]) -> int:
        return sum(map(held, self._clients)) + others()

    def _check(self, client: Holder, count: int, what: str, limit: str) -> None:
        try:
            self._limit(count, what, limit)
        except LimitExceeded as error:
            client.evict(error)
            raise

    def _limit(self, count: int, what: str, limit: str) -> None:
        if count > getattr(self._limits, limit):
            raise self._error(what, limit)

    def _error(self, what: str, limit: str) -> LimitExceeded:
        value = getattr(self._limits, limit)
        why = f"wl_display#1: {value} {what} are the most (limit {limit} = {value})"
        return LimitExceeded(DISPLAY_ID, ProtocolError.NO_MEMORY, why)
