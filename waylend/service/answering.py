"""Answers ``waylend leases`` and its kin for one domain, at a control socket of its own. A guest half has none."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from waylend.domain.base import Domain
from waylend.errors import UsageError
from waylend.relay.sockets import own_dir
from waylend.service.control import ControlServer

logger = logging.getLogger(__name__)


async def answering(
    stack: AsyncExitStack,
    control: str | bool,
    domain: Domain,
    *,
    listen: Sequence[object],
    compositor: Path | None,
    now: Callable[[], Mapping[str, object]] = dict,
) -> Path | None:
    """Answers ``waylend leases`` and its kin at ``control``, or at a path of our own, until ``stack`` is left. Returns where.

    ``now()`` is what there is to say besides, and changes.
    """
    path = Path(control) if isinstance(control, str) else new_control_path() if control else None
    if path is not None:
        about = {
            "pid": os.getpid(),
            "listen": [f"{where}" for where in listen],
            "compositor": f"{compositor or 'a socket'}",
        }
        await stack.enter_async_context(ControlServer({domain.name: domain}, about, now).listening(path))
    return path


def new_control_path() -> Path | None:
    """One of our own in XDG_RUNTIME_DIR; where that isn't set, the proxy works all the same, but can't be asked."""
    try:
        return own_dir() / f"{os.getpid()}-{secrets.token_hex(2)}.control"
    except (UsageError, OSError) as error:
        logger.warning("`waylend leases` won't see this proxy: %s", error)
        return None
