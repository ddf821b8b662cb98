"""Words for the summary of a file: columns, totals, and its comparison with the records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from worker.importer import IGNORED, USED_BY_RESULT, USED_FOR_ID
from worker.model.currencies import AmountUnit
from worker.model.words import counted
from worker.wording.batches import Rows, amount_rows, total_rows

_MOST_IGNORED: Final = 20
_LABELS: Final = {
    "file": "file",
    "format": "format",
    "rows": "rows",
    "valid": "valid",
    "invalid": "invalid",
    "duplicates": "duplicates",
    "repeats": "same payment and amount",
    "new": "new",
    "known": "accepted before",
    "conflicting": "id taken",
    "repeats_of_records": "same as a past refund",
    "not_failed": "another attempt not failed",
    "earlier_batch": "imported before as",
    "batch_id": "batch",
    "created": "accepted",
    "time": "time to send",
    "succeeded": "succeeded",
    "failed": "failed",
    "canceled": "canceled",
    "review": "need review",
    "moving": "unfinished",
}
"""The labels of facts for a person; facts without a label are in the JSON only."""


def rows_of_report(facts: Mapping[str, Any]) -> Rows:
    """Return the summary of a file as labels and values; the value of a zero count is None."""
    rows: Rows = []
    for name, value in facts.items():
        if name in _PARTS:
            rows += _PARTS[name](value, facts)
        elif name in _LABELS and isinstance(value, int):
            rows.append((_LABELS[name], f"{value:,}" if value or name == "rows" else None))
        elif name in _LABELS:
            rows.append((_LABELS[name], value))
    return rows


def _read_with(decimals: Mapping[str, int], _facts: object) -> Rows:
    read = (
        f"{currency.upper()} with {counted(number, 'decimal')}"
        for currency, number in decimals.items()
    )
    return [("amounts read", ", ".join(read))]


def _each(label: str) -> Callable[[Mapping[str, int], object], Rows]:
    def rows(counts: Mapping[str, int], _facts: object) -> Rows:
        return [
            (label + _LABELS.get(name, name), f"{number:,}")
            for name, number in counts.items()
            if number
        ]

    return rows


def _column_rows(columns: Sequence[Mapping[str, str]], unit: AmountUnit, decimal: str) -> Rows:
    """Return a line for each column, and one for all columns of an earlier result."""
    lines: list[str] = []
    uses = Counter(each["use"] for each in columns)
    ignored = 0
    for each in columns:
        name, use = each["column"], each["use"]
        ignored += use == IGNORED
        if use != USED_BY_RESULT and (use != IGNORED or ignored <= _MOST_IGNORED):
            lines.append(
                f"{repr(name) if name else 'a column without a name'}"
                f" {_used(name, use, unit, decimal)}"
            )
    if ignored > _MOST_IGNORED:
        lines.append(f"and {counted(ignored - _MOST_IGNORED, 'more column')} ignored")
    if results := uses[USED_BY_RESULT]:
        lines.append(f"{counted(results, 'column')} of an earlier result ignored")
    return [("" if index else "columns", line) for index, line in enumerate(lines)]


def _used(name: str, use: str, unit: AmountUnit, decimal: str) -> str:
    if use == "amount":
        return (
            f"used as amount, in {unit}"
            f" units{' with a decimal comma' if decimal == 'comma' else ''}"
        )
    if use.startswith("metadata"):
        return f"sent along as {use}"
    made, _, key = use.partition(", ")
    if made == USED_FOR_ID:
        return f"used for the id, sent along as {key}" if key else "used for the id"
    return use if use == IGNORED else "used" if name == use else f"used as {use}"


_PARTS: Final[Mapping[str, Callable[[Any, Any], Rows]]] = {
    "columns": lambda columns, facts: _column_rows(columns, facts["amount_unit"], facts["decimal"]),
    "totals": lambda totals, facts: total_rows(
        {currency: total["amount"] for currency, total in totals.items()},
        totals,
        facts["amount_unit"],
    ),
    "amounts": lambda amounts, facts: amount_rows(amounts, facts["amount_unit"]),
    "decimals": _read_with,
    "errors_by_code": _each("invalid, "),
    "known_by_status": _each("of these, "),
    "counts": _each(""),
}
