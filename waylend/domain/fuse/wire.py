"""The kernel's FUSE protocol as bytes: packing replies and notifications, parsing requests. No I/O lives here.

Source: ``include/uapi/linux/fuse.h`` (protocol 7.x; the numbers are the kernel's ABI). Only what a server of lent
memory needs is here: a flat tree of regular files, no creation, no renaming, no extended attributes. All integers are
in the machine's byte order, as the kernel and we run on the same machine.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

KERNEL_MAJOR: Final = 7
#: What we speak at most; the kernel answers older or newer servers alike and the lower of both minors counts.
KERNEL_MINOR: Final = 31
#: Older kernels lack what we rely on (7.12 is the first with INVAL_INODE, 7.28 with ``max_pages``: Linux 4.20).
OLDEST_MINOR: Final = 28

ROOT_NODE: Final = 1

# opcodes
LOOKUP: Final = 1
FORGET: Final = 2
GETATTR: Final = 3
SETATTR: Final = 4
OPEN: Final = 14
READ: Final = 15
WRITE: Final = 16
STATFS: Final = 17
RELEASE: Final = 18
FSYNC: Final = 20
FLUSH: Final = 25
INIT: Final = 26
OPENDIR: Final = 27
READDIR: Final = 28
RELEASEDIR: Final = 29
ACCESS: Final = 34
INTERRUPT: Final = 36
DESTROY: Final = 38
BATCH_FORGET: Final = 42

#: Requests that take no answer.
UNANSWERED: Final = frozenset({FORGET, BATCH_FORGET, DESTROY})

# INIT flags
ASYNC_READ: Final = 1 << 0
BIG_WRITES: Final = 1 << 5
PARALLEL_DIROPS: Final = 1 << 18
MAX_PAGES: Final = 1 << 22
EXPLICIT_INVAL_DATA: Final = 1 << 25

# OPEN reply flags
FOPEN_KEEP_CACHE: Final = 1 << 1
#: Don't send FLUSH when a descriptor of this open file is closed.
FOPEN_NOFLUSH: Final = 1 << 5

# SETATTR: which of its fields counts
FATTR_SIZE: Final = 1 << 3
#: Mode, owner, group and size: only the lender says what they are.
FATTR_LENDERS: Final = 1 << 0 | 1 << 1 | 1 << 2 | FATTR_SIZE

# notifications: the code stands where a reply has its error, and ``unique`` is 0
NOTIFY_INVAL_INODE: Final = 2
NOTIFY_INVAL_ENTRY: Final = 3

IN_HEADER: Final = struct.Struct("=IIQQIIIHH")
OUT_HEADER: Final = struct.Struct("=IiQ")
HEADER_SIZE_BYTES: Final = IN_HEADER.size  # 40

_INIT_IN: Final = struct.Struct("=IIII")
_INIT_OUT: Final = struct.Struct("=IIIIHHIIHHI28x")
_ATTR: Final = struct.Struct("=QQQQQQIIIIIIIIII")
_ENTRY_OUT: Final = struct.Struct("=QQQQII")
_ATTR_OUT: Final = struct.Struct("=QII")
_REQUESTER: Final = struct.Struct("=32xI")
_OPEN_IN: Final = struct.Struct("=II")
_OPEN_OUT: Final = struct.Struct("=QIi")
#: fh, offset, size, read or write flags, lock owner, the open file's flags, padding: READ and WRITE are alike.
IO_IN: Final = struct.Struct("=QQIIQII")
IO_IN_END: Final = HEADER_SIZE_BYTES + IO_IN.size  # where the bytes of a WRITE begin
#: What the hot path needs of a READ, header and body in one go: opcode, unique, node; offset, size, open file's flags.
REQUEST_HEAD: Final = struct.Struct("=4xIQQ")
READ_BODY: Final = struct.Struct("=8xQI12xI")
_WRITE_OUT: Final = struct.Struct("=IIQII")
_RELEASE_IN: Final = struct.Struct("=Q")
_SETATTR_IN: Final = struct.Struct("=IIQQ")
_STATFS_OUT: Final = struct.Struct("=QQQQQIIII24x")
_DIRENT: Final = struct.Struct("=QQII")
_INVAL_INODE: Final = struct.Struct("=IiQQqq")
_INVAL_ENTRY: Final = struct.Struct("=IiQQII")

S_IFREG: Final = 0o100000
S_IFDIR: Final = 0o040000


class Init(NamedTuple):
    """The kernel's side of the handshake."""

    major: int
    minor: int
    max_readahead_bytes: int
    flags: int


class Attributes(NamedTuple):
    """What stat(2) shows of a node. ``mode`` includes the file type."""

    node: int
    size_bytes: int
    mode: int
    uid: int
    gid: int

    def pack(self) -> bytes:
        blocks = (self.size_bytes + 511) // 512
        nlink = 2 if self.mode & S_IFDIR else 1
        return _ATTR.pack(
            self.node, self.size_bytes, blocks, 0, 0, 0, 0, 0, 0, self.mode, nlink, self.uid, self.gid, 0, 4096, 0
        )


