"""``waylend revoke``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from waylend.errors import UsageError
from waylend.service.control import answers_of, running_proxies


@click.command("revoke")
@click.argument("lease", type=int, required=False)
@click.option("--all", "everything", is_flag=True, help="Take the pages of all leases.")
@click.option("--control", metavar="PATH", help="Ask the proxy with this control socket. [default: the one that runs]")
def command(lease: int | None, everything: bool, control: str | None) -> None:
    """Take the pages of LEASE away (see `waylend leases`). The next touch is served again.

    What a VM's clients drew is given up, so that the host has its memory back; the guest draws again what is shown.
    """
    if everything == (lease is not None):
        raise click.UsageError("give a LEASE or --all")
    paths = [Path(control)] if control else running_proxies()
    if not paths:
        raise UsageError("no proxy is running")
    if len(paths) > 1 and not everything:
        raise UsageError(f"{len(paths)} proxies are running: say which with --control ({', '.join(map(str, paths))})")
    answers, failed = answers_of(paths, "revoke", lease=lease)
    for answer in answers:
        print(f"took back {answer['pages_revoked']} pages of {answer['leases_revoked']} leases")
    sys.exit(1 if failed else 0)
