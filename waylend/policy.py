"""What a guest may see and do: which globals, under which limits, with which marks on its windows. Read from TOML.

A policy is a value. It is checked when it is made, so that whoever uses it need not.
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from waylend.errors import UsageError
from waylend.wire.tables import load_tables

#: Globals that a sandboxed application may need. Everything else is hidden unless a policy allows it: what captures the
#: screen or other windows, makes input, reads the clipboard unasked, places itself over others, configures outputs or
#: locks the session.
DEFAULT_GLOBALS = frozenset(
    """
    wl_compositor wl_subcompositor wl_shm wl_seat wl_output wl_data_device_manager wl_drm wl_fixes wl_shell
    xdg_wm_base xdg_activation_v1 xdg_wm_dialog_v1 xdg_system_bell_v1 xdg_toplevel_drag_manager_v1
    xdg_toplevel_icon_manager_v1 xdg_toplevel_tag_manager_v1 zxdg_shell_v6
    zxdg_decoration_manager_v1 org_kde_kwin_server_decoration_manager
    zxdg_output_manager_v1 zxdg_exporter_v1 zxdg_importer_v1 zxdg_exporter_v2 zxdg_importer_v2
    zwp_linux_dmabuf_v1 zwp_linux_explicit_synchronization_v1 wp_linux_drm_syncobj_manager_v1
    wp_viewporter wp_presentation wp_single_pixel_buffer_manager_v1 wp_fractional_scale_manager_v1
    wp_content_type_manager_v1 wp_tearing_control_manager_v1 wp_alpha_modifier_v1 wp_fifo_manager_v1
    wp_commit_timing_manager_v1 wp_color_manager_v1 wp_color_representation_manager_v1
    wp_cursor_shape_manager_v1 wp_pointer_warp_v1
    zwp_primary_selection_device_manager_v1 gtk_primary_selection_device_manager
    zwp_relative_pointer_manager_v1 zwp_pointer_constraints_v1 zwp_pointer_gestures_v1
    zwp_tablet_manager_v2 zwp_text_input_manager_v1 zwp_text_input_manager_v3 zwp_input_timestamps_manager_v1
    zwp_idle_inhibit_manager_v1
    """.split()
)


#: Globals whose messages carry file descriptors that mean nothing on another machine (GPU memory, fences, sockets, files for
#: the compositor to read): what no policy can give to a guest behind a channel.
NOT_ACROSS_MACHINES = (
    "wl_drm",
    "zwp_linux_dmabuf_v1",
    "zwp_linux_explicit_synchronization_v1",
    "wp_linux_drm_syncobj_manager_v1",
    "wp_drm_lease_device_v1",
    "wp_security_context_manager_v1",
    "wp_color_manager_v1",
    "zwlr_export_dmabuf_manager_v1",
    "zwlr_gamma_control_manager_v1",
    "zwp_virtual_keyboard_manager_v1",
)


#: The highest version at which a global is announced, where the tables know a higher one.
HIGHEST_VERSIONS = {
    # From version 2 on the compositor waits until clients have acknowledged that a global is gone, and a client can't
    # acknowledge that of a global that it was never shown (wl_fixes.ack_global_remove).
    "wl_fixes": 1,
}


@dataclass(frozen=True)
class Limits:
    """What one guest may use. A limit that is hit ends the client that hit it, with the limit's name in the error."""

    queued_fds: int = 1024
    queued_fds_of_guest: int = 4096
    buffered_bytes: int = 1 << 20
    clients: int = 256
    objects_per_client: int = 1 << 16
    aperture_bytes: int = 2 << 30
    leases: int = 1024
    leases_per_client: int = 256
    lent_bytes_per_client: int = 1 << 30
    pools_per_client: int = 1024
    streams_per_client: int = 128
    fds: int = 512
    fds_per_client: int = 448
    waiting_bytes: int = 32 << 20
    title_bytes: int = 4096

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if value < 1:
                raise UsageError(f"limit {name} = {value}: must be at least 1")
        if self.aperture_bytes > 2 << 30:
            raise UsageError(f"limit aperture_bytes = {self.aperture_bytes}: wl_shm counts in int32, 2 GiB is the most")


