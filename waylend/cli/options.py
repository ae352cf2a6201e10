"""Options that several commands share, and what they mean."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import click
from click.core import ParameterSource

from waylend.policy import Policy, check_names, read_policy
from waylend.relay.session import Trace
from waylend.wire.dump import format_message
from waylend.wire.scan import Message

Command = Callable[..., Any]


def compositor_option(command: Command) -> Command:
    """``--compositor``; ``process.the_compositor`` takes it."""
    return click.option(
        "--compositor",
        metavar="SOCKET|shim",
        help="The compositor's socket, relative to $XDG_RUNTIME_DIR or absolute, or `shim`: a headless one of our own. "
        "[default: $WAYLAND_DISPLAY]",
    )(command)


def shim_options(command: Command) -> Command:
    """``--size`` and ``--screenshot``, of use with ``--compositor shim``; ``process.Shim`` takes them."""
    for option in (
        click.option(
            "--screenshot",
            type=click.Path(path_type=Path, dir_okay=False),
            callback=can_be_written,
            metavar="FILE",
            help="Write what the shim shows at the end to a PNG file.",
        ),
        click.option(
            "--size",
            default="1280x800",
            callback=_size,
            metavar="WxH",
            show_default=True,
            help="The size of the shim's screen.",
        ),
    ):
        command = option(command)
    return command


def _size(context: click.Context, option: click.Parameter, text: str) -> str:
    if context.get_parameter_source(option.name or "") is not ParameterSource.DEFAULT:
        # The shim's own check, which a guest needs no more than the shim.
        importlib.import_module("compositor_shim.cli").size_of(context, option, text)
    return text


def can_be_written(_context: click.Context, _option: click.Parameter, path: Path | None) -> Path | None:
    """At the end it would be too late to say so."""
    if path is not None and not os.access(path if path.exists() else path.parent, os.W_OK):
        why = "Permission denied" if path.parent.exists() else "there is no such folder"
        raise click.BadParameter(f"can't write {path}: {why}")
    return path


def listen_options(command: Command) -> Command:
    """``--listen`` and ``--socket-mode``; ``process.Listening`` takes them."""
    for option in (
        click.option(
            "--socket-mode",
            metavar="OCTAL",
            help="Permissions of the socket, like 660, for clients of another user.",
        ),
        click.option(
            "--listen",
            metavar="SOCKET",
            help="The socket to make for clients, relative to $XDG_RUNTIME_DIR or absolute.",
        ),
    ):
        command = option(command)
    return command


def once_option(command: Command) -> Command:
    return click.option("--once", is_flag=True, help="End when the compositor goes away, instead of waiting for it.")(
        command
    )


def control_option(command: Command) -> Command:
    return click.option(
        "--control", metavar="PATH", help="Where to answer `waylend leases`. [default: in $XDG_RUNTIME_DIR/waylend]"
    )(command)


def json_option(command: Command) -> Command:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def policy_options(command: Command) -> Command:
    """``--policy`` and what changes it; ``policy_from`` takes them."""
    for option in (
        click.option("--app-id-prefix", metavar="TEXT", help="Put TEXT before every application id."),
        click.option("--title-prefix", metavar="TEXT", help="Put TEXT before every window title, like '[work] '."),
        click.option(
            "--deny", multiple=True, metavar="INTERFACE", help="Hide this global from the guest (* is a wild card)."
        ),
        click.option("--allow", multiple=True, metavar="INTERFACE", help="Show this global to the guest, too."),
        click.option(
            "--policy",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="Read rules from a TOML file.",
        ),
    ):
        command = option(command)
    return command


def security_context_option(command: Command) -> Command:
    """A rule for those who connect to the compositor; ``policy_from`` takes it."""
    return click.option(
        "--security-context/--no-security-context",
        default=None,
        help="Whether the compositor is told that this is a guest. [default: it is, where it has a word for it]",
    )(command)


def policy_from(
    policy: Path | None,
    allow: tuple[str, ...],
    deny: tuple[str, ...],
    title_prefix: str | None,
    app_id_prefix: str | None,
    security_context: bool | None = None,
) -> Policy:
    """The file's policy, or the built-in one, with what the command line adds. Raises UsageError."""
    base = read_policy(policy) if policy else Policy()
    check_names((*allow, *deny))
    return base.with_changes(
        allow=allow,
        deny=deny,
        security_context=security_context,
        title_prefix=title_prefix,
        app_id_prefix=app_id_prefix,
    )


def token_option(command: Command) -> Command:
    """``--token-file``; ``token_from`` takes it."""
    return click.option(
        "--token-file",
        metavar="FILE",
        help="A secret that both halves know, where the channel itself doesn't say who is there.",
    )(command)


def token_from(token_file: str | None) -> str:
    """The file's first line, or an empty string."""
    if token_file is None:
        return ""
    try:
        token = Path(token_file).read_text(encoding="utf-8").partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"{token_file}: {error}", param_hint="--token-file") from error
    if not token or len(token) > 1024 or "\0" in token:
        raise click.BadParameter(f"{token_file}: the first line is no token", param_hint="--token-file")
    return token


class TracedCommand(click.Command):
    """A command with ``trace_option``, whose value is what stands behind ``=``: the next word may be APP."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        options = [option for option in self.get_params(ctx) if isinstance(option, click.Option)]
        with_value = {name for option in options if not (option.is_flag or option.count) for name in option.opts}
        words: list[str] = []
        while args and args[0].startswith("-") and args[0] != "--":
            word, *args = args
            words.append("--trace=-" if word == "--trace" else word)
            if word in with_value and word != "--trace" and args:
                words.append(args.pop(0))
        return super().parse_args(ctx, [*words, *args])


def trace_option(command: Command) -> Command:
    """``--trace``, of a ``TracedCommand``; ``open_trace`` takes it."""
    return click.option(
        "--trace",
        is_flag=False,
        flag_value="-",
        metavar="[=FILE]",
        help="Write every message, as WAYLAND_DEBUG does, to stderr or to FILE.",
    )(command)


def open_trace(where: str | None) -> Trace | None:
    """What writes messages to stderr (``-``) or a file; one line each, with the client's number in front."""
    if where is None:
        return None
    try:
        stream: TextIO = sys.stderr if where == "-" else open(where, "a", encoding="utf-8", buffering=1)  # noqa: SIM115
    except OSError as error:
        raise click.BadParameter(f"{where}: {error.strerror}", param_hint="--trace") from error

    def trace(session_id: int, is_request: bool, message: Message[int]) -> None:
        stream.write(f"[{session_id}] {format_message(is_request, message.object_id, message.spec, message.args)}\n")

    return trace
