"""A line on the control socket: there is an answer, which is JSON, and says ``ok`` or ``error``."""

from __future__ import annotations

import functools
import json
import os

from tests.fuzz.contract import nothing_stays
from waylend.backing.file import FileBacking
from waylend.domain.memfd import MemfdDomain
from waylend.service.control import ControlServer

SEEDS = [
    b'{"command": "leases"}',
    b'{"command": "revoke"}',
    b'{"command": "revoke", "lease": 1}',
    b'{"command": "revoke", "lease": [[]], "more": {"a": 1e400}}',
    b'{"command": {"leases": null}}',
    b'[{"command": "leases"}]',
    b'"\xff"',
    b"[" * 2000,
]


@functools.cache
def _domain() -> MemfdDomain:
    domain = MemfdDomain("fuzz", aperture_pages=16)
    fd = os.memfd_create("lent")
    os.ftruncate(fd, 4096)
    domain.lend(FileBacking(fd))
    return domain


def close() -> None:
    """What the inputs had in common."""
    _domain().close()
    _domain.cache_clear()


def one_input(octets: bytes) -> None:
    server = ControlServer({"fuzz": _domain()}, {"pid": 1})
    with nothing_stays():
        answer = server.answer(octets)
    assert answer["ok"] or answer["error"]
    json.dumps(answer)
