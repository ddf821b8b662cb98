"""`refunds batch`: the files that were handed in, as things to look at, hold, stop, send again and read back."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Final

import click
from rich.table import Table
from rich.text import Text

from worker import batches
from worker.batches import Batch, BatchProgress
from worker.broker import queues
from worker.cli import render
from worker.cli.exits import DONE, NOTHING_TO_DO
from worker.cli.import_options import reading_of
from worker.cli.import_report import amount_rows, total_rows
from worker.cli.outputs import RESULT_ROWS, Write, output, standard_output
from worker.cli.progress import detached, progress, span, verdict, watch_batch
from worker.cli.session import note, opened, operator
from worker.cli.words import counted
from worker.client import PUBLISH_ERRORS, Refunds
from worker.errors import InputError
from worker.importer import open_source, validate, write_result
from worker.model.refund import Lane, Retriable
from worker.model.times import rfc3339
from worker.ranges import Whole
from worker.store import flags

_STATUSES: Final = ("succeeded", "failed", "canceled")
_SENT: Final = ("sending", "in_doubt", "processing", "review")
_UNSENT: Final = ("queued", "waiting")
_COUNTS: Final = {
    "invalid": "invalid",
    "duplicates": "stated twice",
    "known": "handed in before",
    "conflicting": "id taken",
}

_batch_argument = click.argument("batch_id", metavar="BATCH_ID")
_json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object.")


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
    """See and steer the files that were handed in; without a command, list them.

    A batch owns the refunds it created; rows whose refunds stood in the records before are left alone.
    """
    return ctx.invoke(list_all) if ctx.invoked_subcommand is None else None


@batch.command("list")
@click.option("--limit", type=Whole(min=0), default=20, show_default=True, help="0 for all.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
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
        render.put(_listing(page))
    if more:
        note(f"there are more than the {limit} shown: --limit 0 shows all")
    elif not count:
        note("no file was imported here")
    return DONE


def _listing(page: Sequence[Batch]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("batch", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for name in ("refunds", *_STATUSES, "review", "moving"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("imported", no_wrap=True)
    table.add_column("file", overflow="fold")
    for each in page:
        counts = [each.accepted, *(each.statuses.get(name, 0) for name in _STATUSES)]
        counts += [each.stages.get("review", 0), each.moving]
        table.add_row(
            each.batch_id,
            _state(each),
            *(f"{count:,}" for count in counts),
            render.moment(each.created_at),
            render.plain(each.file),
        )
    return table


def _state(each: Batch) -> Text:
    if each.state != "running":
        return Text(each.state, style="yellow" if each.state == "paused" else "dim")
    if each.imported_at is None:
        return Text("not whole", style="yellow")
    return Text("finished", style="green") if each.finished else Text("running", style="cyan")


@batch.command(
    epilog="""\b
