"""`refunds batch`: lists, shows, pauses, cancels and retries imported files; writes results."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Final

import click
from celery import Celery

from worker import batches
from worker.broker import queues
from worker.broker.names import BULK_IDS
from worker.cli import batch_tables, render
from worker.cli.exits import DONE, NOTHING_TO_DO, Detached
from worker.cli.outputs import RESULT_ROWS, RESULTS, Write, output, standard_output
from worker.cli.progress import detached, progress, verdict, watch_batch, why_still
from worker.cli.session import ALL_PAUSED, act, note, opened, operator
from worker.errors import InputError
from worker.file_import import reading_of
from worker.importer import Source, open_source, validate, write_result
from worker.model.refund import Lane, Retriable
from worker.model.words import counted, verb
from worker.store import flags
from worker.store.store import Store
from worker.wording.batches import STILL
from worker.wording.ranges import Whole

_SETTLED: Final = frozenset({"succeeded", "failed"})
_batch_argument = click.argument("batch_id", metavar="BATCH_ID")
_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.group(
    invoke_without_command=True,
    epilog="""\b
Examples:
  refunds batch list
  refunds batch show b-20260131-4f1c2a
  refunds batch retry b-20260131-4f1c2a
  refunds batch result b-20260131-4f1c2a --input season.csv --output result.csv
""",
)
@click.pass_context
def batch(ctx: click.Context) -> int | None:
    """Show and control imported files (batches); without a command, list them.

    A batch owns the refunds that it created. Refunds that existed before the import are not part of
    it.
    """
    return ctx.invoke(list_all) if ctx.invoked_subcommand is None else None


@batch.command("list")
@click.option(
    "--limit",
    type=Whole(min=0),
    default=20,
    show_default=True,
    metavar="N",
    help="How many; 0 for all.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
def list_all(*, limit: int = 20, as_json: bool = False) -> int:
    """List the batches, newest first."""
    with opened() as refunds:
        found = batches.list_batches(refunds.store)
        page = list(islice(found, limit or None)) if not as_json else []
        count = len(page)
        if as_json:
            for count, each in enumerate(islice(found, limit or None), 1):  # noqa: B007 - read after the loop
                render.as_json(each.as_dict())
        more = limit > 0 and count == limit and next(found, None) is not None
    if page:
        render.put(batch_tables.listing(page))
    if more:
        note(f"there are more batches than the {limit} shown: use --limit 0 to list all")
    elif not count:
        note("no file has been imported yet")
    return DONE


@batch.command(
    short_help="Show a batch and its progress.",
    epilog="""\b
