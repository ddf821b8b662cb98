"""`refunds pause`, `resume` and `worker`: what runs, and the button that stops it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final

import click

from worker.batches import pause_batch, resume_batch
from worker.cli import render
from worker.cli.exits import DONE, NOTHING_TO_DO, REFUSED, USAGE
from worker.cli.session import note, opened, operator
from worker.errors import ProviderMismatch
from worker.model.refund import Lane
from worker.model.times import rfc3339
from worker.probing import kept
from worker.process.heartbeat import Heartbeat
from worker.process.supervisor import Supervisor
from worker.ranges import Whole
from worker.settings import Settings
from worker.store import flags

# The child found the same wrong settings or guard that would stop it again each time.
FINAL_CODES: Final = frozenset({USAGE, REFUSED})

batch_option = click.option("--batch", metavar="ID", help="Only the refunds of this batch.")


@click.command(
    epilog="""\b
Examples:
  refunds pause
  refunds pause --batch b-20260131-4f1c2a

\b
Exit code: 9 if it was paused already."""
)
@batch_option
def pause(*, batch: str | None) -> int:
    """Stop sending: one flag that every claim reads.

    What is in flight finishes; looks at what may have happened and polls go on. Refunds are still accepted, and wait.
    """
    with opened() as refunds:
        if batch is not None:
            changed = pause_batch(refunds.store, batch, operator(refunds.settings))
            note(f"batch {batch} is paused" if changed else f"batch {batch} was paused already")
            return DONE if changed else NOTHING_TO_DO
        changed, state = flags.pause(refunds.store, operator(refunds.settings))
    since = f"since {render.moment(state.paused_at)} by {render.plain(state.paused_by)}"
    note(f"{'paused' if changed else 'paused already,'} {since}: 'refunds resume' ends it")
    return DONE if changed else NOTHING_TO_DO


@click.command(
    epilog="""\b
Examples:
  refunds resume
  refunds resume --batch b-20260131-4f1c2a
  refunds resume --account

\b
Exit code: 9 if it was not paused."""
)
@batch_option
@click.option(
    "--account",
    is_flag=True,
    help="You know that the key is of the account these records belong to: believe it, and what is missing is gone.",
)
def resume(*, batch: str | None, account: bool) -> int:
    """Let refunds be sent again; those that were held back go within half a minute."""
    if account and batch is not None:
        raise click.UsageError("--account concerns everything, not one batch: leave --batch out")
    with opened() as refunds:
        if account:
            return _vouched(flags.vouch_for_account(refunds.store))
        if batch is not None:
            changed = resume_batch(refunds.store, batch)
            note(f"batch {batch} goes on" if changed else f"batch {batch} was not paused")
            if flags.read(refunds.store).paused_at is not None:
                note("but everything is paused: 'refunds resume' ends that")
            return DONE if changed else NOTHING_TO_DO
        before = flags.resume(refunds.store)
    if before.account_lost_at is not None:
        note("nothing is sent all the same, since the key may be of another account: see 'refunds doctor'")
    if before.paused_at is None:
        note("nothing was paused")
        return NOTHING_TO_DO
    note(f"resumed; it was paused since {render.moment(before.paused_at)} by {render.plain(before.paused_by)}")
    return DONE


def _vouched(before: flags.Switches) -> int:
    if before.account_lost_payment is not None:
        note(f"the payment {before.account_lost_payment} counts as gone, and refunds are sent again")
    note("the next key that a worker starts with within an hour is taken for one of these records' account")
    if before.paused_at is not None:
        note("but everything is paused: 'refunds resume' ends that")
    return DONE


def _queues(_ctx: click.Context, _parameter: click.Parameter, text: str) -> str:
    names = [name.strip() for name in text.split(",")]
    known = [lane.value for lane in Lane]
    if wrong := [name for name in names if name not in known]:
        raise click.BadParameter(f"{wrong[0]!r} is none of {', '.join(known)}")
    return ",".join(dict.fromkeys(names))


@click.command(
    epilog="""\b
