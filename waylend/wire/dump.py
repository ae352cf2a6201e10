"""A message as one line of text, the way ``WAYLAND_DEBUG=1`` makes libwayland print it.

Nothing here decides anything: it shows what was decoded. Strings come from hostile clients and end on somebody's
terminal, so whatever could move a cursor, change a colour or reverse the writing is shown as an escape. Where libwayland
knows an object's interface from its table (a typeless object or new id), this shows ``[unknown]``: here is no table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from waylend.wire.spec import ArgType, Argument, MessageSpec

#: Longer strings are cut: a trace is read by people.
MAX_STRING_BYTES = 1024

_QUOTED = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def format_message(sender_is_client: bool, object_id: int, spec: MessageSpec, args: Sequence[object]) -> str:
    """``-> wl_compositor#4.create_surface(new id wl_surface#7)``, without the arrow for an event.

    ``args`` are as ``codec.decode`` gives them: one value for each letter of the signature, fds as whatever stands for
    them. Raises ValueError if they are too few or too many.
    """
    values = iter(args)
    try:
        texts = [_format(arg, values) for arg in spec.args]
    except StopIteration:
        texts = None
    if texts is None or next(values, values) is not values:
        raise ValueError(f"{spec}: {len(args)} arguments do not fit {spec.signature!r}")
    return f"{'-> ' if sender_is_client else ''}{spec.interface}#{object_id}.{spec.name}({', '.join(texts)})"


def quote(text: bytes) -> str:
    """A string of a peer in double quotes, safe to print: printable characters as they are, all else escaped.

    Printable is what Unicode calls so: no control characters, direction marks, line separators or unassigned codes.
    Control characters and bytes that are not UTF-8 show as ``\\xNN``, other characters as ``\\uNNNN``. Above 1024 bytes
    the rest is only counted.
    """
    rest = len(text) - MAX_STRING_BYTES
    shown = "".join(map(_escape, text[:MAX_STRING_BYTES].decode("utf-8", "surrogateescape")))
    return f'"{shown}"...({rest} more bytes)' if rest > 0 else f'"{shown}"'


def _escape(character: str) -> str:
    if character in _QUOTED:
        return _QUOTED[character]
    if character.isprintable():
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # what surrogateescape makes of a byte that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _format(arg: Argument, values: Iterator[object]) -> str:
    value = next(values)
    match arg.type, value:
        case ArgType.STRING, bytes(text):
            return quote(text)
        case ArgType.STRING, None:
            return "nil"
        case ArgType.ARRAY, bytes(content):
            return f"array[{len(content)}]"
        case ArgType.FIXED, float(number):
            return f"{number:.8f}"  # 24.8 bits: eight decimals are exact
        case ArgType.OBJECT, 0:
            return "nil"
        case ArgType.OBJECT, int(object_id):
            return f"{arg.interface or '[unknown]'}#{object_id}"
        case ArgType.NEW_ID, bytes(interface):
            return f"{quote(interface)}, {next(values)}, new id [unknown]#{next(values)}"
        case ArgType.NEW_ID, int(object_id):
            return f"new id {arg.interface}#{object_id}"
        case ArgType.FD, fd:
            return f"fd {fd}"
        case ((ArgType.INT | ArgType.UINT), int(number)):
            return str(number)
    raise ValueError(f"{value!r} is no {arg.type.name.lower()}")
