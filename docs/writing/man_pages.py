"""Man pages, a page for each command, from what click knows of it and from what only a person can say (``SAID``).

The language is man(7)'s. Nothing here depends on how a version of click words its help: the pages are in the repository, and
must not change with it.
"""

from __future__ import annotations

import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import click

FOLDER = Path(__file__).parents[1] / "man"

#: When a person last read the pages through.
_READ_ON = "2026-11-28"

#: The programs: name -> where their command is.
PROGRAMS = {"waylend": ("waylend.cli", "waylend"), "compositor-shim": ("compositor_shim.cli", "main")}

_RUNTIME_DIR = ("XDG_RUNTIME_DIR", "Where sockets are that have no absolute name, and waylend's own below waylend/.")
_DISPLAY = ("WAYLAND_DISPLAY", "The compositor's socket, unless --compositor names it.")
_PASSED = ("WAYLAND_SOCKET", "A descriptor that is connected to the compositor, for one client.")
_LISTEN = ("LISTEN_FDS, LISTEN_PID", "Listening sockets that a supervisor passes (sd_listen_fds(3)).")
_NOTIFY = ("NOTIFY_SOCKET", "Who is told when it is ready (sd_notify(3)).")

#: What click doesn't know: for each page its sections, as a paragraph or as terms with what they mean.
SAID: dict[str, dict[str, str | list[tuple[str, str]]]] = {
    "waylend": {
        "EXIT STATUS": [
            ("0", "All went well."),
            ("1", "An error, which one line on stderr names, with what to do about it."),
            ("2", "The command line is wrong."),
        ],
        "ENVIRONMENT": [_RUNTIME_DIR, _DISPLAY],
        "FILES": [
            ("$XDG_RUNTIME_DIR/waylend/*.control", "Where running proxies answer: for their own user, and root.")
        ],
        "EXAMPLES": [
            ("waylend run -- foot", "A terminal, through a proxy of its own."),
            ("waylend run --compositor shim --screenshot w.png -- ./client", "A test, without a desktop."),
            ("waylend serve --listen /run/guest/wayland-0 --socket-mode 660", "A proxy for a container."),
            ("waylend vm -- foot", "A terminal in a throw-away virtual machine."),
            ("waylend revoke --all", "All that is lent comes back; what is touched again is lent again."),
        ],
    },
    "waylend-run": {
        "EXIT STATUS": "The application's; 128 + N when signal N ended it, 127 when there is no such program, 126 when it can't "
        "be run, 1 for an error of waylend's own, 2 for a wrong command line.",
        "ENVIRONMENT": [_RUNTIME_DIR, _DISPLAY, _PASSED],
    },
    "waylend-vm": {
        "EXIT STATUS": "The application's; 128 + N when signal N ended it or the machine, 1 for an error of waylend's own, 2 for "
        "a wrong command line.",
        "ENVIRONMENT": [_RUNTIME_DIR, _DISPLAY, _PASSED],
    },
    "waylend-serve": {"ENVIRONMENT": [_RUNTIME_DIR, _DISPLAY, _PASSED, _LISTEN, _NOTIFY]},
    "waylend-host": {"ENVIRONMENT": [_RUNTIME_DIR, _DISPLAY, _PASSED, _NOTIFY]},
    "waylend-guest": {
        "ENVIRONMENT": [_RUNTIME_DIR, _LISTEN, _NOTIFY],
        "FILES": [
            ("/dev/virtio-ports/org.waylend.0", "The port of the channel, by default."),
            ("/sys/bus/pci/devices/*/resource2", "The lent memory: the BAR of the PCI device 1af4:1110."),
        ],
    },
    "waylend-leases": {"ENVIRONMENT": [_RUNTIME_DIR]},
    "waylend-top": {"ENVIRONMENT": [_RUNTIME_DIR]},
    "waylend-revoke": {"ENVIRONMENT": [_RUNTIME_DIR]},
    "waylend-doctor": {"EXIT STATUS": "0, or 1 where nothing can be lent at all."},
    "compositor-shim": {
        "EXIT STATUS": "The client's (128 + N when signal N ended it); 1 if it ended well but broke a protocol.",
        "ENVIRONMENT": [_RUNTIME_DIR],
    },
}


def pages() -> dict[str, str]:
    """File name -> page, for every command of every program."""
    found = dict(_commands())
    return {f"{name}.1": _page(name, found) for name in found}


def _commands() -> Iterator[tuple[str, click.Context]]:
    for program, (module, name) in PROGRAMS.items():
        yield from _below(getattr(importlib.import_module(module), name), program, None)


def _below(command: click.Command, name: str, parent: click.Context | None) -> Iterator[tuple[str, click.Context]]:
    """The command and its subcommands, by the names of their pages."""
    context = click.Context(command, info_name=name, parent=parent, **command.context_settings)
    yield context.command_path.replace(" ", "-"), context
    if isinstance(command, click.Group):
        for child_name in command.list_commands(context):
            child = command.get_command(context, child_name)
            assert child is not None
            yield from _below(child, child_name, context)


