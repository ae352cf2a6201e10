"""What an application behind a proxy gets of our environment."""

from __future__ import annotations

from collections.abc import Mapping

#: What leads past the proxy, to the compositor or an X server, and what a supervisor meant for waylend itself.
NOT_FOR_GUESTS = frozenset(
    # Displays, by other ways.
    "DISPLAY XAUTHORITY WAYLAND_SOCKET ICEAUTHORITY SESSION_MANAGER GNOME_SETUP_DISPLAY MIR_SOCKET "
    # What compositors take commands by.
    "SWAYSOCK I3SOCK HYPRLAND_INSTANCE_SIGNATURE NIRI_SOCKET WAYFIRE_SOCKET "
    # sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3), systemd.exec(5).
    "LISTEN_FDS LISTEN_PID LISTEN_FDNAMES LISTEN_PIDFDID NOTIFY_SOCKET WATCHDOG_USEC WATCHDOG_PID MAINPID INVOCATION_ID "
    "JOURNAL_STREAM MEMORY_PRESSURE_WATCH MEMORY_PRESSURE_WRITE CREDENTIALS_DIRECTORY".split()
)
#: All that stays with ``--clean-env``, besides LC_*: how to show and find things, nothing that names a service or a secret.
CLEAN = frozenset(
    "COLORTERM HOME LANG LANGUAGE LOGNAME PATH SHELL TERM TZ USER XCURSOR_SIZE XCURSOR_THEME XDG_CURRENT_DESKTOP".split()
)


def for_guests(environ: Mapping[str, str], *, clean: bool = False) -> dict[str, str]:
    """``environ`` without what isn't for guests; with ``clean`` only what is in ``CLEAN``, and LC_*."""
    if clean:
        return {name: value for name, value in environ.items() if name in CLEAN or name.startswith("LC_")}
    return {name: value for name, value in environ.items() if name not in NOT_FOR_GUESTS}
