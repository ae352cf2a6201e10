"""A message reads as libwayland prints it, and a hostile string can't write on the terminal of who reads it."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.conftest import Sent
from waylend.wire.dump import MAX_STRING_BYTES, format_message, quote
from waylend.wire.spec import ArgType, Argument, MessageSpec
from waylend.wire.tables import load_tables


def message(name: str) -> MessageSpec:
    interface, _, member = name.partition(".")
    spec = load_tables()[interface]
    return next(found for found in (*spec.requests, *spec.events) if found.name == member)


@pytest.mark.parametrize(
    ("from_client", "name", "object_id", "args", "text"),
    [
        (True, "wl_compositor.create_surface", 4, [7], "-> wl_compositor#4.create_surface(new id wl_surface#7)"),
        (True, "wl_surface.commit", 7, [], "-> wl_surface#7.commit()"),
        (True, "wl_surface.attach", 7, [0, -3, 4], "-> wl_surface#7.attach(nil, -3, 4)"),
        (True, "wl_surface.attach", 7, [9, 0, 0], "-> wl_surface#7.attach(wl_buffer#9, 0, 0)"),
        (
            True,
            "wl_registry.bind",
            2,
            [1, b"wl_compositor", 5, 4],
            '-> wl_registry#2.bind(1, "wl_compositor", 5, new id [unknown]#4)',
        ),
        (False, "wl_registry.global", 2, [3, b"wl_shm", 1], 'wl_registry#2.global(3, "wl_shm", 1)'),
        (False, "wl_pointer.motion", 5, [10, -1.5, 1 / 256], "wl_pointer#5.motion(10, -1.50000000, 0.00390625)"),
        (False, "wl_keyboard.keymap", 6, [1, 12, 40], "wl_keyboard#6.keymap(1, fd 12, 40)"),
        (False, "wl_keyboard.enter", 6, [1, 7, b"\1\0\0\0"], "wl_keyboard#6.enter(1, wl_surface#7, array[4])"),
        (
            False,
            "wl_data_device.data_offer",
            8,
            [0xFF000001],
            "wl_data_device#8.data_offer(new id wl_data_offer#4278190081)",
        ),
        (False, "wl_display.error", 1, [7, 0, b"no"], 'wl_display#1.error([unknown]#7, 0, "no")'),
        (True, "wl_data_offer.accept", 8, [1, None], "-> wl_data_offer#8.accept(1, nil)"),
    ],
)
def test_lines(from_client: bool, name: str, object_id: int, args: list[object], text: str) -> None:
    assert format_message(from_client, object_id, message(name), args) == text


def test_lines_are_those_of_libwayland(sent: Sent) -> None:
    """WAYLAND_DEBUG's own lines for every message, but for what we show differently on purpose."""
    theirs = re.split(r"(?m)^\[\d\d:\d\d:\d\d\.\d{6}\] (?:\{Default Queue\} )? -> ", sent.debug)[1:]
    assert len(theirs) == len(sent.messages)
    compared = 0
    for (spec, object_id, args), line in zip(sent.messages, theirs, strict=True):
        if any(isinstance(arg, bytes) and quote(arg) != f'"{arg.decode(errors="replace")}"' for arg in args):
            continue  # a string that we escape or cut
        ours = format_message(False, object_id, spec, args)
        typeless = {arg.interface for arg in spec.args if arg.type is ArgType.OBJECT} == {None}
        assert without_chance(ours, typeless) == without_chance(line.rstrip("\n"), typeless)
        compared += 1
    assert compared > 0.7 * len(theirs)


def without_chance(line: str, typeless: bool) -> str:
    """Fd numbers are the other process's; libwayland knows what a typeless object is, and we don't."""
    line = re.sub(r"fd \d+", "fd N", line)
    return re.sub(r"(?<=[(\s])[\w\[\]]+#", "[unknown]#", line) if typeless else line


# --- hostile strings


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (b"plain", '"plain"'),
        (b"", '""'),
        ("Grüße 😀 日本".encode(), '"Grüße 😀 日本"'),
        (b"\x1b]0;owned\x07", r'"\x1b]0;owned\x07"'),
        (b"a\nb\r\tc", r'"a\nb\r\tc"'),
        (b'say "hi" \\n', r'"say \"hi\" \\n"'),
        (b"\xff\xc3", r'"\xff\xc3"'),
        ("\u009b31m".encode(), r'"\u009b31m"'),  # CSI, as one character
        ("\u202egpj.exe".encode(), r'"\u202egpj.exe"'),  # right-to-left override
        ("\u2028\u200b".encode(), r'"\u2028\u200b"'),
        ("\U000e0041".encode(), r'"\U000e0041"'),
        (b"\x7f\0", r'"\x7f\x00"'),
    ],
)
def test_strings_are_quoted(text: bytes, shown: str) -> None:
    assert quote(text) == shown


def test_a_long_string_is_cut_and_counted() -> None:
    assert quote(b"y" * MAX_STRING_BYTES) == '"' + "y" * MAX_STRING_BYTES + '"'
    assert quote(b"y" * (MAX_STRING_BYTES + 5)) == '"' + "y" * MAX_STRING_BYTES + '"...(5 more bytes)'


@given(st.binary(max_size=200) | st.text().map(lambda text: text.encode(errors="surrogatepass")))
def test_no_string_reaches_beyond_its_quotes(text: bytes) -> None:
    shown = quote(text)
    assert re.fullmatch(r'"([^"\\]|\\["\\nrt]|\\x[0-9a-f]{2}|\\u[0-9a-f]{4}|\\U[0-9a-f]{8})*"', shown)
    assert not [c for c in shown if unicodedata.category(c)[0] == "C" or unicodedata.category(c) in ("Zl", "Zp")]
    assert shown.encode()  # no lone surrogates


@given(st.binary(max_size=100), st.binary(max_size=100))
def test_different_strings_read_differently(one: bytes, other: bytes) -> None:
    assert (quote(one) == quote(other)) == (one == other)


# --- our own mistakes


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ([], "do not fit"),
        ([1, 2, 3, 4], "do not fit"),
        ([1, None, 3], "None is no int"),
        ([b"x", 2, 3], "is no object"),
    ],
)
def test_arguments_that_do_not_fit_are_an_error(args: list[object], reason: str) -> None:
    spec = MessageSpec(
        "x", "m", 0, (Argument("o", ArgType.OBJECT), Argument("i", ArgType.INT), Argument("u", ArgType.UINT))
    )
    with pytest.raises(ValueError, match=reason):
        format_message(True, 1, spec, args)
