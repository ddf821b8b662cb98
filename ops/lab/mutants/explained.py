"""The mutants that may survive, each with the reason why: kept by what they change, not by line."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Final

from ops.lab.mutants.change import Key

EXPLAINED: Final = Path(__file__).with_name("explained.toml")


def read_explained(path: Path = EXPLAINED) -> dict[Key, str]:
    """Return the reason for each mutant that is explained.

    Raises `ValueError` where one has none or stands twice.
    """
    reasons: dict[Key, str] = {}
    for entry in tomllib.loads(path.read_text("utf-8")).get("mutant", []):
        key = Key(entry["file"], entry["function"], entry["before"], entry["after"])
        if not entry["reason"].strip():
            raise ValueError(f"no reason is given for {key}")
        if key in reasons:
            raise ValueError(f"explained twice: {key}")
        reasons[key] = entry["reason"].strip()
    return reasons
