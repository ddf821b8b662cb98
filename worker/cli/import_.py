"""`refunds import`: a file judged as a whole, then handed in; nothing of it goes in before every row is valid."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import click

from worker import batches
from worker.batches import BatchDraft, Comparison
from worker.cli import render
from worker.cli.exits import DONE, INTERNAL, NOTHING_TO_DO, REFUSED, REJECTED
from worker.cli.import_guards import Limits, MostErrors, each_sum, length_of_time, most_errors, sums, sums_or_one
from worker.cli.import_messages import (
    NOTHING,
    all_remaining_refused,
    say_all_remaining_refused,
    say_conflicts,
    say_duplicates,
    say_errors,
    say_hidden,
    say_ignored_amounts,
    say_known,
    say_not_failed,
    say_repeats,
)
from worker.cli.import_options import reading, reading_options, require_fitting, stored_reading
from worker.cli.import_report import facts_of, put_facts, records_of
from worker.cli.import_submit import SubmitCounts, late_conflicts, submit
from worker.cli.outputs import RESULT_ROWS, Write, forget, named, output
from worker.cli.progress import counts_of, detached, progress, span, verdict, watch_batch
from worker.cli.session import note, opened
from worker.cli.words import counted, verb
from worker.client import Refunds
from worker.errors import GuardRefused, InputError, StoreUnavailable
from worker.importer import (
    Source,
    Summary,
    Validation,
    accepted,
    open_source,
    validate,
    write_failed_rows,
    write_result,
)
from worker.ranges import Whole
from worker.settings import Settings

_CHECK_EVERY: Final = 10_000
"""Rows after which an import looks whether its batch was canceled meanwhile."""
_SHOW_EVERY: Final = 500

_target = click.Path(dir_okay=False, path_type=Path)


@dataclass(frozen=True, kw_only=True)
class ImportSettings:
    """What the command line asks for beyond how the file is read."""

    batch: str | None
    dry_run: bool
    wait: bool
    again: bool
    allow_repeat: bool
    all_remaining: bool
    delay: timedelta
    on_error: str
    max_errors: MostErrors | None
    limits: Limits
    as_json: bool

    def skips(self, summary: Summary) -> bool:
        """Tell whether the refused rows may be left out."""
        if self.on_error != "skip" or not summary.accepted:
            return False
        return self.max_errors is None or self.max_errors.allows(summary.refused, summary.rows)


@click.command(
    "import",
    epilog="""\b
Examples:
  refunds import refunds.csv --dry-run
  refunds import refunds.csv --expect-rows 120 --expect-total usd=1234500 --wait
  refunds import refunds.csv --id-from order_id,payment_intent
  refunds import payouts.xlsx --column payment_intent="Payment ID" --amount-unit major
  refunds import refunds.csv --on-error skip --max-errors 1% --errors bad.csv
  zcat season.csv.gz | refunds import - --delay 70m --json

\b
The first line names the columns, in any order: refund_id, payment_intent,
amount (minor units; blank for all that is left, with --all-remaining), currency,
reason, metadata.KEY.

\b
Exit codes: 3 rows are invalid, and nothing was handed in; 6 a guard refused, and
nothing was handed in; 9 every row was handed in before. With --wait: 0 all
succeeded; 4 some failed or need a person.