Exit code with --wait: 0 all succeeded; 4 some failed, were canceled or need a
person."""
)
@_batch_argument
@click.option("--wait", is_flag=True, help="Show progress until every refund rests.")
@_json_option
def show(*, batch_id: str, wait: bool, as_json: bool) -> int:
    """Show a batch: counts by status and stage, sums, pace, and what holds it."""
    with opened() as refunds:
        if wait:
            try:
                watch_batch(refunds, batch_id)
            except KeyboardInterrupt:
                raise detached(batch_id) from None
        seen = batches.look_at_batch(refunds.store, batch_id)
    if as_json:
        eta = None if seen.eta is None else rfc3339(seen.eta)
        render.as_json(seen.batch.as_dict() | {"refunds_a_second": round(seen.rate, 3), "eta": eta})
    else:
        _put(seen)
    return verdict(seen.batch) if wait else DONE


def _put(seen: BatchProgress) -> None:
    each = seen.batch
    waiting = each.not_before is not None and each.not_before > seen.now
    rows: list[tuple[str, object]] = [
        ("state", _state(each)),
        ("file", each.file),
        ("begun", render.moment(each.created_at)),
        ("handed in", render.moment(each.imported_at) if each.imported_at else "not whole: import the file once more"),
        ("held until", render.moment(each.not_before) if waiting else None),
        ("paused", _paused(each)),
        ("canceled", f"{render.moment(each.canceled_at)} by {each.canceled_by}" if each.canceled_at else None),
        ("rows", f"{each.rows:,}"),
    ]
    unit = reading_of(each.options).amount_unit
    rows += [(label, f"{count:,}") for name, label in _COUNTS.items() if (count := getattr(each, name))]
    rows += total_rows(dict(sorted(each.totals.items())), {}, unit)
    if each.all_remaining:
        rows.append(("and", f"{counted(each.all_remaining, 'refund')} of all that is left"))
    rows.append(("refunds", f"{each.accepted:,}"))
    rows += [(name, f"{each.statuses[name]:,}") for name in _STATUSES if each.statuses.get(name)]
    rows += [(name, f"{count:,}") for name, count in sorted(each.stages.items()) if name != "settled"]
    rows += amount_rows(each.amounts, unit)
    if each.moving:
        rows.append(("pace", f"{seen.rate:,.1f} refunds a second" if seen.rate else "nothing has settled lately"))
    if seen.eta is not None:
        rows.append(("left", f"{span((seen.eta - seen.now).total_seconds())}, until {render.moment(seen.eta)}"))
    render.put(render.heading(each.batch_id), render.facts(rows))
    if each.stages.get("review"):
        note("some need a person: 'refunds review list'")
    if each.statuses.get("failed"):
        note(f"see what failed with 'refunds list --batch {each.batch_id} --status failed'")


def _paused(each: Batch) -> str | None:
    if each.state != "paused":
        return None
    since = f"since {render.moment(each.paused_at)}" if each.paused_at else ""
    if each.paused_reason:
        return (
            f"{since} by itself: refund after refund failed with {each.paused_reason}; fix that, then "
            f"'refunds batch resume {each.batch_id}' and 'refunds batch retry {each.batch_id}'"
        )
    return f"{since} by {each.paused_by or 'a person'}: 'refunds batch resume {each.batch_id}'"


@batch.command()
@_batch_argument
@_json_option
def cancel(*, batch_id: str, as_json: bool) -> int:
    """Stop what was not sent of a batch, for good, and say what was.

    What may have reached the provider goes on to its end. Stopped half way, the same command goes on.
    Exit code: 9 if there was nothing left to stop.
    """
    with opened() as refunds:
        total = batches.batch_size(refunds.store, batch_id)
        with progress("looked at", total) as show_done:
            done = batches.cancel_batch(refunds.store, batch_id, operator(refunds.settings), show_done)
    after = done.batch
    settled = {name: after.statuses.get(name, 0) for name in ("succeeded", "failed")}
    sent = {name: after.stages.get(name, 0) for name in _SENT}
    unsent = {name: after.stages.get(name, 0) for name in _UNSENT}
    # All of one reading, so that they add up: a row may have moved since it was canceled, or its claim canceled it.
    canceled = after.statuses.get("canceled", 0)
    if as_json:
        facts: dict[str, Any] = {
            "batch_id": batch_id,
            "refunds": after.accepted,
            "canceled": canceled,
            "canceled_now": done.canceled,
            "sent": settled | sent,
            "to_be_canceled": unsent,
        }
        render.as_json(facts)
    else:
        rows = [("canceled", f"{canceled:,}")]
        rows += [(f"sent, {name}", f"{count:,}") for name, count in (settled | sent).items() if count]
        rows += [(f"not sent yet, {name}", f"{count:,}") for name, count in unsent.items() if count]
        rows.append(("refunds in all", f"{after.accepted:,}"))
        render.put(render.heading(batch_id), render.facts(rows))
    if after.imported_at is None:
        note("its import was not whole: the rest of the file is refused from now on")
    if moving := sum(sent.values()):
        note(f"{moving:,} may have reached the provider and go on to their end: 'refunds batch show {batch_id}'")
    if waiting := sum(unsent.values()):
        note(f"{waiting:,} moved meanwhile and will not be sent: each is canceled when a worker takes it up")
    return DONE if done.canceled else NOTHING_TO_DO


@batch.command()
@_batch_argument
def pause(*, batch_id: str) -> int:
    """Hold a batch: nothing more of it is sent until it is resumed; what is in flight finishes.

    Exit code: 9 if it was paused already.
    """
    with opened() as refunds:
        changed = batches.pause_batch(refunds.store, batch_id, operator(refunds.settings))
    note(f"batch {batch_id} is paused" if changed else f"batch {batch_id} was paused already")
    return DONE if changed else NOTHING_TO_DO


@batch.command()
@_batch_argument
def resume(*, batch_id: str) -> int:
    """Let a batch go on; what was held back goes within half a minute.

    Exit code: 9 if it was not paused.
    """
    with opened() as refunds:
        changed = batches.resume_batch(refunds.store, batch_id)
        held = flags.read(refunds.store).paused_at is not None
    note(f"batch {batch_id} goes on" if changed else f"batch {batch_id} was not paused")
    if held:
        note("but everything is paused: 'refunds resume' ends that")
    return DONE if changed else NOTHING_TO_DO


@batch.command(
    epilog="""\b
