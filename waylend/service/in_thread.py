"""What anyio does around a loop's thread: runs it, hears of its events, cleans up after it."""

from __future__ import annotations

import logging
import os
import resource
import socket
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread

from waylend.errors import WaylendError
from waylend.foreign import closing
from waylend.relay.events import RelayEvent
from waylend.relay.loop import Loop
from waylend.relay.sockets import ListeningSocket, socket_path

logger = logging.getLogger(__name__)

_BEAT_S = 5.0


@asynccontextmanager
async def single_errors() -> AsyncIterator[None]:
    """A task group wraps every error into a group; whoever uses our contexts should not have to know that there is one."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        raise error from None


@asynccontextmanager
async def running(loop: Loop, close: Callable[[], None]) -> AsyncIterator[None]:
    """The loop's thread, until the context is left; it ends with ``close`` and the loop's own end.

    Raises WaylendError in the context when the thread ends by itself: nobody would be served any more. When it is left, no
    descriptor of a stranger's is this process's to close that could make it wait.
    """
    closing.start()
    over_fd = os.eventfd(0, os.EFD_CLOEXEC)
    why: list[str] = []

    def run() -> None:
        try:
            loop.run()
        except BaseException as error:
            why.append(f"{type(error).__name__}: {error}")
            logger.debug("the relay's thread", exc_info=error)
        try:
            close()
        except Exception:
            logger.exception("not everything of the relay could be closed")
        loop.close()
        os.eventfd_write(over_fd, 1)

    async def watch() -> None:
        await anyio.wait_readable(over_fd)
        raise WaylendError(f"the relay's thread has ended: {why[0] if why else 'somebody stopped its loop'}")

    thread = threading.Thread(target=run, name="relay")
    thread.start()
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            yield
            tasks.cancel_scope.cancel()
    finally:
        loop.stop()
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(thread.join)
            await anyio.to_thread.run_sync(closing.settle)
        os.close(over_fd)


@asynccontextmanager
async def called_in_this_thread(on_event: Callable[[RelayEvent], None]) -> AsyncIterator[Callable[[RelayEvent], None]]:
    """An observer for the relay's thread; what it is told reaches ``on_event`` in the event loop's.

    What ``on_event`` raises is logged, and ends nothing: it is somebody else's code, and the proxy has others to serve.
    """
    arrived: deque[RelayEvent] = deque()
    wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def observe(event: RelayEvent) -> None:
        arrived.append(event)
        os.eventfd_write(wake_fd, 1)

    def deliver() -> None:
        while arrived:
            event = arrived.popleft()
            try:
                on_event(event)
            except Exception:
                logger.exception("on_event failed for %r", event)

    async def pass_on() -> None:
        while True:
            await anyio.wait_readable(wake_fd)
            os.eventfd_read(wake_fd)
            deliver()

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pass_on)
            yield observe
            tasks.cancel_scope.cancel()
        deliver()
    finally:
        os.close(wake_fd)


@asynccontextmanager
async def beating(loop: Loop, beat: Callable[[float], None]) -> AsyncIterator[None]:
    """Calls ``beat(seconds since the last)`` in the loop's thread every few seconds, until the context is left."""

    async def keep_beating() -> None:
        while True:
            await anyio.sleep(_BEAT_S)
            loop.call(lambda: beat(_BEAT_S))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(keep_beating)
        try:
            yield
        finally:
            tasks.cancel_scope.cancel()


def listening_sockets(
    stack: AsyncExitStack, listen: str | Sequence[socket.socket], mode: int | None
) -> tuple[Sequence[socket.socket], tuple[Path, ...]]:
    if isinstance(listen, str):
        listening = ListeningSocket(socket_path(listen), mode=mode)
        stack.callback(listening.close)
        return (listening.sock,), (listening.path,)
    return listen, tuple(Path(os.fsdecode(sock.getsockname())) for sock in listen)


def make_room_for_fds() -> None:
    """A client is two sockets and what it sends: the soft limit of 1024 fds is for programs that use select."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
