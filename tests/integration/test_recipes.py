"""The recipes for producers of the README and of `integration.md`, run as they are written
there.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.support.installation import Installation, until

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "ops" / "docs" / "integration.md"]


def recipes() -> list[str]:
    texts = "\n".join(page.read_text("utf-8") for page in PAGES)
    return re.findall(r"```python\n(.*?)```", texts, re.DOTALL)


def test_the_recipes_for_producers_become_settled_records(installation: Installation) -> None:
    installation.start()
    for recipe in recipes():
        subprocess.run(
            [sys.executable, "-c", recipe], env=installation.environment, check=True, timeout=60
        )
    with installation.refunds() as refunds:
        ids = ["order-1001-1", "order-1001-2", "order-1002-1"]
        until(
            lambda: all(record is not None for record in refunds.get_many(ids)), "all are accepted"
        )
        records = installation.settled(refunds, ids)
    assert [record.status for record in records] == ["succeeded"] * len(ids)
    assert len(installation.sandbox.effects()) == len(ids)