@dataclass(frozen=True)
class Policy:
    """``allow`` and ``deny`` name interfaces, with ``*`` as a wild card. What is denied is hidden, whatever allows it.

    ``security_context``: whether the compositor is told that this is a guest, where it has a word for it. Without, it takes the
    guest's clients for the user's own: it shows them its privileged globals (so that they can be allowed), and whatever else
    it keeps from sandboxes; nothing but this policy stands between.
    """

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    title_prefix: str = ""
    app_id_prefix: str = ""
    limits: Limits = field(default_factory=Limits)
    security_context: bool = True

    def __post_init__(self) -> None:
        for prefix in (self.title_prefix, self.app_id_prefix):
            if not prefix.isprintable():
                raise UsageError(f"prefix {prefix!r}: holds characters that can't be shown")
            if len(prefix.encode()) > 256:
                raise UsageError(f"prefix {prefix[:20]!r}...: is longer than 256 bytes")

    def announces(self, interface: str) -> bool:
        """Whether the guest may see globals of that interface."""
        if any(fnmatch.fnmatchcase(interface, pattern) for pattern in self.deny):
            return False
        return interface in DEFAULT_GLOBALS or any(fnmatch.fnmatchcase(interface, pattern) for pattern in self.allow)

    def asks_for(self, interface: str) -> bool:
        """Whether a rule of this policy's own shows globals of that interface, which would be hidden without."""
        return self.announces(interface) and interface not in DEFAULT_GLOBALS

    def with_changes(
        self,
        *,
        allow: Iterable[str] = (),
        deny: Iterable[str] = (),
        security_context: bool | None = None,
        title_prefix: str | None = None,
        app_id_prefix: str | None = None,
    ) -> Policy:
        """The policy with what the command line adds to it."""
        return dataclasses.replace(
            self,
            allow=(*self.allow, *allow),
            deny=(*self.deny, *deny),
            security_context=self.security_context if security_context is None else security_context,
            title_prefix=self.title_prefix if title_prefix is None else title_prefix,
            app_id_prefix=self.app_id_prefix if app_id_prefix is None else app_id_prefix,
        )


def check_names(patterns: Iterable[str]) -> None:
    """Raises UsageError for one that means no global which waylend could announce: a misspelt rule would be no rule."""
    known = load_tables().globals
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(interface, pattern) for interface in known):
            near = difflib.get_close_matches(pattern, known, n=1)
            meant = f": did you mean {near[0]}?" if near else "; docs/policy.md has the list of all"
            raise UsageError(f"no global is called {pattern!r}{meant}")


def read_policy(path: Path) -> Policy:
    """Reads a policy file::

        [globals]
        allow = ["zwlr_layer_shell_v1"]
        deny = ["zwp_primary_selection_*"]
        security_context = false
        [windows]
        title_prefix = "[work] "
        app_id_prefix = "work."
        [limits]
        clients = 16

    Raises UsageError, which names the file and what is wrong with it. What it does not know it refuses, since a
    misspelt rule would be no rule.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"policy {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"policy {path}: {error}") from error
    except RecursionError:
        raise UsageError(f"policy {path}: values within values, hundreds deep") from None
    try:
        _refuse_unknown("table", content, {"globals", "windows", "limits"})
        shown, windows, limits = (_table(content, name) for name in ("globals", "windows", "limits"))
        _refuse_unknown("key", shown, {"allow", "deny", "security_context"})
        _refuse_unknown("key", windows, {"title_prefix", "app_id_prefix"})
        _refuse_unknown("limit", limits, {f.name for f in dataclasses.fields(Limits)})
        for name, value in limits.items():
            if type(value) is not int:
                raise UsageError(f"limit {name} = {value!r}: must be a whole number")
        check_names((*_strings(shown, "allow"), *_strings(shown, "deny")))
        return Policy(
            allow=_strings(shown, "allow"),
            deny=_strings(shown, "deny"),
            security_context=_true_or_false(shown, "security_context", True),
            title_prefix=_string(windows, "title_prefix"),
            app_id_prefix=_string(windows, "app_id_prefix"),
            limits=Limits(**limits),
        )
    except UsageError as error:
        raise UsageError(f"policy {path}: {error}") from None


def _refuse_unknown(what: str, table: Mapping[str, Any], known: set[str]) -> None:
    for name in table:
        if name not in known:
            raise UsageError(f"unknown {what} {name!r} (there are: {', '.join(sorted(known))})")


def _table(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    table = content.get(name, {})
    if not isinstance(table, dict):
        raise UsageError(f"{name}: must be a table")
    return table


def _strings(table: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = table.get(name, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UsageError(f"{name}: must be a list of interface names")
    return tuple(value)


def _true_or_false(table: Mapping[str, Any], name: str, default: bool) -> bool:
    value = table.get(name, default)
    if not isinstance(value, bool):
        raise UsageError(f"{name}: must be true or false")
    return value


def _string(table: Mapping[str, Any], name: str) -> str:
    value = table.get(name, "")
    if not isinstance(value, str):
        raise UsageError(f"{name}: must be a string")
    return value
