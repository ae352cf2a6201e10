"""The one distribution, in every way that people install it: wheel, sdist, editable. Each is built, installed and used."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import waylend.errors

ROOT = Path(__file__).parents[2]

# Run by the installed copy's Python, with the place where the packages have to come from.
CHECK = """
import importlib.metadata, pathlib, sys

import compositor_shim, waylend
from waylend.wire.tables import load_tables

place = pathlib.Path(sys.argv[1]).resolve()
for package in (waylend, compositor_shim):
    folder = pathlib.Path(package.__file__).resolve().parent
    assert folder.is_relative_to(place), f"{folder} is not below {place}"
    assert (folder / "py.typed").is_file(), f"{folder} has no py.typed"
tables = load_tables()
assert "wl_surface" in tables, "pywayland's protocols are missing"
assert "zwlr_layer_shell_v1" in tables, "the protocols of protocol-xml are missing"
distribution = importlib.metadata.distribution("waylend")
assert distribution.metadata["License-Expression"] == "MIT"
assert any(path.name == "LICENSE" for path in distribution.files or ()), "no licence"
print(distribution.version)
"""


def build(kind: str, source: Path, folder: Path) -> Path:
    """The sdist or wheel of ``source``. The build backend is the one of our own environment: nothing is downloaded."""
    command = [sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", str(folder), str(source)]
    _run(command)
    (built,) = folder.glob("*.tar.gz" if kind == "sdist" else "*.whl")
    return built


def install(folder: Path, *what: str) -> Path:
    """A fresh environment with ``what`` in it. It sees what waylend needs, but not the waylend that we run from."""
    _run([sys.executable, "-m", "venv", "--without-pip", str(folder)])
    python = folder / "bin" / "python"
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--no-warn-script-location"]
    ours = sysconfig.get_path("purelib")
    (site_packages,) = (folder / "lib").glob("python3*/site-packages")
    # A line of a .pth file goes onto sys.path behind the environment's own, and .pth files in there are not read.
    (site_packages / "dependencies.pth").write_text(f"{ours}\n")
    _run([sys.executable, "-m", "pip", "--python", str(python), "install", *options, *what])
    return folder


def use(environment: Path, place: Path) -> None:
    """Imports, tables, licence and commands, from a directory in which there is nothing to import by accident."""
    version = _run([str(environment / "bin" / "python"), "-c", CHECK, str(place)], cwd=environment).strip()
    for command in ("waylend", "compositor-shim"):
        printed = _run([str(environment / "bin" / command), "--version"], cwd=environment)
        assert version in printed, f"{command} --version printed {printed!r}"
    assert "serve" in _run([str(environment / "bin" / "python"), "-m", "waylend", "--help"], cwd=environment)


def _run(command: list[str], cwd: Path = ROOT) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", ROOT, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def source(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, unpacked."""
    folder = tmp_path_factory.mktemp("source")
    with tarfile.open(sdist) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.2 (Debian 12) has none
        archive.extractall(folder)
    (unpacked,) = folder.iterdir()
    return unpacked


def test_wheel_from_the_sdist_works(source: Path, tmp_path: Path) -> None:
    wheel = build("wheel", source, tmp_path / "wheel")
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    (metadata,) = {folder for name in names if (folder := name.split("/")[0]).endswith(".dist-info")}
    shared = metadata.removesuffix(".dist-info") + ".data"
    outside = {name.split("/")[0] for name in names} - {"waylend", "compositor_shim", metadata, shared}
    assert not outside, f"the wheel installs {outside}, too"
    assert {Path(name).relative_to(f"{shared}/data") for name in names if name.startswith(f"{shared}/")} == {
        Path("share", name)
        for name in (
            "systemd/user/waylend-guest.service",
            "systemd/user/waylend-guest.socket",
            "waylend/udev/70-waylend-guest.rules",
            "waylend/udev/70-waylend-host.rules",
            "bash-completion/completions/waylend",
            "bash-completion/completions/compositor-shim",
            "zsh/site-functions/_waylend",
            "zsh/site-functions/_compositor-shim",
            "fish/vendor_completions.d/waylend.fish",
            "fish/vendor_completions.d/compositor-shim.fish",
            *(f"man/man1/{page.name}" for page in (ROOT / "docs" / "man").glob("*.1")),
        )
    }
    use(install(tmp_path / "environment", str(wheel)), tmp_path / "environment")


def test_sdist_installs_and_has_what_its_tests_need(sdist: Path, source: Path, tmp_path: Path) -> None:
    for needed in ("LICENSE", "README.md", "CHANGELOG.md", "Makefile", "protocol-xml", "tests/conftest.py", "examples"):
        assert (source / needed).exists(), f"the sdist lacks {needed}"
    use(install(tmp_path / "environment", str(sdist)), tmp_path / "environment")


def test_editable_install_runs_from_the_source(source: Path, tmp_path: Path) -> None:
    copy = tmp_path / "checkout"
    shutil.copytree(source, copy)
    use(install(tmp_path / "environment", "--editable", str(copy)), copy)


def test_these_tests_run_from_the_checkout() -> None:
    """Else the whole suite could test an installed copy that nobody is working on."""
    assert Path(waylend.errors.__file__).is_relative_to(ROOT)
