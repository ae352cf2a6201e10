"""How a command that is a relay, or a half, goes to jail: once what it needs is open, and before a stranger says anything."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

import click

from waylend.domain.process import starter
from waylend.errors import UsageError
from waylend.jail import profiles
from waylend.relay.sockets import own_dir

Command = Callable[..., Any]


def jail_option(command: Command) -> Command:
    """``--no-jail``; ``go_to_jail`` takes it."""
    return click.option("--no-jail", is_flag=True, help="Give up no rights once set up: for debugging (docs/jail.md).")(
        command
    )


def go_to_jail(
    no_jail: bool,
    *,
    sockets: Iterable[socket.socket] = (),
    control: str | None = None,
    makes: Iterable[str] = (),
    uses: Iterable[str] = (),
    lends: bool = True,
) -> None:
    """To be called with no other thread than this. ``sockets``: ours to remove at the end, as the control socket is. ``makes``:
    other paths that are made later. ``uses``: files that are opened again and again. Who ``lends`` may
    have a serving process started, now and later.
    """
    if no_jail:
        starter.jails = False
        return
    uses = list(uses)
    if lends:
        starter.prepare()
    places = {os.path.dirname(os.path.abspath(path)) for path in (*makes, *([control] if control else []))}
    names_in = {os.path.dirname(os.fsdecode(name)) for sock in sockets if (name := sock.getsockname())}
    # A temporary folder goes with the socket in it.
    names_in |= {os.path.dirname(folder) for folder in names_in if os.path.basename(folder).startswith("waylend-")}
    try:
        own = f"{own_dir()}"
    except UsageError:
        own = tempfile.gettempdir()
    profile = profiles.relaying(own_dir=own, names_in=names_in, makes_in=places, uses=uses)
    # Another process's descriptors are not to be reached from inside, whatever is allowed: landlock(7), ptrace restrictions.
    governs_files = not any(os.path.islink(path) and os.readlink(path).startswith("/proc/") for path in uses)
    profiles.enter(profile, governs_files=governs_files)
