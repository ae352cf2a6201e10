"""Landlock: which files a thread, and all that it starts from then on, may still open, make and remove. landlock(7).

It governs opening, not what is open; it doesn't govern connecting to a unix socket by its path. What the kernel is too old to
govern stays as it is. The constants are linux/landlock.h's.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntFlag

from waylend.linux import no_new_privileges, system_call

# The same on all architectures.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION = 1
_PATH_BENEATH = 1
_SCOPE_ABSTRACT_SOCKETS, _SCOPE_SIGNALS = 1, 2


class Access(IntFlag):
    """What a rule lets one do with what is below a folder, or with one file."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15


READ = Access.READ_FILE | Access.READ_DIR
WRITE = Access.WRITE_FILE | Access.TRUNCATE
_OF_A_FILE = Access.EXECUTE | Access.WRITE_FILE | Access.READ_FILE | Access.TRUNCATE | Access.IOCTL_DEV
#: By version of the kernel's interface: all that it governs.
_GOVERNED = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
_TCP_SINCE, _SCOPES_SINCE = 4, 6
_TCP = 1 | 2  # bind, connect


@dataclass(frozen=True)
class Rule:
    """``access`` to what is at and below ``where``: a path, or a descriptor of a folder, which is asked nothing: it may be ours
    to answer.
    """

    where: str | int
    access: Access


def version() -> int:
    """Of the kernel's Landlock; 0 where there is none."""
    try:
        return system_call("landlock_create_ruleset", _CREATE_RULESET, None, 0, _VERSION)
    except OSError:
        return 0


class Ruleset:
    """What may be done yet. Owns descriptors (``close``): of itself, and of what is below /proc, whose inodes don't stay."""

    def __init__(self, rules: Iterable[Rule], *, signals_within: bool) -> None:
        """``signals_within``: signals, and abstract sockets, only reach who is in the same jail. Paths that aren't there give no
        right. Raises OSError where the kernel has no Landlock.
        """
        known = version()
        self._governed = max(bits for since, bits in _GOVERNED.items() if since <= max(known, 1))
        attributes = struct.pack("=Q", self._governed)
        if known >= _TCP_SINCE:
            attributes += struct.pack("=Q", _TCP)
        if known >= _SCOPES_SINCE:
            attributes += struct.pack("=Q", _SCOPE_ABSTRACT_SOCKETS | _SCOPE_SIGNALS if signals_within else 0)
        self._fd = system_call("landlock_create_ruleset", _CREATE_RULESET, attributes, len(attributes), 0)
        self._kept: list[int] = []
        try:
            for rule in rules:
                self._add(rule)
        except BaseException:
            self.close()
            raise

    def _add(self, rule: Rule) -> None:
        if isinstance(rule.where, int):
            self._add_fd(rule.where, rule.access)
            return
        try:
            fd = os.open(rule.where, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            return
        self._kept.append(fd)
        is_folder = stat.S_ISDIR(os.fstat(fd).st_mode)
        self._add_fd(fd, rule.access if is_folder else rule.access & _OF_A_FILE)

    def _add_fd(self, fd: int, access: Access) -> None:
        access = Access(access & self._governed)
        if access:
            beneath = struct.pack("=Qi", access, fd)
            system_call("landlock_add_rule", _ADD_RULE, self._fd, _PATH_BENEATH, beneath, 0)

    def enter(self) -> None:
        """Holds for the calling thread, and for what it starts from now on. Raises OSError."""
        no_new_privileges()
        system_call("landlock_restrict_self", _RESTRICT_SELF, self._fd, 0)

    def close(self) -> None:
        """The rules go on holding. Descriptors below /proc stay open: they keep the inodes that the rules name."""
        os.close(self._fd)
        for fd in self._kept:
            if not os.readlink(f"/proc/self/fd/{fd}").startswith("/proc/"):
                os.close(fd)
        self._kept.clear()


def enter(rules: Sequence[Rule], *, signals_within: bool = False) -> None:
    """``Ruleset.enter`` once, for the calling thread. Raises OSError."""
    ruleset = Ruleset(rules, signals_within=signals_within)
    try:
        ruleset.enter()
    finally:
        ruleset.close()
