"""The summary of a file, as JSON or a table: columns, totals, and comparison with the records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from worker.cli import render
from worker.wording.files import rows_of_report


def put_facts(facts: Mapping[str, Any], *, as_json: bool) -> None:
    """Write the summary of a file: as JSON, or as a table without zero counts."""
    if as_json:
        render.as_json(facts)
        return
    render.put(render.facts(rows_of_report(facts)))
