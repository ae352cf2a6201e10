"""Windows: marks titles and app ids with the policy's prefix, replaces what can't be shown in them, and tells the observer
of windows that come and go.

A title is shown in one line, by a compositor or a panel, beside the mark that says whose it is. So nothing in it may begin
another line or change the order in which it is read: the bidirectional controls (Unicode Standard Annex 9, section 2), what
ends lines or paragraphs, and control characters become U+FFFD. What joins letters or emoji stays.
"""

from __future__ import annotations

import re
from typing import ClassVar

from waylend.errors import LimitExceeded, ProtocolError
from waylend.relay.events import WindowClosed, WindowNamed, WindowOpened
from waylend.relay.interpose import Client, FdMessage, Interposer
from waylend.wire.codec import encode
from waylend.wire.spec import MessageSpec
from waylend.wire.tables import load_tables

# libwayland before 1.23 has room for 4096 bytes of one message: 8 of header, 4 of length, and the string's NUL.
_MAX_TEXT_BYTES = 4096 - 8 - 4 - 1
_NOT_SHOWN = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # control characters, among them newlines
    "\u2028\u2029"  # line and paragraph separators
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # bidirectional controls
    "\ufff9-\ufffb\ufeff]"  # interlinear annotations, byte order mark
)
_REPLACEMENT = "\ufffd"


def shown(text: bytes) -> str:
    """``text``, UTF-8 from a client, with U+FFFD for all that can't be shown in one line."""
    return _NOT_SHOWN.sub(_REPLACEMENT, text.decode(errors="replace"))


class Toplevels(Interposer):
    REQUESTS: ClassVar = (
        "xdg_surface.get_toplevel",
        "xdg_toplevel.destroy",
        "xdg_toplevel.set_title",
        "xdg_toplevel.set_app_id",
        "zxdg_surface_v6.get_toplevel",
        "zxdg_toplevel_v6.destroy",
        "zxdg_toplevel_v6.set_title",
        "zxdg_toplevel_v6.set_app_id",
        "wl_shell.get_shell_surface",
        "wl_shell_surface.set_title",
        "wl_shell_surface.set_class",
    )

    def __init__(self, client: Client) -> None:
        super().__init__(client)
        self._open: set[int] = set()

    def get_toplevel(self, message: FdMessage) -> bytes | None:
        window = message.args[0]
        assert isinstance(window, int)
        self._open.add(window)
        self.client.emit(WindowOpened(self.client.session_id, window))
        return self._marked(message, window)

    def get_shell_surface(self, message: FdMessage) -> bytes | None:
        window = message.args[0]
        assert isinstance(window, int)
        return self._marked(message, window)

    def _marked(self, message: FdMessage, window: int) -> bytes | None:
        """The request that makes a window, and behind it the marks: the client may never set a title."""
        policy = self.client.policy
        made = b""
        for name, prefix in (("set_title", policy.title_prefix), ("set_app_id", policy.app_id_prefix)):
            if prefix:
                spec = _naming(message.spec, name)
                made += encode(spec, window, (prefix.encode()[:_MAX_TEXT_BYTES],))[0]
        return bytes(message.raw) + made if made else None

    def destroy(self, message: FdMessage) -> None:
        self._gone(message.object_id)

    def set_title(self, message: FdMessage) -> bytes | None:
        return self._name(message, "title", self.client.policy.title_prefix)

    def set_app_id(self, message: FdMessage) -> bytes | None:
        return self._name(message, "app id", self.client.policy.app_id_prefix)

    set_class = set_app_id

    def _name(self, message: FdMessage, what: str, prefix: str) -> bytes | None:
        text = message.args[0]
        assert isinstance(text, bytes)
        limit = self.client.policy.limits.title_bytes
        if len(text) > limit:
            why = f"{len(text)} bytes are too many (limit title_bytes = {limit})"
            self.refuse(message, ProtocolError.IMPLEMENTATION, why, LimitExceeded)
        to_show = shown(text)
        self.client.emit(WindowNamed(self.client.session_id, message.object_id, what, to_show))
        marked = (prefix + to_show).encode()
        if marked == text:
            return None
        # Cut between characters, not within one.
        marked = marked[:_MAX_TEXT_BYTES].decode(errors="ignore").encode()
        return message.with_args(marked)

    def _gone(self, window: int) -> None:
        self._open.discard(window)
        self.client.emit(WindowClosed(self.client.session_id, window))

    def close(self) -> None:
        for window in sorted(self._open):
            self._gone(window)


def _naming(maker: MessageSpec, name: str) -> MessageSpec:
    """The request ``name`` of what ``maker`` makes: its title, or its app id (which wl_shell_surface calls a class)."""
    interface = maker.args[0].interface
    assert interface is not None
    if interface == "wl_shell_surface" and name == "set_app_id":
        name = "set_class"
    return next(spec for spec in load_tables()[interface].requests if spec.name == name)
