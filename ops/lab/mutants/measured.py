"""What each test was seen to run, kept beside the verdicts.

Measured anew only where something has changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from ops.lab.mutants.targets import Plan

Measured = dict[str, Any]
OWN: Final = Path("ops/lab/mutants")
"""What judges changes nothing in what a test runs."""


class Kept:
    """Measurements of one plan's tests in a file; without one nothing is kept."""

    def __init__(self, plan: Plan, path: Path | None) -> None:
        self._plan = plan
        self._path = path
        # Whatever is no test may change what every test runs.
        self._shared = _digest(plan, [file for file in _files(plan) if not _is_tests(file)])
        self._digests: dict[str, str] = {}

    def known(self, tests: Sequence[str]) -> Measured:
        """Return what is known of the tests as they stand now."""
        if self._path is None or not self._path.exists():
            return {}
        kept = json.loads(self._path.read_text("utf-8"))
        return {
            name: kept[name]["seen"]
            for name in tests
            if kept.get(name, {}).get("digest") == self._of(name)
        }

    def keep(self, measured: Measured) -> None:
        """Keep these."""
        if self._path is not None:
            entries = {
                name: {"digest": self._of(name), "seen": seen} for name, seen in measured.items()
            }
            self._path.write_text(json.dumps(entries), "utf-8")

    def _of(self, test: str) -> str:
        file = test.partition("::")[0]
        if file not in self._digests:
            self._digests[file] = self._shared + _digest(self._plan, [self._plan.root / file])
        return self._digests[file]


def _files(plan: Plan) -> list[Path]:
    found: list[Path] = []
    for name in plan.copied:
        path = plan.root / name
        found += (
            [path] if path.is_file() else (one for one in sorted(path.rglob("*")) if one.is_file())
        )
    return [
        path
        for path in found
        if "__pycache__" not in path.parts
        and (path.parent != plan.root / OWN or path.name == "seeds.py")
    ]


def _is_tests(file: Path) -> bool:
    return file.name.startswith("test_")


def _digest(plan: Plan, files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(plan.root)}\n".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()
