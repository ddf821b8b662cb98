"""Links between the pages lead somewhere, and what CONTRIBUTING names exists."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / ".github").glob("*.md"), *(ROOT / "ops" / "docs").glob("*.md")])
CONTRIBUTING = (ROOT / ".github" / "CONTRIBUTING.md").read_text("utf-8")


def anchors(page: Path) -> set[str]:
    """The names under which a page's headings are linked to."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_to_a_file_and_a_heading_that_exist(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text("utf-8")):
        linked = (page.parent / target).resolve() if target else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), f"{target}#{anchor}"


def test_contributing_has_a_row_for_every_package() -> None:
    packages = {path.parent.name for path in (ROOT / "worker").glob("*/__init__.py")}
    rows = re.findall(r"^\| .+ \| (.+) \|$", CONTRIBUTING, re.MULTILINE)
    assert packages - set(re.findall(r"`worker/([a-z]+)/", " ".join(rows))) == set()


def test_every_path_that_contributing_names_exists() -> None:
    named = re.findall(r"`((?:worker|tests|ops|\.ci)/[\w./-]*)", CONTRIBUTING)
    assert len(named) > 15
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_command_that_contributing_names_is_one() -> None:
    shown = subprocess.run([ROOT / "ops" / "dev", "help"], check=True, capture_output=True, text=True).stdout
    known = set(re.findall(r"^  ([a-z]+) ", shown, re.MULTILINE)) | {"refunds", "python"}
    named = set(re.findall(r"\./ops/dev ([a-z]+)", CONTRIBUTING))
    assert named
    assert named - known == set()
