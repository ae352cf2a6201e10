"""A policy file: it is read, or refused with a UsageError; what was read holds what it says."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from tests.fuzz.contract import nothing_stays
from waylend.errors import UsageError
from waylend.policy import read_policy

SEEDS = [
    b'[globals]\nallow = ["zwlr_*"]\ndeny = ["wl_output"]\n[windows]\ntitle_prefix = "[w] "\napp_id_prefix = "w."\n',
    b"[limits]\nclients = 3\nleases = 5\nqueued_fds = 28\naperture_bytes = 4096\n",
    b"limits.clients = 0x10\nlimits.leases = 1_000\n",
    b"globals = 3\n",
    b'windows.title_prefix = "\\u001b[2J"\n',
    b"[limits]\nclients = true\nleases = 1e9\nobjects_per_client = 2020-01-01\n",
    b"a = " + b"[" * 600 + b"]" * 600,
]

_FOLDER = Path(tempfile.gettempdir()) / f"waylend-fuzz-policy-{os.getpid()}.toml"


def close() -> None:
    """The inputs have nothing in common."""


def one_input(octets: bytes) -> None:
    _FOLDER.write_bytes(octets)
    try:
        with nothing_stays():
            policy = read_policy(_FOLDER)
            assert policy.limits.clients >= 1
            assert not any(policy.announces(pattern) for pattern in policy.deny if pattern.isidentifier())
    except UsageError as error:
        assert str(error).startswith("policy ")
    finally:
        _FOLDER.unlink()
