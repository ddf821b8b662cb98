"""`refunds pause` and `resume` stop and start sending.

`worker` runs a worker and `metrics` serves its figures.
"""

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
from worker.broker.queues import CALLBACK_QUEUE
from worker.callbacks import endpoints
from worker.cli.exits import DONE, NOTHING_TO_DO, REFUSED, USAGE
from worker.cli.session import ALL_PAUSED, act, note, opened, operator
from worker.client import Refunds
from worker.errors import ProviderMismatch, SettingsError
from worker.listening import cannot_listen
from worker.model.refund import Lane
from worker.model.times import rfc3339
from worker.probing import kept
from worker.process.heartbeat import Heartbeat
from worker.process.supervisor import Supervisor
from worker.ranges import Whole
from worker.settings import Settings
from worker.store import flags
from worker.wording import values

# Exit codes after which the child is not started again: wrong settings or a guard would stop it
# each time.
FINAL_CODES: Final = frozenset({USAGE, REFUSED})
_LANES: Final = [lane.value for lane in Lane]

batch_option = click.option("--batch", metavar="ID", help="Only the refunds of this batch.")


@click.command(
    epilog="""\b
Examples:
  refunds pause
  refunds pause --batch b-20260131-4f1c2a

\b
Exit code: 9 if it was already paused."""
)
@batch_option
def pause(*, batch: str | None) -> int:
    """Stop sending refunds, until 'refunds resume'.

    Refunds in flight finish, and the provider is still asked about those that may have happened.
    New refunds are still accepted, and wait.
    """
    with opened() as refunds:
        store, by = refunds.store, operator(refunds.settings)
        if batch is not None:
            changed = act(refunds, "batch pause", batch, lambda: pause_batch(store, batch, by))
            note(f"batch {batch} is paused" if changed else f"batch {batch} was already paused")
            return DONE if changed else NOTHING_TO_DO
        changed, state = act(refunds, "pause", "", lambda: flags.pause(store, by))
    since = f"since {values.moment(state.paused_at)} by {values.plain(state.paused_by)}"
    note(f"{'paused' if changed else 'already paused'} {since}: send again with 'refunds resume'")
    return DONE if changed else NOTHING_TO_DO


@click.command(
    epilog="""\b
Examples:
  refunds resume
  refunds resume --batch b-20260131-4f1c2a
  refunds resume --account

\b
Exit code: 9 if it was not paused; with --account 9 if there is nothing to
confirm."""
)
@batch_option
@click.option(
    "--account",
    is_flag=True,
    help=(
        "Confirm that the API key belongs to the account of these records. A payment missing there"
        " counts as gone."
    ),
)
@click.option("--force", is_flag=True, help="With --account: also if no payment is missing.")
def resume(*, batch: str | None, account: bool, force: bool) -> int:
    """Start sending refunds again; those held back are sent within half a minute."""
    if account and batch is not None:
        raise click.UsageError(
            f"--account applies to all refunds, not to one batch: leave out --batch {batch}"
        )
    if force and not account:
        raise click.UsageError(
            "--force only applies to --account: add --account, or leave out --force"
        )
    with opened() as refunds:
        if account:
            if not force and (why := _needless(refunds)) is not None:
                note(why)
                return NOTHING_TO_DO
            before = act(
                refunds, "resume --account", "", lambda: flags.vouch_for_account(refunds.store)
            )
            return _account_confirmed(before)
        if batch is not None:
            changed = act(
                refunds, "batch resume", batch, lambda: resume_batch(refunds.store, batch)
            )
            note(f"batch {batch} is resumed" if changed else f"batch {batch} was not paused")
            if flags.read(refunds.store).paused_at is not None:
                note(ALL_PAUSED)
            return DONE if changed else NOTHING_TO_DO
        changed, before = act(refunds, "resume", "", lambda: flags.resume(refunds.store))
    if before.account_lost_at is not None:
        note(
            "still nothing is sent, because the API key may belong to another account: see 'refunds"
            " doctor'"
        )
    if not changed:
        note("nothing was paused")
        return NOTHING_TO_DO
    note(
        f"resumed; sending had been paused since {values.moment(before.paused_at)} by"
        f" {values.plain(before.paused_by)}"
    )
    return DONE


def _needless(refunds: Refunds) -> str | None:
    """Return why there is nothing to confirm about the account, None if there is something."""
    seen, key = flags.read(refunds.store), refunds.settings.api_key
    if seen.account_lost_at is not None:
        return None
    if key is None:
        return (
            "nothing was changed: no payment is missing, and no API key is set here that could be"
            " unknown; if a worker refused to start with its key, and the key is of the same"
            " account, run 'refunds resume --account --force'"
        )
    if seen.knows(key.get_secret_value()):
        return "nothing was changed: no payment is missing, and the records know this API key"
    return None


def _account_confirmed(before: flags.Switches) -> int:
    if before.account_lost_payment is not None:
        note(f"payment {before.account_lost_payment} counts as gone, and refunds are sent again")
    note(
        "the API key of the next worker that starts within an hour is accepted for the account of"
        " these records"
    )
    if before.paused_at is not None:
        note(ALL_PAUSED)
    return DONE


