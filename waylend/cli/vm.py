"""``waylend vm``."""

from __future__ import annotations

import re
import signal
import sys
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
from waylend.cli.process import ShimFailed, check_shim_options, private_folder, the_compositor
from waylend.vm.machine import Machine, find_kernel, run_in_vm


def _memory(_context: click.Context, _option: click.Parameter, text: str) -> str:
    if re.fullmatch("[1-9][0-9]*[KMGT]?", text, re.IGNORECASE) is None:
        raise click.BadParameter(f"{text!r} is no size like 512M or 2G")
    return text


@click.command(
    "vm", cls=TracedCommand, context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False}
)
@click.option("--kernel", metavar="IMAGE", help="The kernel to boot. [default: the running one, else the newest]")
@click.option(
    "--memory",
    metavar="SIZE",
    default="1G",
    callback=_memory,
    show_default=True,
    help="The VM's memory, like 512M or 2G.",
)
@click.option("--cpus", type=click.IntRange(1, 64), default=2, show_default=True, help="How many CPUs the VM has.")
@click.option("--network", is_flag=True, help="Give the VM a network (QEMU's user network).")
@click.option(
    "--rw-home", is_flag=True, help="Let the VM change the files in your home; else its changes are forgotten."
)
@click.option(
    "--accel",
    type=click.Choice(["auto", "kvm", "tcg"]),
    default="auto",
    show_default=True,
    help="How the VM runs: with KVM, emulated (tcg), or emulated only where KVM doesn't work (auto).",
)
@click.option("--quiet", "-q", is_flag=True, help="Don't say how the boot goes.")
@compositor_option
@shim_options
@policy_options
@security_context_option
@trace_option
@click.argument("app", metavar="APP", required=True)
@click.argument("args", metavar="[ARGS]...", nargs=-1, type=click.UNPROCESSED)
def command(
    *,
    kernel: str | None,
    memory: str,
    cpus: int,
    network: bool,
    rw_home: bool,
    accel: str,
    quiet: bool,
    compositor: str | None,
    size: str,
    screenshot: Path | None,
    trace: str | None,
    app: str,
    args: tuple[str, ...],
    **rules: Any,
) -> None:
    """Run APP in a throw-away VM of this very system, and show it here. The exit status is APP's.

    APP runs as you, in a machine with this system's kernel and files; what it changes is forgotten when it ends, and it has
    no network. Ctrl-C ends the VM.
    """
    policy = policy_from(**rules)
    tracing = open_trace(trace)
    check_shim_options(compositor, screenshot)
    if kernel is not None:
        find_kernel(kernel)
    verbose = click.get_current_context().find_root().params.get("verbose", 0)
    machine = Machine(kernel, memory, cpus, network, rw_home, accel, verbose)

    def say(what: str) -> None:
        if not quiet:
            print(f"waylend: {what}", file=sys.stderr, flush=True)

    async def main() -> int:
        status = 0
        with (
            anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals,
            private_folder() as folder,
        ):
            try:
                async with the_compositor(compositor, size, screenshot, strict=compositor == "shim") as to:
                    status = await run_in_vm(
                        [app, *args],
                        machine,
                        folder=Path(folder),
                        compositor=to,
                        policy=policy,
                        signals=signals,
                        say=say,
                        trace=tracing,
                    )
            except ShimFailed:
                status = status or 1
        return status

    sys.exit(anyio.run(main))
