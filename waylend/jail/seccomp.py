"""System calls that a process may still make, by libseccomp: seccomp_init(3), seccomp_rule_add(3), seccomp_load(3).

libseccomp knows the numbers on every architecture, and Debian's apt itself needs it, so it is there. What is refused by name is
EPERM; what nobody thought of is ENOSYS, so that a C library that is newer than this file takes its older way.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass

from waylend.errors import Unavailable

_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_NO_SUCH_CALL = -1
_ATTRIBUTE_ALL_THREADS = 4  # SCMP_FLTATR_CTL_TSYNC
_ATTRIBUTE_OPTIMIZE = 8  # SCMP_FLTATR_CTL_OPTIMIZE, libseccomp 2.5: 2 is a binary tree instead of a list of comparisons
_EQUAL, _MASKED_EQUAL = 4, 7


class _Comparison(ctypes.Structure):
    """struct scmp_arg_cmp"""

    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


@dataclass(frozen=True)
class Where:
    """A call with that number as its argument ``argument`` (from 0), of which only the bits of ``mask`` count."""

    call: str
    argument: int
    value: int
    mask: int | None = None


class Filter:
    """Only ``allowed`` works; several ``Where`` of one call allow each of them. ``close`` it.

    Raises Unavailable where there is no libseccomp.
    """

    def __init__(self, allowed: Iterable[str | Where], refused: Iterable[str | Where] = ()) -> None:
        self._library = _library()
        self._context = self._library.seccomp_init(_ERRNO | errno.ENOSYS)
        if not self._context:
            raise Unavailable("seccomp_init failed")
        try:
            for action, rules in ((_ALLOW, allowed), (_ERRNO | errno.EPERM, refused)):
                for rule in rules:
                    _add(self._library, self._context, action, rule)
            _check(self._library.seccomp_attr_set(self._context, _ATTRIBUTE_ALL_THREADS, 1), "seccomp_attr_set")
            self._library.seccomp_attr_set(self._context, _ATTRIBUTE_OPTIMIZE, 2)
        except BaseException:
            self.close()
            raise

    def enter(self) -> None:
        """Holds for all threads of this process, and for what it starts, from now on. Raises Unavailable without seccomp."""
        _check(self._library.seccomp_load(self._context), "seccomp_load")

    def close(self) -> None:
        self._library.seccomp_release(self._context)


def check_available() -> None:
    """Raises Unavailable where there is no libseccomp."""
    _library()


def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError as error:
        raise Unavailable("there is no libseccomp", "apt-get install libseccomp2") from error
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = (ctypes.c_uint32,)
    library.seccomp_load.argtypes = (ctypes.c_void_p,)
    library.seccomp_release.argtypes = (ctypes.c_void_p,)
    library.seccomp_release.restype = None
    library.seccomp_attr_set.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32)
    library.seccomp_syscall_resolve_name.argtypes = (ctypes.c_char_p,)
    library.seccomp_rule_add_array.argtypes = (
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.POINTER(_Comparison),
    )
    return library


def _add(library: ctypes.CDLL, context: int, action: int, rule: str | Where) -> None:
    name = rule if isinstance(rule, str) else rule.call
    number = library.seccomp_syscall_resolve_name(name.encode())
    if number == _NO_SUCH_CALL:  # newer than this libseccomp: nobody can make it then
        return
    comparisons = (_Comparison * 1)()
    count = 0
    if isinstance(rule, Where):
        count = 1
        if rule.mask is None:
            comparisons[0] = _Comparison(rule.argument, _EQUAL, rule.value, 0)
        else:
            comparisons[0] = _Comparison(rule.argument, _MASKED_EQUAL, rule.mask, rule.value)
    result = library.seccomp_rule_add_array(context, action, number, count, comparisons)
    # A call that this architecture doesn't have.
    if result not in (0, -errno.EDOM, -errno.EINVAL if number < 0 else 0):
        _check(result, f"seccomp_rule_add {name}")


def _check(result: int, what: str) -> None:
    if result:
        raise Unavailable(f"{what}: {os.strerror(abs(result))}", "a kernel with CONFIG_SECCOMP_FILTER")
