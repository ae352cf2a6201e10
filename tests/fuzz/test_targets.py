"""Every target of the fuzzer keeps its contract with its seeds, with the corpus, and with some inputs made of them."""

from __future__ import annotations

import pytest

from tests.fuzz.__main__ import TARGETS, fuzz_at_random, playing, seeds_of

#: All targets together take a few seconds.
_SECONDS = 0.7


@pytest.mark.parametrize("target", TARGETS)
def test_it_keeps_its_contract(target: str) -> None:
    with playing(target) as one_input:
        for octets in seeds_of(target):
            one_input(octets)
        assert fuzz_at_random(target, one_input, _SECONDS, seed=1) > 0


def test_a_broken_contract_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A relay that keeps the descriptors that no message took."""
    monkeypatch.setattr("waylend.relay.session.close_all", lambda _fds: None)
    monkeypatch.setattr("tests.fuzz.contract.DEADLINE_S", 0.01)
    with playing("requests") as one_input, pytest.raises(AssertionError, match="descriptors stay"):
        fuzz_at_random("requests", one_input, 5.0, seed=1)