def parse_init(request: bytes | bytearray | memoryview) -> Init:
    return Init(*_INIT_IN.unpack_from(request, HEADER_SIZE_BYTES))


def pack_init(
    unique: int, kernel: Init, *, flags: int, max_readahead_bytes: int, max_write_bytes: int, max_pages: int
) -> bytes:
    """The answer to INIT. ``flags`` the kernel didn't offer are dropped."""
    return reply(
        unique,
        _INIT_OUT.pack(
            KERNEL_MAJOR,
            min(KERNEL_MINOR, kernel.minor),
            min(max_readahead_bytes, kernel.max_readahead_bytes),
            flags & kernel.flags,
            64,  # max_background: reads ahead and write-backs under way at once
            48,  # congestion_threshold
            max_write_bytes,
            1,  # time granularity, ns
            max_pages,
            0,
            0,
        ),
    )


def reply(unique: int, body: bytes = b"") -> bytes:
    """A successful answer with ``body``."""
    return OUT_HEADER.pack(OUT_HEADER.size + len(body), 0, unique) + body


def failure(unique: int, errno: int) -> bytes:
    """An answer that fails the request with ``errno`` (positive)."""
    return OUT_HEADER.pack(OUT_HEADER.size, -errno, unique)


def reply_head(unique: int, body_size_bytes: int) -> bytes:
    """The head of an answer whose body the caller writes behind it."""
    return OUT_HEADER.pack(OUT_HEADER.size + body_size_bytes, 0, unique)


def entry_reply(unique: int, attributes: Attributes, *, valid_s: int) -> bytes:
    return reply(unique, _ENTRY_OUT.pack(attributes.node, 0, valid_s, valid_s, 0, 0) + attributes.pack())


def attributes_reply(unique: int, attributes: Attributes, *, valid_s: int) -> bytes:
    return reply(unique, _ATTR_OUT.pack(valid_s, 0, 0) + attributes.pack())


def open_reply(unique: int, fh: int, open_flags: int) -> bytes:
    return reply(unique, _OPEN_OUT.pack(fh, open_flags, 0))


def write_reply(unique: int, size_bytes: int) -> bytes:
    return _WRITE_OUT.pack(_WRITE_OUT.size, 0, unique, size_bytes, 0)


def statfs_reply(unique: int, page_count: int) -> bytes:
    return reply(unique, _STATFS_OUT.pack(page_count, 0, 0, 0, 0, 4096, 255, 4096, 0))


def directory_entries(entries: list[tuple[int, str, int]], first: int, size_bytes: int) -> bytes:
    """READDIR's body: as many of ``entries`` (node, name, mode) from index ``first`` as fit in ``size_bytes``."""
    body = bytearray()
    for index in range(first, len(entries)):
        node, name, mode = entries[index]
        encoded = name.encode()
        record = _DIRENT.pack(node, index + 1, len(encoded), mode >> 12) + encoded
        record += bytes(-len(record) % 8)
        if len(body) + len(record) > size_bytes:
            break
        body += record
    return bytes(body)


def parse_name(request: bytes | bytearray | memoryview, length: int) -> bytes:
    """The name of a LOOKUP, without its closing zero."""
    return bytes(request[HEADER_SIZE_BYTES : length - 1])


def parse_thread_id(request: bytes | bytearray | memoryview) -> int:
    """Which thread asks, as numbered in the mounter's pid namespace; 0 if it isn't in it."""
    thread_id: int = _REQUESTER.unpack_from(request)[0]
    return thread_id


def parse_open_flags(request: bytes | bytearray | memoryview) -> int:
    flags: int = _OPEN_IN.unpack_from(request, HEADER_SIZE_BYTES)[0]
    return flags


def parse_release(request: bytes | bytearray | memoryview) -> int:
    """The file handle that RELEASE gives back."""
    fh: int = _RELEASE_IN.unpack_from(request, HEADER_SIZE_BYTES)[0]
    return fh


def parse_setattr_valid(request: bytes | bytearray | memoryview) -> int:
    valid: int = _SETATTR_IN.unpack_from(request, HEADER_SIZE_BYTES)[0]
    return valid


def inval_inode(node: int, offset_bytes: int, size_bytes: int) -> bytes:
    """Ask the kernel to write back and drop cached pages of ``node``; ``size_bytes`` 0 means to the end."""
    return _INVAL_INODE.pack(_INVAL_INODE.size, NOTIFY_INVAL_INODE, 0, node, offset_bytes, size_bytes)


def inval_entry(parent: int, name: str) -> bytes:
    """Ask the kernel to forget the name ``name`` in the directory ``parent``."""
    encoded = name.encode()
    size_bytes = _INVAL_ENTRY.size + len(encoded) + 1
    return _INVAL_ENTRY.pack(size_bytes, NOTIFY_INVAL_ENTRY, 0, parent, len(encoded), 0) + encoded + b"\0"
