"""``waylend doctor``."""

from __future__ import annotations

import glob
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import anyio
import click

from waylend.cli.options import compositor_option, json_option
from waylend.domain.fuse.mounts import dirty_limit_bytes
from waylend.errors import CompositorError, Unavailable, UsageError
from waylend.relay.sockets import socket_path

#: How long udev may take to carry out its rules for a new mount.
_UDEV_S = 1.0


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. ``means``: what follows for the user; ``remedy``: how to get what is missing."""

    name: str
    there: bool
    what: str
    means: str
    remedy: str = ""


class Tell(Protocol):
    def __call__(self, what: str, remedy: str = "") -> None: ...


def _tried(module: str, class_name: str, **options: object) -> Any:
    """A domain of that kind, made for the trial; the caller closes it. Raises Unavailable."""
    try:
        return getattr(importlib.import_module(module), class_name)("doctor", aperture_pages=256, **options)
    except ImportError as error:
        raise Unavailable(f"{module} can't be imported: {error}") from error
    except OSError as error:
        raise Unavailable(error.strerror or f"{error}") from error


@contextmanager
def _finding(name: str, means: str, without: str, found: list[Finding]) -> Iterator[Tell]:
    """Tries one thing; the block says what it found (and how to get more), or raises Unavailable."""
    told: list[str] = []
    remedies: list[str] = []

    def tell(what: str, remedy: str = "") -> None:
        told.append(what)
        if remedy:
            remedies.append(remedy)

    try:
        yield tell
    except Unavailable as error:
        found.append(Finding(name, False, error.reason, without, error.remedy))
    else:
        found.append(Finding(name, True, "; ".join(told), means, "; ".join(remedies)))


def _look(compositor: str | None) -> list[Finding]:
    found: list[Finding] = []
    with _finding(
        "fuse",
        "leases come page by page, and every page can be taken back",
        "leases fall back to memfd: filled beforehand, taken back only as a whole",
        found,
    ) as tell:
        domain = _tried("waylend.domain.fuse.domain", "FuseDomain")
        try:
            tell("mounts" if os.geteuid() == 0 else "mounts through fusermount3")
            if not domain.other_users:
                tell("for this user's guests only (user_allow_other in /etc/fuse.conf allows more)")
            if _stays_slow(domain):
                tell(
                    f"the kernel slows down a VM's guest that has drawn {dirty_limit_bytes() >> 20} MB",
                    "for VMs with large windows: install the udev rule 70-waylend-host.rules (share/waylend/udev)",
                )
        finally:
            domain.close()
    with _finding("memfd", "the fallback works", "there is no fallback where FUSE is missing", found) as tell:
        _tried("waylend.domain.memfd", "MemfdDomain").close()
        tell("sealed memory files")
    with _finding(
        "kvm",
        "memory can be lent to guests whose VMM embeds waylend",
        "no memory for guests of an embedded VMM; other VMMs map FUSE's bar and need no KVM",
        found,
    ) as tell:
        _tried("waylend.domain.kvm.domain", "KvmDomain").close()
        tell("/dev/kvm and userfaultfd")
    with _finding("drm", "dma-bufs can be lent", "no dma-bufs to lend: files and shared memory only", found) as tell:
        nodes = sorted(glob.glob("/dev/dri/*[0-9]"))
        if not nodes:
            raise Unavailable("no DRM node in /dev/dri", "a GPU's driver, or the module vgem for tests")
        tell(", ".join(nodes))
    with _finding(
        "compositor",
        "waylend run and serve have a compositor",
        "say --compositor SOCKET, or --compositor shim for a headless one of our own",
        found,
    ) as tell:
        tell(anyio.run(_compositor, compositor))
    with _finding("shim", "--compositor shim works", "--compositor shim doesn't work", found) as tell:
        try:
            importlib.import_module("compositor_shim.compositor")
        except ImportError as error:
            remedy = f"{sys.executable} -m pip install 'pywayland<0.5' pillow"
            raise Unavailable(f"{error}", remedy) from error
        tell("headless compositor of our own")
    with _finding("jail", "what serves guests gives up its rights once set up", "no jail of its own", found) as tell:
        tell(*_jail())
    with _finding("vm", "a VM of this system can be started", "no VM of this system", found) as tell:
        _look_at_vm_tools(tell)
    return found


def _stays_slow(domain: Any) -> bool:
    """Whether udev, which needs a moment for it, leaves the limit of dirty pages where it is."""
    give_up_at = time.monotonic() + _UDEV_S
    while domain.slows_writers:
        if time.monotonic() > give_up_at:
            return True
        time.sleep(0.02)
    return False


async def _compositor(compositor: str | None) -> str:
    from waylend.service.compositor_link import compositor_link  # noqa: PLC0415
    from waylend.wire.tables import load_tables  # noqa: PLC0415

    name = compositor or os.environ.get("WAYLAND_DISPLAY", "")
    if not name:
        raise Unavailable("WAYLAND_DISPLAY is not set", "run this in a Wayland session, or give --compositor SOCKET")
    try:
        path = socket_path(name)
        async with compositor_link(path, load_tables()) as link:
            context = (
                "" if link.offers_security_context else "; it has no security contexts: it can't tell guests apart"
            )
            return f"{path}, {len(link.globals)} globals{context}"
    except (OSError, CompositorError, UsageError) as error:
        raise Unavailable(f"{name}: {error}", "is the compositor running?") from error


def _jail() -> tuple[str, str]:
    """What holds here, and how to get the rest; tried in a process of its own. Raises Unavailable."""
    program = (
        "import json; from waylend.jail import profiles;"
        "held = profiles.enter(profiles.relaying()); print(json.dumps([held.holds, held.missing]))"
    )
    home = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    environ = {**os.environ, "PYTHONPATH": home}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environ)
    if done.returncode:
        raise Unavailable(f"it can't be entered: {done.stderr.strip().splitlines()[-1]}")
    holds, missing = json.loads(done.stdout)
    return ", ".join(holds), "; ".join(missing)


def _look_at_vm_tools(tell: Tell) -> None:
    """Raises Unavailable."""
    from waylend.vm.machine import check_place, check_programs, find_kernel, kvm_may_work  # noqa: PLC0415

    check_programs()
    check_place()
    tell(f"{find_kernel()}, {'KVM' if kvm_may_work() else 'without KVM: slow'}")
    try:
        check_programs(network=True)
    except Unavailable as without:
        tell(f"none with a network: {without.reason}", without.remedy)


@click.command("doctor")
@compositor_option
@json_option
def command(compositor: str | None, as_json: bool) -> None:
    """Say what this machine offers, what that means, and how to get what is missing.

    Each mechanism is tried, not only looked for. The exit status is 1 if nothing can be lent here at all.
    """
    found = _look(compositor)
    if as_json:
        print(json.dumps([asdict(finding) for finding in found], indent=2))
    else:
        for finding in found:
            mark = click.style("yes" if finding.there else "no ", fg="green" if finding.there else "yellow")
            click.echo(f"{mark}  {finding.name:11} {finding.what}")
            click.echo(f"{'':17}-> {finding.means}")
            if finding.remedy:
                click.echo(f"{'':20}{finding.remedy}")
    if not any(finding.there for finding in found if finding.name in ("fuse", "memfd")):
        sys.exit(1)
