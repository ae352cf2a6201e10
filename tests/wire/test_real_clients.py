"""What real clients and sway say to each other, read with our tables: our dump of it is what the client's own trace says."""

from __future__ import annotations

import array
import contextlib
import os
import re
import select
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.compositors import Sway
from tests.processes import DEADLINE_S, Process
from waylend.wire.codec import decode
from waylend.wire.dump import format_message
from waylend.wire.spec import HEADER_BYTES, ArgType
from waylend.wire.tables import load_tables


@pytest.fixture(scope="module")
def sway() -> Iterator[Sway]:
    compositor = Sway()
    try:
        compositor.start()
        yield compositor
    finally:
        compositor.close()


class Tap:
    """Passes one connection on, and reads every message of it by the tables; ``requests`` and ``events`` are the lines.

    Only what the client does matters here, so nothing is checked; an unknown object or message is a KeyError or IndexError.
    """

    def __init__(self, client: socket.socket, compositor: socket.socket) -> None:
        self.sockets = {client: compositor, compositor: client}
        self.client = client
        self.kinds = {1: "wl_display"}
        self.pending = {client: b"", compositor: b""}
        self.fds: dict[socket.socket, list[str]] = {client: [], compositor: []}
        self.lines: dict[socket.socket, list[str]] = {client: [], compositor: []}

    @property
    def requests(self) -> list[str]:
        return self.lines[self.client]

    @property
    def events(self) -> list[str]:
        return self.lines[self.sockets[self.client]]

    def run(self) -> None:
        """Until the client hangs up."""
        while True:
            ready, _, _ = select.select(list(self.sockets), [], [], DEADLINE_S)
            assert ready, "nothing happens"
            for source in ready:
                content, ancillary, _, _ = source.recvmsg(1 << 16, socket.CMSG_SPACE(28 * 4))
                fds = [fd for _, _, data in ancillary for fd in array.array("i", data)]
                self.fds[source] += ["N"] * len(fds)
                if not content:
                    return
                self.pending[source] += content
                self.read(source)
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
                with contextlib.suppress(BrokenPipeError):  # a client that has ended may still have sent something
                    sent = self.sockets[source].sendmsg([content], rights)
                    self.sockets[source].sendall(content[sent:])
                for fd in fds:
                    os.close(fd)

    def read(self, source: socket.socket) -> None:
        while len(self.pending[source]) >= HEADER_BYTES:
            object_id, word = struct.unpack_from("=II", self.pending[source])
            size = word >> 16
            if len(self.pending[source]) < size:
                return
            body, self.pending[source] = self.pending[source][HEADER_BYTES:size], self.pending[source][size:]
            interface = load_tables()[self.kinds[object_id]]
            spec = (interface.requests if source is self.client else interface.events)[word & 0xFFFF]
            fds = iter([self.fds[source].pop(0) for _ in range(spec.fd_count)])
            args = decode(spec, body, fds)
            self.lines[source].append(format_message(source is self.client, object_id, spec, args))
            if str(spec) == "wl_registry.bind":
                assert isinstance(args[1], bytes)
                self.kinds[int(str(args[3]))] = args[1].decode()
            else:
                for arg, value in zip(spec.args, args, strict=True):
                    if arg.type is ArgType.NEW_ID and arg.interface:
                        self.kinds[int(str(value))] = arg.interface


def lines_of_libwayland(log: str) -> tuple[list[str], list[str]]:
    """The requests and events in a log of WAYLAND_DEBUG. Before 1.22 ids were written with ``@``; times differ, too."""
    traced = re.findall(r"(?m)^\[[ \d:.]+\] (?:\{[^}]*\} )? ?(-> )?(\w+)[@#](\d+)\.(.*)$", log)
    requests = [f"-> {name}#{number}.{rest}" for arrow, name, number, rest in traced if arrow]
    events = [f"{name}#{number}.{rest}" for arrow, name, number, rest in traced if not arrow]
    return requests, events


def comparable(lines: list[str]) -> list[str]:
    """Without what can't be the same: the sign before ids, numbers of fds, and the kinds of typeless objects."""
    lines = [re.sub(r"([\w\]])[@#](\d+)", r"\1#\2", line) for line in lines]
    lines = [re.sub(r"fd \d+", "fd N", line) for line in lines]
    return [re.sub(r"error\([\w\[\]]+#", "error([unknown]#", line) for line in lines]


def by_object(lines: list[str]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for line in lines:
        grouped.setdefault(line.partition(".")[0], []).append(line)
    return grouped


@pytest.mark.live
@pytest.mark.parametrize(
    "command",
    [
        ["grim", "{folder}/picture.png"],
        ["wtype", "hello"],
        ["wl-copy", "--clear"],
        ["wl-paste", "--list-types"],
        ["foot", "--config=/dev/null", "true"],
    ],
    ids=lambda command: command[0],
)
def test_our_dump_is_the_clients_own_trace(sway: Sway, command: list[str], tmp_path: Path) -> None:
    arguments = [part.format(folder=tmp_path) for part in command]
    ours, theirs = socket.socketpair()
    with ours, theirs, socket.socket(socket.AF_UNIX) as compositor:
        compositor.connect(str(sway.socket))
        environment = sway.environment() | {"WAYLAND_DEBUG": "1", "WAYLAND_SOCKET": str(theirs.fileno())}
        with Process(arguments, tmp_path / "log", environment, pass_fds=[theirs.fileno()]) as client:
            theirs.close()
            tap = Tap(ours, compositor)
            tap.run()
            client.wait()
    requests, events = lines_of_libwayland(client.log())
    # Clients end without sending their last words, often: destructors.
    assert comparable(tap.requests) == comparable(requests)[: len(tap.requests)]
    assert all("destroy" in unsent or "release" in unsent for unsent in requests[len(tap.requests) :])
    # libwayland takes wl_display's events before all others, and what it didn't come to before the end is not in its trace.
    ours_by_object, theirs_by_object = by_object(comparable(tap.events)), by_object(comparable(events))
    for name, lines in theirs_by_object.items():
        assert len(ours_by_object[name]) >= len(lines)
        for ours_line, line in zip(ours_by_object[name], lines, strict=False):
            # An object that the client has destroyed already is nil to libwayland.
            assert re.fullmatch(re.escape(line).replace("nil", r"(nil|\w+#\d+)"), ours_line), f"{ours_line} != {line}"
    assert len(requests) > 4
    assert len(events) > 20
