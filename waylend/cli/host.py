"""``waylend host``."""

from __future__ import annotations

import signal
from typing import Any

import anyio
import click

from waylend.cli.options import (
    host_option,
    open_trace,
    policy_from,
    policy_options,
    token_from,
    token_option,
    trace_option,
)
from waylend.cli.process import freeze_memory, host_or_passed_socket
from waylend.host import serve_guest
from waylend.relay.sockets import notify_supervisor


@click.command("host")
@click.option(
    "--channel", metavar="WHERE", required=True, help="Where the guest's half connects: unix:PATH or vsock:PORT."
)
@click.option("--bar", metavar="LINK", help="A symbolic link to make to the lent memory's file, for a VMM to map.")
@click.option(
    "--name", metavar="NAME", default="guest", show_default=True, help="What the compositor is told of the guest."
)
@host_option
@click.option("--once", is_flag=True, help="End when the compositor goes away, instead of waiting for it.")
@click.option("--uid", "uids", type=int, multiple=True, metavar="UID", help="This user may be the guest's half, too.")
@click.option("--cid", "cids", type=int, multiple=True, metavar="CID", help="Only this machine may be (vsock).")
@click.option(
    "--silence",
    type=click.FloatRange(0),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="The guest is lost when nothing is heard of it for so long; 0: never.",
)
@click.option(
    "--control", metavar="PATH", help="Where to answer `waylend leases`. [default: in $XDG_RUNTIME_DIR/waylend]"
)
@token_option
@policy_options
@trace_option
def command(
    channel: str,
    bar: str | None,
    name: str,
    host: str | None,
    once: bool,
    uids: tuple[int, ...],
    cids: tuple[int, ...],
    silence: float,
    control: str | None,
    token_file: str | None,
    trace: str | None,
    **rules: Any,
) -> None:
    """Be the host's half for one guest: lend it memory, and show its clients, until SIGINT or SIGTERM."""
    policy = policy_from(**rules)

    async def main() -> None:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with serve_guest(
                channel=channel,
                host=host_or_passed_socket(host),
                policy=policy,
                name=name,
                bar_link=bar,
                token=token_from(token_file),
                uids=uids,
                cids=cids,
                once=once,
                control=control or True,
                silence_s=silence,
                trace=open_trace(trace),
            ) as running:
                freeze_memory()
                notify_supervisor("READY=1")
                async with anyio.create_task_group() as tasks:

                    async def until_signal() -> None:
                        async for _ in signals:
                            tasks.cancel_scope.cancel()

                    tasks.start_soon(until_signal)
                    await running.ended.wait()
                    tasks.cancel_scope.cancel()
                notify_supervisor("STOPPING=1")

    anyio.run(main)
