"""The documents say what the code does: what is made from it is up to date, and what is written by hand names what exists."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from compositor_shim import Shim
from docs.writing import channel, man_pages, tables
from waylend.cli import waylend as program
from waylend.policy import read_policy

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
SOURCES = sorted(
    path for folder in ("waylend", "compositor-shim", "tests", "examples") for path in ROOT.glob(f"{folder}/**/*.py")
)
AGAIN = "`python -m docs.writing` writes it"


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(), re.DOTALL | re.MULTILINE)


def anchors(document: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def installed(program: str) -> None:
    """Nothing that the tests install: a second opinion, where somebody has it."""
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")


# What is made from the code


def test_every_command_has_a_man_page_that_says_what_it_does() -> None:
    there = {path.name: path.read_text() for path in man_pages.FOLDER.glob("*")}
    assert there == man_pages.pages(), AGAIN


@pytest.mark.parametrize("tool", [["groff", "-man", "-ww", "-z"], ["mandoc", "-T", "lint"]], ids=["groff", "mandoc"])
def test_no_reader_of_man_pages_complains(tool: list[str]) -> None:
    installed(tool[0])
    done = subprocess.run(
        [*tool, *man_pages.FOLDER.glob("*.1")], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_channels_page_is_its_protocol() -> None:
    assert channel.PAGE.read_text() == channel.page(), AGAIN


def test_every_global_and_every_limit_is_in_the_policys_page_with_a_reason() -> None:
    page = tables.PAGE.read_text()
    assert page == tables.written(page), AGAIN
    assert tables.unsaid(page) == []


# What is written by hand


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith(("https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        assert file.exists(), f"{document.name} links to {target}"
        assert not anchor or anchor in anchors(file), f"{document.name} links to {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_tests_that_it_names_are_there(document: Path) -> None:
    for file, name in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", document.read_text()):
        assert (ROOT / file).is_file(), f"{document.name} names {file}"
        assert not name or f"def {name}(" in (ROOT / file).read_text(), f"{document.name} names {file}::{name}"


def test_sources_cite_documents_that_their_readers_have() -> None:
    for source in SOURCES:
        text = source.read_text()
        assert "DES" + "IGN" not in text, f"{source} cites a document that is not here"
        for cited in re.findall(r"\bdocs/[\w\-]+\.md", text):
            # Other projects have such folders, too: those are named with their project.
            assert (ROOT / cited).is_file(), f"{source} cites {cited}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_policies_on_its_pages_can_be_read(document: Path, tmp_path: Path) -> None:
    for text in blocks(document, "toml"):
        path = tmp_path / "policy.toml"
        path.write_text(text)
        read_policy(path)


def commands_in(document: Path) -> list[list[str]]:
    """The command lines of waylend in indented lines and in quotes, as words."""
    text = document.read_text()
    lines = re.findall(r"^    (waylend .*)$", text, re.MULTILINE) + re.findall(r"`(waylend [^`\n]+)`", text)
    found = []
    for line in lines:
        words = shlex.split(line.split("  #")[0].split(" | ")[0].replace("[", "").replace("]", ""), comments=True)
        found.append(words[1 : words.index("--")] if "--" in words else words[1:])
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_and_options_that_it_shows_exist(document: Path) -> None:
    for words in commands_in(document):
        command: click.Command = program
        context = click.Context(command, **command.context_settings)
        options = {name for option in command.get_params(context) for name in (*option.opts, *option.secondary_opts)}
        for word in words:
            name = word.partition("=")[0].strip(",.;:")
            if word.startswith("--"):
                assert name in options, f"{document.name}: waylend {' '.join(words)}: there is no {name}"
            elif isinstance(command, click.Group) and re.fullmatch(r"[a-z]+", name):
                child = command.get_command(context, name)
                assert child is not None, f"{document.name}: there is no command {name}"
                command, context = child, click.Context(child, parent=context, **child.context_settings)
                options |= {
                    each for option in command.get_params(context) for each in (*option.opts, *option.secondary_opts)
                }


# Embedding


EMBEDDING = ROOT / "docs" / "embedding.md"


@pytest.mark.parametrize("number", range(len(blocks(EMBEDDING, "python"))))
def test_code_in_embedding_runs(number: int, tmp_path: Path) -> None:
    code = blocks(EMBEDDING, "python")[number]
    tmp_path.chmod(0o700)
    with Shim(size=(320, 200)) as shim:
        environ = {**os.environ, **shim.environ, "XDG_RUNTIME_DIR": f"{tmp_path}"}
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            env=environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_other_code_is_python(document: Path) -> None:
    for code in blocks(document, "python"):
        compile(code, document.name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


# Completions


def completed(shell: str, line: str) -> list[str]:
    """What the shell itself offers behind ``line``, with the script that is installed for it."""
    folder = ROOT / "docs" / "completions" / shell
    programs = os.path.dirname(sys.executable)
    environ = {"PATH": f"{programs}:{os.defpath}:/usr/bin:/bin", "HOME": os.environ.get("HOME", "/")}
    words = line.split(" ")
    if shell == "bash":
        script = (
            f"source {folder / 'waylend'}; COMP_WORDS=({line}{' ' * (not words[-1])}{chr(39) * 2 * (not words[-1])}); "
            f"COMP_CWORD={len(words) - 1}; $(complete -p waylend | sed 's/.*-F \\([^ ]*\\).*/\\1/') waylend; "
            'printf "%s\\n" "${COMPREPLY[@]}"'
        )
        argv = ["bash", "--norc", "-c", script]
    else:
        argv = ["fish", "--no-config", "-c", f"source {folder / 'waylend.fish'}; complete --do-complete '{line}'"]
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return [offered.split("\t")[0] for offered in done.stdout.split("\n") if offered]


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_a_shell_completes_commands_and_options(shell: str) -> None:
    installed(shell)
    assert completed(shell, "waylend re") == ["revoke"]
    assert "--compositor" in completed(shell, "waylend run --")


def test_zsh_finds_its_completions_and_can_read_them() -> None:
    installed("zsh")
    folder = ROOT / "docs" / "completions" / "zsh"
    said = (
        "fpath=($1 $fpath); autoload -Uz compinit; compinit -u -D; print -l $_comps[waylend] $_comps[compositor-shim]"
    )
    done = subprocess.run(
        ["zsh", "-f", "-c", said, "zsh", folder], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.split() == ["_waylend", "_compositor-shim"], done.stderr
    for script in folder.iterdir():
        done = subprocess.run(["zsh", "-n", script], capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def test_completions_are_there_for_every_program() -> None:
    for name in man_pages.PROGRAMS:
        for path in (f"bash/{name}", f"zsh/_{name}", f"fish/{name}.fish"):
            assert name in (ROOT / "docs" / "completions" / path).read_text()
    assert shutil.which("bash")
