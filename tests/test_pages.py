"""What the pages name exists: every relative link and its heading, every command, option, module,
path and setting.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import click
import pytest

from worker.cli.group import COMMANDS
from worker.settings import Settings

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob(".github/*.md"), *ROOT.glob("ops/**/*.md")])
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
_INLINE = re.compile(r"`([^`]+)`")
_REFUNDS = re.compile(r"(?:^|[\s|&(])refunds ((?:[a-z]+|--?[a-z])[^|&#;\n]*)")
_DEV = re.compile(r"\./ops/dev ([a-z]+)")
_MODULE = re.compile(r"python -m ([a-z_.]+)")
_PATH = re.compile(r"^(?:\./)?((?:ops|worker|tests)/[A-Za-z0-9_./-]+)$")


def text_of(page: Path) -> str:
    return page.read_text("utf-8")


def without_code(text: str) -> str:
    return _INLINE.sub("", _FENCE.sub("", text))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = _HEADING.findall(_FENCE.sub("", text_of(page)))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def code_in(page: Path) -> Iterator[str]:
    """What a reader may type: lines of shell blocks, and code within sentences."""
    text = text_of(page)
    for language, block in _FENCE.findall(text):
        if language == "sh":
            yield from block.splitlines()
    yield from _INLINE.findall(_FENCE.sub("", text))


def commands_in(page: Path) -> Iterator[list[str]]:
    for code in code_in(page):
        for found in _REFUNDS.findall(code):
            yield shlex.split(found.replace("…", ""), comments=True)


def exists(words: list[str]) -> bool:
    """Whether `refunds` knows the command that words name, and each option among them."""
    entry = COMMANDS.get(words[0])
    if entry is None:
        return words == ["--version"]
    command: click.Command | None = getattr(import_module(entry.module), entry.name)
    if isinstance(command, click.Group) and len(words) > 1 and not words[1].startswith("-"):
        command = command.commands.get(words[1])
    if command is None:
        return False
    known = {option for each in command.params for option in (*each.opts, *each.secondary_opts)}
    return {word.partition("=")[0] for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_relative_link_and_its_heading_exist(page: Path) -> None:
    broken = []
    for link in _LINK.findall(without_code(text_of(page).replace("[`", "[").replace("`](", "]("))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_command_and_option_shown_exists(page: Path) -> None:
    assert [words for words in commands_in(page) if not exists(words)] == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_command_of_a_checkout_exists(page: Path) -> None:
    usage = (ROOT / "ops" / "dev").read_text("utf-8")
    known = {*re.findall(r"^    ([a-z]+)\)", usage, re.MULTILINE), "help", "python", "refunds"}
    assert {name for code in code_in(page) for name in _DEV.findall(code)} - known == set()
    modules = {name for code in code_in(page) for name in _MODULE.findall(code)}
    assert [name for name in modules if find_spec(name) is None] == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_setting_named_exists(page: Path) -> None:
    settings = {f"REFUNDS_{name.upper()}" for name in Settings.model_fields}
    assert set(re.findall(r"\bREFUNDS_[A-Z_]*[A-Z]\b", text_of(page))) - settings == set()


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_path_named_exists(page: Path) -> None:
    paths = {found[1] for code in code_in(page) if (found := _PATH.match(code))}
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


def test_the_pages_hold_every_kind_of_thing_that_is_looked_for() -> None:
    commands = [" ".join(words[:2]) for page in PAGES for words in commands_in(page)]
    assert {"batch show", "review resolve", "import season.csv"} <= set(commands)
    assert "outside-the-promise" in anchors(ROOT / "ops" / "docs" / "design.md")
    assert {"demo", "prove"} <= {
        name for page in PAGES for code in code_in(page) for name in _DEV.findall(code)
    }
