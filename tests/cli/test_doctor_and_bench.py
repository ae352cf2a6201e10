"""What ``waylend doctor`` and ``waylend bench`` say: of this machine, in both forms."""

from __future__ import annotations

import json

import pytest

from tests.cli.test_options import waylend
from tests.processes import absent


def test_doctor_tries_each_mechanism_and_names_remedies() -> None:
    done = waylend("doctor", "--json")
    assert done.returncode == 0, done.stderr
    found = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert set(found) == {"fuse", "memfd", "kvm", "drm", "compositor", "shim", "jail", "vm"}
    assert found["memfd"]["there"]
    assert not found["compositor"]["there"]
    assert found["compositor"]["what"] == "WAYLAND_DISPLAY is not set"
    for finding in found.values():
        assert finding["means"]
        assert finding["there"] or finding["remedy"], finding
    shown = waylend("doctor").stdout
    for finding in found.values():
        assert f"{finding['name']:11} {finding['what']}" in shown


def test_doctor_says_which_compositor_does_not_answer() -> None:
    done = waylend("doctor", "--compositor", "/nowhere/wayland-0", "--json")
    (compositor,) = (finding for finding in json.loads(done.stdout) if finding["name"] == "compositor")
    assert "/nowhere/wayland-0" in compositor["what"]


@pytest.mark.parametrize("domain", ["fuse", "process"])
def test_bench_faults_measures_what_it_says(domain: str) -> None:
    done = waylend("bench", "faults", "--domain", domain, "--rounds", "1", "--json")
    if "Unavailable" in done.stderr or "fuse" in done.stderr:
        absent(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert set(result) == {domain, "lookup_us"}
    assert set(result[domain]["revoking_ms"]) == {"one page", "64 MiB", "256 MiB", "256 MiB dirty"}
    assert all(value > 0 for value in result[domain]["faults"].values())
    assert list(result["lookup_us"]) == ["1000", "10000", "100000", "1000000"]


def test_bench_refuses_a_cpu_that_is_not_there() -> None:
    done = waylend("bench", "faults", "--pin", "4000")
    assert done.returncode == 2
    assert "CPU 4000" in done.stderr
