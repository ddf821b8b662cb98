"""What is said of a file: its sums, its errors, what stands in it or in the records twice."""

from __future__ import annotations

import sys
from typing import Any, Final

from rich.table import Table

from worker.batches import Compared
from worker.cli import render
from worker.cli.limits import UNSTATED
from worker.cli.session import note
from worker.importer import Source, Summary, describe

_COLUMNS: Final = ("line", "column", "code", "value", "rule")


def facts_of(source: Source, summary: Summary) -> dict[str, Any]:
    """Return what a file comes to, for a program."""
    facts: dict[str, Any] = {
        "file": source.name,
        "format": describe(source),
        "digest": source.digest,
        "rows": summary.rows,
        "valid": summary.accepted,
        "invalid": summary.refused,
        "duplicates": summary.duplicates,
        "repeats": summary.repeats,
        "errors_by_code": dict(summary.errors_by_code),
        "totals": {
            currency or UNSTATED: {"rows": total.rows, "amount": total.amount, "all_remaining": total.all_remaining}
            for currency, total in summary.totals.items()
        },
    }
    if summary.refused:
        facts["error_rows"] = [error._asdict() for error in summary.first_errors]
    return facts


def records_of(compared: Compared) -> dict[str, Any]:
    """Return what the records hold of a file, for a program."""
    return {
        "new": compared.fresh,
        "known": compared.same,
        "known_by_status": dict(compared.statuses),
        "conflicting": compared.conflicting,
        "repeats_of_records": compared.repeats,
    }


def put_facts(facts: dict[str, Any], *, as_json: bool) -> None:
    """Write what is known of a file: as it is for a program, by name for a person, without what is zero."""
    if as_json:
        render.as_json(facts)
        return
    rows: list[tuple[str, object]] = []
    for name, value in facts.items():
        if name == "totals":
            rows += [(f"total {currency}", _total(total)) for currency, total in value.items()]
        elif name == "known_by_status":
            rows += [(f"known, {status}", f"{number:,}") for status, number in value.items()]
        elif isinstance(value, dict):
            rows += [(inner.replace("_", " "), f"{number:,}") for inner, number in value.items() if number]
        elif isinstance(value, int) and not isinstance(value, bool):
            rows.append((name.replace("_", " "), f"{value:,}" if value or name == "rows" else None))
        elif not isinstance(value, list):
            rows.append((name.replace("_", " "), value))
    render.put(render.facts(rows))


def _total(total: dict[str, int]) -> str:
    text = f"{total['amount']:,} minor units in {total['rows'] - total['all_remaining']:,} refunds"
    if total["all_remaining"]:
        text += f", and {total['all_remaining']:,} for all that is left of their payments"
    return text


def say_duplicates(summary: Summary) -> None:
    """Warn of rows that state a refund which stands in the file already."""
    if summary.duplicates:
        first = summary.first_duplicates[0]
        note(
            f"warning: {summary.duplicates:,} rows state a refund that stands in the file already (line {first.line} "
            f"repeats line {first.first_line}): each is enqueued once"
        )


def say_errors(source: Source, summary: Summary, end: str, kind: str = "error") -> None:
    """Write the first errors as a table and all of them by code; `end` says what follows from them."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in _COLUMNS:
        table.add_column(column, overflow="fold", justify="right" if column == "line" else "left")
    for error in summary.first_errors:
        table.add_row(*(render.plain(getattr(error, column)) for column in _COLUMNS))
    render.put(table, stream=sys.stderr)
    if summary.errors > len(summary.first_errors):
        note(f"… and {summary.errors - len(summary.first_errors):,} more errors: --errors FILE holds every one")
    by_code = ", ".join(f"{count:,} {code}" for code, count in summary.errors_by_code.items())
    note(f"{kind}: {summary.refused:,} of {summary.rows:,} rows of {source.name} are invalid ({by_code}): {end}")


def say_conflicts(source: Source, compared: Compared) -> None:
    """Name the first rows whose ids hold other contents in the records."""
    for row in compared.first_conflicts:
        note(f"line {row.line}: refund {row.request.refund_id} exists with other contents")
    note(
        f"error: {compared.conflicting:,} rows of {source.name} have the id of a refund with other contents: "
        "nothing was enqueued; see one with 'refunds status ID', and give new refunds new ids"
    )


def say_repeats(summary: Summary, compared: Compared | None, *, allowed: bool) -> None:
    """Name the first rows that pay an amount back on a payment a second time."""
    for pair in summary.first_repeats:
        note(f"line {pair.line}: same payment and amount as line {pair.first_line}")
    for repeat in compared.first_repeats if compared is not None else ():
        note(f"line {repeat.row.line}: same payment and amount as refund {repeat.refund_id}, which stands")
    count = summary.repeats + (compared.repeats if compared is not None else 0)
    sentence = f"{count:,} rows pay an amount back on a payment that another refund pays back there, under another id"
    if allowed:
        note(f"note: {sentence}: allowed by --allow-repeat")
    else:
        note(f"error: {sentence}: nothing was enqueued; if each of them is meant, say --allow-repeat")