Exit code with --wait: 0 all succeeded; 4 some failed, were canceled, need review
or were never imported, or the batch has paused itself.""",
)
@_batch_argument
@click.option(
    "--wait",
    is_flag=True,
    help=(
        "Show progress until every refund is settled or needs review, or the batch has paused"
        " itself."
    ),
)
@_json_option
def show(*, batch_id: str, wait: bool, as_json: bool) -> int:
    """Show a batch: counts by status and stage, totals, pace, and why it is paused or held."""
    with opened() as refunds:
        if wait:
            try:
                watch_batch(refunds, batch_id)
            except KeyboardInterrupt:
                raise detached(batch_id) from None
        seen = batches.look_at_batch(refunds.store, batch_id)
        is_still = seen.batch.state == "running" and seen.batch.moving > 0 and not seen.rate
        why = why_still(refunds, seen) if is_still and not as_json else None
    if as_json:
        render.as_json(seen.as_dict())
    else:
        batch_tables.put(seen)
    if why is not None:
        note(f"{STILL}: {why}")
    if wait and seen.batch.imported_at is None:
        note(f"not every row was imported so far: see 'refunds batch show {batch_id}'")
    return verdict(seen.batch) if wait else DONE


@batch.command(short_help="Cancel the refunds that were not sent.")
@_batch_argument
@_json_option
def cancel(*, batch_id: str, as_json: bool) -> int:
    """Cancel the refunds of a batch that were not sent, for good, and show what was sent.

    A refund that may have reached the provider cannot be canceled and continues. If this command is
    interrupted, run it again to finish.

    Exit code: 9 if there was nothing left to stop.
    """
    with opened() as refunds:
        total = refunds.store.batch_size(batch_id)
        store, by = refunds.store, operator(refunds.settings)
        try:
            with progress("checked", total) as show_done:
                done = act(
                    refunds,
                    "batch cancel",
                    batch_id,
                    lambda: batches.cancel_batch(store, batch_id, by, show_done),
                )
        except KeyboardInterrupt:
            raise Detached(
                f"interrupted: batch {batch_id} may be canceled already, and what is unsent is then"
                " never sent: see it with 'refunds batch show"
                f" {batch_id}', or run the same command again to finish"
            ) from None
    after, facts = done.batch, done.as_dict()
    sent, unsent = facts["sent"], facts["to_be_canceled"]
    if as_json:
        render.as_json(facts)
    else:
        rows = [("canceled", f"{facts['canceled']:,}")]
        rows += [(f"sent, {name}", f"{count:,}") for name, count in sent.items() if count]
        rows += [(f"not sent yet, {name}", f"{count:,}") for name, count in unsent.items() if count]
        rows.append(("refunds in total", f"{after.accepted:,}"))
        render.put(render.heading(batch_id), render.facts(rows))
    if after.imported_at is None:
        note(
            "the import of this batch was incomplete: rows that were never accepted are imported"
            " only with 'refunds import FILE --again'"
        )
    if moving := sum(count for name, count in sent.items() if name not in _SETTLED):
        refunds_sent = (
            f"{counted(moving, 'refund')} may have reached the provider and cannot be canceled"
        )
        note(f"{refunds_sent}: follow the batch with 'refunds batch show {batch_id}'")
    if waiting := sum(unsent.values()):
        refunds_left = f"{counted(waiting, 'refund')} changed meanwhile and will not be sent"
        note(f"{refunds_left}: the workers cancel {verb(waiting, 'it', 'them')}")
    return DONE if done.audited else NOTHING_TO_DO


def paused_sentence(store: Store, batch_id: str, *, changed: bool) -> str:
    """Return what a pause did to a batch."""
    if changed:
        return f"batch {batch_id} is paused"
    if batches.state_of_batch(store, batch_id) == "paused":
        return f"batch {batch_id} was already paused"
    return f"batch {batch_id} is finished: nothing was changed"


def resumed_sentence(store: Store, batch_id: str, *, changed: bool) -> str:
    """Return what a resume did to a batch."""
    sentence = f"batch {batch_id} {'is resumed' if changed else 'was not paused'}"
    is_over = batches.read_batch(store, batch_id).is_over
    return f"{sentence}; it is finished, so nothing is left to send" if is_over else sentence


@batch.command(short_help="Pause a batch.")
@_batch_argument
def pause(*, batch_id: str) -> int:
    """Pause a batch: no more of its refunds are sent until it is resumed; those in flight finish.

    Exit code: 9 if the batch was already paused, or is finished.
    """
    with opened() as refunds:
        store, by = refunds.store, operator(refunds.settings)
        changed = act(
            refunds, "batch pause", batch_id, lambda: batches.pause_batch(store, batch_id, by)
        )
        note(paused_sentence(refunds.store, batch_id, changed=changed))
    return DONE if changed else NOTHING_TO_DO


@batch.command(short_help="Resume a paused batch.")
@_batch_argument
def resume(*, batch_id: str) -> int:
    """Resume a paused batch; its refunds are sent again within half a minute.

    Exit code: 9 if the batch was not paused.
    """
    with opened() as refunds:
        changed = act(
            refunds, "batch resume", batch_id, lambda: batches.resume_batch(refunds.store, batch_id)
        )
        all_paused = flags.read(refunds.store).paused_at is not None
        note(resumed_sentence(refunds.store, batch_id, changed=changed))
    if all_paused:
        note(ALL_PAUSED)
    return DONE if changed else NOTHING_TO_DO


@batch.command(
    short_help="Send the retriable failed refunds again.",
    epilog="""\b
