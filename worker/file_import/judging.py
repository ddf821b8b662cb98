"""Decides whether a file may be imported: by its rows, its totals, and the existing refunds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, Literal, NamedTuple

from worker import batches
from worker.batches import BatchDraft, Comparison, OpenedBatch
from worker.file_import.limits import Limits, MostErrors, sums
from worker.file_import.readings import stored_reading
from worker.importer import Source, Summary
from worker.model.words import counted, listed, verb
from worker.store.store import Store

_LINES: Final = 3
Reason = Literal[
    "invalid_rows", "limit", "batch", "all_remaining", "repeats", "not_failed", "conflicting"
]
"""Why a file is refused; `batch` if no batch can be opened for it."""


@dataclass(frozen=True, kw_only=True)
class ImportSettings:
    """The options of an import, without those that say how the file is read."""

    batch: str | None = None
    again: bool = False
    allow_repeat: bool = False
    all_remaining: bool = False
    delay: timedelta = timedelta(0)
    on_error: str = "abort"
    max_errors: MostErrors | None = None
    limits: Limits = field(default_factory=Limits)

    def skips(self, summary: Summary) -> bool:
        """Return whether the invalid rows may be skipped."""
        if self.on_error != "skip" or not summary.accepted:
            return False
        return self.max_errors is None or self.max_errors.allows(summary.refused, summary.rows)


class Refusal(NamedTuple):
    """One reason not to import a file."""

    reason: Reason
    limit: str | None = None
    """The sentence for `broken_limits` in the JSON summary.

    None if other fields of the summary show the reason.
    """


def broken_limits(refusals: Sequence[Refusal]) -> dict[str, Any]:
    """Return for JSON the limits that a file breaks."""
    limits = [refusal.limit for refusal in refusals if refusal.limit is not None]
    return {"broken_limits": limits} if limits else {}


def of_file(summary: Summary, options: ImportSettings) -> list[Refusal]:
    """Return why the file alone must not be imported.

    Its invalid rows, or else the limits that it breaks.
    """
    if summary.refused and not options.skips(summary):
        # The totals are not known until the invalid rows are fixed, so no limit is checked.
        return [Refusal("invalid_rows")]
    return [Refusal("limit", sentence) for sentence in options.limits.broken(summary)]


def of_rows(
    source: Source, summary: Summary, compared: Comparison | None, options: ImportSettings
) -> list[Refusal]:
    """Return why the rows must not be imported beside the existing refunds.

    Without `compared`, by the file alone.
    """
    refusals: list[Refusal] = []
    open_rows = summary.all_remaining if compared is None else compared.all_remaining
    if open_rows and not options.all_remaining:
        refusals.append(Refusal("all_remaining", all_remaining_refused(source, summary, compared)))
    repeats = summary.repeats + (0 if compared is None else compared.repeats)
    if repeats and not options.allow_repeat:
        refusals.append(Refusal("repeats"))
    if compared is not None and compared.not_failed:
        refusals.append(Refusal("not_failed"))
    if compared is not None and compared.conflicting:
        refusals.append(Refusal("conflicting"))
    return refusals


def all_remaining_refused(source: Source, summary: Summary, compared: Comparison | None) -> str:
    """Return why a file is refused whose rows request all that is left without --all-remaining."""
    rows = summary.all_remaining if compared is None else compared.all_remaining
    if "amount" not in summary.columns.values():
        each = "its row" if rows == 1 else f"each of {rows:,} rows"
        return (
            f"{source.name} has no amount column, so {each} would refund all that is left of its"
            " payment"
        )
    lines = [] if compared is None else compared.first_all_remaining[:_LINES]
    first = "" if len(lines) == rows else "the first: "
    where = f" ({first}{verb(len(lines), 'line', 'lines')} {listed(lines)})" if lines else ""
    return (
        f"{counted(rows, 'row')} of {source.name} {verb(rows, 'has', 'have')} no amount{where}, so "
        f"{'it' if rows == 1 else 'each'} would refund all that is left of its payment"
    )


def draft(source: Source, summary: Summary, options: ImportSettings) -> BatchDraft:
    """Return what a new batch of the file is opened with."""
    return BatchDraft(
        options=stored_reading(source),
        invalid=summary.refused,
        duplicates=summary.duplicates,
        all_remaining=summary.all_remaining,
        totals=sums(summary),
        delay=options.delay,
        allow_repeat=options.allow_repeat,
        again=options.again,
    )


class Prepared(NamedTuple):
    """A file compared with the records, and why it must not be imported, if it must not.

    `is_new` if its import would open a new batch.
    """

    is_new: bool
    compared: Comparison
    refusals: list[Refusal]

    @property
    def has_nothing_new(self) -> bool:
        """Return whether every row was accepted before, outside an unfinished batch of the file."""
        return self.is_new and not self.compared.fresh


def prepare(
    store: Store,
    source: Source,
    summary: Summary,
    options: ImportSettings,
    compare: Callable[[], Comparison],
) -> Prepared:
    """Compare a file with the records. Raises `GuardRefused` if no batch can be opened for it."""
    # The most common refusals come before the file is read again.
    foreseen = batches.foresee_batch(
        store, options.batch, source.digest, draft(source, summary, options)
    )
    compared = compare()
    return Prepared(foreseen.fresh, compared, of_rows(source, summary, compared, options))


def begin(store: Store, source: Source, summary: Summary, options: ImportSettings) -> OpenedBatch:
    """Open the batch of a file, or continue its unfinished one. Raises `GuardRefused`."""
    return batches.open_batch(
        store,
        options.batch,
        file=source.name,
        digest=source.digest,
        rows=summary.rows,
        opening=draft(source, summary, options),
    )
