"""``waylend guest``."""

from __future__ import annotations

from typing import Any

import anyio
import click

from waylend.channel.transport import PORT_PATH, Address
from waylend.cli.options import (
    TracedCommand,
    listen_options,
    open_trace,
    policy_from,
    policy_options,
    token_from,
    token_option,
    trace_option,
)
from waylend.cli.process import listening, until_asked_to_stop
from waylend.guest_half.serving import serve_in_guest


@click.command("guest", cls=TracedCommand)
@listen_options
@click.option(
    "--channel",
    metavar="WHERE",
    default=PORT_PATH,
    show_default=True,
    help="The host half: port:PATH, vsock:CID:PORT or unix:PATH.",
)
@click.option("--bar", metavar="FILE", help="The lent memory. [default: the PCI device that the VMM has for it]")
@token_option
@policy_options
@trace_option
def command(
    listen: str | None,
    socket_mode: str | None,
    channel: str,
    bar: str | None,
    token_file: str | None,
    trace: str | None,
    **rules: Any,
) -> None:
    """Be the guest's half: show its clients on the desktop of the machine that lends it memory.

    With systemd's socket activation (LISTEN_FDS) the sockets that it passes are served, and --listen isn't needed.
    """
    policy = policy_from(**rules)
    tracing, token = open_trace(trace), token_from(token_file)

    Address.parse(channel)  # what is mistyped is said before what is missing

    async def main() -> None:
        with listening(listen, socket_mode) as (where, mode), until_asked_to_stop() as asked_to_stop:
            async with serve_in_guest(
                listen=where,
                channel=channel,
                bar=bar,
                token=token,
                policy=policy,
                socket_mode=mode,
                trace=tracing,
            ):
                await asked_to_stop(None)

    anyio.run(main)