def _page(name: str, commands: dict[str, click.Context]) -> str:
    context = commands[name]
    command = context.command
    first, *paragraphs = _paragraphs(command.help or "")
    lines = [
        r".\" Made by `python -m docs.writing`: change the command instead.",
        f'.TH "{_text(name.upper())}" 1 {_READ_ON} waylend "waylend manual"',
        ".SH NAME",
        f"{_text(name)} \\- {_text(_brief(command))}",
        ".SH SYNOPSIS",
        f".B {_text(context.command_path)}",
        *_synopsis(context),
        ".SH DESCRIPTION",
        _prose(first),
    ]
    for paragraph in paragraphs:
        lines += [".PP", _prose(paragraph)]
    options = [parameter for parameter in command.get_params(context) if isinstance(parameter, click.Option)]
    lines += _terms("OPTIONS", [(_spelling(option), _meaning(option)) for option in options])
    prefix = f"{name}-"
    subcommands = [each for each in commands if each.startswith(prefix) and "-" not in each.removeprefix(prefix)]
    if isinstance(command, click.Group):
        told = [
            (each.removeprefix(prefix), f"{_summary(commands[each].command)} See {each}(1).") for each in subcommands
        ]
        lines += _terms("COMMANDS", told)
    for heading, said in SAID.get(name, {}).items():
        lines += _terms(heading, said) if isinstance(said, list) else [f".SH {heading}", _prose(said)]
    lines += [".SH SEE ALSO", _see_also(name, commands)]
    return "\n".join(lines) + "\n"


def _summary(command: click.Command) -> str:
    """One sentence."""
    return command.short_help or _paragraphs(command.help or "")[0].split(". ")[0].rstrip(".") + "."


def _brief(command: click.Command) -> str:
    """As whatis(1) has it: no full stop, and no capital."""
    summary = re.split(": | [(]", _summary(command).rstrip("."))[0]
    return summary[:1].lower() + summary[1:]


def _paragraphs(text: str) -> list[str]:
    return [" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text))]


def _synopsis(context: click.Context) -> Iterator[str]:
    pieces = [context.command.options_metavar or ""]
    for parameter in context.command.params:
        if isinstance(parameter, click.Argument):
            name = parameter.metavar or (parameter.name or "").upper()
            pieces.append(name if parameter.required or name.startswith("[") else f"[{name}]")
    if isinstance(context.command, click.Group):
        pieces.append("COMMAND [ARGS]...")
    yield from (_text(piece) for piece in pieces if piece)


def _spelling(option: click.Option) -> str:
    names = ", ".join([*sorted(option.opts, key=len), *option.secondary_opts])
    if option.is_flag or option.count:
        return names
    kind = option.type
    if option.metavar is not None:
        value = option.metavar
    elif isinstance(kind, click.Choice):
        value = "|".join(f"{choice}" for choice in kind.choices)
    else:
        value = {"integer range": "N", "integer": "N", "float range": "N", "path": "FILE"}.get(kind.name, "TEXT")
    return f"{names}{value}" if value.startswith("[=") else f"{names} {value}"


def _meaning(option: click.Option) -> str:
    told = option.help or ""
    if option.show_default is True and isinstance(option.default, (str, int, float)):
        # Of two words for one thing, the one that it is.
        default = (option.opts if option.default else option.secondary_opts)[-1] if option.is_flag else option.default
        told += f" The default is {default}."
    return told.replace("[default: ", "[By default: ") + (" May be repeated." if option.multiple else "")


def _terms(heading: str, terms: list[tuple[str, str]]) -> list[str]:
    lines = [f".SH {heading}"] if terms else []
    for term, meaning in terms:
        lines += [".TP", f".B {_text(term)}", _prose(meaning) or r"\&"]
    return lines


def _see_also(name: str, commands: dict[str, click.Context]) -> str:
    parent = name.rsplit("-", 1)[0]
    near = [
        each for each in commands if each != name and (each == parent or each.startswith((f"{parent}-", f"{name}-")))
    ]
    if name in PROGRAMS:
        near = [each for each in commands if each != name and (each in PROGRAMS or each.startswith(f"{name}-"))]
    return ",\n".join(f".BR {_text(each)} (1)" for each in sorted(near)).replace(",\n", " ,\n")


def _prose(text: str) -> str:
    """A sentence begins a line (man-pages(7)), and no line is long."""
    sentences = re.split(r"(?<=[.?!]) (?=[A-Z])", text)
    return "\n".join(
        _text(line) for sentence in sentences for line in textwrap.wrap(sentence, 70, break_on_hyphens=False)
    )


def _text(text: str) -> str:
    """As man(7) has it: a backslash is one, a hyphen is a minus that can be copied, and no line begins a request."""
    escaped = text.replace("\\", r"\e").replace("-", r"\-").replace("`", r"\(ga").replace("'", r"\(aq")
    return rf"\&{escaped}" if escaped.startswith((".", r"\(aq")) else escaped