Examples:
  refunds worker
  refunds worker --concurrency 128
  refunds worker --queues refunds

\b
Exit code: 0 after SIGTERM or Ctrl-C, once what was in flight is finished;
2 settings, 5 Redis is away, 6 a guard refused."""
)
@click.option(
    "--concurrency",
    type=Whole(1, 1024),
    metavar="N",
    help="Calls in flight at once; REFUNDS_CONCURRENCY without it.",
)
@click.option(
    "--queues",
    default=",".join(lane.value for lane in Lane),
    show_default=True,
    callback=_queues,
    help="Queues to serve.",
)
def worker(*, concurrency: int | None, queues: str) -> int:
    """Run a worker in the foreground, and bring it back when it dies.

    SIGTERM or Ctrl-C: no refund is begun any more, what is in flight is finished, then it ends.
    """
    settings = Settings.load() if concurrency is None else Settings.load(concurrency=concurrency)
    _preflight(settings)
    environment = dict(os.environ) | {"REFUNDS_CONCURRENCY": str(settings.concurrency)}
    return Supervisor(command(queues, settings), say=_sayer(settings), environment=environment, final=FINAL_CODES).run()


def command(queues: str, settings: Settings) -> list[str]:
    """Return the Celery worker's command line: threads, because one loop serves all tasks."""
    return [
        *(sys.executable, "-m", "celery", "--quiet", "--app", "worker.app", "worker"),
        *("--pool", "threads", "--queues", queues, "--loglevel", settings.log_level),
        # A name of its own: two workers of one name on a machine would mislead Flower.
        *("--hostname", f"refunds-{os.getpid()}@%h", "--without-mingle", "--without-gossip"),
    ]


def _preflight(settings: Settings) -> None:
    """Find at once what would end the child over and over: settings, guards, a server that is away or forgets."""
    settings.require_provider()
    with opened(settings) as refunds:
        refunds.store.require_durable()
        if warning := kept.live_warning(settings, kept.read(refunds.store)):
            note(f"warning: {warning}")
        pinned = flags.read(refunds.store)
    ours = (settings.provider_host, settings.mode)
    if pinned.provider_host is not None and (pinned.provider_host, pinned.mode) != ours:
        raise ProviderMismatch(
            f"these records belong to {pinned.provider_host} in {pinned.mode} mode, and this worker is set to "
            f"{ours[0]} in {ours[1]} mode: use another REFUNDS_PREFIX or database"
        )
    # Last, so that a worker that may not run leaves no sign of life.
    Heartbeat(settings.heartbeat_file).begin()


def _sayer(settings: Settings) -> Callable[[str], None]:
    as_text = settings.log_format == "text" or (settings.log_format is None and sys.stderr.isatty())

    def say(sentence: str) -> None:
        if not as_text:
            line = {"at": rfc3339(datetime.now(UTC)), "level": "info", "event": "supervisor", "message": sentence}
            sentence = json.dumps(line)
        # A log that nobody reads any more must not end the worker.
        with suppress(OSError):
            click.echo(sentence, err=True)

    return say


@click.command(epilog="\b\nExamples:\n  refunds metrics\n  refunds metrics --host 0.0.0.0 --port 9464")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; it asks for no password.")
@click.option("--port", default=9464, show_default=True, type=Whole(0, 65535), help="0 takes a free one.")
def metrics(*, host: str, port: int) -> int:
    """Serve Prometheus metrics, computed from Redis at each scrape: one process, whatever the number of workers."""
    from worker.monitoring.metrics import serve  # noqa: PLC0415 - no other command needs it

    with opened() as refunds:
        try:
            deep = refunds.settings.backlog_warning
            serve(refunds.store, refunds.celery, host=host, port=port, backlog_warning=deep, say=note)
        except OSError as error:
            raise click.ClickException(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
    return DONE
