"""Lending for those who must not wait, to whatever domain: each call returns a Future."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol, TypeVar, runtime_checkable

from waylend.backing.base import Backing
from waylend.domain.base import Domain
from waylend.lending.lease import Lease

T = TypeVar("T")


@runtime_checkable
class LendsLater(Protocol):
    """A domain whose calls wait for another process, or don't: see ProcessDomain."""

    def lend_later(self, backing: Backing, *, name: str = "") -> Future[Lease]: ...
    def open_lease_later(self, lease: Lease) -> Future[int]: ...
    def end_later(self, lease: Lease) -> Future[None]: ...


def lend_later(domain: Domain, backing: Backing, name: str) -> Future[Lease]:
    """``domain.lend``. The backing is the domain's, and the caller's again if the future raises."""
    if isinstance(domain, LendsLater):
        return _of(lambda: domain.lend_later(backing, name=name))
    return _done(lambda: domain.lend(backing, name=name))


def open_lease_later(domain: Domain, lease: Lease) -> Future[int]:
    """``domain.open_lease``. The descriptor is the caller's."""
    if isinstance(domain, LendsLater):
        return _of(lambda: domain.open_lease_later(lease))
    return _done(lambda: domain.open_lease(lease))


def end_later(domain: Domain, lease: Lease) -> Future[None]:
    """``domain.end``."""
    if isinstance(domain, LendsLater):
        return _of(lambda: domain.end_later(lease))
    return _done(lambda: domain.end(lease))


def _of(ask: Callable[[], Future[T]]) -> Future[T]:
    """What can be refused at once is refused by the future, too."""
    try:
        return ask()
    except Exception as error:
        refused: Future[T] = Future()
        refused.set_exception(error)
        return refused


def _done(call: Callable[[], T]) -> Future[T]:
    """A domain of this process waits for nobody: it is done at once."""
    done: Future[T] = Future()
    try:
        done.set_result(call())
    except Exception as error:
        done.set_exception(error)
    return done
