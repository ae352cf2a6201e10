"""Maps of apertures: which cell says what, on a terminal and in a picture."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio.from_thread
import pytest
from PIL import Image
from rich.console import Console

from waylend.backing.file import FileBacking
from waylend.cli.aperture_map import ApertureMap, colour_of, map_of
from waylend.cli.lease_map import MapView
from waylend.domain.memfd import MemfdDomain
from waylend.errors import UsageError
from waylend.lending.pages import PAGE_SIZE
from waylend.service.control import ControlServer


def lease(lease_id: int, gfn_start: int, page_count: int, page_states: str, present: int = 0) -> dict[str, Any]:
    return {
        "lease_id": lease_id,
        "name": f"lease {lease_id}",
        "gfn_start": gfn_start,
        "page_count": page_count,
        "pages_present": present,
        "faults_served": 3,
        "revocations": 0,
        "page_states": page_states,
    }


def domain(*leases: dict[str, Any]) -> dict[str, Any]:
    return {"name": "work", "mechanism": "fuse", "aperture_pages": 65536, "leases": list(leases)}


def memfd_of(page_count: int) -> FileBacking:
    fd = os.memfd_create("backing", os.MFD_CLOEXEC)
    os.ftruncate(fd, page_count * PAGE_SIZE)
    return FileBacking(fd)


def states(found: ApertureMap) -> str:
    return "".join(cell.state.value for cell in found.cells)


def test_each_cell_says_what_is_in_it() -> None:
    found = map_of(domain(lease(1, 2, 5, "1:1a1p1d1l1r"), lease(2, 8, 1, "1:1p")), 100)
    assert states(found) == "··░█◆✗░·█"
    assert [cell.lease_id for cell in found.cells] == [0, 0, 1, 1, 1, 1, 1, 0, 2]
    assert (found.pages_per_cell, found.free_pages) == (1, 65536 - 9)


def test_cells_have_as_many_pages_as_it_takes_to_have_room() -> None:
    found = map_of(domain(lease(1, 0, 6, "1:6p"), lease(2, 6, 7, "1:4a3p"), lease(3, 500, 12, "1:12a")), 128)
    assert (found.pages_per_cell, len(found.cells)) == (4, 128)
    assert states(found)[:5] == "█▒▒█·"
    assert [cell.lease_id for cell in found.cells[:4]] == [1, 1, 2, 2]
    # One page of four is some of it.
    assert states(map_of(domain(lease(1, 0, 16, "1:1p15a")), 4)) == "▒░░░"


def test_a_lease_whose_pages_were_taken_together_fills_its_cells() -> None:
    assert states(map_of(domain(lease(1, 1, 7, "4:1p1a")), 100)) == "·████░░░"


def test_what_came_since_the_last_look_flashes_once() -> None:
    first = map_of(domain(lease(1, 0, 4, "1:2p2a")), 100)
    second = map_of(domain(lease(1, 0, 4, "1:3p1a")), 100, first)
    assert [cell.flashes for cell in first.cells] == [False] * 4
    assert [cell.flashes for cell in second.cells] == [False, False, True, False]
    third = map_of(domain(lease(1, 0, 4, "1:3p1a")), 100, second)
    assert not any(cell.flashes for cell in third.cells)


def test_a_lease_whose_pages_went_and_came_again_in_between_flashes_where_it_has_any() -> None:
    calm, busy = lease(1, 0, 2, "1:2p"), lease(2, 2, 4, "1:3p1a")
    first = map_of(domain(calm, busy), 100)
    second = map_of(domain(calm, {**busy, "faults_served": 5}), 100, first)
    assert [cell.flashes for cell in second.cells] == [False, False, True, True, True, False]
    third = map_of(domain(calm, {**busy, "faults_served": 5}), 100, second)
    assert not any(cell.flashes for cell in third.cells)


def test_states_that_are_none_are_an_error_in_one_line() -> None:
    with pytest.raises(UsageError, match="lease 1: not the states of 4 pages"):
        map_of(domain(lease(1, 0, 4, "1:3p")), 100)


def test_an_empty_aperture_has_no_cells() -> None:
    assert map_of(domain(), 100).cells == ()


def test_on_a_terminal_it_is_as_wide_as_that_and_names_the_leases() -> None:
    out = io.StringIO()
    console = Console(file=out, width=60, force_terminal=True, color_system="truecolor")
    proxy = {"pid": 7, "listen": ["/guest"], "compositor": "/host"}
    view = MapView()
    for text in ("1:120a", "1:60p60a"):
        out.seek(0)
        out.truncate()
        answer = {**proxy, "domains": [domain(lease(1, 0, 120, text, present=60))]}
        for part in view.shown([answer], {(7, "work", 1): 4.0}, 60, 20):
            console.print(part, soft_wrap=True)
    shown = out.getvalue()
    red, green, blue = colour_of(1)
    assert f"\x1b[1;7;38;2;{red};{green};{blue}m{'█'}" in shown  # it flashes
    lines = [line for line in out.getvalue().splitlines() if "█" in line or "░" in line]
    assert [line.count("█") + line.count("░") for line in lines[:2]] == [60, 60]
    assert "a cell is 4 KiB" in shown
    assert "1 lease 1, 60 of 120 pages, 4 faults/s" in shown


@pytest.fixture
def control(tmp_path: Path) -> Iterator[tuple[Path, MemfdDomain]]:
    domain = MemfdDomain("work", aperture_pages=256)
    server = ControlServer({"work": domain}, {"pid": 7, "listen": ["/guest"], "compositor": "/host"})
    with anyio.from_thread.start_blocking_portal() as portal:
        path = tmp_path / "control"
        with portal.wrap_async_context_manager(server.listening(path)):
            yield path, domain
    domain.close()


def waylend(*arguments: object) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "waylend", *map(str, arguments)]
    return subprocess.run(argv, env={}, capture_output=True, text=True, timeout=60, check=False)


def test_a_picture_has_the_leases_in_their_colours(control: tuple[Path, MemfdDomain], tmp_path: Path) -> None:
    path, lender = control
    whole = lender.lend(memfd_of(20), name="shown")
    lender.lend(memfd_of(10), name="hidden")
    fd = lender.open_lease(whole)
    picture = tmp_path / "map.png"
    done = waylend("leases", "--control", path, "--png", picture)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    with Image.open(picture) as image:
        pixels = image.convert("RGB")
        row = [pixels.getpixel((16 + 8 * at + 3, 16 + 18 + 3)) for at in range(31)]
        assert row[:20] == [colour_of(1)] * 20
        assert colour_of(2) not in row[20:30]  # absent: an outline only
        assert pixels.getpixel((16 + 8 * 20, 16 + 18 + 3)) == colour_of(2)
    done = waylend("top", "--map", "--count", "1", "--control", path)
    assert done.returncode == 0
    assert "█" * 20 + "░" * 10 in done.stdout
    os.close(fd)


def test_a_picture_that_has_no_place_or_nobody_to_ask(tmp_path: Path) -> None:
    done = waylend("leases", "--control", tmp_path / "nobody", "--png", tmp_path / "nowhere" / "map.png")
    assert done.returncode == 2
    assert "there is no such folder" in done.stderr
    picture = tmp_path / "map.png"
    done = waylend("leases", "--control", tmp_path / "nobody", "--png", picture)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert not picture.exists()