\b
Stopped half way, the same command goes on where it stopped, and doubles nothing.""",
)
@click.argument("file", metavar="FILE|-")
@click.option("--dry-run", is_flag=True, help="Check, compare and sum up; hand in nothing.")
@click.option("--wait", is_flag=True, help="Show progress until every refund rests.")
@click.option("--result", type=_target, callback=named, metavar="FILE", help="Write the rows with what became of each.")
@click.option(
    "--errors",
    type=_target,
    callback=named,
    metavar="FILE",
    help="Write the invalid rows, each with its errors; without any, what an earlier run left there is removed.",
)
@click.option("--on-error", type=click.Choice(["abort", "skip"]), default="abort", show_default=True)
@click.option("--max-errors", metavar="N|P%", callback=most_errors, help="Skip no more invalid rows than this.")
@click.option("--expect-rows", type=Whole(min=1), metavar="N", help="Refuse a file of any other length.")
@click.option(
    "--expect-total",
    "totals",
    metavar="CUR=MINOR",
    multiple=True,
    callback=each_sum,
    help="Refuse any other sum; once for each currency.",
)
@click.option(
    "--max-total",
    "most_totals",
    metavar="[CUR=]MINOR",
    multiple=True,
    callback=sums_or_one,
    help="Refuse a larger sum; MINOR alone is for every currency.",
)
@click.option("--allow-repeat", is_flag=True, help="Same payment and amount under another id is meant.")
@click.option("--all-remaining", is_flag=True, help="A row without an amount refunds all that is left of its payment.")
@click.option("--again", is_flag=True, help="Hand in what is new in a file imported before.")
@click.option("--delay", metavar="TIME", callback=length_of_time, help="Send nothing for so long: 70m, 1h30m.")
@click.option("--batch", metavar="NAME", help="The batch's name; one is made without it.")
@reading_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def import_file(
    *,
    file: str,
    result: Path | None,
    errors: Path | None,
    expect_rows: int | None,
    totals: dict[str | None, int],
    most_totals: dict[str | None, int],
    **values: Any,
) -> int:
    """Hand in a file of refunds.

    Every row is checked first; one bad row, and nothing is handed in. FILE may be CSV, JSON lines or XLSX, also
    gzipped; - is standard input.
    """
    names = (
        *("dry_run", "wait", "again", "allow_repeat", "all_remaining", "delay"),
        *("on_error", "max_errors", "as_json", "batch"),
    )
    given = {name: values.pop(name) for name in names}
    if given["max_errors"] is not None and given["on_error"] != "skip":
        raise click.UsageError("--max-errors goes with --on-error skip: without it one bad row is too many.")
    if given["batch"] is not None:
        given["batch"] = batches.checked_batch_id(given["batch"])
    if result is not None and errors is not None and result.absolute() == errors.absolute():
        raise click.UsageError("--result and --errors name one file: give each a file of its own.")
    settings = Settings.load()
    limits = Limits(
        rows=expect_rows,
        totals=totals,
        most_totals=most_totals,
        most_amount=settings.max_amount,
        unit=values["amount_unit"],
    )
    asked = ImportSettings(**given, limits=limits)
    with (
        open_source(file, reading(**values), sys.stdin.buffer) as source,
        output(file, result) as write_all,
        output(file, errors) as write_refused,
    ):
        require_fitting(source)
        with progress("rows checked", None) as show:
            validation = validate(source, show)
        if not validation.summary.refused:
            forget(errors)
        return _judged(settings, source, validation, asked, write_all, write_refused)


def _judged(
    settings: Settings,
    source: Source,
    validation: Validation,
    asked: ImportSettings,
    write_all: Write,
    write_refused: Write,
) -> int:
    """Go on with a file whose every row has its verdict: refuse it, or compare it with the records."""
    summary = validation.summary
    code = DONE
    say_hidden(source)
    say_duplicates(summary)
    if summary.refused:
        write_refused(lambda out: write_failed_rows(source, validation, out), "that were refused, each with its errors")
        if not asked.skips(summary):
            write_all(lambda out: write_result(source, validation, lambda ids: [None] * len(ids), out), RESULT_ROWS)
            say_errors(source, summary, _too_many(summary, asked))
            code = REJECTED
        else:
            say_errors(source, summary, "they are left out", "warning")
    # With rows that must be mended first, what the file will come to cannot be told.
    broken = [] if code else asked.limits.broken(summary)
    for sentence in broken:
        note(f"error: {sentence}: {NOTHING}")
    code = code or (REFUSED if broken else DONE)
    if code and not asked.dry_run:
        if asked.as_json:
            render.as_json(facts_of(source, summary) | ({"broken_limits": broken} if broken else {}))
        return code
    with opened(settings) as refunds:
        if asked.dry_run:
            hindrance = _dry_run(refunds, source, validation, asked, broken)
            return code or hindrance
        code = _import(refunds, source, validation, asked)
        if code != REFUSED:
            try:
                write_all(lambda out: write_result(source, validation, refunds.get_many, out), RESULT_ROWS)
            except InputError as error:
                note(f"error: {error}; what was accepted stays so: 'refunds batch result' writes it elsewhere")
                return INTERNAL
        return code


def _too_many(summary: Summary, asked: ImportSettings) -> str:
    if asked.on_error != "skip":
        return NOTHING
    if asked.max_errors is not None and summary.accepted:
        return f"more than the {asked.max_errors.text} of --max-errors: {NOTHING}"
    return f"no row is left: {NOTHING}"


def _opening(source: Source, summary: Summary, asked: ImportSettings) -> BatchDraft:
    return BatchDraft(
        options=stored_reading(source),
        invalid=summary.refused,
        duplicates=summary.duplicates,
        all_remaining=summary.all_remaining,
        totals=sums(summary),
        delay=asked.delay,
        again=asked.again,
    )


def _dry_run(refunds: Refunds, source: Source, validation: Validation, asked: ImportSettings, broken: list[str]) -> int:
    summary, store = validation.summary, refunds.store
    facts = facts_of(source, summary) | ({"broken_limits": broken} if broken else {})
    code = DONE
    new = summary.accepted
    try:
        if (earlier := batches.earlier_batch(store, source.digest)) is not None:
            facts["earlier_batch"] = earlier.batch_id
        try:
            batches.foresee_batch(store, asked.batch, source.digest, _opening(source, summary, asked))
        except GuardRefused as refusal:
            note(f"error: {refusal}")
            code = REFUSED
        compared: Comparison | None = _compared(refunds, source, validation)
    except StoreUnavailable as error:
        # A file can be checked at a desk that does not reach Redis.
        note(f"note: which rows were handed in before is not known: {error}")
        compared = None
    else:
        if compared is not None:
            facts |= records_of(compared)
            new = compared.fresh
    hindrance, refused = _hindrance(source, summary, compared, asked)
    code = hindrance or code
    if refused:
        facts["broken_limits"] = [*broken, *refused]
    facts |= _time_needed(refunds.settings, summary, new, asked)
    put_facts(facts, as_json=asked.as_json)
    note(f"dry run: {NOTHING}")
    return code


def _time_needed(settings: Settings, summary: Summary, new: int, asked: ImportSettings) -> dict[str, Any]:
    """Return how long sending the new rows takes at the rate limit, in seconds, and in words for a person."""
    if settings.rate_limit <= 0:
        return {"seconds_at_rate_limit": None} if asked.as_json else {"time": "no rate limit is set"}
    stated = sum(total.rows for currency, total in summary.totals.items() if currency is not None)
    # A payment whose totals are read first, or whose currency must be looked at, takes a call more, a first look two.
    looked_at = 1.0 if settings.rules.wants_baseline else stated / max(1, summary.accepted)
    looked_at += 2.0 if settings.first_look else 0.0
    seconds = new * (1 + looked_at) / settings.rate_limit
    if asked.as_json:
        return {"seconds_at_rate_limit": round(seconds, 1)}
    return {"time": f"{span(seconds)} at the {settings.rate_limit:g} calls a second of REFUNDS_RATE_LIMIT"}


def _compared(refunds: Refunds, source: Source, validation: Validation) -> Comparison:
    with progress("rows compared with the records", validation.summary.accepted) as show:
        return batches.compare(refunds.store, accepted(source, validation), show)


def _hindrance(
    source: Source, summary: Summary, compared: Comparison | None, asked: ImportSettings
) -> tuple[int, list[str]]:
    """Say what keeps the file from being handed in; return the exit code for it, 0 if nothing does, and why."""
    code = DONE
    refused: list[str] = []
    open_rows = summary.all_remaining if compared is None else compared.all_remaining
    if open_rows and not asked.all_remaining:
        refused.append(all_remaining_refused(source, summary, compared))
        say_all_remaining_refused(refused[-1], summary)
        code = REFUSED
    else:
        say_ignored_amounts(summary)
    if summary.repeats or (compared is not None and compared.repeats):
        say_repeats(summary, compared, allowed=asked.allow_repeat)
        code = code if asked.allow_repeat else REFUSED
    if compared is not None and compared.not_failed:
        say_not_failed(source, compared)
        code = REFUSED
    if compared is not None and compared.conflicting:
        say_conflicts(source, compared)
        code = REFUSED
    return code, refused


def _import(refunds: Refunds, source: Source, validation: Validation, asked: ImportSettings) -> int:
    summary = validation.summary
    opening = _opening(source, summary, asked)
    # The commonest refusals come before the file is read once more.
    foreseen = batches.foresee_batch(refunds.store, asked.batch, source.digest, opening)
    compared = _compared(refunds, source, validation)
    facts = facts_of(source, summary)
    code, refused = _hindrance(source, summary, compared, asked)
    if code:
        if asked.as_json:
            render.as_json(facts | records_of(compared) | ({"broken_limits": refused} if refused else {}))
        return code
    if foreseen.fresh and not compared.fresh:
        put_facts(facts | records_of(compared) | {"batch_id": None, "created": 0}, as_json=asked.as_json)
        note("nothing to do: every row was handed in before")
        say_known(compared, source.options)
        return NOTHING_TO_DO
    batch = batches.open_batch(
        refunds.store, asked.batch, file=source.name, digest=source.digest, rows=summary.rows, opening=opening
    )
    if not batch.fresh:
        note(f"this file is batch {batch.batch_id} already: going on with it")
        if asked.delay:
            note("the delay that it was begun with is kept")
    handed = submit(refunds, batch.batch_id, source, validation)
    facts |= {"batch_id": batch.batch_id, "created": handed.created, "known": handed.known}
    return _handed_in(refunds, batch.batch_id, facts, handed, asked)


def _handed_in(
    refunds: Refunds, batch_id: str, facts: dict[str, Any], handed: SubmitCounts, asked: ImportSettings
) -> int:
    """Say what came of handing a file in, after having waited for its end where that is asked for."""
    if not asked.wait:
        put_facts(facts, as_json=asked.as_json)
        if handed.conflicting:
            return late_conflicts(handed)
        if not handed.created:
            note("nothing to do: every row was handed in before")
            return NOTHING_TO_DO
        batch = batches.read_batch(refunds.store, batch_id)
        if batch.not_before is not None:
            until = render.moment(batch.not_before)
            note(f"nothing is sent before {until}: until then 'refunds batch cancel {batch_id}' stops all of it")
        note(f"accepted: follow it with 'refunds batch show {batch_id}'")
        return DONE
    try:
        after = watch_batch(refunds, batch_id)
    except KeyboardInterrupt:
        raise detached(batch_id) from None
    put_facts(facts | {"counts": counts_of(after), "amounts": dict(after.amounts)}, as_json=asked.as_json)
    if after.known:
        rows = f"{counted(after.known, 'row')} {verb(after.known, 'was', 'were')}"
        note(f"{rows} handed in before, outside this batch, and not waited for")
    if after.stages.get("review"):
        note("some need a person: 'refunds review list'")
    if handed.conflicting:
        return late_conflicts(handed)
    return verdict(after) if after.accepted else NOTHING_TO_DO
