"""`refunds import`: a file judged as a whole, then handed in; nothing of it is enqueued before every row is valid."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final

import click
from rich.table import Table

from worker import batches
from worker.cli import render
from worker.cli.exits import DONE, NOTHING_TO_DO, REFUSED, REJECTED, Detached
from worker.cli.progress import counts_of, detached, progress, verdict, watch_batch
from worker.cli.session import note, opened
from worker.client import Refunds
from worker.errors import InputError, StoreUnavailable
from worker.importer import (
    FORMATS,
    Accepted,
    ImportOptions,
    RowError,
    Source,
    Summary,
    Validation,
    accepted,
    describe,
    open_source,
    validate,
    write_result,
)
from worker.importer.options import DELIMITERS
from worker.model import Lane, Refund, RefundRequest

FIRST: Final = 20
_PAGE: Final = 500
_DELIMITERS: Final = {name: character for character, name in DELIMITERS.items()}


Lookup = Callable[[Sequence[str]], Sequence[Refund | None]]
Write = Callable[[Source, Validation, Lookup], None]


@dataclass(kw_only=True)
class Known:
    """What the records already hold of a file: refunds with the same contents, and ids that hold others."""

    same: int = 0
    conflicting: int = 0
    first_conflicts: list[Accepted] = field(default_factory=list)


@dataclass(kw_only=True)
class Handed:
    """What became of a file's rows."""

    created: int = 0
    known: int = 0
    conflicting: int = 0


@click.command(
    "import",
    epilog="""\b
Examples:
  refunds import refunds.csv --dry-run
  refunds import refunds.csv --wait
  refunds import refunds.csv --id-from order_id,payment_intent
  zcat season.csv.gz | refunds import - --json

\b
The first line names the columns, in any order: refund_id, payment_intent,
amount (minor units; blank for all that is left), currency, reason, metadata.KEY.

\b
Exit codes: 3 a row is invalid, and nothing was enqueued; 6 an id holds other
contents, and nothing was enqueued; 9 every row was handed in before. With
--wait: 0 all succeeded; 4 some failed or need a person.

\b
The same command again goes on where it stopped, and doubles nothing.""",
)
@click.argument("file", metavar="FILE|-")
@click.option("--dry-run", is_flag=True, help="Check and sum up; enqueue nothing.")
@click.option("--wait", is_flag=True, help="Show progress until every refund rests.")
@click.option(
    "--result",
    "result",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the rows with what became of each.",
)
@click.option("--batch", metavar="NAME", help="The batch's name; one is made without it.")
@click.option("--format", "format_", type=click.Choice(FORMATS), help="Found out from the file without it.")
@click.option("--delimiter", type=click.Choice([*_DELIMITERS]), help="Of a CSV; found out without it.")
@click.option("--sheet", metavar="NAME", help="Of a workbook with several.")
@click.option("--id-from", metavar="COLUMNS", help="Make each refund's id from these columns, comma-separated.")
@click.option("--amount-unit", type=click.Choice(["minor", "major"]), default="minor", show_default=True)
@click.option("--currency", metavar="ISO", help="For rows that state none.")
@click.option("--ignore-extra", is_flag=True, help="Read over columns with unknown names.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def import_file(
    *, file: str, dry_run: bool, wait: bool, result: Path | None, batch: str | None, as_json: bool, **reading: Any
) -> int:
    """Hand in a file of refunds.

    Every row is checked first; one bad row, and nothing is enqueued. FILE may be CSV, JSON lines or XLSX, also
    gzipped; - is standard input.
    """
    name = None if batch is None else batches.checked_batch_id(batch)
    options = _options(**reading)
    with open_source(file, options, sys.stdin.buffer) as source, _results(file, result) as write:
        with progress("rows checked", None) as show:
            validation = validate(source, show)
        _warn(validation.summary)
        if validation.summary.refused:
            write(source, validation, lambda ids: [None] * len(ids))
            return _refused(source, validation.summary, as_json=as_json)
        with opened() as refunds:
            if dry_run:
                return _dry_run(refunds, source, validation, as_json=as_json)
            known = _known(refunds, source, validation)
            if known.conflicting:
                return _conflicts(source, validation.summary, known, as_json=as_json)
            code = _hand_in(refunds, source, validation, name, wait=wait, as_json=as_json)
            write(source, validation, refunds.get_many)
            return code


