"""``waylend run``."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import click

from waylend.cli.app import Clients, started
from waylend.cli.jailing import go_to_jail, jail_option
from waylend.cli.options import (
    TracedCommand,
    compositor_option,
    open_trace,
    policy_from,
    policy_options,
    security_context_option,
    shim_options,
    trace_option,
)
from waylend.cli.process import ShimFailed, check_shim_options, freeze_memory, private_name, the_compositor
from waylend.errors import Unavailable
from waylend.local.proxy import serve
from waylend.relay.sockets import ListeningSocket
from waylend.service.environment import CLEAN, for_guests


@click.command(
    "run", cls=TracedCommand, context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False}
)
@compositor_option
@shim_options
@click.option(
    "--wait/--no-wait",
    "waits",
    default=True,
    show_default=True,
    help="After APP's end, stay as long as something that it started is a client: programs fork, and launchers leave.",
)
@click.option("--dbus", is_flag=True, help="Give APP a private D-Bus session (dbus-run-session).")
@click.option(
    "--clean-env", is_flag=True, help=f"Give APP of our environment only {', '.join(sorted(CLEAN))} and LC_*."
)
@policy_options
@security_context_option
@trace_option
@jail_option
@click.argument("app", metavar="APP", required=True)
@click.argument("args", metavar="[ARGS]...", nargs=-1, type=click.UNPROCESSED)
def command(
    *,
    compositor: str | None,
    size: str,
    screenshot: Path | None,
    waits: bool,
    dbus: bool,
    clean_env: bool,
    trace: str | None,
    no_jail: bool,
    app: str,
    args: tuple[str, ...],
    **rules: Any,
) -> None:
    """Run APP through a private proxy. The exit status is APP's (128 + N when signal N ended it).

    With --compositor shim it is 1 where APP ended well but broke a protocol, or the screenshot could not be written.

    APP gets WAYLAND_DISPLAY, and nothing of the environment that leads past the proxy (DISPLAY, XAUTHORITY, SWAYSOCK ...)
    or is a supervisor's word to waylend (NOTIFY_SOCKET, LISTEN_FDS ...). A program that lets one that is running already
    open its window opens it outside: --dbus keeps it from finding that one.

    SIGINT and SIGTERM end APP with all that it started. This is no boundary: APP runs as you, and can open your compositor's
    socket and your files itself. Another user (waylend serve --socket-mode), a container that has the proxy's socket alone,
    or a machine (waylend vm, waylend host) is one.
    """
    policy = policy_from(**rules)
    tracing = open_trace(trace)
    check_shim_options(compositor, screenshot)
    _check_app(app)
    argv = [*(_private_bus() if dbus else ()), app, *args]
    environ = for_guests(os.environ, clean=clean_env)
    strict = compositor == "shim"
    clients = Clients()
    serving: dict[str, Any] = {"policy": policy, "once": True, "trace": tracing, "on_event": clients.on_event}

    async def main() -> int:
        status = 0
        with (
            anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD) as signals,
            private_name("run") as path,
            closing(ListeningSocket(path, mode=0o600, locked=False)) as listening,
        ):
            try:
                async with the_compositor(compositor, size, screenshot, strict=strict) as to:
                    with started(argv, environ | {"WAYLAND_DISPLAY": f"{path}"}) as program:
                        go_to_jail(no_jail, sockets=[listening.sock])
                        async with serve(listen=[listening.sock], compositor=to, **serving):
                            freeze_memory()
                            program.go()
                            status = await program.run(signals, clients, waits=waits)
            except ShimFailed:
                status = status or 1
        return status

    status = anyio.run(main)
    for violation in clients.violations if strict else ():
        print(f"waylend: {violation}", file=sys.stderr)
        status = status or 1
    sys.exit(status)


def _check_app(app: str) -> None:
    """Ends with a shell's exit status where there is no such program."""
    if shutil.which(app) is None:
        number = errno.EACCES if "/" in app and os.path.exists(app) else errno.ENOENT
        print(f"waylend: can't run {app}: {os.strerror(number)}", file=sys.stderr)
        sys.exit(127 if number == errno.ENOENT else 126)


def _private_bus() -> list[str]:
    if shutil.which("dbus-run-session") is None:
        raise Unavailable("--dbus needs dbus-run-session", "apt-get install dbus-daemon")
    return ["dbus-run-session", "--"]
