"""`refunds worker` runs a worker, checks before what would end it, and restarts it if it dies."""

from __future__ import annotations

import os
import sys
from typing import Final, NoReturn

import click

from worker.broker.names import CALLBACK_QUEUE
from worker.callbacks import endpoints
from worker.cli.exits import REFUSED, USAGE
from worker.cli.session import note, opened
from worker.errors import ProviderMismatch, SettingsError
from worker.model.refund import Lane
from worker.probing import kept
from worker.process import heartbeat_file, supervising
from worker.settings import Settings
from worker.store import flags
from worker.wording.ranges import Whole

# Exit codes after which the child is not started again: wrong settings or a guard would stop it
# each time.
FINAL_CODES: Final = frozenset({USAGE, REFUSED})
_LANES: Final = [lane.value for lane in Lane]


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
def worker(*, concurrency: int | None, queues: str | None) -> NoReturn:
    """Run a worker in the foreground, and restart it if it dies.

    On SIGTERM or Ctrl-C it starts no more refunds, finishes those in flight, and exits.
    """
    settings = Settings.load() if concurrency is None else Settings.load(concurrency=concurrency)
    served = _served(queues, settings)
    _preflight(settings)
    environment = dict(os.environ) | {"REFUNDS_CONCURRENCY": str(settings.concurrency)}
    as_text = settings.log_format == "text" or (settings.log_format is None and sys.stderr.isatty())
    supervising.become_supervisor(
        command(served, settings), environment=environment, final=FINAL_CODES, as_text=as_text
    )


def command(queues: str, settings: Settings) -> list[str]:
    """Return the command line of the Celery worker."""
    return [
        *(sys.executable, "-m", "worker.process.celery_worker"),
        *("--queues", queues, "--loglevel", settings.log_level),
        # The name must be unique: Flower would show two workers of one name on a machine as one.
        *("--hostname", f"refunds-{os.getpid()}@%h"),
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
    heartbeat_file.check(settings.heartbeat_file)
