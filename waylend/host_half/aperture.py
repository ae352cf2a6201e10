"""The aperture as the host half lends it: memory for buffers, files of the compositor, and what the compositor maps."""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from waylend.backing.file import FileBacking
from waylend.domain.process.caller import ProcessDomain
from waylend.errors import NoSpace
from waylend.host_half.closing import ClosingThread
from waylend.host_half.recycler import LeaseRecycler
from waylend.lending.lease import Lease, LossPolicy, Protection
from waylend.lending.pages import PAGE_SHIFT, PAGE_SIZE
from waylend.relay.interpose.lent_files import FileLender
from waylend.relay.loop import Loop

#: The most that a wl_shm pool can have, in whole pages: its size is an int32.
_MOST_POOL_BYTES = (1 << 31) - PAGE_SIZE


class ApertureDescriptor(int):
    """A descriptor of the whole aperture. Whatever else a guest half attaches is a pipe."""


class LentAperture:
    """Lives in the loop's thread. Owns descriptors of the domain's aperture; the domain is its maker's to close."""

    def __init__(self, loop: Loop, domain: ProcessDomain) -> None:
        self._loop = loop
        self._domain = domain
        self._bar_fd = domain.open_bar(writable=True)
        status = os.fstat(self._bar_fd)
        self.page_count = status.st_size // PAGE_SIZE
        #: What a pool of the whole aperture has, in bytes; an int32.
        self.pool_bytes = min(status.st_size, _MOST_POOL_BYTES)
        #: A file of one page that is nobody's memory.
        self.stand_in_fd = os.memfd_create("waylend-no-pool", os.MFD_CLOEXEC)
        os.ftruncate(self.stand_in_fd, PAGE_SIZE)
        self.files = FileLender(domain)
        self._recycler = LeaseRecycler(domain)
        self._closing = ClosingThread(self._bar_fd, domain)

    def open(self) -> ApertureDescriptor:
        """A descriptor of the whole aperture. Raises OSError."""
        return ApertureDescriptor(os.dup(self._bar_fd))

    def lend(self, page_count: int, done: Callable[[Lease | Exception], None]) -> None:
        """Memory for buffers: ``done`` is called with it, later, in the loop's thread; or with LendingError or OSError."""
        lease = self._recycler.take(page_count)
        if lease is not None:
            self._loop.call(functools.partial(done, lease))
            return
        try:
            backing = _memory(page_count)
        except OSError as error:
            self._loop.call(functools.partial(done, error))
            return
        # The compositor looks at these pages, too: what is lost is black, and no fault of the compositor's.
        lent = self._domain.lend_later(
            backing,
            protection=Protection.READ_WRITE,
            loss=LossPolicy.ZERO,
            name="wl_shm buffers",
            redrawn=True,
        )

        def answered(lent: Future[Lease]) -> None:
            # Its pages are the serving process's from now on. A descriptor here for each buffer would be the guest's to use up.
            backing.close()
            error = lent.exception()
            if error is not None and not isinstance(error, Exception):
                raise error
            self._loop.call(functools.partial(done, self._within_pools(lent.result()) if error is None else error))

        lent.add_done_callback(answered)

    def _within_pools(self, lease: Lease) -> Lease | NoSpace:
        """The last page of 2 GiB is none that a buffer could be in."""
        if lease.gfns.end << PAGE_SHIFT <= self.pool_bytes:
            return lease
        self._recycler.end(lease)
        return NoSpace("what is left of the aperture is beyond what a wl_shm pool can have")

    def give_back(self, lease: Lease) -> None:
        """A lease of ``lend`` is over, for the client that had it."""
        self._recycler.add(lease)

    def keep(self, kept: bool) -> None:
        """Whether there is a guest half, which may ask for what was given back."""
        self._recycler.keep(kept)

    def close_later(self, sock: socket.socket, after: Sequence[Callable[[], None]]) -> None:
        """Closes a connection to a compositor that has mapped the aperture, when that waits for no write-back."""
        self._closing.close_later(sock, after)

    @property
    def closing_count(self) -> int:
        """Connections that wait for that."""
        return self._closing.waiting

    def make_room(self) -> bool:
        """Has what is kept for the next who asks end soon. Returns whether any is on its way out."""
        return self._recycler.end_all()

    def close(self) -> None:
        """Returns when all connections are closed. The leases end with their domain."""
        self._closing.close()
        self._recycler.close()
        os.close(self._bar_fd)
        os.close(self.stand_in_fd)


def _memory(page_count: int) -> FileBacking:
    fd = os.memfd_create("waylend-buffer", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, page_count * PAGE_SIZE)
    except OSError:
        os.close(fd)
        raise
    return FileBacking(fd, writable=True)
