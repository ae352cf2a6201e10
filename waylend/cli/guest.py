"""``waylend guest``."""

from __future__ import annotations

import signal
import socket
from typing import Any

import anyio
import click

from waylend.channel.transport import PORT_PATH
from waylend.cli.options import open_trace, policy_from, policy_options, token_from, token_option, trace_option
from waylend.cli.process import freeze_memory
from waylend.guest import guest_half
from waylend.relay.sockets import activated_sockets, notify_supervisor


@click.command("guest")
@click.option(
    "--listen", metavar="SOCKET", help="The socket to make for clients, relative to $XDG_RUNTIME_DIR or absolute."
)
@click.option(
    "--channel",
    metavar="WHERE",
    default=PORT_PATH,
    show_default=True,
    help="The host half: port:PATH, vsock:CID:PORT or unix:PATH.",
)
@click.option("--bar", metavar="FILE", help="The lent memory. [default: the PCI device that the VMM has for it]")
@click.option("--socket-mode", metavar="OCTAL", help="Permissions of the socket, like 660.")
@token_option
@policy_options
@trace_option
def command(
    listen: str | None,
    channel: str,
    bar: str | None,
    socket_mode: str | None,
    token_file: str | None,
    trace: str | None,
    **rules: Any,
) -> None:
    """Be the guest's half: show its clients on the desktop of the machine that lends it memory.

    With systemd's socket activation (LISTEN_FDS) the sockets that it passes are served, and --listen isn't needed.
    """
    policy = policy_from(**rules)
    passed = activated_sockets()
    if bool(passed) == (listen is not None):
        raise click.UsageError("give --listen SOCKET, or pass listening sockets (LISTEN_FDS), not both and not neither")
    try:
        mode = None if socket_mode is None else int(socket_mode, 8)
    except ValueError:
        raise click.BadParameter(f"{socket_mode!r} is no octal number", param_hint="--socket-mode") from None

    async def main() -> None:
        where: str | list[socket.socket] = passed if listen is None else listen
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with guest_half(
                listen=where,
                channel=channel,
                bar=bar,
                token=token_from(token_file),
                policy=policy,
                socket_mode=mode,
                trace=open_trace(trace),
            ):
                freeze_memory()
                notify_supervisor("READY=1")
                async for _ in signals:
                    break
                notify_supervisor("STOPPING=1")

    try:
        anyio.run(main)
    finally:
        for sock in passed:
            sock.close()