def _queues(_ctx: click.Context, _parameter: click.Parameter, text: str | None) -> str | None:
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    known = [*_LANES, CALLBACK_QUEUE]
    if wrong := [name for name in names if name not in known]:
        raise click.BadParameter(f"{wrong[0]!r} is not one of {', '.join(known)}")
    return ",".join(dict.fromkeys(names))


def _served(queues: str | None, settings: Settings) -> str:
    """Return the queues to serve: those that were named, else all that are used."""
    has_callbacks = settings.callbacks_file is not None
    if queues is None:
        return ",".join([*_LANES, *([CALLBACK_QUEUE] if has_callbacks else [])])
    if CALLBACK_QUEUE in queues.split(",") and not has_callbacks:
        raise SettingsError(
            f"--queues names {CALLBACK_QUEUE}, and REFUNDS_CALLBACKS_FILE is not set: set it, or"
            " leave that queue out"
        )
    return queues


@click.command(
    epilog="""\b
Examples:
  refunds worker
  refunds worker --concurrency 128
  refunds worker --queues refunds

\b
Exit code: 0 after SIGTERM or Ctrl-C, once all refunds in flight are finished;
2 wrong settings; 5 Redis is unavailable; 6 a guard refused."""
)
@click.option(
    "--concurrency",
    type=Whole(1, 1024),
    metavar="N",
    help="Most calls in flight at once; REFUNDS_CONCURRENCY if omitted.",
)
@click.option(
    "--queues",
    metavar="NAMES",
    callback=_queues,
    help=(
        "Queues to serve, comma-separated, of refunds, refunds.bulk and refunds.callbacks; all that"
        " are used if omitted."
    ),
)
def worker(*, concurrency: int | None, queues: str | None) -> int:
    """Run a worker in the foreground, and restart it if it dies.

    On SIGTERM or Ctrl-C it starts no more refunds, finishes those in flight, and exits.
    """
    settings = Settings.load() if concurrency is None else Settings.load(concurrency=concurrency)
    served = _served(queues, settings)
    _preflight(settings)
    environment = dict(os.environ) | {"REFUNDS_CONCURRENCY": str(settings.concurrency)}
    return Supervisor(
        command(served, settings), say=_sayer(settings), environment=environment, final=FINAL_CODES
    ).run()


def command(queues: str, settings: Settings) -> list[str]:
    """Return the Celery worker's command line: threads, because one loop serves all tasks."""
    return [
        *(sys.executable, "-m", "celery", "--quiet", "--app", "worker.app", "worker"),
        *("--pool", "threads", "--queues", queues, "--loglevel", settings.log_level),
        # The name must be unique: Flower would show two workers of one name on a machine as one.
        *("--hostname", f"refunds-{os.getpid()}@%h", "--without-mingle", "--without-gossip"),
    ]


def _preflight(settings: Settings) -> None:
    """Check what would end each child.

    Settings, guards, a Redis that is unavailable or may lose writes.
    """
    settings.require_provider()
    endpoints.load(settings)
    with opened(settings) as refunds:
        refunds.store.require_durable()
        if warning := kept.live_warning(settings, kept.read(refunds.store)):
            note(f"warning: {warning}")
        pinned = flags.read(refunds.store)
    ours = (settings.provider_host, settings.mode)
    if pinned.provider_host is not None and (pinned.provider_host, pinned.mode) != ours:
        raise ProviderMismatch(
            f"these records belong to {pinned.provider_host} in {pinned.mode} mode, but this worker"
            f" is set to {ours[0]} in {ours[1]} mode: use another REFUNDS_PREFIX or database"
        )
    # Last, so that a worker that may not run leaves no heartbeat.
    Heartbeat(settings.heartbeat_file).begin()


def _sayer(settings: Settings) -> Callable[[str], None]:
    as_text = settings.log_format == "text" or (settings.log_format is None and sys.stderr.isatty())

    def say(sentence: str) -> None:
        if not as_text:
            line = {
                "at": rfc3339(datetime.now(UTC)),
                "level": "info",
                "event": "supervisor",
                "message": sentence,
            }
            sentence = json.dumps(line)
        # The worker must not end because the reader of its log has closed the pipe.
        with suppress(OSError):
            click.echo(sentence, err=True)

    return say


@click.command(
    epilog="\b\nExamples:\n  refunds metrics\n  refunds metrics --host 0.0.0.0 --port 9464"
)
@click.option(
    "--host",
    metavar="HOST",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; there is no password.",
)
@click.option(
    "--port",
    metavar="PORT",
    default=9464,
    show_default=True,
    type=Whole(0, 65535),
    help="Port; 0 picks a free one.",
)
def metrics(*, host: str, port: int) -> int:
    """Serve Prometheus metrics, computed from Redis at each scrape.

    One process serves any number of workers.
    """
    from worker.monitoring.metrics import serve  # noqa: PLC0415 - no other command needs it

    with opened() as refunds:
        try:
            serve(
                refunds.store,
                refunds.celery,
                host=host,
                port=port,
                backlog_warning=refunds.settings.backlog_warning,
                rungs=refunds.settings.watch_rungs,
                say=note,
            )
        except OSError as error:
            raise click.ClickException(cannot_listen(host, port, error)) from None
    return DONE
