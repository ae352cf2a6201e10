"""``waylend serve``."""

from __future__ import annotations

import signal
import socket
from typing import Any

import anyio
import click

from waylend.cli.options import host_option, open_trace, policy_from, policy_options, trace_option
from waylend.cli.process import freeze_memory, host_or_passed_socket
from waylend.proxy import serve
from waylend.relay.sockets import activated_sockets, notify_supervisor


@click.command("serve")
@click.option(
    "--listen", metavar="SOCKET", help="The socket to make for the guest, relative to $XDG_RUNTIME_DIR or absolute."
)
@host_option
@click.option("--once", is_flag=True, help="End when the compositor goes away, instead of waiting for it.")
@click.option(
    "--socket-mode", metavar="OCTAL", help="Permissions of the socket, like 660, for a guest that is another user."
)
@click.option(
    "--control", metavar="PATH", help="Where to answer `waylend leases`. [default: in $XDG_RUNTIME_DIR/waylend]"
)
@policy_options
@trace_option
def command(
    listen: str | None,
    host: str | None,
    once: bool,
    socket_mode: str | None,
    control: str | None,
    trace: str | None,
    **rules: Any,
) -> None:
    """Be a proxy for a local guest until SIGINT or SIGTERM.

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
            async with serve(
                listen=where,
                host=host_or_passed_socket(host),
                policy=policy,
                once=once,
                socket_mode=mode,
                control=control or True,
                trace=open_trace(trace),
            ) as proxy:
                freeze_memory()
                notify_supervisor("READY=1")
                async with anyio.create_task_group() as tasks:

                    async def until_signal() -> None:
                        async for _ in signals:
                            tasks.cancel_scope.cancel()

                    tasks.start_soon(until_signal)
                    await proxy.ended.wait()
                    tasks.cancel_scope.cancel()
                notify_supervisor("STOPPING=1")

    try:
        anyio.run(main)
    finally:
        for sock in passed:
            sock.close()