@contextmanager
def _results(file: str, result: Path | None) -> Iterator[Write]:
    """Give the function that writes the result file; that it can be written is known before anything is enqueued."""
    if result is None:
        yield lambda *_: None
        return
    if file != "-" and result.exists() and result.samefile(file):
        raise InputError(f"{result} is the file to be imported: give the result a name of its own")
    part = result.with_name(f"{result.name}.part")
    try:
        out = part.open("w", encoding="utf-8", newline="")
    except OSError as error:
        raise InputError(f"{result} cannot be written: {error.strerror}") from None

    def write(source: Source, validation: Validation, lookup: Lookup) -> None:
        rows = write_result(source, validation, lookup, out)
        out.close()
        # In one step, so that a reader never finds half a file.
        part.replace(result)
        note(f"{rows:,} rows with what became of each: {result}")

    try:
        yield write
    finally:
        out.close()
        part.unlink(missing_ok=True)


def _options(
    *,
    format_: Any,
    delimiter: str | None,
    sheet: str | None,
    id_from: str | None,
    amount_unit: Any,
    currency: str | None,
    ignore_extra: bool,
) -> ImportOptions:
    return ImportOptions(
        format=format_,
        delimiter=None if delimiter is None else _DELIMITERS[delimiter],
        sheet=sheet,
        id_from=tuple(name.strip() for name in id_from.split(",")) if id_from is not None else (),
        amount_unit=amount_unit,
        default_currency=currency,
        ignore_extra=ignore_extra,
    )


def _warn(summary: Summary) -> None:
    if summary.duplicates:
        first = summary.first_duplicates[0]
        note(
            f"warning: {summary.duplicates:,} rows state a refund that stands in the file already (line {first.line} "
            f"repeats line {first.first_line}): each is enqueued once"
        )
    if summary.repeats:
        first = summary.first_repeats[0]
        note(
            f"warning: {summary.repeats:,} rows pay the same amount back on the same payment as an earlier row, under "
            f"another id (line {first.line} and line {first.first_line}): is that meant?"
        )


def _refused(source: Source, summary: Summary, *, as_json: bool) -> int:
    if as_json:
        render.as_json(_facts(source, summary) | {"error_rows": [error._asdict() for error in summary.first_errors]})
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("line", "column", "code", "value", "rule"):
        table.add_column(column, overflow="fold", justify="right" if column == "line" else "left")
    for error in summary.first_errors:
        table.add_row(*(render.plain(part) for part in _cells(error)))
    render.put(table, stream=sys.stderr)
    if summary.errors > len(summary.first_errors):
        note(f"… and {summary.errors - len(summary.first_errors):,} more errors")
    by_code = ", ".join(f"{count:,} {code}" for code, count in summary.errors_by_code.items())
    note(
        f"error: {summary.refused:,} of {summary.rows:,} rows of {source.name} are invalid ({by_code}): "
        "nothing was enqueued"
    )
    return REJECTED


def _cells(error: RowError) -> tuple[object, ...]:
    return (error.line, error.column, error.code, error.value, error.rule)


def _facts(source: Source, summary: Summary) -> dict[str, Any]:
    return {
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
            currency or "unstated": {"rows": total.rows, "amount": total.amount, "all_remaining": total.all_remaining}
            for currency, total in summary.totals.items()
        },
    }


def _write(shown: dict[str, Any], *, as_json: bool) -> None:
    """Write what is known of a file: as it is for a program, by name for a person, without what is zero."""
    if as_json:
        render.as_json(shown)
        return
    rows: list[tuple[str, object]] = []
    for name, value in shown.items():
        if name == "totals":
            rows += [(f"total {currency}", _total(total)) for currency, total in value.items()]
        elif isinstance(value, dict):
            rows += [(inner.replace("_", " "), f"{number:,}") for inner, number in value.items() if number]
        elif isinstance(value, int) and not isinstance(value, bool):
            rows.append((name.replace("_", " "), f"{value:,}" if value or name == "rows" else None))
        else:
            rows.append((name.replace("_", " "), value))
    render.put(render.facts(rows))


def _total(total: dict[str, int]) -> str:
    text = f"{total['amount']:,} minor units in {total['rows'] - total['all_remaining']:,} refunds"
    if total["all_remaining"]:
        text += f", and {total['all_remaining']:,} for all that is left of their payments"
    return text


def _dry_run(refunds: Refunds, source: Source, validation: Validation, *, as_json: bool) -> int:
    facts = _facts(source, validation.summary)
    code = DONE
    try:
        known = _known(refunds, source, validation)
    except StoreUnavailable as error:
        # A file can be checked at a desk that does not reach Redis.
        note(f"note: which rows were handed in before cannot be told: {error}")
    else:
        facts |= {"known": known.same, "conflicting": known.conflicting}
        code = _say_conflicts(source, known)
    _write(facts, as_json=as_json)
    note("dry run: nothing was enqueued")
    return code


