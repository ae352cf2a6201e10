"""The command ``waylend``: one module a command, imported when it is asked for."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from typing import Any

import click

from waylend.errors import WaylendError

_COMMANDS = {
    "run": "Run one application through a private proxy.",
    "vm": "Run one application in a throw-away VM of this system.",
    "serve": "Be a proxy for a local guest: a container, another user.",
    "host": "Be the host's half for a guest machine of your own.",
    "guest": "Be the guest's half, in such a machine.",
    "leases": "Show what running proxies have lent.",
    "top": "Watch what running proxies have lent.",
    "revoke": "Take lent pages back; the next touch is served again.",
    "doctor": "Say what this machine offers, and how to get what is missing.",
    "bench": "Measure what this machine does with lent memory.",
}


class _Commands(click.Group):
    """Knows its commands by name, and imports ``waylend.cli.NAME`` for the one that runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command = importlib.import_module(f"waylend.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        command.short_help = _COMMANDS[cmd_name]
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="waylend", message="%(prog)s %(version)s")
@click.option("-v", "--verbose", count=True, help="Say more on stderr; twice: say everything.")
def waylend(verbose: int) -> None:
    """Run a guest's applications on the host's desktop: a Wayland proxy whose memory is lent."""
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.basicConfig(level=level, format="waylend: %(message)s", stream=sys.stderr)


def main(args: list[str] | None = None) -> Any:
    """The console script. Our errors are one line on stderr and exit status 1 (2 for a wrong command line)."""
    try:
        return waylend.main(args, prog_name="waylend", standalone_mode=True)
    except WaylendError as error:
        print(f"waylend: {error}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:
        # Whoever read our output has enough of it; nothing is left to say at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
