"""Writes `ops/docs/error-codes.md` from the table of error codes: `./ops/dev python -m ops.lab.tools.error_codes`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from worker.rules.codes import CODES, Code

PAGE: Final = Path(__file__).parents[2] / "docs" / "error-codes.md"
_ORIGINS: Final = {
    "provider": ("What the provider refuses", "The refund has failed, and nothing of it moved money."),
    "worker": ("What the worker says", "Its own words for how far it is, or why it ended."),
}


def page() -> str:
    """Return the whole page."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    yield "# Error codes"
    yield ""
    yield "`error_code` of a refund, who acts on it, and what a caller does. Made from `worker/rules/codes.py` by"
    yield "`./ops/dev python -m ops.lab.tools.error_codes`; a test holds it to that table."
    yield ""
    yield "*Retriable* says whether sending it again can help: `yes`, `no` or `unknown`; empty if no refund ends as"
    yield "failed with the code. A provider may send any other code: it is kept as it came, is retriable `unknown`, and"
    yield "counts as `other`."
    for origin, (title, words) in _ORIGINS.items():
        yield from ("", f"## {title}", "", words, "", "| code | meaning | who acts | retriable | what to do |")
        yield "|---|---|---|---|---|"
        yield from (_row(code) for code in CODES.values() if code.origin == origin)
    yield ""


def _row(code: Code) -> str:
    retriable = "" if code.retriable is None else code.retriable.value
    return f"| `{code.name}` | {code.meaning} | {code.actor} | {retriable} | {code.advice} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"wrote {PAGE.name}: {len(CODES)} codes\n")
