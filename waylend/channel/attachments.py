"""What goes beside a connection's bytes: descriptors that become attachments, and what a half makes of those that come."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from waylend.errors import PeerError

if TYPE_CHECKING:
    from waylend.channel.connection import ChannelConnection


class Attachment(int):
    """A descriptor that knows what it stands for on the other side, where it is to be had as something else than a pipe.

    It takes the plain descriptor's place in a message, and is closed as that would be once it was told.
    """

    def tell(self, connection: ChannelConnection) -> None:
        """Sends the attachment that stands for it."""
        raise NotImplementedError


class NobodysAttachments:
    """``Attachments`` of a connection that is closed: nobody is there for whom anything could be held."""

    def open_aperture(self) -> int:
        raise PeerError("the connection is closed")

    def open_file(self, _lease: int, _gfn: int, _size_bytes: int) -> int:
        raise PeerError("the connection is closed")

    def lease_asked(self, _object_id: int, _page_count: int) -> None: ...

    def room_for_descriptor(self, _count: int = 1) -> None:
        raise PeerError("the connection is closed")

    def room_for_stream(self) -> None:
        raise PeerError("the connection is closed")

    def room_for_sink(self) -> None:
        raise PeerError("the connection is closed")

    def piling_up(self) -> None: ...

    def connection_over(self) -> None: ...


NOBODY = NobodysAttachments()


class Attachments(Protocol):
    """What a half does, for one connection, with attachments that are no streams. All raise PeerError."""

    def open_aperture(self) -> int:
        """A descriptor for ``attach_aperture``."""

    def open_file(self, lease: int, gfn: int, size_bytes: int) -> int:
        """A descriptor for ``attach_file``."""

    def lease_asked(self, object_id: int, page_count: int) -> None:
        """For ``lease``: the object id is checked, and new."""

    def room_for_descriptor(self, count: int = 1) -> None:
        """Called before so many more are held for this connection. Raises PeerError when there are too many."""

    def room_for_stream(self) -> None:
        """The same for a pipe, which is two descriptors until one of them has gone on, and an object of the channel."""

    def room_for_sink(self) -> None:
        """The same for what the other half is to write to. Ends nobody: who asked for that is on the other side."""

    def piling_up(self) -> None:
        """More has arrived than the session takes."""

    def connection_over(self) -> None:
        """The session has closed it."""