Exit code: 6 if the batch was canceled; 9 if nothing can be sent again.""",
)
@_batch_argument
@click.option(
    "--unknown", is_flag=True, help="Also if it is not known whether sending again can help."
)
@_json_option
def retry(*, batch_id: str, unknown: bool, as_json: bool) -> int:
    """Send the retriable failed refunds again.

    The same ids, as a new generation with a new idempotency key.

    A refund in doubt has not failed, so this command never sends it again.
    """
    kinds = frozenset({Retriable.YES, Retriable.UNKNOWN} if unknown else {Retriable.YES})
    with opened() as refunds:
        total = refunds.store.batch_size(batch_id)
        store, by = refunds.store, operator(refunds.settings)
        # Made before anything is changed, because the settings of the broker may be wrong.
        celery = refunds.celery
        with progress("checked", total) as show_done:
            done = act(
                refunds,
                "batch retry",
                batch_id,
                lambda: batches.retry_batch(
                    store,
                    batch_id,
                    by,
                    kinds=kinds,
                    nudge=lambda ids: _nudge(celery, ids),
                    on_progress=show_done,
                ),
            )
        paused = batches.state_of_batch(refunds.store, batch_id) == "paused"
    if as_json:
        render.as_json({"batch_id": batch_id} | done.as_dict())
    else:
        rows = [("sent again", f"{done.retried:,}")]
        rows += [
            (f"not sent, retriable: {kind}", f"{count:,}")
            for kind, count in sorted(done.left.items())
        ]
        rows += [("changed meanwhile", f"{done.moved:,}")] if done.moved else []
        rows += [("not sent, submitted again", f"{done.attempted:,}")] if done.attempted else []
        rows.append(
            ("failed before", f"{done.retried + done.left.total() + done.moved + done.attempted:,}")
        )
        render.put(render.heading(batch_id), render.facts(rows))
    for refund_id, other in done.first_attempted:
        note(
            f"refund {refund_id} was not sent again, because {other}, another attempt at its row or"
            " with its payment and amount, is in progress, or has or may have moved the money"
        )
    if done.left[Retriable.UNKNOWN.value]:
        note(
            "for some refunds it is not known whether sending them again can help: --unknown sends"
            " those too"
        )
    if paused:
        note(
            "the batch is paused, so nothing is sent yet: resume it with 'refunds batch resume"
            f" {batch_id}'"
        )
    return DONE if done.retried else NOTHING_TO_DO


def _nudge(celery: Celery, refund_ids: Sequence[str]) -> None:
    try:
        for start in range(0, len(refund_ids), BULK_IDS):
            queues.nudge(celery, refund_ids[start : start + BULK_IDS], Lane.BULK)
    except queues.PUBLISH_ERRORS as error:
        note(
            f"warning: a message to the workers was not sent ({type(error).__name__}): "
            "their next sweep finds the refunds"
        )


@batch.command(
    epilog="""\b
Examples:
  refunds batch result b-20260131-4f1c2a --input season.csv > result.csv
  refunds batch result b-20260131-4f1c2a --input season.csv --output result.csv

\b
Exit code: 3 if the file is not the one that was imported."""
)
@_batch_argument
@click.option(
    "--input",
    "file",
    required=True,
    metavar="FILE|-",
    help="The file that was imported, unchanged.",
)
@click.option(
    "--output",
    "target",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write to FILE instead of stdout.",
)
def result(*, batch_id: str, file: str, target: Path | None) -> int:
    """Write the rows of an imported file with their results.

    Redis does not store the rows, so give the same file, unchanged. It is read with the options of
    its import.
    """
    with opened() as refunds:
        stored = batches.read_batch(refunds.store, batch_id)

        def is_the_same(source: Source) -> None:
            if source.digest != stored.digest:
                named = "what was piped in" if stored.file == "stdin" else repr(stored.file)
                raise InputError(
                    f"{source.name} is not the file that was imported as batch {batch_id}: use"
                    f" --input with {named} as it was imported, byte for byte"
                )

        reading = reading_of(stored.options)
        with (
            open_source(file, reading, sys.stdin.buffer, check=is_the_same) as source,
            _out(file, target) as write,
        ):
            with progress("rows checked", stored.rows) as show_done:
                validation = validate(source, show_done)
            write(lambda out: write_result(source, validation, refunds.get_many, out), RESULT_ROWS)
    return DONE


@contextmanager
def _out(file: str, target: Path | None) -> Iterator[Write]:
    with (
        standard_output() if target in {None, Path("-")} else output(file, target, RESULTS) as write
    ):
        yield write
