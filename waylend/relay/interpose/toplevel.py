"""Windows: marks titles and app ids with the policy's prefix, and tells the observer of windows that come and go."""

from __future__ import annotations

from typing import ClassVar

from waylend.errors import LimitExceeded, ProtocolError
from waylend.relay.events import WindowClosed, WindowNamed, WindowOpened
from waylend.relay.interpose import Client, FdMessage, Interposer

# libwayland before 1.23 has room for 4096 bytes of one message: 8 of header, 4 of length, and the string's NUL.
_MAX_TEXT_BYTES = 4096 - 8 - 4 - 1


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
        "wl_shell_surface.set_title",
        "wl_shell_surface.set_class",
    )

    def __init__(self, client: Client) -> None:
        super().__init__(client)
        self._open: set[int] = set()

    def get_toplevel(self, message: FdMessage) -> None:
        window = message.args[0]
        assert isinstance(window, int)
        self._open.add(window)
        self.client.emit(WindowOpened(self.client.session_id, window))

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
        self.client.emit(WindowNamed(self.client.session_id, message.object_id, what, text.decode(errors="replace")))
        if not prefix:
            return None
        marked = (prefix.encode() + text)[:_MAX_TEXT_BYTES]
        # Cut between characters, not within one.
        marked = marked.decode(errors="ignore").encode()
        return message.with_args(marked)

    def _gone(self, window: int) -> None:
        self._open.discard(window)
        self.client.emit(WindowClosed(self.client.session_id, window))

    def close(self) -> None:
        for window in sorted(self._open):
            self._gone(window)
