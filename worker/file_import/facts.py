"""The summary of a file as JSON, and its comparison with the records."""

from __future__ import annotations

from typing import Any

from worker.batches import Comparison
from worker.file_import.limits import UNSTATED
from worker.importer import Source, Summary, describe
from worker.model.currencies import decimals_of


def facts_of(source: Source, summary: Summary) -> dict[str, Any]:
    """Return the summary of a file for JSON."""
    options = source.options
    facts: dict[str, Any] = {
        "file": source.name,
        "format": describe(source),
        "digest": source.digest,
        "columns": [{"column": column, "use": use} for column, use in summary.columns.items()],
        "amount_unit": options.amount_unit,
        "decimal": options.decimal,
        "rows": summary.rows,
        "valid": summary.accepted,
        "invalid": summary.refused,
        "duplicates": summary.duplicates,
        "repeats": summary.repeats,
        "errors_by_code": dict(summary.errors_by_code),
        "totals": {
            currency or UNSTATED: {
                "rows": total.rows,
                "amount": total.amount,
                "all_remaining": total.all_remaining,
            }
            for currency, total in summary.totals.items()
        },
    }
    if options.amount_unit == "major":
        facts["decimals"] = {
            currency: decimals
            for currency in summary.totals
            if currency is not None and (decimals := decimals_of(currency)) is not None
        }
    if summary.refused:
        facts["error_rows"] = [error._asdict() for error in summary.first_errors]
    return facts


def records_of(compared: Comparison) -> dict[str, Any]:
    """Return for JSON how a file compares with the records."""
    return {
        "new": compared.fresh,
        "known": compared.same,
        "known_by_status": dict(compared.statuses),
        "conflicting": compared.conflicting,
        "repeats_of_records": compared.repeats,
        "not_failed": compared.not_failed,
    }
