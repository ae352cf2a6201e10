#!/usr/bin/env python3
"""Serves one FUSE file, hands out a descriptor of it, and never answers one sort of request (or fails it).

    stranger.py SOCKET_FD flush|flush-fails|none

The descriptor goes through the socket. Two processes, since one that has its own file open can't end: what opens the file, and
what serves it. Both end with their stdin; the server first, which ends the file system.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
import threading

from waylend.domain.fuse import wire
from waylend.domain.fuse.mounts import mount_fuse

FILE_NODE = 2


def end_with_stdin() -> None:
    os.read(0, 1)
    os._exit(0)


def serve(device_fd: int, refuses: str) -> None:
    threading.Thread(target=end_with_stdin, daemon=True).start()
    while True:
        request = os.read(device_fd, 1 << 20)
        opcode, unique, node = wire.REQUEST_HEAD.unpack_from(request)
        if opcode == wire.FLUSH and refuses == "flush":
            continue
        if opcode not in wire.UNANSWERED and opcode != wire.INTERRUPT:
            os.write(device_fd, answer(request, opcode, unique, node, refuses))


def answer(request: bytes, opcode: int, unique: int, node: int, refuses: str) -> bytes:
    root = wire.Attributes(wire.ROOT_NODE, 0, wire.S_IFDIR | 0o777, 0, 0)
    file = wire.Attributes(FILE_NODE, 1 << 20, wire.S_IFREG | 0o666, 0, 0)
    if opcode == wire.INIT:
        kernel = wire.parse_init(request)
        return wire.pack_init(unique, kernel, flags=0, max_readahead_bytes=0, max_write_bytes=1 << 16, max_pages=1)
    if opcode == wire.LOOKUP:
        return wire.entry_reply(unique, file, valid_s=0)
    if opcode == wire.GETATTR:
        return wire.attributes_reply(unique, root if node == wire.ROOT_NODE else file, valid_s=0)
    if opcode in (wire.OPEN, wire.OPENDIR):
        return wire.open_reply(unique, 1, 0)
    if opcode == wire.READ:
        return wire.reply(unique, bytes(wire.READ_BODY.unpack_from(request, wire.HEADER_SIZE_BYTES)[1]))
    if opcode == wire.FLUSH and refuses == "flush-fails":
        return wire.failure(unique, errno.EIO)
    return wire.reply(unique)


def main(socket_fd: int, refuses: str) -> None:
    mount = mount_fuse("stranger")
    server = os.fork()
    if not server:
        os.close(mount.root_fd)
        serve(mount.device_fd, refuses)
    os.close(mount.device_fd)
    file_fd = os.open("file", os.O_RDWR, dir_fd=mount.root_fd)
    with socket.socket(fileno=socket_fd) as sock:
        socket.send_fds(sock, [b"."], [file_fd])
    os.read(0, 1)
    os.kill(server, signal.SIGKILL)  # it may have gone already, but is ours until we wait for it
    os.waitpid(server, 0)
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
