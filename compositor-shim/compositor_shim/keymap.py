"""A US keymap of our own, as XKB text, and which keys to press for a text.

It is whole in itself (no ``include``), so that a client without xkeyboard-config can use it, too. Keys are evdev's
(linux/input-event-codes.h); XKB counts them from 8.
"""

from __future__ import annotations

XKB_OFFSET = 8
SHIFT = 42

# evdev code -> (name, keysyms by level). Two keysyms of one letter make an alphabetic key.
_ROWS = [
    (2, "1! 2@ 3# 4$ 5% 6^ 7& 8* 9( 0) -_ =+"),
    (16, "qQ wW eE rR tT yY uU iI oO pP [{ ]}"),
    (30, "aA sS dD fF gG hH jJ kK lL ;: '\" `~"),
    (43, "\\|"),
    (44, "zZ xX cC vV bB nN mM ,< .> /?"),
]
_NAMED = {
    1: "Escape",
    14: "BackSpace",
    15: "Tab",
    28: "Return",
    29: "Control_L",
    SHIFT: "Shift_L",
    54: "Shift_R",
    56: "Alt_L",
    57: "space",
    58: "Caps_Lock",
    **{59 + n: f"F{n + 1}" for n in range(10)},
    87: "F11",
    88: "F12",
    97: "Control_R",
    100: "Alt_R",
    102: "Home",
    103: "Up",
    104: "Prior",
    105: "Left",
    106: "Right",
    107: "End",
    108: "Down",
    109: "Next",
    110: "Insert",
    111: "Delete",
    125: "Super_L",
}
_SYMBOLS = {
    **dict(
        zip(
            "!@#$%^&*()",
            "exclam at numbersign dollar percent asciicircum ampersand asterisk parenleft parenright".split(),
            strict=True,
        )
    ),
    **dict(
        zip(
            "-_=+[{]}", "minus underscore equal plus bracketleft braceleft bracketright braceright".split(), strict=True
        )
    ),
    **dict(
        zip(";:'\"`~\\|", "semicolon colon apostrophe quotedbl grave asciitilde backslash bar".split(), strict=True)
    ),
    **dict(zip(",<.>/?", "comma less period greater slash question".split(), strict=True)),
}
_MODIFIERS = {
    "Shift": ("Shift_L", "Shift_R"),
    "Lock": ("Caps_Lock",),
    "Control": ("Control_L", "Control_R"),
    "Mod1": ("Alt_L", "Alt_R"),
    "Mod4": ("Super_L",),
}


def _printed() -> dict[int, tuple[str, str]]:
    return {start + n: (pair[0], pair[1]) for start, row in _ROWS for n, pair in enumerate(row.split())}


PRINTED = _printed()
KEY_OF_NAME = {name: code for code, name in _NAMED.items()}
_KEY_OF_CHARACTER = {
    **{character: (code, level == 1) for code, pair in PRINTED.items() for level, character in enumerate(pair)},
    " ": (57, False),
    "\n": (28, False),
    "\t": (15, False),
}


def keys_for(text: str) -> list[tuple[int, bool]]:
    """(evdev code, with shift) for each character. Raises ValueError for one that the keymap lacks."""
    try:
        return [_KEY_OF_CHARACTER[character] for character in text]
    except KeyError as error:
        raise ValueError(f"the keymap has no key for {error.args[0]!r}") from None


def key_named(name: str) -> int:
    """The evdev code of a key by its XKB name (``Return``, ``F1``) or by the character that it prints."""
    if name in KEY_OF_NAME:
        return KEY_OF_NAME[name]
    return keys_for(name)[0][0]


def keymap_text(comment: str = "") -> str:
    """The keymap, with ``comment`` in it, so that two of them can differ."""
    codes = sorted([*PRINTED, *_NAMED])
    keycodes = "\n".join(f"    <I{code + XKB_OFFSET:03}> = {code + XKB_OFFSET};" for code in codes)
    symbols = "\n".join(f"    key <I{code + XKB_OFFSET:03}> {{ {_levels(code)} }};" for code in codes)
    maps = "\n".join(
        f"    modifier_map {modifier} {{ {', '.join(f'<I{KEY_OF_NAME[key] + XKB_OFFSET:03}>' for key in keys)} }};"
        for modifier, keys in _MODIFIERS.items()
    )
    return f"""// {comment or "compositor-shim"}
xkb_keymap {{
xkb_keycodes "shim" {{
    minimum = 8;
    maximum = 255;
{keycodes}
}};
xkb_types "shim" {{
    virtual_modifiers Alt, Super;
    type "ONE_LEVEL" {{
        modifiers = none;
        level_name[Level1] = "Any";
    }};
    type "TWO_LEVEL" {{
        modifiers = Shift;
        map[Shift] = Level2;
        level_name[Level1] = "Base";
        level_name[Level2] = "Shift";
    }};
    type "ALPHABETIC" {{
        modifiers = Shift+Lock;
        map[Shift] = Level2;
        map[Lock] = Level2;
        level_name[Level1] = "Base";
        level_name[Level2] = "Caps";
    }};
}};
xkb_compatibility "shim" {{
    virtual_modifiers Alt, Super;
    interpret.useModMapMods = AnyLevel;
    interpret.repeat = False;
    interpret Caps_Lock+AnyOfOrNone(all) {{ action = LockMods(modifiers=Lock); }};
    interpret Alt_L+AnyOf(all) {{ virtualModifier = Alt; action = SetMods(modifiers=modMapMods, clearLocks); }};
    interpret Super_L+AnyOf(all) {{ virtualModifier = Super; action = SetMods(modifiers=modMapMods, clearLocks); }};
    interpret Any+AnyOf(all) {{ action = SetMods(modifiers=modMapMods, clearLocks); }};
}};
xkb_symbols "shim" {{
    name[Group1] = "English (US)";
{symbols}
{maps}
}};
}};
"""


def _levels(code: int) -> str:
    if code in _NAMED:
        return f'type = "ONE_LEVEL", symbols[Group1] = [ {_NAMED[code]} ]'
    low, high = PRINTED[code]
    kind = "ALPHABETIC" if low.isalpha() else "TWO_LEVEL"
    return f'type = "{kind}", symbols[Group1] = [ {_SYMBOLS.get(low, low)}, {_SYMBOLS.get(high, high)} ]'
