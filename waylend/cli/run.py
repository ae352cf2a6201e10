"""``waylend run``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import click

from waylend.cli.options import open_trace, policy_from, policy_options, trace_option
from waylend.cli.process import freeze_memory, host_or_passed_socket
from waylend.errors import UsageError
from waylend.proxy import serve
from waylend.relay.sockets import runtime_dir

# How long an app may take to end when it is asked to, before it is killed.
_GRACE_S = 5.0
_SHIM_START_S = 10.0


@click.command("run", context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
@click.option(
    "--host",
    metavar="SOCKET|shim",
    help="The compositor's socket, or `shim`: a headless one of our own. [default: $WAYLAND_DISPLAY]",
)
@click.option("--size", default="1280x800", metavar="WxH", show_default=True, help="The size of the shim's screen.")
@click.option(
    "--screenshot",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write what the shim shows at the end to a PNG file.",
)
@policy_options
@trace_option
@click.argument("app", metavar="APP", required=True)
@click.argument("args", metavar="[ARGS]...", nargs=-1, type=click.UNPROCESSED)
def command(
    *,
    host: str | None,
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
    if screenshot and host != "shim":
        raise click.UsageError("--screenshot needs --host shim")

    async def main() -> int:
        with (
            anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals,
            tempfile.TemporaryDirectory(prefix="waylend-", dir=_private_place()) as folder,
        ):
            listen = f"{folder}/wayland-0"
            async with (
                _host(host, Path(folder), size, screenshot) as the_host,
                serve(listen=listen, host=the_host, policy=policy, once=True, trace=open_trace(trace)),
            ):
                freeze_memory()
                return await _run([app, *args], {"WAYLAND_DISPLAY": listen}, signals)

    sys.exit(anyio.run(main))


def _private_place() -> str | None:
    """Where the socket goes: XDG_RUNTIME_DIR, or where that isn't set, the system's temporary folder (mode 700 it is anyway)."""
    try:
        return f"{runtime_dir()}"
    except UsageError:
        return None


@asynccontextmanager
async def _host(host: str | None, folder: Path, size: str, screenshot: Path | None) -> AsyncIterator[Any]:
    """The compositor to use; a shim of our own runs until the context is left."""
    if host != "shim":
        yield host_or_passed_socket(host)
        return
    path = folder / "shim-0"
    argv = [sys.executable, "-m", "compositor_shim", "--socket", f"{path}", "--size", size]
    if screenshot:
        argv += ["--screenshot-on-exit", f"{screenshot}"]
    # In a session of its own: Ctrl-C at the terminal is ours to handle, and the shim's screenshot comes last.
    async with await anyio.open_process(
        argv, stdin=subprocess.DEVNULL, stdout=None, stderr=None, start_new_session=True
    ) as shim:
        try:
            with anyio.fail_after(_SHIM_START_S):
                while not path.exists():
                    if shim.returncode is not None:
                        raise UsageError(f"the compositor shim ended with status {shim.returncode}")
                    await anyio.sleep(0.02)
            yield f"{path}"
        except TimeoutError:
            raise UsageError(f"the compositor shim made no socket within {_SHIM_START_S:g} s") from None
        finally:
            with anyio.CancelScope(shield=True):
                await _end(shim)


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
                await _end(app, number)

        tasks.start_soon(pass_on)
        status = await app.wait()
        tasks.cancel_scope.cancel()
    return status if status >= 0 else 128 - status


async def _end(process: anyio.abc.Process, number: int = signal.SIGTERM) -> None:
    """Asks a process to end, and kills it when it doesn't."""
    if process.returncode is None:
        process.send_signal(signal.Signals(number))
        with anyio.move_on_after(_GRACE_S):
            await process.wait()
            return
        process.kill()
        await process.wait()
