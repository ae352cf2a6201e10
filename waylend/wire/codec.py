"""Messages to bytes and back. No socket, no object table; fds are opaque tokens that travel beside the bytes.

The wire format is the Wayland protocol's: host byte order, every argument padded to 32 bits, strings with their NUL
counted, arrays with their length, fds not in the bytes at all.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence

from waylend.errors import Malformed
from waylend.wire.spec import HEADER_BYTES, ArgType, MessageSpec

#: The size field has 16 bits and counts whole words.
MAX_MESSAGE_BYTES = 65532

_HEADER = struct.Struct("=II")
_UINT = struct.Struct("=I")
_INT = struct.Struct("=i")

#: An argument as Python has it: int (0 for a null object), float (fixed), bytes (string without its NUL, array), None (a
#: null string), or a token for an fd.
Value = object


def header(object_id: int, opcode: int, size_bytes: int) -> bytes:
    """The two words that every message begins with."""
    return _HEADER.pack(object_id, size_bytes << 16 | opcode)


def encode(spec: MessageSpec, object_id: int, args: Sequence[Value]) -> tuple[bytes, list[Value]]:
    """The bytes of a message and its fd tokens, both in wire order.

    ``args`` holds one value for each letter of the signature; a typeless new_id is three (interface name, version, id).
    Raises ValueError for a value that its type can't hold, or a message above 65532 bytes.
    """
    parts: list[bytes] = []
    fds: list[Value] = []
    values = iter(args)
    try:
        for arg in spec.args:
            if arg.type is ArgType.NEW_ID and arg.interface is None:
                parts.append(_encode_bytes(next(values), b"\0", nullable=False))
                parts.append(_UINT.pack(next(values)))
                parts.append(_UINT.pack(next(values)))
            elif arg.type is ArgType.FD:
                fds.append(next(values))
            elif arg.type is ArgType.STRING:
                parts.append(_encode_bytes(next(values), b"\0", nullable=arg.nullable))
            elif arg.type is ArgType.ARRAY:
                parts.append(_encode_bytes(next(values), b"", nullable=False))
            else:
                parts.append(_ENCODERS[arg.type](next(values)))
    except (struct.error, StopIteration, TypeError) as error:
        raise ValueError(f"{spec}: arguments {args!r} do not fit {spec.signature!r}") from error
    if next(values, parts) is not parts:
        raise ValueError(f"{spec}: too many arguments for {spec.signature!r}")
    body = b"".join(parts)
    size = HEADER_BYTES + len(body)
    if size > MAX_MESSAGE_BYTES:
        raise ValueError(f"{spec}: {size} bytes are more than a message can have")
    return header(object_id, spec.opcode, size) + body, fds


def decode(spec: MessageSpec, body: bytes | memoryview, fds: Iterable[Value] = ()) -> list[Value]:
    """The arguments of a message, from the bytes behind its header; the inverse of :func:`encode`.

    Takes the message's fd tokens from ``fds``. Raises Malformed when the bytes do not hold exactly the arguments of
    ``spec``: too short, too long, a string without its NUL or with one within, null where it may not be, fewer fds than
    arguments.
    """
    args: list[Value] = []
    tokens = iter(fds)
    at = 0
    try:
        for arg in spec.args:
            if arg.type is ArgType.FD:
                args.append(next(tokens))
                continue
            if arg.type is ArgType.STRING or arg.type is ArgType.ARRAY:
                value, at = _decode_bytes(spec, body, at, string=arg.type is ArgType.STRING, nullable=arg.nullable)
                args.append(value)
                continue
            if arg.type is ArgType.NEW_ID and arg.interface is None:
                name, at = _decode_bytes(spec, body, at, string=True, nullable=False)
                args += (name, _UINT.unpack_from(body, at)[0])
                at += 4
            args.append(_DECODERS[arg.type](body, at))
            at += 4
    except struct.error as error:
        raise Malformed(f"{HEADER_BYTES + len(body)} bytes are too few for {spec.signature!r}") from error
    except StopIteration:
        raise Malformed(f"a file descriptor is missing for {spec.signature!r}") from None
    if at != len(body):
        raise Malformed(f"{HEADER_BYTES + len(body)} bytes are {len(body) - at} too many for {spec.signature!r}")
    return args


def _encode_bytes(value: Value, end: bytes, *, nullable: bool) -> bytes:
    if value is None:
        if not nullable:
            raise TypeError("null")
        return _UINT.pack(0)
    if not isinstance(value, bytes | bytearray | memoryview):
        raise TypeError("not bytes")
    content = bytes(value) + end
    return _UINT.pack(len(content)) + content + bytes(-len(content) % 4)


def _decode_bytes(
    spec: MessageSpec, body: bytes | memoryview, at: int, *, string: bool, nullable: bool
) -> tuple[bytes | None, int]:
    length: int = _UINT.unpack_from(body, at)[0]
    start, end = at + 4, at + 4 + length
    if end > len(body):
        raise Malformed(f"a {'string' if string else 'array'} of {length} bytes reaches beyond the message")
    padded = end + -end % 4
    if not string:
        return bytes(body[start:end]), padded
    if length == 0:
        if not nullable:
            raise Malformed(f"null string where {spec.signature!r} allows none")
        return None, padded
    content = bytes(body[start:end])
    if content.find(0) != length - 1:
        # A NUL within would let one receiver read another string than the next (libwayland refuses it since 1.22).
        raise Malformed("a string that does not end with its first NUL")
    return content[:-1], padded


def _encode_fixed(value: float) -> bytes:
    return _INT.pack(round(value * 256))


def _decode_fixed(body: bytes | memoryview, at: int) -> float:
    raw: int = _INT.unpack_from(body, at)[0]
    return raw / 256


def _decode_int(body: bytes | memoryview, at: int) -> int:
    value: int = _INT.unpack_from(body, at)[0]
    return value


def _decode_uint(body: bytes | memoryview, at: int) -> int:
    value: int = _UINT.unpack_from(body, at)[0]
    return value


_ENCODERS: dict[ArgType, Callable[..., bytes]] = {
    ArgType.INT: _INT.pack,
    ArgType.UINT: _UINT.pack,
    ArgType.FIXED: _encode_fixed,
    ArgType.OBJECT: _UINT.pack,
    ArgType.NEW_ID: _UINT.pack,
}
_DECODERS: dict[ArgType, Callable[[bytes | memoryview, int], Value]] = {
    ArgType.INT: _decode_int,
    ArgType.UINT: _decode_uint,
    ArgType.FIXED: _decode_fixed,
    ArgType.OBJECT: _decode_uint,
    ArgType.NEW_ID: _decode_uint,
}
