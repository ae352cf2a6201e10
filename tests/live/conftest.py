"""Compositors for a whole module, and a guest for each test in front of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import pytest

from tests.live.compositors import Compositor, Sway, Weston
from tests.live.guest import Guest, Proxy

AnyCompositor = TypeVar("AnyCompositor", bound=Compositor)

_FOLDER = Path(__file__).parent

MakeGuest = Callable[..., Guest]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _FOLDER in item.path.parents:
            item.add_marker(pytest.mark.live)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """A failing test shows what its applications and its proxy said."""
    report = yield
    guests = item.stash.get(_GUESTS, [])
    if report.failed and call.when == "call":  # type: ignore[attr-defined]
        for guest in guests:
            report.sections.append(("logs of the guest", guest.logs()))  # type: ignore[attr-defined]
    return report


_GUESTS = pytest.StashKey[list[Guest]]()


def _running(compositor: AnyCompositor) -> Iterator[AnyCompositor]:
    try:
        compositor.start()
        yield compositor
        assert compositor.process.running, f"{compositor.name} ended by itself; its log:\n{compositor.process.log()}"
    finally:
        compositor.close()


@pytest.fixture(scope="module")
def sway() -> Iterator[Sway]:
    yield from _running(Sway())


@pytest.fixture(scope="module")
def weston() -> Iterator[Weston]:
    yield from _running(Weston())


@pytest.fixture
def make_guest(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeGuest]:
    """``make_guest(compositor, *flags of waylend serve)``; everything ends with the test.

    With ``proxy_type=Halves`` there are a host half and a guest half in the place of the proxy.
    """
    guests = request.node.stash.setdefault(_GUESTS, [])
    with ExitStack() as stack:

        def make(host: Compositor, *flags: str, proxy_type: type[Proxy] = Proxy) -> Guest:
            guest = Guest(host, tmp_path, *flags, proxy_type=proxy_type)
            guests.append(guest)
            stack.callback(guest.close)
            return guest

        yield make
