"""``waylend serve``."""

from __future__ import annotations

from typing import Any

import anyio
import click

from waylend.cli.jailing import go_to_jail, jail_option
from waylend.cli.options import (
    TracedCommand,
    compositor_option,
    control_option,
    listen_options,
    once_option,
    open_trace,
    policy_from,
    policy_options,
    security_context_option,
    trace_option,
)
from waylend.cli.process import listening, the_compositor, until_asked_to_stop
from waylend.local.proxy import serve


@click.command("serve", cls=TracedCommand)
@listen_options
@compositor_option
@once_option
@control_option
@policy_options
@security_context_option
@trace_option
@jail_option
def command(
    listen: str | None,
    socket_mode: str | None,
    compositor: str | None,
    once: bool,
    control: str | None,
    trace: str | None,
    no_jail: bool,
    **rules: Any,
) -> None:
    """Be a proxy for a local guest until SIGINT or SIGTERM.

    With systemd's socket activation (LISTEN_FDS) the sockets that it passes are served, and --listen isn't needed.
    """
    policy = policy_from(**rules)
    tracing = open_trace(trace)

    async def main() -> None:
        with listening(listen, socket_mode) as sockets, until_asked_to_stop() as asked_to_stop:
            async with the_compositor(compositor) as to:
                go_to_jail(no_jail, sockets=sockets, control=control)
                async with serve(
                    listen=sockets, compositor=to, policy=policy, once=once, control=control or True, trace=tracing
                ) as proxy:
                    await asked_to_stop(proxy.ended)

    anyio.run(main)
