"""What CONTRIBUTING says of the packages.

Its links, paths and commands are checked with those of every page.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
CONTRIBUTING = (ROOT / ".github" / "CONTRIBUTING.md").read_text("utf-8")


def test_contributing_has_a_row_for_every_package() -> None:
    packages = {path.parent.name for path in (ROOT / "worker").glob("*/__init__.py")}
    rows = re.findall(r"^\| .+ \| (.+) \|$", CONTRIBUTING, re.MULTILINE)
    assert packages - set(re.findall(r"`worker/([a-z_]+)/", " ".join(rows))) == set()
