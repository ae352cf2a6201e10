"""A throw-away VM of the running system: its kernel and its files, copy on write; an app in it is shown through lent memory.

virtme-ng makes the machine: the guest's root is the host's, as far as the calling user may read it, and what the guest
writes is forgotten. Nothing that the guest says here is trusted: its serial line is bounded and looked at for a few words.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import pwd
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import anyio
import anyio.abc

import waylend
from waylend.errors import Unavailable, UsageError, WaylendError
from waylend.host_half.serving import serve_guest
from waylend.policy import Policy
from waylend.service.environment import for_guests
from waylend.vm.init import MARK, PLAN_NAME
from waylend.vm.qemu import qemu_args, qemu_version

_BOOT = Path("/boot")
_MODULES = Path("/lib/modules")
_QEMU = "qemu-system-x86_64"
#: A kernel that runs at all prints its first line in less than a second; one that a hypervisor can't run never does.
_SIGN_OF_LIFE_S = 8.0
_NO_LIFE = "no life"
_GRACE_S = 5.0
_CONSOLE_BYTES = 64 * 1024
#: Runs the command; ends its process group when whoever holds the other end of pipe $1 has gone, however it went.
_WATCHED = """
pipe=/proc/self/fd/$1; shift; exec 3<&0
"$@" <&3 3<&- & machine=$!
(read -r _ <"$pipe"; kill -TERM 0) <&- >&- 2>&- & watcher=$!
wait $machine; kill $watcher
"""


@dataclass(frozen=True)
class Machine:
    """``kernel``: an image (default: the running kernel's, else the newest). ``memory`` as QEMU takes it ("1G").

    ``accel``: "kvm", "tcg", or "auto": KVM where it works.
    """

    kernel: str | None = None
    memory: str = "1G"
    cpus: int = 2
    network: bool = False
    rw_home: bool = False
    accel: str = "auto"
    verbose: int = 0


def find_kernel(named: str | None = None) -> str:
    """The image to boot; its modules must be installed. Raises UsageError, Unavailable."""
    if named is not None:
        if not os.access(named, os.R_OK):
            raise UsageError(f"can't read the kernel {named}")
        return named
    running = _BOOT / f"vmlinuz-{platform.release()}"
    newest_first = sorted(_BOOT.glob("vmlinuz-*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in (running, *newest_first):
        version = path.name.removeprefix("vmlinuz-")
        if os.access(path, os.R_OK) and (_MODULES / version).is_dir():
            return f"{path}"
    raise Unavailable(
        f"no kernel in {_BOOT} can be read that has its modules in {_MODULES}",
        "on Debian: apt-get install linux-image-amd64; or name one with --kernel",
    )


def check_programs(*, network: bool = False) -> None:
    """Raises Unavailable that names every program that is missing for a VM (with a network), and how to get it."""
    needed = {
        _QEMU: "apt-get install qemu-system-x86",
        "vng": f"{sys.executable} -m pip install virtme-ng",
        "busybox": "apt-get install busybox-static",
        "file": "apt-get install file",  # vng asks it what a kernel is
    }
    if network:
        needed["ip"] = "apt-get install iproute2"  # the machine's own, for its address
    missing = {name: remedy for name, remedy in needed.items() if shutil.which(name, path=_path()) is None}
    if missing:
        what = "a VM with a network" if network else "a VM"
        raise Unavailable(f"{what} needs {', '.join(missing)}", "; ".join(missing.values()))


def check_place() -> None:
    """Raises Unavailable where the machine couldn't read what is to run in it: virtme-ng hides /root from others than root."""
    if os.geteuid() == 0:
        return
    for what in (sys.executable, os.path.abspath(waylend.__file__)):
        if what.startswith("/root/"):
            raise Unavailable(
                f"virtme-ng shows an empty /root to a machine of another user's than root, and {what} is in there",
                "install waylend elsewhere",
            )


def _path() -> str:
    """Where programs are: those of our own environment first."""
    return os.pathsep.join((os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))


def kvm_may_work() -> bool:
    return os.access("/dev/kvm", os.R_OK | os.W_OK)


@dataclass
class _Console:
    """The serial line: the last of what came, and what ``vm.init`` told."""

    tail: bytearray = field(default_factory=bytearray)
    alive: anyio.Event = field(default_factory=anyio.Event)
    ready: anyio.Event = field(default_factory=anyio.Event)
    status: int | None = None
    error: str = ""
    _line: bytearray = field(default_factory=bytearray)

    async def read(self, listener: anyio.abc.SocketListener) -> None:
        """All that QEMU writes there, which connects once."""
        stream = await listener.accept()
        async with stream:
            async for octets in stream:
                self.feed(octets)

    async def no_life(self) -> str | None:
        """Waits for a sign of it; _NO_LIFE where none comes."""
        with anyio.move_on_after(_SIGN_OF_LIFE_S):
            await self.alive.wait()
            return None
        return _NO_LIFE

    def feed(self, octets: bytes) -> None:
        if octets:
            self.alive.set()
        self.tail += octets
        del self.tail[:-_CONSOLE_BYTES]
        *lines, rest = (bytes(self._line) + octets).split(b"\n")
        self._line = bytearray(rest[-_CONSOLE_BYTES:])
        for line in lines:
            self._look_at(_printable(line).strip())

    def _look_at(self, line: str) -> None:
        mark, _, told = line.partition(" ")
        what, _, rest = told.partition(" ")
        if mark != MARK:
            return
        if what == "ready":
            self.ready.set()
        elif what == "status" and rest.isdecimal() and int(rest) < 256:
            self.status = int(rest)
        elif what == "error":
            self.error = rest[:1000]

    def last_lines(self, count: int = 5) -> str:
        lines = [_printable(line) for line in self.tail.split(b"\n") if line.strip()]
        return "\n".join(lines[-count:])


def _printable(line: bytes | bytearray) -> str:
    """What a guest says goes to a terminal, which obeys control characters."""
    return "".join(char for char in line.decode("utf-8", "replace") if char.isprintable())


async def run_in_vm(
    argv: Sequence[str],
    machine: Machine,
    *,
    folder: Path,
    compositor: str | socket.socket | None,
    policy: Policy,
    signals: Any,
    say: Callable[[str], None],
    trace: Any = None,
) -> int:
    """Boots a VM, runs ``argv`` in it as the calling user, and returns its exit status (128 + N for a signal's).

    ``folder`` is private and the caller's to remove. ``say`` gets a line at each step. A signal from ``signals`` ends the VM.
    Raises Unavailable, UsageError, CompositorError.
    """
    check_programs(network=machine.network)
    check_place()
    kernel = find_kernel(machine.kernel)
    channel, bar, plan = folder / "channel", folder / "bar", folder / "plan"
    plan.write_text(json.dumps(_plan_of(argv, machine)))
    async with serve_guest(
        channel=f"unix:{channel}",
        compositor=compositor,
        policy=policy,
        name="vm",
        bar_link=f"{bar}",
        once=True,
        trace=trace,
    ) as lender:
        devices = qemu_args(f"{bar}", os.stat(bar).st_size, f"{channel}", version=qemu_version(_QEMU))
        devices += ["-fw_cfg", f"name={PLAN_NAME},file={plan}"]
        accels = {"kvm": ["kvm"], "tcg": ["tcg"], "auto": ["kvm", "tcg"] if kvm_may_work() else ["tcg"]}[machine.accel]
        for number, accel in enumerate(accels):
            say(f"booting {os.path.basename(kernel)} ({'KVM' if accel == 'kvm' else 'emulated: slow'})")
            give_up = number + 1 < len(accels)
            status = await _boot(kernel, accel, machine, devices, folder, lender.ended, signals, say, give_up=give_up)
            if status is not None:
                return status
            say("this machine's KVM doesn't run that kernel")
    raise AssertionError("the last accelerator gives a status")


def _plan_of(argv: Sequence[str], machine: Machine) -> dict[str, Any]:
    return {
        "argv": list(argv),
        "uid": os.getuid(),
        "gid": os.getgid(),
        "groups": [] if os.getuid() == 0 else os.getgroups(),
        "cwd": os.getcwd(),
        "environment": for_guests(os.environ, clean=True),
        "verbose": machine.verbose,
    }


def _vng(kernel: str, accel: str, machine: Machine, devices: Sequence[str], console: Path) -> list[str]:
    home = os.path.abspath(os.environ.get("HOME") or pwd.getpwuid(os.getuid()).pw_dir)
    serial = ["-chardev", f"socket,id=waylend-console,path={console}", "-serial", "chardev:waylend-console"]
    python_path = os.path.dirname(os.path.dirname(os.path.abspath(waylend.__file__)))
    init = ["env", f"PYTHONPATH={python_path}", sys.executable, "-m", "waylend.vm.init"]
    argv = ["vng", "--run", kernel, "--user", "root", "--memory", machine.memory, "--cpus", f"{machine.cpus}"]
    argv += ["--disable-microvm", "--disable-monitor", "--force-9p", "--name", "waylend-vm", "--cwd", "/"]
    argv += ["--append", "console=ttyS1", "--append", "ignore_loglevel"]
    argv += ["--rwdir" if machine.rw_home else "--overlay-rwdir", home] if home != "/" else []
    argv += ["--network", "user"] if machine.network else []
    argv += ["--disable-kvm"] if accel == "tcg" else []
    return [*argv, f"--qemu-opts={shlex.join([*serial, *devices])}", "--", shlex.join(init)]


async def _boot(
    kernel: str,
    accel: str,
    machine: Machine,
    devices: Sequence[str],
    folder: Path,
    compositor_gone: anyio.Event,
    signals: Any,
    say: Callable[[str], None],
    *,
    give_up: bool,
) -> int | None:
    """One machine, to its end. None: the kernel gave no sign of life, and we may ``give_up``."""
    console, socket_path = _Console(), folder / f"console-{accel}"
    why: list[int | str] = []
    argv = _vng(kernel, accel, machine, devices, socket_path)
    stdin = None if _is_for_the_app(sys.stdin) else subprocess.DEVNULL
    environment = {**os.environ, "PATH": _path()}
    async with (
        await anyio.create_unix_listener(socket_path) as listener,
        _started(argv, stdin=stdin, env=environment) as process,
        anyio.create_task_group() as tasks,
    ):

        async def stop_when(happens: Callable[[], Any]) -> None:
            reason = await happens()
            if reason is not None:
                why.append(reason)
                _signal_group(process, signal.SIGTERM)

        async def goes() -> str:
            await compositor_gone.wait()
            return "the compositor has gone"

        tasks.start_soon(console.read, listener)
        tasks.start_soon(stop_when, functools.partial(_next_signal, signals))
        tasks.start_soon(stop_when, goes)
        tasks.start_soon(_say_ready, console, say)
        if give_up:
            tasks.start_soon(stop_when, console.no_life)
        async with anyio.create_task_group() as pumps:
            pumps.start_soon(_pump, process.stdout, sys.stdout.buffer)
            pumps.start_soon(_pump, process.stderr, sys.stderr.buffer, why)
        await process.wait()
        tasks.cancel_scope.cancel()
    if give_up and not console.alive.is_set() and (not why or _NO_LIFE in why):
        return None  # nobody ended it but QEMU itself, or we for want of a sign of life
    if why and isinstance(why[0], int):
        return why[0]
    if console.status is not None:
        return console.status
    raise WaylendError(
        console.error
        or (f"{why[0]}" if why else f"the VM ended before its app did; its console's end:\n{console.last_lines()}")
    )


async def _next_signal(signals: Any) -> int:
    """The exit status for it."""
    async for number in signals:
        return 128 + int(number)
    raise AssertionError("signals end with us")


async def _say_ready(console: _Console, say: Callable[[str], None]) -> None:
    started_at = anyio.current_time()
    await console.ready.wait()
    say(f"up after {anyio.current_time() - started_at:.0f} s")


def _is_for_the_app(stdin: Any) -> bool:
    """Whether our standard input is for the app: a terminal isn't, since its Ctrl-C is for us and QEMU would take it."""
    try:
        return not os.isatty(stdin.fileno())
    except (OSError, ValueError, AttributeError):
        return False


@asynccontextmanager
async def _started(argv: Sequence[str], *, stdin: int | None, env: dict[str, str]) -> AsyncIterator[anyio.abc.Process]:
    """Whatever happens, to us too, none of the process's group is left."""
    reading, writing = os.pipe()
    try:
        process = await anyio.open_process(
            ["/bin/sh", "-c", _WATCHED, "waylend-vm", f"{reading}", *argv],
            stdin=stdin,
            env=env,
            cwd="/",
            # Ctrl-C at the terminal is ours to handle.
            start_new_session=True,
            pass_fds=[reading],
        )
        os.close(reading)
        reading = -1
        try:
            yield process
        finally:
            with anyio.CancelScope(shield=True):
                _signal_group(process, signal.SIGTERM)
                with anyio.move_on_after(_GRACE_S):
                    await process.wait()
                _signal_group(process, signal.SIGKILL)
                await process.aclose()
    finally:
        for fd in (reading, writing):
            if fd >= 0:
                os.close(fd)


def _signal_group(process: anyio.abc.Process, number: int) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass


async def _pump(stream: anyio.abc.ByteReceiveStream | None, out: BinaryIO, mute: Sequence[object] = ()) -> None:
    """QEMU opens its standard output anew, which would cut a file short: it gets pipes, and we pass on what comes.

    Unless there is something in ``mute``: what it says when we end it is no news.
    """
    assert stream is not None
    async for octets in stream:
        if not mute:
            await anyio.to_thread.run_sync(_write, out, octets)


def _write(out: BinaryIO, octets: bytes) -> None:
    out.write(octets)
    out.flush()
