"""The errors and warnings of an import, each with what to do about it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from rich.table import Table

from worker.batches import Comparison, Conflict
from worker.cli import render
from worker.cli.session import note
from worker.importer import (
    IGNORED,
    ImportOptions,
    Source,
    Summary,
    column_option,
    looks_like_amount,
    made_id,
)
from worker.model.refund import Refund, Status
from worker.model.words import counted, verb
from worker.wording import values

_COLUMNS: Final = ("line", "column", "code", "value", "rule")
NOTHING: Final = "nothing was imported"


def say_duplicates(summary: Summary) -> None:
    """Warn of rows that repeat an earlier row of the file."""
    if summary.duplicates:
        count, first = summary.duplicates, summary.first_duplicates[0]
        note(
            f"warning: {counted(count, 'row')} {verb(count, 'repeats', 'repeat')} an earlier row"
            f" (line {first.line} repeats line {first.first_line}): each refund is made only once"
        )


def say_hidden(source: Source) -> None:
    """Warn of rows that are hidden in the sheet, so that its reader may not have seen them."""
    if count := source.hidden_rows:
        rows = f"{counted(count, 'row')} of the sheet {verb(count, 'is', 'are')}"
        note(
            f"warning: {rows} hidden, for example by a filter, but read like all others: delete"
            " those not meant"
        )


def say_errors(source: Source, summary: Summary, end: str, kind: str = "error") -> None:
    """Write the first errors as a table, and the number of errors by code.

    `end` states the consequence.
    """
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in _COLUMNS:
        text = column == "rule"
        table.add_column(
            column,
            overflow="fold",
            no_wrap=not text,
            justify="right" if column == "line" else "left",
        )
    for error in summary.first_errors:
        table.add_row(*(values.plain(getattr(error, column)) for column in _COLUMNS))
    render.put(table, stream=sys.stderr)
    if (more := summary.errors - len(summary.first_errors)) > 0:
        note(f"… and {counted(more, 'more error')}: use --errors FILE to get all of them")
    by_code = ", ".join(f"{count:,} {code}" for code, count in summary.errors_by_code.items())
    rows = f"{summary.refused:,} of {counted(summary.rows, 'row')} of {source.name}"
    note(f"{kind}: {rows} {verb(summary.refused, 'is', 'are')} invalid ({by_code}): {end}")


def say_all_remaining_refused(sentence: str, summary: Summary) -> None:
    """Report it with what to do, and a line for each column that may hold the amounts."""
    note(f"error: {sentence}: {NOTHING}")
    if "amount" in summary.columns.values():
        note("  if an amount is missing, fill it in")
    for column in ignored_amounts(summary):
        note(f"  if the amounts are in {column!r}, use {column_option('amount', column)}")
    note("  if all that is left should be refunded, use --all-remaining")


def ignored_amounts(summary: Summary) -> list[str]:
    """Return the ignored columns whose names look like amounts."""
    return [
        column
        for column, use in summary.columns.items()
        if use == IGNORED and looks_like_amount(column)
    ]


def say_ignored_amounts(summary: Summary) -> None:
    """Warn of columns that look like amounts but are ignored."""
    amount = next((column for column, use in summary.columns.items() if use == "amount"), None)
    for column in ignored_amounts(summary):
        read = (
            f"amounts are read from {amount!r}"
            if amount is not None
            else "no column is read as the amount"
        )
        note(f"warning: the column {column!r} looks like an amount but is ignored: {read}")


def say_conflicts(source: Source, compared: Comparison) -> None:
    """Report the first rows whose ids have refunds with other contents, and how to import them."""
    conflicts, options = compared.first_conflicts, source.options
    for each in conflicts:
        exists = (
            f"refund {each.refund.refund_id} exists with other contents and {_state(each.refund)}"
        )
        note(f"line {each.row.line}: {exists}: {_differences(each)}")
    count = compared.conflicting
    note(
        f"error: {counted(count, 'row')} of {source.name} {verb(count, 'has', 'have')} the id of a"
        f" refund with other contents: {NOTHING}"
    )
    if not options.id_from:
        note("  see the existing refund with 'refunds status ID'")
        note("  if a row is a new refund, or the corrected row of a failed one, give it a new id")
        return
    if any(each.refund.status in {Status.FAILED, Status.CANCELED} for each in conflicts):
        note(
            "  if these are corrected rows of failed refunds, import only them, with"
            f" {_next_attempt(conflicts)}"
        )
    more = next(
        (
            name
            for each in conflicts
            for name, _, _ in _compared(each)
            if name not in options.id_from
        ),
        None,
    )
    if more is not None:
        columns = ",".join([*options.id_from, more])
        note(
            "  if each row is a refund of its own, make the ids from more columns:"
            f" {_id_from(columns)}"
        )


def _id_from(columns: str) -> str:
    return f'--id-from "{columns}"' if " " in columns else f"--id-from {columns}"


def _next_attempt(conflicts: list[Conflict]) -> str:
    made = [made_id(each.refund.refund_id) for each in conflicts]
    return f"--attempt {1 + max((each.attempt for each in made if each is not None), default=1)}"


def _state(refund: Refund) -> str:
    if refund.status is Status.FAILED:
        return f"failed ({refund.error_code})" if refund.error_code else "failed"
    return {Status.SUCCEEDED: "succeeded", Status.CANCELED: "was canceled"}.get(
        refund.status, "is in progress"
    )


def _differences(conflict: Conflict) -> str:
    return ", ".join(f"{name} {before}, here {now}" for name, before, now in _compared(conflict))


def _compared(conflict: Conflict) -> Iterator[tuple[str, str, str]]:
    """Yield each difference between a row and the refund with its id.

    Field, the refund's value, the row's value.
    """
    requested, existing = conflict.row.request, conflict.refund.as_request()
    for name in ("payment_intent", "amount", "currency", "reason"):
        before, now = getattr(existing, name), getattr(requested, name)
        if before != now:
            nothing = "all that is left" if name == "amount" else "none"
            yield name, str(before or nothing), str(now or nothing)
    if conflict.refund.metadata_erased_at is not None:
        # Not known: the fingerprint shows only that some field differs.
        if existing == replace(requested, metadata={}):
            yield "metadata", "erased", "not the same"
        return
    for key in sorted({*existing.metadata, *requested.metadata}):
        if (before := existing.metadata.get(key)) != (now := requested.metadata.get(key)):
            yield f"metadata.{key}", str(before or "none"), str(now or "none")


def say_not_failed(source: Source, compared: Comparison) -> None:
    """Report the first rows of which another attempt is pending or has succeeded."""
    for each in compared.first_not_failed:
        note(
            f"line {each.row.line}: another attempt at it, refund {each.refund.refund_id},"
            f" {_attempt_state(each.refund)}"
        )
    count = compared.not_failed
    note(
        f"error: {counted(count, 'row')} of {source.name} {verb(count, 'is', 'are')} another"
        f" attempt at a refund that is in progress, or that has or may have moved the money:"
        f" {NOTHING}; keep only rows whose refund failed or was canceled without moving it"
    )


def _attempt_state(refund: Refund) -> str:
    state = _state(refund)
    shown = [*filter(None, (refund.contradicted_by, *refund.ids_set_aside))]
    if shown and refund.status in {Status.FAILED, Status.CANCELED}:
        state += f", but the provider showed {' and '.join(shown)} for it,"
    return f"{state} on payment {refund.payment_intent}"


def say_repeats(summary: Summary, compared: Comparison | None, *, allowed: bool) -> None:
    """Report the first rows that refund the same amount of the same payment a second time."""
    for pair in summary.first_repeats:
        note(f"line {pair.line}: same payment and amount as line {pair.first_line}")
    for repeat in compared.first_repeats if compared is not None else ():
        note(
            f"line {repeat.row.line}: same payment and amount as refund {repeat.refund_id},"
            " accepted before"
        )
    count = summary.repeats + (compared.repeats if compared is not None else 0)
    sentence = (
        f"{counted(count, 'row')} {verb(count, 'refunds', 'refund')} the same amount of the same"
        " payment as another refund, under another id"
    )
    if allowed:
        note(f"note: {sentence}: allowed by --allow-repeat")
    else:
        note(f"error: {sentence}: {NOTHING}; if each of them is intended, use --allow-repeat")


def say_known(compared: Comparison, options: ImportOptions) -> None:
    """Explain how to send failed or canceled refunds again: importing the same rows does not."""
    fresh = f"--attempt {options.attempt + 1}" if options.id_from else "a new id"
    if failed := compared.statuses.get("failed", 0):
        note(
            f"{failed:,} of them failed before: 'refunds batch retry ID' sends again unchanged what"
            f" is retriable, and says what else there is; a corrected row needs {fresh}"
        )
    if canceled := compared.statuses.get("canceled", 0):
        note(
            f"{canceled:,} of them {verb(canceled, 'was', 'were')} canceled: a row that is still"
            f" wanted needs {fresh}"
        )