Exit code: 6 if the batch was canceled; 9 if nothing can be sent again."""
)
@_batch_argument
@click.option("--unknown", is_flag=True, help="Also those of which it is not known whether it can help.")
@_json_option
def retry(*, batch_id: str, unknown: bool, as_json: bool) -> int:
    """Send again what failed and is retriable: the same ids, as a new generation with a key of its own.

    What is in doubt has not failed and is never sent again by this.
    """
    kinds = frozenset({Retriable.YES, Retriable.UNKNOWN} if unknown else {Retriable.YES})
    with opened() as refunds:
        total = batches.batch_size(refunds.store, batch_id)
        with progress("looked at", total) as show_done:
            done = batches.retry_batch(
                refunds.store,
                batch_id,
                operator(refunds.settings),
                kinds=kinds,
                nudge=lambda ids: _nudge(refunds, ids),
                on_progress=show_done,
            )
        paused = batches.state_of_batch(refunds.store, batch_id) == "paused"
    if as_json:
        left = dict(done.left)
        counts = {"retried": done.retried, "left": left, "moved": done.moved, "handed_in_again": done.attempted}
        render.as_json({"batch_id": batch_id} | counts)
    else:
        rows = [("sent again", f"{done.retried:,}")]
        rows += [(f"left, retriable: {kind}", f"{count:,}") for kind, count in sorted(done.left.items())]
        rows += [("changed meanwhile", f"{done.moved:,}")] if done.moved else []
        rows += [("left, handed in again", f"{done.attempted:,}")] if done.attempted else []
        rows.append(("failed before", f"{done.retried + done.left.total() + done.moved + done.attempted:,}"))
        render.put(render.heading(batch_id), render.facts(rows))
    for refund_id, other in done.first_attempted:
        note(f"refund {refund_id} was left: its row was handed in again as {other}, which is on its way or done")
    if done.left[Retriable.UNKNOWN.value]:
        note("of some it is not known whether sending again can help: --unknown sends those, too")
    if paused:
        note(f"the batch is paused: 'refunds batch resume {batch_id}' lets them go")
    return DONE if done.retried else NOTHING_TO_DO


def _nudge(refunds: Refunds, refund_ids: Sequence[str]) -> None:
    try:
        for start in range(0, len(refund_ids), queues.BULK_IDS):
            queues.nudge(refunds.celery, refund_ids[start : start + queues.BULK_IDS], Lane.BULK)
    except PUBLISH_ERRORS as error:
        note(f"warning: a message was not sent ({type(error).__name__}): the workers' sweep makes up for it")


@batch.command(
    epilog="""\b
Examples:
  refunds batch result b-20260131-4f1c2a --input season.csv > result.csv
  refunds batch result b-20260131-4f1c2a --input season.csv --output result.csv

\b
Exit code: 3 if the file is not the one that was imported."""
)
@_batch_argument
@click.option("--input", "file", required=True, metavar="FILE|-", help="The very file that was imported.")
@click.option("--output", "target", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Not stdout.")
def result(*, batch_id: str, file: str, target: Path | None) -> int:
    """Write the file that was imported, each row with what became of it.

    No row is kept in Redis: give the very file, which is read as it was when it was imported.
    """
    with opened() as refunds:
        stored = batches.read_batch(refunds.store, batch_id)
        with open_source(file, reading_of(stored.options), sys.stdin.buffer) as source, _out(file, target) as write:
            if source.digest != stored.digest:
                raise InputError(
                    f"{source.name} is not the file that was imported as batch {batch_id}, which was {stored.file!r}: "
                    "give that file as it was, unchanged to the byte"
                )
            with progress("rows checked", stored.rows) as show_done:
                validation = validate(source, show_done)
            write(lambda out: write_result(source, validation, refunds.get_many, out), RESULT_ROWS)
    return DONE


@contextmanager
def _out(file: str, target: Path | None) -> Iterator[Write]:
    with standard_output() if target in {None, Path("-")} else output(file, target) as write:
        yield write
