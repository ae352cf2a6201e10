"""The serving threads of a FUSE connection: take requests from /dev/fuse, ask the owner of the files, answer.

What is behind the files is the owner's business (``Files``). Nothing about leases, backings or the lending protocol lives here.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import mmap
import os
import threading
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

from waylend.domain.fuse import mounts, wire

logger = logging.getLogger(__name__)

#: How large a WRITE may be, and the pages of any one request. 256 pages is the kernel's own limit (fs.fuse.max_pages_limit).
MAX_WRITE_BYTES = 1 << 20
MAX_PAGES = 256
#: Attributes and names never change behind the kernel's back but by our own notification.
_VALID_S = 1 << 30
_O_DIRECT = os.O_DIRECT
#: How long ``close`` waits for requests that are being served.
_ENDING_S = 2.0
#: How long a thread may take to answer when it is asked to end.
_ASKING_S = 0.2


class Files(Protocol):
    """What a FuseServer serves. Called on serving threads: never waits for a borrower, never touches lent memory."""

    def lookup(self, parent: int, name: bytes) -> wire.Attributes | None: ...

    def attributes(self, node: int) -> wire.Attributes | None: ...

    def entries(self, node: int) -> list[tuple[int, str, int]]:
        """A directory's (node, name, mode) triples."""

    def open(self, node: int, flags: int, thread_id: int) -> int:
        """A new open file of ``node``. ``thread_id`` of the opener. Raises OSError."""

    def release(self, node: int, fh: int) -> None:
        """Nobody has the open file any more, neither open nor mapped."""

    def read(self, unique: int, node: int, offset_bytes: int, size_bytes: int) -> None:
        """Must lead to one answer to ``unique``, from any thread: ``FuseServer.answer`` or ``fail``."""

    def write(self, node: int, offset_bytes: int, content: memoryview) -> None:
        """Takes what a borrower wrote. Raises OSError. ``content`` is void after the call."""

    def sync_file(self, node: int) -> None:
        """Makes what was written durable. Raises OSError."""


class _Request(NamedTuple):
    """Any request but a READ. ``buffer`` holds it whole, header included, ``size`` bytes, until it is answered."""

    unique: int
    node: int
    buffer: memoryview
    size: int


#: Called with the descriptor of the mount's root: where a thread gives up its rights.
InEachThread = Callable[[int], None]


