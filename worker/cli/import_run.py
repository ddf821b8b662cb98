"""The rest of `refunds import`, once all rows are checked.

Refuses the file, shows a dry run, or imports it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any, Final

from worker import batches
from worker.batches import Comparison
from worker.cli import render
from worker.cli.exits import DONE, INTERNAL, NOTHING_TO_DO, REFUSED, REJECTED, Detached
from worker.cli.import_messages import (
    NOTHING,
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
from worker.cli.import_report import put_facts
from worker.cli.outputs import RESULT_ROWS, Write
from worker.cli.progress import counts_of, detached, progress, verdict, watch_batch
from worker.cli.session import act, note, opened
from worker.client import Refunds
from worker.errors import (
    GuardRefused,
    InputError,
    NotDurable,
    NotFound,
    SettingsError,
    StoreUnavailable,
)
from worker.file_import import (
    ImportSettings,
    Refusal,
    SubmitCounts,
    begin,
    broken_limits,
    draft,
    facts_of,
    of_file,
    of_rows,
    prepare,
    records_of,
    submit,
)
from worker.importer import Source, Summary, Validation, accepted, write_failed_rows, write_result
from worker.model.words import counted, verb
from worker.settings import Settings
from worker.wording import held, values
from worker.wording.batches import span

_NOTHING_NEW: Final = "nothing to do: every row was accepted before"


@dataclass(frozen=True, kw_only=True)
class ImportCommand(ImportSettings):
    """The options of an import, with those of its command line."""

    dry_run: bool
    wait: bool
    as_json: bool


def _exit_code(refusals: Sequence[Refusal]) -> int:
    # The first reason decides: invalid rows are found first, and must be fixed before any limit can
    # be judged.
    if not refusals:
        return DONE
    return REJECTED if refusals[0].reason == "invalid_rows" else REFUSED


def process(
    settings: Settings,
    source: Source,
    validation: Validation,
    options: ImportCommand,
    write_all: Write,
    write_refused: Write,
) -> int:
    """Take a file with checked rows: refuse it, or compare it with the records and import it."""
    refusals = _check_file(source, validation, options, write_refused)
    if refusals and refusals[0].reason == "invalid_rows":
        _write_known(settings, source, validation, write_all)
    if refusals and not options.dry_run:
        if options.as_json:
            render.as_json(facts_of(source, validation.summary) | broken_limits(refusals))
        return _exit_code(refusals)
    with opened(settings) as refunds:
        if options.dry_run:
            return _dry_run(refunds, source, validation, options, refusals)
        # Wrong settings of the broker are found before a batch is opened.
        refunds.ready_to_nudge()
        code, is_taken = _import(refunds, source, validation, options)
        if is_taken:
            try:
                write_all(
                    lambda out: write_result(source, validation, refunds.get_many, out), RESULT_ROWS
                )
            except InputError as error:
                note(
                    f"error: {error}; the accepted refunds continue: write their results with"
                    " 'refunds batch result'"
                )
                return INTERNAL
        return code


def _check_file(
    source: Source,
    validation: Validation,
    options: ImportCommand,
    write_refused: Write,
) -> list[Refusal]:
    """Return why the file alone must not be imported.

    Its invalid rows, or else the limits that it breaks.
    """
    summary = validation.summary
    refusals = of_file(summary, options)
    say_hidden(source)
    say_duplicates(summary)
    if summary.refused:
        write_refused(lambda out: write_failed_rows(source, validation, out), "with errors")
        if not options.skips(summary):
            say_errors(source, summary, _too_many(summary, options))
            return refusals
        say_errors(source, summary, "they are skipped", "warning")
    for refusal in refusals:
        note(f"error: {refusal.limit}: {NOTHING}")
    return refusals


def _write_known(
    settings: Settings, source: Source, validation: Validation, write_all: Write
) -> None:
    """Write the results of a file that is refused: some rows may have been accepted before.

    Without their refunds they would seem never to have been imported, so then nothing is written.
    """

    def fill(out: IO[str]) -> int:
        with opened(settings) as refunds:
            return write_result(source, validation, refunds.get_many, out)

    try:
        write_all(fill, RESULT_ROWS)
    except (StoreUnavailable, NotDurable, SettingsError) as error:
        note(f"error: no results were written, because the records cannot be read: {error}")


def _too_many(summary: Summary, options: ImportCommand) -> str:
    if options.on_error != "skip":
        return NOTHING
    if options.max_errors is not None and summary.accepted:
        return f"more than --max-errors {options.max_errors.text} allows: {NOTHING}"
    return f"no valid row is left: {NOTHING}"


def _dry_run(
    refunds: Refunds,
    source: Source,
    validation: Validation,
    options: ImportCommand,
    refusals: list[Refusal],
) -> int:
    """Show what an import would do, and return its exit code.

    `refusals` are what the file alone showed.
    """
    summary, store = validation.summary, refunds.store
    facts = facts_of(source, summary)
    refusals = [*refusals]
    new = summary.accepted
    try:
        if (earlier := batches.earlier_batch(store, source.digest)) is not None:
            facts["earlier_batch"] = earlier.batch_id
        try:
            batches.foresee_batch(
                store, options.batch, source.digest, draft(source, summary, options)
            )
        except GuardRefused as refusal:
            note(f"error: {refusal}")
            refusals.append(Refusal("batch"))
        compared: Comparison | None = _compared(refunds, source, validation)
    except StoreUnavailable as error:
        # A file can be checked on a machine that does not reach Redis.
        note(f"note: the rows were not compared with the records: {error}")
        compared = None
    else:
        if compared is not None:
            facts |= records_of(compared)
            new = compared.fresh
    found = of_rows(source, summary, compared, options)
    _say_rows(source, summary, compared, found, options)
    refusals += found
    facts |= broken_limits(refusals) | _time_needed(refunds.settings, summary, new, options)
    put_facts(facts, as_json=options.as_json)
    note(f"dry run: {NOTHING}")
    return _exit_code(refusals)


def _time_needed(
    settings: Settings, summary: Summary, new: int, options: ImportCommand
) -> dict[str, Any]:
    """Return how long the new rows take to send at the rate limit, in seconds or in words."""
    if settings.rate_limit <= 0:
        return (
            {"seconds_at_rate_limit": None} if options.as_json else {"time": "no rate limit is set"}
        )
    stated = sum(total.rows for currency, total in summary.totals.items() if currency is not None)
    # Reading a payment's totals or currency before sending takes one more call, a first read-back
    # two.
    extra = 1.0 if settings.rules.wants_baseline else stated / max(1, summary.accepted)
    extra += 2.0 if settings.first_look else 0.0
    seconds = new * (1 + extra) / settings.rate_limit
    if options.as_json:
        return {"seconds_at_rate_limit": round(seconds, 1)}
    return {
        "time": f"{span(seconds)} at {settings.rate_limit:g} calls a second (REFUNDS_RATE_LIMIT)"
    }


def _compared(refunds: Refunds, source: Source, validation: Validation) -> Comparison:
    with progress("rows compared with the records", validation.summary.accepted) as show:
        return batches.compare(refunds.store, accepted(source, validation), show)


def _say_rows(
    source: Source,
    summary: Summary,
    compared: Comparison | None,
    refusals: Sequence[Refusal],
    options: ImportCommand,
) -> None:
    """Report why the rows must not be imported beside the existing refunds, and what to do."""
    reasons = {refusal.reason: refusal.limit for refusal in refusals}
    if (sentence := reasons.get("all_remaining")) is not None:
        say_all_remaining_refused(sentence, summary)
    else:
        say_ignored_amounts(summary)
    if summary.repeats or (compared is not None and compared.repeats):
        say_repeats(summary, compared, allowed=options.allow_repeat)
    if compared is not None and "not_failed" in reasons:
        say_not_failed(source, compared)
    if compared is not None and "conflicting" in reasons:
        say_conflicts(source, compared)


def _import(
    refunds: Refunds, source: Source, validation: Validation, options: ImportCommand
) -> tuple[int, bool]:
    """Import the rows; return the exit code, and whether the file was taken.

    A file that is taken has results, also if some of its rows were refused meanwhile.
    """
    summary = validation.summary
    prepared = prepare(
        refunds.store, source, summary, options, lambda: _compared(refunds, source, validation)
    )
    compared = prepared.compared
    facts = facts_of(source, summary)
    _say_rows(source, summary, compared, prepared.refusals, options)
    if refusals := prepared.refusals:
        if options.as_json:
            render.as_json(facts | records_of(compared) | broken_limits(refusals))
        return _exit_code(refusals), False
    if prepared.has_nothing_new:
        put_facts(
            facts | records_of(compared) | {"batch_id": None, "created": 0}, as_json=options.as_json
        )
        note(_NOTHING_NEW)
        say_known(compared, source.options)
        return NOTHING_TO_DO, True
    batch = act(
        refunds,
        "import",
        "",
        lambda: begin(refunds.store, source, summary, options),
        reason=source.name,
        named=lambda begun: begun.batch_id,
    )
    if not batch.fresh:
        note(f"this file is already batch {batch.batch_id}: its import continues")
        if options.delay:
            note("the batch keeps the delay it was started with: this --delay is ignored")
    counts = _submit(refunds, batch.batch_id, source, validation)
    facts |= {"batch_id": batch.batch_id, "created": counts.created, "known": counts.known}
    end = _wait if options.wait else _report
    try:
        return end(refunds, batch.batch_id, facts, counts, options), True
    except StoreUnavailable as error:
        # The same command would be refused from here on: the file is known.
        wait = " --wait" if options.wait else ""
        raise StoreUnavailable(
            f"{error}; the file is imported as batch {batch.batch_id}: instead of this command, run"
            f" 'refunds batch show {batch.batch_id}{wait}'"
        ) from None


def _submit(
    refunds: Refunds, batch_id: str, source: Source, validation: Validation
) -> SubmitCounts:
    """Accept the rows with progress; an error says how many are accepted."""
    counts, total = SubmitCounts(), validation.summary.accepted
    try:
        with progress("accepted", total) as show:
            submit(refunds, batch_id, source, validation, counts, show)
    except KeyboardInterrupt:
        raise Detached(
            f"interrupted: at least {counts.rows:,} of {total:,} rows are accepted as batch"
            f" {batch_id}: run the same command again to import the rest"
        ) from None
    except StoreUnavailable as error:
        raise StoreUnavailable(
            f"{error}; at least {counts.rows:,} of {total:,} rows are accepted as batch {batch_id}:"
            " run the same command again to import the rest"
        ) from None
    except NotFound:
        raise GuardRefused(
            f"the records do not know batch {batch_id} any more, as after a restored snapshot: rows"
            " that were accepted before that are lost, and may have been paid. Run 'refunds"
            " doctor', which says how to recover, and only then the same command again"
        ) from None
    return counts


def say_late_conflicts(counts: SubmitCounts) -> None:
    """Report rows that were left out because of refunds accepted while the import ran."""
    if count := counts.conflicting:
        note(
            f"error: {_skipped(count)}, because other refunds took"
            f" {verb(count, 'its id', 'their ids')} during the import: see the conflicts with"
            " 'refunds import FILE --dry-run --again'"
        )
    if count := counts.repeating:
        note(
            f"error: {_skipped(count)}, because other refunds of the same payment and amount were"
            " accepted during the import: see them with 'refunds import FILE --dry-run --again'; if"
            " each of them is intended, import them with --again --allow-repeat"
        )


def _skipped(count: int) -> str:
    return f"{counted(count, 'row')} {verb(count, 'was', 'were')} skipped"


def _report(
    refunds: Refunds,
    batch_id: str,
    facts: dict[str, Any],
    counts: SubmitCounts,
    options: ImportCommand,
) -> int:
    """Show what was accepted, and return the exit code of an import that does not wait."""
    put_facts(facts, as_json=options.as_json)
    if counts.left_out:
        say_late_conflicts(counts)
        return REFUSED
    if not counts.created:
        note(_NOTHING_NEW)
        return NOTHING_TO_DO
    batch = batches.read_batch(refunds.store, batch_id)
    if batch.state == "canceled":
        note(
            f"error: batch {batch_id} was canceled during its import: refunds that were not sent"
            f" are canceled; see 'refunds batch show {batch_id}'"
        )
        return REFUSED
    if batch.not_before is not None:
        until = values.moment(batch.not_before)
        note(
            f"nothing is sent before {until}: until then 'refunds batch cancel {batch_id}' can"
            " cancel all of it"
        )
    note(f"accepted: follow it with 'refunds batch show {batch_id}'")
    return DONE


def _wait(
    refunds: Refunds,
    batch_id: str,
    facts: dict[str, Any],
    counts: SubmitCounts,
    options: ImportCommand,
) -> int:
    """Watch the batch until it finishes or pauses itself, show results, return the exit code."""
    try:
        after = watch_batch(refunds, batch_id)
    except KeyboardInterrupt:
        raise detached(batch_id) from None
    facts |= {"counts": counts_of(after), "amounts": dict(after.amounts)}
    if held.pauses_itself(after):
        facts["paused_reason"] = after.paused_reason
    put_facts(facts, as_json=options.as_json)
    if held.pauses_itself(after):
        note(
            f"the batch is paused {held.paused(after)}; see it with 'refunds batch show {batch_id}'"
        )
    if after.known:
        rows = f"{counted(after.known, 'row')} {verb(after.known, 'was', 'were')}"
        note(f"{rows} accepted before, outside this batch, and not waited for")
    if after.stages.get("review"):
        note("some refunds need review: see them with 'refunds review list'")
    if counts.left_out:
        say_late_conflicts(counts)
        return REFUSED
    return verdict(after) if after.accepted else NOTHING_TO_DO
