"""``docs/channel.md``: the channel's protocol as a page, from ``protocol-xml/waylend-channel-v1.xml``, which defines it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

SOURCE = Path(__file__).parents[2] / "protocol-xml" / "waylend-channel-v1.xml"
PAGE = Path(__file__).parents[1] / "channel.md"

_HEAD = """\
# The channel

<!-- Made from protocol-xml/waylend-channel-v1.xml by `python -m docs.writing`: change that file. -->

The protocol between a guest half and a host half of waylend, where a machine boundary lies between them. How it fits into the
rest is in [architecture.md](architecture.md); what a hostile guest half can and can't do with it, in
[threat-model.md](threat-model.md).

Requests go from the guest half to the host half, events the other way. A message has two words of 32 bits in the machine's byte
order, `object` and `size in bytes << 16 | opcode`, then its arguments, each padded to 32 bits: a `uint` or a `new_id` is a word;
a `string` is its length with a NUL, then the bytes; an `array` is its length, then the bytes. Opcodes count from 0 in the order
below.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([_HEAD, *_lines(ElementTree.parse(SOURCE).getroot())]).rstrip() + "\n"  # noqa: S314 (our own file)


def _lines(protocol: ElementTree.Element) -> Iterator[str]:
    for interface in protocol.iter("interface"):
        yield f"## {interface.get('name')}, version {interface.get('version')}\n"
        yield from _said(interface)
        for kind, title in (("request", "Requests"), ("event", "Events")):
            messages = interface.findall(kind)
            if messages:
                yield f"### {title} of {interface.get('name')}\n"
            for opcode, message in enumerate(messages):
                yield from _message(opcode, message)


def _message(opcode: int, message: ElementTree.Element) -> Iterator[str]:
    arguments = message.findall("arg")
    signature = ", ".join(f"{arg.get('name')}: {arg.get('type')}" for arg in arguments)
    ends = " — ends its object" if message.get("type") == "destructor" else ""
    yield f"#### {opcode}: `{message.get('name')}({signature})`{ends}\n"
    yield from _said(message)
    told = [arg for arg in arguments if arg.get("summary") or arg.get("interface")]
    for arg in told:
        what = arg.get("summary") or f"a new `{arg.get('interface')}`"
        yield f"- `{arg.get('name')}`: {what}"
    if told:
        yield ""


def _said(element: ElementTree.Element) -> Iterator[str]:
    """The description: its summary, and its paragraphs in lines of the source's own."""
    description = element.find("description")
    if description is None:
        return
    summary = description.get("summary", "")
    yield f"{summary[:1].upper()}{summary[1:]}.\n"
    for paragraph in re.split(r"\n\s*\n", (description.text or "").strip()):
        if paragraph:
            yield "\n".join(line.strip() for line in paragraph.splitlines()) + "\n"
