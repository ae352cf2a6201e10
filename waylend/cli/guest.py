"""``waylend guest``."""

from __future__ import annotations

import os
from typing import Any

import anyio
import click

from waylend.channel.transport import PORT_PATH, Address
from waylend.cli.jailing import go_to_jail, jail_option
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
from waylend.guest_half.bar import find_bar
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
@jail_option
def command(
    listen: str | None,
    socket_mode: str | None,
    channel: str,
    bar: str | None,
    token_file: str | None,
    trace: str | None,
    no_jail: bool,
    **rules: Any,
) -> None:
    """Be the guest's half: show its clients on the desktop of the machine that lends it memory.

    With systemd's socket activation (LISTEN_FDS) the sockets that it passes are served, and --listen isn't needed.
    """
    policy = policy_from(**rules)
    tracing, token = open_trace(trace), token_from(token_file)

    address = Address.parse(channel)  # what is mistyped is said before what is missing

    async def main() -> None:
        with listening(listen, socket_mode) as sockets, until_asked_to_stop() as asked_to_stop:
            aperture = bar or find_bar()
            go_to_jail(no_jail, sockets=sockets, uses=_opened_again(address, aperture), lends=False)
            async with serve_in_guest(
                listen=sockets, channel=channel, bar=aperture, token=token, policy=policy, trace=tracing
            ):
                await asked_to_stop(None)

    anyio.run(main)


def _opened_again(address: Address, bar: str) -> list[str]:
    """What is opened anew whenever the host half is another one."""
    opened = [bar]
    if address.kind == "port":
        # A port that isn't there yet has no inode to name: then all devices.
        opened.append(address.path if os.path.exists(address.path) else "/dev")
    return opened
