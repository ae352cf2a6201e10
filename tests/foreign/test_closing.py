"""Closing what strangers sent: it never waits here, however long it takes, and it never keeps the program from ending."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from tests.foreign.strange import ROOT, fuse_file, lingering_socket, sending_a_fuse_file
from tests.processes import DEADLINE_S, wait_until
from waylend.foreign import closing
from waylend.foreign.kinds import DescriptorKind

#: Far less than the closes here would take, far more than this machine needs.
AT_ONCE_S = 2.0


def what_is(fd: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except FileNotFoundError:
        return ""


STRANGE: list[Callable[[], contextlib.AbstractContextManager[int]]] = [
    lingering_socket,
    lambda: fuse_file("flush"),
    lambda: fuse_file("flush-fails"),
]


@pytest.mark.parametrize("strange", STRANGE, ids=["linger", "flush never answered", "flush fails"])
def test_nobody_waits_for_it(strange: Callable[[], contextlib.AbstractContextManager[int]]) -> None:
    with strange() as fd:
        copy = os.dup(fd)
        name = what_is(copy)
        reading, writing = os.pipe()
        begun = time.monotonic()
        closing.close_all((copy, writing))
        assert time.monotonic() - begun < AT_ONCE_S
        assert os.read(reading, 1) == b""  # what comes behind it is closed, too
        wait_until(lambda: what_is(copy) != name, "its number to be free")
        assert closing.settle(DEADLINE_S)
        os.close(reading)


def test_what_is_not_there_is_nothing() -> None:
    closing.close_all((-1,))
    assert closing.settle(DEADLINE_S)


def test_a_socket_ends_for_its_peer_at_once_though_what_is_unread_hangs() -> None:
    with lingering_socket() as fd:
        ours, theirs = socket.socketpair()
        socket.send_fds(ours, [b"unread"], [fd])
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, fd)  # the one in the queue is the last
        os.close(null)
        begun = time.monotonic()
        closing.close_socket(theirs)
        ours.settimeout(DEADLINE_S)
        with contextlib.suppress(ConnectionResetError):
            assert ours.recv(1) == b""
        assert time.monotonic() - begun < AT_ONCE_S
        ours.close()
        assert closing.settle(DEADLINE_S)


def test_a_socket_without_anything_unread_is_closed_here() -> None:
    ours, theirs = socket.socketpair()
    fd = theirs.fileno()
    closing.close_socket(theirs)
    assert not what_is(fd)
    assert ours.recv(1) == b""
    ours.close()


def test_what_was_looked_at_and_could_hang_is_closed_at_once() -> None:
    with lingering_socket() as fd:
        (pool, gone) = closing.looked_at((os.memfd_create("pool"), os.dup(fd)))
        assert pool.kind is DescriptorKind.SHARED_MEMORY
        assert (gone, gone.kind, gone.what) == (-1, DescriptorKind.OTHER, "a socket")
        os.close(pool)
        assert closing.settle(DEADLINE_S)


PROGRAM = """
import os, socket, sys, time
from waylend.foreign import closing
sock = socket.socket(fileno=int(sys.argv[1]))
_, (fd,), _, _ = socket.recv_fds(sock, 1, 1)
closing.close_all((fd,))
assert closing.settle(10)
print("done", flush=True)
if sys.argv[2] == "stays":
    time.sleep(60)
"""


@pytest.mark.parametrize("how", ["ends", "stays"])
def test_the_program_can_end_though_a_close_hangs(how: str) -> None:
    """A thread that waits for FLUSH can't even be killed, and its process with it."""
    ours, theirs = socket.socketpair()
    with ours, theirs, contextlib.ExitStack() as stack:
        stack.enter_context(sending_a_fuse_file("flush", theirs))
        program = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, f"{ours.fileno()}", how],
            pass_fds=(ours.fileno(),),
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": f"{ROOT}"},
        )
        assert program.stdout is not None
        with program.stdout:
            assert program.stdout.readline() == b"done\n"
        if how == "stays":
            program.kill()
        assert program.wait(DEADLINE_S) == (-9 if how == "stays" else 0)
