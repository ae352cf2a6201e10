"""``waylend run``."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import click

from waylend.cli.options import (
    compositor_option,
    open_trace,
    policy_from,
    policy_options,
    security_context_option,
    shim_options,
    trace_option,
)
from waylend.cli.process import end_process, freeze_memory, private_place, the_compositor
from waylend.local.proxy import serve


@click.command("run", context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
@compositor_option
@shim_options
@policy_options
@security_context_option
@trace_option
@click.argument("app", metavar="APP", required=True)
@click.argument("args", metavar="[ARGS]...", nargs=-1, type=click.UNPROCESSED)
def command(
    *,
    compositor: str | None,
    size: str,
    screenshot: Path | None,
    trace: str | None,
    app: str,
    args: tuple[str, ...],
    **rules: Any,
) -> None:
    """Run APP through a private proxy. The exit status is APP's (128 + N when signal N ended it).

    APP sees WAYLAND_DISPLAY, and no DISPLAY: X11 would lead past the proxy.
    """
    policy = policy_from(**rules)

    async def main() -> int:
        with (
            anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals,
            tempfile.TemporaryDirectory(prefix="waylend-", dir=private_place()) as folder,
        ):
            listen = f"{folder}/wayland-0"
            async with (
                the_compositor(compositor, size, screenshot) as to,
                serve(listen=listen, compositor=to, policy=policy, once=True, trace=open_trace(trace)),
            ):
                freeze_memory()
                return await _run([app, *args], {"WAYLAND_DISPLAY": listen}, signals)

    sys.exit(anyio.run(main))


async def _run(argv: list[str], environ: Mapping[str, str], signals: Any) -> int:
    """Runs the app to its end, or ends it when a signal asks us to. Returns its exit status, as a shell has it."""
    env = {**os.environ, **environ}
    for leads_past_us in ("DISPLAY", "WAYLAND_SOCKET"):
        env.pop(leads_past_us, None)
    try:
        app = await anyio.open_process(argv, env=env, stdin=None, stdout=None, stderr=None)
    except OSError as error:
        print(f"waylend: can't run {argv[0]}: {error.strerror}", file=sys.stderr)
        return 127 if isinstance(error, FileNotFoundError) else 126
    async with app, anyio.create_task_group() as tasks:

        async def pass_on() -> None:
            async for number in signals:
                await end_process(app, number)

        tasks.start_soon(pass_on)
        status = await app.wait()
        tasks.cancel_scope.cancel()
    return status if status >= 0 else 128 - status