def _known(refunds: Refunds, source: Source, validation: Validation) -> Known:
    """Compare the file with the records; nothing is written."""
    known = Known()
    with progress("rows compared with the records", validation.summary.accepted) as show:
        done = 0
        for page in _pages(accepted(source, validation)):
            found = batches.fingerprints(refunds.store, [row.request.refund_id for row in page])
            for row, fingerprint in zip(page, found, strict=True):
                if fingerprint == row.request.fingerprint:
                    known.same += 1
                elif fingerprint is not None:
                    known.conflicting += 1
                    if len(known.first_conflicts) < FIRST:
                        known.first_conflicts.append(row)
            done += len(page)
            show(done)
    return known


def _pages(rows: Iterator[Accepted]) -> Iterator[list[Accepted]]:
    while page := list(islice(rows, _PAGE)):
        yield page


def _say_conflicts(source: Source, known: Known) -> int:
    if not known.conflicting:
        return DONE
    for row in known.first_conflicts:
        note(f"line {row.line}: refund {row.request.refund_id} exists with other contents")
    note(
        f"error: {known.conflicting:,} rows of {source.name} have the id of a refund with other contents: "
        "nothing was enqueued; see one with 'refunds status ID', and give new refunds new ids"
    )
    return REFUSED


def _conflicts(source: Source, summary: Summary, known: Known, *, as_json: bool) -> int:
    if as_json:
        render.as_json(_facts(source, summary) | {"known": known.same, "conflicting": known.conflicting})
    return _say_conflicts(source, known)


def _hand_in(
    refunds: Refunds, source: Source, validation: Validation, name: str | None, *, wait: bool, as_json: bool
) -> int:
    summary = validation.summary
    batch = batches.open_batch(refunds.store, name, file=source.name, digest=source.digest, rows=summary.rows)
    if not batch.fresh:
        note(f"this file is batch {batch.batch_id} already: going on with it")
    handed = _submit(refunds, batch.batch_id, source, validation)
    facts = _facts(source, summary) | {"batch_id": batch.batch_id, "created": handed.created, "known": handed.known}
    if not wait:
        _write(facts, as_json=as_json)
        if handed.conflicting:
            return _late_conflicts(handed)
        if not handed.created:
            note("nothing to do: every row was handed in before")
            return NOTHING_TO_DO
        note(f"accepted: follow it with 'refunds list --batch {batch.batch_id}'")
        return DONE
    try:
        after = watch_batch(refunds, batch.batch_id)
    except KeyboardInterrupt:
        raise detached(batch.batch_id) from None
    amounts = {
        f"amount {name.replace(':', ' ')}" if not as_json else name: sum_ for name, sum_ in after.amounts.items()
    }
    _write(facts | {"counts": counts_of(after), "amounts": amounts}, as_json=as_json)
    if elsewhere := summary.accepted - after.accepted - handed.conflicting:
        note(f"{elsewhere:,} rows were handed in before, outside this batch: they were not waited for")
    if after.stages.get("review"):
        note("some need a person: 'refunds review list'")
    if handed.conflicting:
        return _late_conflicts(handed)
    return verdict(after) if after.accepted else NOTHING_TO_DO


def _late_conflicts(handed: Handed) -> int:
    note(
        f"error: {handed.conflicting:,} ids were taken by other refunds while this ran; those rows were left out: "
        "run it again to see which"
    )
    return REFUSED


def _submit(refunds: Refunds, batch_id: str, source: Source, validation: Validation) -> Handed:
    handed = Handed()
    total = validation.summary.accepted
    done = 0
    requests: Iterator[RefundRequest] = (row.request for row in accepted(source, validation))
    try:
        with progress("accepted", total) as show:
            for _, made in refunds.submit_stream(requests, lane=Lane.BULK, batch_id=batch_id):
                done += 1
                if made.result == "created":
                    handed.created += 1
                elif made.result == "exists":
                    handed.known += 1
                else:
                    handed.conflicting += 1
                if done % _PAGE == 0:
                    show(done)
    except KeyboardInterrupt:
        raise Detached(
            f"interrupted after {done:,} of {total:,} rows, which stay accepted as batch {batch_id}: "
            "the same command goes on with the rest"
        ) from None
    except StoreUnavailable as error:
        raise StoreUnavailable(
            f"{error}; {done:,} of {total:,} rows are accepted as batch {batch_id}, and the same command goes on with "
            "the rest"
        ) from None
    return handed
