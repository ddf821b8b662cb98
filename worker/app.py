"""The Celery app of the worker.

`celery -A worker.app worker -P threads` starts it; `refunds worker` also restarts it.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any, Final

from celery import concurrency, signals
from celery.exceptions import SecurityWarning

from worker.broker import consumer, events, kombu_transport, remote
from worker.broker.queues import make_celery
from worker.errors import (
    GuardRefused,
    ProviderUnavailable,
    RefundError,
    SettingsError,
    StoreRefused,
    StoreUnavailable,
)
from worker.model.redaction import without_secrets
from worker.process import collector, logs
from worker.process.runtime import THREADS_BESIDE_CALLS, Runtime
from worker.settings import Settings

EXITS: Final[dict[type[RefundError], int]] = {
    SettingsError: 2,
    StoreRefused: 2,
    StoreUnavailable: 5,
    ProviderUnavailable: 5,
    GuardRefused: 6,
}


def _end(error: RefundError) -> SystemExit:
    sys.stderr.write(f"refunds: {without_secrets(str(error))}\n")
    return SystemExit(next((code for kind, code in EXITS.items() if isinstance(error, kind)), 1))


# Celery warns root of pickled messages in lines that are no JSON; here none is accepted.
warnings.filterwarnings("ignore", category=SecurityWarning)

kombu_transport.install()
consumer.read_within_bounds()
try:
    settings = Settings.load()
    app = make_celery(settings)
except SettingsError as error:
    raise _end(error) from None
app.conf.update(
    worker_pool="threads",
    worker_consumer="worker.broker.consumer:KeepingConsumer",
    worker_concurrency=settings.concurrency + THREADS_BESIDE_CALLS,
    imports=("worker.tasks",),
)
runtime = Runtime(settings, app)


@signals.setup_logging.connect(weak=False)
def _log(**_: Any) -> None:
    logs.configure(settings)
    logs.log_crashes()


@signals.worker_init.connect(weak=False)
def _start(sender: Any, **_: Any) -> None:
    # The loop's thread would not survive a fork, and only threads let one loop serve all tasks.
    if "thread" not in concurrency.get_implementation(sender.pool_cls).__module__:
        raise _end(
            SettingsError(
                "this worker needs the threads pool: start it with '-P threads', or run 'refunds"
                " worker'"
            )
        )
    remote.restrict(control=settings.remote_control)
    # Celery sets up the log after this only.
    logs.configure(settings)
    try:
        runtime.start()
    except RefundError as error:
        raise _end(error) from None


@signals.worker_ready.connect(weak=False)
def _settle_down(sender: Any, **_: Any) -> None:
    collector.settle_down()
    events.gather(sender)


@signals.worker_shutting_down.connect(weak=False)
def _stop_claiming(**_: Any) -> None:
    runtime.stop_claiming()


@signals.worker_shutdown.connect(weak=False)
def _stop(**_: Any) -> None:
    runtime.stop()


@signals.task_received.connect(weak=False)
def _received(sender: Any, request: Any, **_: Any) -> None:
    runtime.received(sender, request)


@signals.task_postrun.connect(weak=False)
def _finished(task_id: str, **_: Any) -> None:
    runtime.finished(task_id)
