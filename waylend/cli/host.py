"""``waylend host``."""

from __future__ import annotations

import os
import shlex
from typing import Any

import anyio
import click

from waylend.channel.transport import Address
from waylend.cli.jailing import go_to_jail, jail_option
from waylend.cli.options import (
    TracedCommand,
    compositor_option,
    control_option,
    once_option,
    open_trace,
    policy_from,
    policy_options,
    security_context_option,
    token_from,
    token_option,
    trace_option,
)
from waylend.cli.process import the_compositor, until_asked_to_stop
from waylend.host_half.serving import serve_guest
from waylend.lending.pages import PAGE_SIZE, page_count_of
from waylend.policy import Policy
from waylend.vm.qemu import PROGRAM, qemu_version
from waylend.vm.qemu import libvirt_xml as xml_for_libvirt
from waylend.vm.qemu import qemu_args as args_for_qemu


@click.command("host", cls=TracedCommand)
@click.option(
    "--channel", metavar="WHERE", required=True, help="Where the guest's half connects: unix:PATH or vsock:PORT."
)
@click.option("--bar", metavar="LINK", help="A symbolic link to make to the lent memory's file, for a VMM to map.")
@click.option(
    "--name", metavar="NAME", default="guest", show_default=True, help="What the compositor is told of the guest."
)
@compositor_option
@once_option
@click.option("--uid", "uids", type=int, multiple=True, metavar="UID", help="This user may be the guest's half, too.")
@click.option("--cid", "cids", type=int, multiple=True, metavar="CID", help="Only this machine may be (vsock).")
@click.option(
    "--silence",
    type=click.FloatRange(0),
    default=0.0,
    metavar="SECONDS",
    help="The guest is lost when nothing is heard of it for so long. [default: never; it may be paused]",
)
@control_option
@click.option(
    "--qemu-args", is_flag=True, help="Print the options that give a QEMU machine this channel and memory, and end."
)
@click.option("--qemu", metavar="PROGRAM", default=PROGRAM, show_default=True, help="The QEMU that --qemu-args is for.")
@click.option("--libvirt-xml", is_flag=True, help="Print the same as a piece of a libvirt domain, and end.")
@token_option
@policy_options
@security_context_option
@trace_option
@jail_option
def command(
    channel: str,
    bar: str | None,
    name: str,
    compositor: str | None,
    once: bool,
    uids: tuple[int, ...],
    cids: tuple[int, ...],
    silence: float,
    control: str | None,
    qemu_args: bool,
    qemu: str,
    libvirt_xml: bool,
    token_file: str | None,
    trace: str | None,
    no_jail: bool,
    **rules: Any,
) -> None:
    """Be the host's half for one guest: lend it memory, and show its clients, until SIGINT or SIGTERM."""
    policy = policy_from(**rules)
    tracing, token = open_trace(trace), token_from(token_file)
    if qemu_args or libvirt_xml:
        click.echo(_for_a_vmm(channel, bar, policy, None if libvirt_xml else qemu))
        return

    address = Address.parse(channel)  # what is mistyped is said before what is missing

    async def main() -> None:
        with until_asked_to_stop() as asked_to_stop:
            async with the_compositor(compositor) as to:
                go_to_jail(no_jail, control=control, makes=[path for path in (address.path, bar) if path])
                async with serve_guest(
                    channel=channel,
                    compositor=to,
                    policy=policy,
                    name=name,
                    bar_link=bar,
                    token=token,
                    uids=uids,
                    cids=cids,
                    once=once,
                    control=control or True,
                    silence_s=silence,
                    trace=tracing,
                ) as half:
                    await asked_to_stop(half.ended)

    anyio.run(main)


def _for_a_vmm(channel: str, bar: str | None, policy: Policy, qemu: str | None) -> str:
    """For that program, or libvirt's XML."""
    address = Address.parse(channel)
    if address.kind != "unix" or bar is None:
        raise click.UsageError("a VMM needs --channel unix:PATH for its port, and --bar LINK for the memory")
    size_bytes = page_count_of(policy.limits.aperture_bytes) * PAGE_SIZE
    paths = os.path.abspath(bar), size_bytes, os.path.abspath(address.path)
    return shlex.join(args_for_qemu(*paths, version=qemu_version(qemu))) if qemu else xml_for_libvirt(*paths)
