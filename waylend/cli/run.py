"""``waylend run``."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import click

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
from waylend.cli.process import (
    ShimFailed,
    check_shim_options,
    end_process,
    freeze_memory,
    private_folder,
    the_compositor,
)
from waylend.local.proxy import serve
from waylend.relay.events import RelayEvent, SessionEnded


@click.command(
    "run", cls=TracedCommand, context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False}
)
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

    APP sees WAYLAND_DISPLAY, and no DISPLAY: X11 would lead past the proxy. With --compositor shim the exit status is 1
    where APP ended well but broke a protocol, or the screenshot could not be written.
    """
    policy = policy_from(**rules)
    tracing = open_trace(trace)
    check_shim_options(compositor, screenshot)
    if shutil.which(app) is None:
        number = errno.EACCES if "/" in app and os.path.exists(app) else errno.ENOENT
        sys.exit(_not_run(app, OSError(number, os.strerror(number))))
    strict = compositor == "shim"
    violations: list[str] = []

    def note(event: RelayEvent) -> None:
        if isinstance(event, SessionEnded) and event.broke_protocol:
            violations.append(event.reason)

    async def main() -> int:
        status = 0
        with (
            anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals,
            private_folder() as folder,
        ):
            listen = f"{folder}/wayland-0"
            try:
                async with (
                    the_compositor(compositor, size, screenshot, strict=strict) as to,
                    serve(listen=listen, compositor=to, policy=policy, once=True, trace=tracing, on_event=note),
                ):
                    freeze_memory()
                    status = await _run([app, *args], {"WAYLAND_DISPLAY": listen}, signals)
            except ShimFailed:
                status = status or 1
        return status

    status = anyio.run(main)
    for violation in violations if strict else ():
        print(f"waylend: {violation}", file=sys.stderr)
        status = status or 1
    sys.exit(status)


async def _run(argv: list[str], environ: Mapping[str, str], signals: Any) -> int:
    """Runs the app to its end, or ends it when a signal asks us to. Returns its exit status, as a shell has it."""
    env = {**os.environ, **environ}
    for leads_past_us in ("DISPLAY", "WAYLAND_SOCKET"):
        env.pop(leads_past_us, None)
    try:
        app = await anyio.open_process(argv, env=env, stdin=None, stdout=None, stderr=None)
    except OSError as error:
        return _not_run(argv[0], error)
    async with app, anyio.create_task_group() as tasks:

        async def pass_on() -> None:
            async for number in signals:
                await end_process(app, number)

        tasks.start_soon(pass_on)
        status = await app.wait()
        tasks.cancel_scope.cancel()
    return status if status >= 0 else 128 - status


def _not_run(app: str, error: OSError) -> int:
    """Says so; the exit status that a shell has for it."""
    print(f"waylend: can't run {app}: {error.strerror}", file=sys.stderr)
    return 127 if isinstance(error, FileNotFoundError) else 126