class FuseServer:
    """Serves files on ``mount``, which it owns from now on, with ``thread_count`` threads (at least two: an
    invalidation waits for the write-backs that another thread takes). Nothing is served before ``start``."""

    def __init__(
        self, mount: mounts.FuseMount, *, name: str, thread_count: int = 2, read_ahead_pages: int = 32
    ) -> None:
        if thread_count < 2:
            raise ValueError("at least two threads: an invalidation waits for write-backs that another one takes")
        self._mount = mount
        self._read_ahead_bytes = read_ahead_pages * 4096
        self._device = mount.device_fd
        self._cut_off = False
        self._handlers: dict[int, Callable[[_Request], bytes]] = {
            wire.INIT: self._init,
            wire.LOOKUP: self._lookup,
            wire.GETATTR: self._getattr,
            wire.SETATTR: self._setattr,
            wire.OPEN: self._open,
            wire.OPENDIR: self._opendir,
            wire.READDIR: self._readdir,
            wire.RELEASE: self._release,
            wire.RELEASEDIR: lambda request: wire.reply(request.unique),
            wire.WRITE: self._write,
            wire.FSYNC: self._fsync,
            wire.STATFS: lambda request: wire.statfs_reply(request.unique, 0),
        }
        self._initialised = threading.Event()
        self._threads = [
            threading.Thread(target=self._serve, name=f"{name}-fuse-{i}", daemon=True) for i in range(thread_count)
        ]
        #: The number under which the kernel knows the connection.
        self.connection = -1
        self._abort_fd = self._nothing_fd = -1

    def start(self, files: Files, in_each_thread: InEachThread | None = None) -> None:
        """Serves ``files`` from now on. ``in_each_thread`` is called first in every serving thread."""
        self._files = files
        self._in_each_thread = in_each_thread
        for thread in self._threads:
            thread.start()
        self._initialised.wait()
        self.connection = os.minor(os.fstat(self._mount.root_fd).st_dev)
        # What cutting off takes is opened now: a process in jail opens nothing later.
        self._nothing_fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._abort_fd = mounts.open_abort(self.connection)
        except OSError as refused:
            logger.info("no fusectl (%s): to cut the connection off its device is given up", refused)

    # -- what the owner asks for

    @property
    def root_fd(self) -> int:
        """An O_PATH descriptor of the root directory."""
        return self._mount.root_fd

    @property
    def mount(self) -> mounts.FuseMount:
        return self._mount

    def answer(self, unique: int, body: bytes | bytearray) -> None:
        """Answers a READ with its content."""
        try:
            os.writev(self._device, (wire.reply_head(unique, len(body)), body))
        except OSError as error:
            self._unanswered(error)

    def fail(self, unique: int, error_number: int) -> None:
        """Answers a request with an error."""
        try:
            os.write(self._device, wire.failure(unique, error_number))
        except OSError as error:
            self._unanswered(error)

    def invalidate(self, node: int, offset_bytes: int, size_bytes: int) -> None:
        """The kernel writes back and drops cached pages of ``node``, and unmaps them everywhere. Blocks until it has.

        Not for serving threads: it waits for requests that they answer.
        """
        self._notify(wire.inval_inode(node, offset_bytes, size_bytes))

    def forget(self, parent: int, name: str) -> None:
        """The kernel drops ``name`` from its cache. Not for serving threads."""
        self._notify(wire.inval_entry(parent, name))

    def abort(self) -> None:
        """Cuts the connection off: every request under way or to come fails. Pages that are mapped stay so. Idempotent."""
        if self._cut_off:
            return
        self._cut_off = True
        try:
            os.write(self._abort_fd, b"1")
        except OSError:
            self._give_up_device()

    def _give_up_device(self) -> None:
        """``abort`` for an ordinary user where fusectl isn't mounted: a connection without a device is aborted.

        A thread that waits for a request holds the device: each is sent one, a look-up of a name that isn't there, and
        ends. Afterwards the kernel can't be told to unmap any more.
        """
        for _ in self._threads:
            asking = threading.Thread(target=self._ask_ourselves, daemon=True)
            asking.start()
            asking.join(_ASKING_S)
        os.dup2(self._nothing_fd, self._device, inheritable=False)  # the number stays ours until ``close``

    def _ask_ourselves(self) -> None:
        with contextlib.suppress(OSError):
            os.stat("nothing", dir_fd=self._mount.root_fd)

    @property
    def cut_off(self) -> bool:
        return self._cut_off

    def serves_here(self) -> bool:
        """Whether the caller is one of the serving threads."""
        return threading.current_thread() in self._threads

    def close(self) -> None:
        """Cuts off, ends the threads, lets go of the mount. Idempotent.

        A thread that hangs in a backing keeps its descriptors: closing them under it could hit others' of the same number.
        """
        if self._device < 0:
            return
        self.abort()
        end = time.monotonic() + _ENDING_S
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        if any(thread.is_alive() for thread in self._threads):
            logger.error("a backing hangs: the FUSE connection's descriptors stay open")
            return
        self._device = -1
        self._mount.close()
        for fd in (self._abort_fd, self._nothing_fd):
            if fd >= 0:
                os.close(fd)
        self._abort_fd = self._nothing_fd = -1

    # -- the loop

    def _serve(self) -> None:
        if self._in_each_thread is not None:
            self._in_each_thread(self._mount.root_fd)
        # Anonymous memory of its own: of what is there for the largest write, only what requests fill is ever resident.
        buffer = memoryview(mmap.mmap(-1, MAX_WRITE_BYTES + 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        buffers = [buffer]
        device = self._device
        readv = os.readv
        head = wire.REQUEST_HEAD.unpack_from
        read_body = wire.READ_BODY.unpack_from
        body_at = wire.HEADER_SIZE_BYTES
        files_read = self._files.read
        while not self._cut_off:
            try:
                size = readv(device, buffers)
                opcode, unique, node = head(buffer)
                if opcode == wire.READ:
                    offset_bytes, size_bytes, flags = read_body(buffer, body_at)
                    if flags & _O_DIRECT:
                        # Past the page cache, where no invalidation would reach what we answer.
                        self.fail(unique, errno.EINVAL)
                    else:
                        files_read(unique, node, offset_bytes, size_bytes)
                else:
                    self._other(opcode, _Request(unique, node, buffer, size))
            except OSError as error:
                if error.errno == errno.ENODEV:  # unmounted or aborted
                    return
                if error.errno not in (errno.EINTR, errno.EAGAIN, errno.ENOENT):
                    logger.exception("serving FUSE")
            except Exception:
                # A bug of ours must not leave the borrower hanging, nor end the thread.
                logger.exception("serving a FUSE request")
                self.fail(unique, errno.EIO)

    def _other(self, opcode: int, request: _Request) -> None:
        if opcode in wire.UNANSWERED:
            return
        unique = request.unique
        handler = self._handlers.get(opcode)
        try:
            answer = wire.failure(unique, errno.ENOSYS) if handler is None else handler(request)
        except OSError as error:
            answer = wire.failure(unique, error.errno or errno.EIO)
        except Exception:
            logger.exception("serving FUSE request %d", opcode)
            answer = wire.failure(unique, errno.EIO)
        try:
            os.write(self._device, answer)
        except OSError as error:
            self._unanswered(error)
        if opcode == wire.INIT:
            self._initialised.set()

    def _unanswered(self, error: OSError) -> None:
        # ENOENT: the request was interrupted or aborted; ENODEV, ENOTCONN: the connection is over.
        if error.errno not in (errno.ENOENT, errno.ENODEV, errno.ENOTCONN, errno.EPERM):
            logger.error("answering a FUSE request: %s", error)

    def _notify(self, notification: bytes) -> None:
        try:
            os.write(self._device, notification)
        except OSError as error:
            # ENOENT: the kernel has nothing of it. ENOTCONN, ENODEV: nor has it any more.
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ENOTCONN, errno.ENOTEMPTY):
                raise

    # -- requests but READ: each returns the answer

    def _init(self, request: _Request) -> bytes:
        kernel = wire.parse_init(request.buffer)
        if kernel.major != wire.KERNEL_MAJOR or kernel.minor < wire.OLDEST_MINOR:
            logger.error("the kernel speaks FUSE %d.%d, too old for us", kernel.major, kernel.minor)
            return wire.failure(request.unique, errno.EPROTO)
        return wire.pack_init(
            request.unique,
            kernel,
            flags=wire.ASYNC_READ | wire.BIG_WRITES | wire.MAX_PAGES | wire.PARALLEL_DIROPS | wire.EXPLICIT_INVAL_DATA,
            max_readahead_bytes=self._read_ahead_bytes,
            max_write_bytes=MAX_WRITE_BYTES,
            max_pages=MAX_PAGES,
        )

    def _lookup(self, request: _Request) -> bytes:
        attributes = self._files.lookup(request.node, wire.parse_name(request.buffer, request.size))
        if attributes is None:
            return wire.failure(request.unique, errno.ENOENT)
        return wire.entry_reply(request.unique, attributes, valid_s=_VALID_S)

    def _getattr(self, request: _Request) -> bytes:
        attributes = self._files.attributes(request.node)
        if attributes is None:
            return wire.failure(request.unique, errno.ESTALE)
        return wire.attributes_reply(request.unique, attributes, valid_s=_VALID_S)

    def _setattr(self, request: _Request) -> bytes:
        """Times may be set, to no effect; size, mode and owner are the lender's."""
        if wire.parse_setattr_valid(request.buffer) & wire.FATTR_LENDERS:
            return wire.failure(request.unique, errno.EPERM)
        return self._getattr(request)

    def _open(self, request: _Request) -> bytes:
        flags = wire.parse_open_flags(request.buffer)
        fh = self._files.open(request.node, flags, wire.parse_thread_id(request.buffer))
        # Closing a descriptor writes nothing back, and asks us nothing: who closes one of many waits for nobody's stores. And a
        # process of ours that forks may have some: the child closes them while the parent waits for it, serving threads and all.
        return wire.open_reply(request.unique, fh, wire.FOPEN_KEEP_CACHE | wire.FOPEN_NOFLUSH)

    def _opendir(self, request: _Request) -> bytes:
        return wire.open_reply(request.unique, 0, 0)

    def _readdir(self, request: _Request) -> bytes:
        first, size_bytes, _ = wire.READ_BODY.unpack_from(request.buffer, wire.HEADER_SIZE_BYTES)
        return wire.reply(request.unique, wire.directory_entries(self._files.entries(request.node), first, size_bytes))

    def _release(self, request: _Request) -> bytes:
        self._files.release(request.node, wire.parse_release(request.buffer))
        return wire.reply(request.unique)

    def _write(self, request: _Request) -> bytes:
        offset_bytes, size_bytes, _ = wire.READ_BODY.unpack_from(request.buffer, wire.HEADER_SIZE_BYTES)
        self._files.write(request.node, offset_bytes, request.buffer[wire.IO_IN_END : wire.IO_IN_END + size_bytes])
        return wire.write_reply(request.unique, size_bytes)

    def _fsync(self, request: _Request) -> bytes:
        self._files.sync_file(request.node)
        return wire.reply(request.unique)
