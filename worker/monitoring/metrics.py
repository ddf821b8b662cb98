"""The Prometheus metrics, each computed from Redis at scrape time.

So they are right after restarts and for any number of workers. A scrape reads counters and the ends
of indexes and scans nothing: it costs the same for ten records and for a million. No label holds an
id; every label's values come from a bounded set.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import timedelta
from itertools import accumulate
from typing import Any, Final, TypeVar

from celery import Celery
from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from worker.broker import queues
from worker.errors import StoreUnavailable
from worker.model.answers import TryVerdict
from worker.model.currencies import KNOWN as CURRENCIES
from worker.model.refund import Lane, Stage, Status
from worker.model.times import from_ms
from worker.monitoring.callback_metrics import callback_metrics
from worker.monitoring.replicas import online
from worker.monitoring.snapshot import (
    _SETTLED,
    _UNSETTLED,
    LATEST_BATCHES,
    SAMPLE,
    Counts,
    Snapshot,
    snapshot,
)
from worker.monitoring.watch_metrics import UNKNOWN, watch_metrics
from worker.rules.codes import CODES, OTHER, counted
from worker.store.callback_state import CallbackState, read_callbacks
from worker.store.counters import BOUNDS, INFINITE, WEBHOOK_RESULTS
from worker.store.store import Store
from worker.store.watch_state import WatchState, read_watch

ANSWER_SECONDS: Final = 4.0
"""How long a scrape waits for the records' server, and then for the broker.

Both together are less than the ten seconds that Prometheus waits for a scrape.
"""
_MICROS: Final = 1_000_000
_ALL_LANES: Final = "all"

T = TypeVar("T")


class RefundsCollector(Collector):
    """Computes every metric family from Redis on each scrape.

    With `app` the depth of the queues too.

    `backlog_warning` is exported as a metric, so that the alert can compare with it. `rungs` are
    those of the watch of settled refunds.
    """

    def __init__(
        self,
        store: Store,
        app: Celery | None = None,
        *,
        backlog_warning: int | None = None,
        rungs: Sequence[timedelta] = (),
    ) -> None:
        self._store = store
        self._rungs = rungs
        self._app = app
        self._backlog_warning = backlog_warning

    def collect(self) -> Iterable[Metric]:
        """Yield all families; if Redis is unavailable, only `refunds_redis_up` at 0."""
        up = GaugeMetricFamily(
            "refunds_redis_up", "Whether the Redis server of the records answers."
        )
        try:
            seen, callbacks, watch = _in_time(self._read)
        except (StoreUnavailable, TimeoutError):
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        yield from _money(seen)
        yield from _flow(seen)
        yield from _provider(seen)
        shown = {currency for _, currency in _currencies(seen.counters, "amount")}
        yield from watch_metrics(watch, seen.counters, shown)
        yield from _switches(seen)
        yield from _webhooks(seen)
        yield _requests(seen)
        yield from callback_metrics(callbacks, seen.counters, from_ms(seen.now_ms))
        yield from _server(seen.info, self._store.replicas)
        if self._backlog_warning is not None:
            sentence = (
                "Queued refunds in a lane above which the backlog alert fires:"
                " REFUNDS_BACKLOG_WARNING."
            )
            yield _gauge("refunds_backlog_warning", sentence, self._backlog_warning)
        if self._app is not None:
            yield from _queues(self._app)

    def _read(self) -> tuple[Snapshot, CallbackState, WatchState]:
        seen = snapshot(self._store)
        callbacks = read_callbacks(self._store)
        return seen, callbacks, read_watch(self._store, self._rungs, from_ms(seen.now_ms))


def _in_time(work: Callable[[], T]) -> T:
    """Return what a function returns; raises `TimeoutError` if its server does not answer in time.

    A client waits ten seconds or more for a server that hangs. Prometheus would give up first, and
    the alert that the server is away could not fire.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - whatever it is belongs to the caller
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future.result(ANSWER_SECONDS)


def _money(seen: Snapshot) -> Iterator[Metric]:
    records = GaugeMetricFamily(
        "refunds_records",
        "Refunds by status and stage; only queued ones have a lane.",
        labels=("status", "stage", "lane"),
    )
    for bucket, count in seen.cards.items():
        records.add_metric(_place_of(bucket), count)
    yield records
    amounts = GaugeMetricFamily(
        "refunds_amount_minor",
        "Amount of settled refunds in minor units; falls when a refund is reversed or retried.",
        labels=("status", "currency"),
    )
    for (status, currency), amount in _currencies(seen.counters, "amount").items():
        amounts.add_metric((status, currency), amount)
    yield amounts
    unsettled = GaugeMetricFamily(
        "refunds_unsettled_amount_minor",
        "Amount of unsettled refunds in minor units, without those that ask for all that is left.",
        labels=("stage", "currency"),
    )
    for (stage, currency), amount in _currencies(seen.counters, "open").items():
        unsettled.add_metric((stage, currency), amount)
    yield unsettled
    failures = CounterMetricFamily(
        "refunds_failures", "Refunds that settled as failed, by error code.", labels=("error_code",)
    )
    # Each code is shown at 0 before its first failure, so that an alert sees an increase: a batch
    # that pauses itself fails all at once.
    for code, count in (dict.fromkeys(sorted(CODES), 0) | _codes(seen.counters, "failed")).items():
        failures.add_metric((code,), count)
    yield failures
    sentence = (
        "Refunds whose record contradicts a refund at the provider, until a person resolves it."
    )
    yield _gauge("refunds_contradicted", sentence, seen.contradicted)
    seen_ever = seen.counters.get("contradicted", 0)
    yield _counter(
        "refunds_contradictions", "Findings at the provider that contradicted a record.", seen_ever
    )


def _place_of(bucket: str) -> tuple[str, str, str]:
    """Return status, stage and lane of an index."""
    if bucket in _SETTLED:
        return bucket, Stage.SETTLED.value, _ALL_LANES
    if bucket == "queued":
        return Status.PENDING.value, bucket, Lane.SINGLE.value
    if bucket == "queued.bulk":
        return Status.PENDING.value, Stage.QUEUED.value, Lane.BULK.value
    return Status.PENDING.value, bucket, _ALL_LANES


def _currencies(counters: Counts, kind: str) -> dict[tuple[str, str], int]:
    """Return amounts by status or stage and currency; an unknown code counts as `other`."""
    amounts: dict[tuple[str, str], int] = {}
    for (place, currency), amount in _split(counters, kind, 2).items():
        label = (place, currency if currency in CURRENCIES or currency == UNKNOWN else OTHER)
        amounts[label] = amounts.get(label, 0) + amount
    return amounts


def _codes(counters: Counts, kind: str) -> dict[str, int]:
    """Return the counts by code. Names that only an older version used count as `other`."""
    found = {OTHER: 0}
    for (code,), count in _split(counters, kind, 1).items():
        label = counted(code)
        found[label] = found.get(label, 0) + count
    return found


def _split(counters: Counts, kind: str, parts: int) -> dict[tuple[str, ...], int]:
    """Return the counters of one kind by their parts; the last part may hold colons."""
    found = {}
    for name, count in counters.items():
        first, *rest = name.split(":", parts)
        if first == kind and len(rest) == parts:
            found[tuple(rest)] = count
    return found


def _flow(seen: Snapshot) -> Iterator[Metric]:
    moves = CounterMetricFamily(
        "refunds_moves", "Moves of refunds between stages.", labels=("from", "to")
    )
    for stages, count in _split(seen.counters, "move", 2).items():
        moves.add_metric(stages, count)
    yield moves
    oldest = GaugeMetricFamily(
        "refunds_oldest_age_seconds",
        "Seconds since the oldest refund of a stage was accepted, 0 if there is none. Exact for up"
        f" to {2 * SAMPLE} refunds in a stage; for more, the oldest of the {SAMPLE} due first and"
        f" the {SAMPLE} due last.",
        labels=("stage", "lane"),
    )
    for bucket in _UNSETTLED:
        _, stage, lane = _place_of(bucket)
        oldest.add_metric(
            (stage, lane), max(0, seen.now_ms - seen.oldest_ms.get(bucket, seen.now_ms)) / 1000
        )
    yield oldest
    lag = 0 if seen.first_due_ms is None else max(0, seen.now_ms - seen.first_due_ms)
    yield _gauge(
        "refunds_due_lag_seconds", "Seconds since the most overdue refund was due.", lag / 1000
    )
    yield _gauge(
        "refunds_workers", "Workers that sent a heartbeat in the last 30 seconds.", seen.workers
    )
    yield _gauge(
        "refunds_batches_running",
        f"Batches that are running and not finished, among the latest {LATEST_BATCHES}.",
        seen.batches_running,
    )
    yield _gauge(
        "refunds_batches_paused_themselves",
        "Batches that paused themselves, since many refunds in a row failed with one code, and that"
        f" are not finished, among the latest {LATEST_BATCHES}.",
        seen.batches_paused_themselves,
    )
    yield _gauge(
        "refunds_rejected_messages_kept",
        "Messages in the list of rejected messages.",
        seen.rejected,
    )
    yield _counter(
        "refunds_rejected_messages",
        "Messages that were rejected as invalid.",
        seen.counters.get("rejected", 0),
    )


def _provider(seen: Snapshot) -> Iterator[Metric]:
    attempts = CounterMetricFamily("refunds_attempts", "Attempts by outcome.", labels=("outcome",))
    for outcome in TryVerdict:
        attempts.add_metric((outcome.value,), seen.counters.get(f"attempt:{outcome.value}", 0))
    yield attempts
    answers = CounterMetricFamily(
        "refunds_answers", "Attempts by the code of the provider's answer.", labels=("code",)
    )
    for code, count in _codes(seen.counters, "answer").items():
        answers.add_metric((code,), count)
    yield answers
    calls = CounterMetricFamily(
        "refunds_provider_calls",
        "Calls to the provider by class of answer.",
        labels=("operation", "class"),
    )
    for labels, count in _split(seen.counters, "call", 2).items():
        calls.add_metric(labels, count)
    yield calls
    yield _latencies(seen.counters)
    yield _counter(
        "refunds_gate_wait_seconds",
        "Seconds that refunds waited for the rate limit.",
        seen.counters.get("gate_us", 0) / _MICROS,
    )


def _latencies(counters: Counts) -> Metric:
    family = HistogramMetricFamily(
        "refunds_provider_call_seconds",
        "Seconds a call to the provider took.",
        labels=("operation",),
    )
    counted = _split(counters, "call_le", 2)
    # Bounds of another version that ran before still count.
    finite = sorted({*BOUNDS, *(float(bound) for _, bound in counted if bound != INFINITE)})
    bounds = [*map(str, finite), INFINITE]
    for operation in sorted({operation for operation, _ in counted}):
        totals = accumulate(counted.get((operation, bound), 0) for bound in bounds)
        family.add_metric(
            (operation,),
            buckets=[*zip(bounds, totals, strict=True)],
            sum_value=counters.get(f"call_us:{operation}", 0) / _MICROS,
        )
    return family


def _switches(seen: Snapshot) -> Iterator[Metric]:
    yield _gauge("refunds_paused", "Whether everything is paused (refunds pause).", seen.paused)
    sentence = "Whether nothing is sent because Redis has forgotten claims (refunds recover)."
    yield _gauge("refunds_records_behind", sentence, seen.behind)
    breakers = GaugeMetricFamily(
        "refunds_breaker_open",
        "Whether sending is held back, by cause: the key is refused, the key may belong to another"
        " account, the provider asked to slow down (429), or it does not answer a worker.",
        labels=("breaker",),
    )
    breakers.add_metric(("credentials",), seen.credentials_refused)
    breakers.add_metric(("account",), seen.account_lost)
    breakers.add_metric(("rate",), seen.gate_blocked_until_ms > seen.now_ms)
    breakers.add_metric(("outage",), seen.outages > 0)
    yield breakers


def _webhooks(seen: Snapshot) -> Iterator[Metric]:
    received = CounterMetricFamily(
        "refunds_webhooks", "Webhooks received, by what became of them.", labels=("result",)
    )
    for result in WEBHOOK_RESULTS:
        received.add_metric((result,), seen.counters.get(f"webhook:{result}", 0))
    yield received
    sentence = "Whether a webhook endpoint was registered (refunds webhooks setup)."
    yield _gauge("refunds_webhooks_set_up", sentence, seen.webhooks_set_up)


def _requests(seen: Snapshot) -> Metric:
    requests = CounterMetricFamily(
        "refunds_http_requests",
        "Requests to the HTTP API by operation (method and path), and by the answer's status.",
        labels=("operation", "status"),
    )
    for (operation, status), count in _split(seen.counters, "http", 2).items():
        requests.add_metric((operation, status), count)
    return requests


def _server(info: Mapping[str, Any], wanted: int) -> Iterator[Metric]:
    yield _counter(
        "refunds_redis_evicted_keys", "Keys that the server evicted.", info.get("evicted_keys", 0)
    )
    sentence = "Replicas that follow the server."
    yield _gauge("refunds_redis_replicas", sentence, online(info))
    sentence = "Replicas that a write must reach (REFUNDS_REPLICAS)."
    yield _gauge("refunds_redis_replicas_wanted", sentence, wanted)
    aof = info.get("aof_enabled", 0)
    yield _gauge("refunds_redis_aof_enabled", "Whether the append-only file is on.", aof)
    states = (info.get("aof_last_write_status", "ok"), info.get("aof_last_bgrewrite_status", "ok"))
    failing = bool(aof) and any(state != "ok" for state in states)
    sentence = "Whether the last write or rewrite of the append-only file failed."
    yield _gauge("refunds_redis_aof_failing", sentence, failing)
    yield _gauge(
        "refunds_redis_memory_used_bytes", "Memory the server uses.", info.get("used_memory", 0)
    )
    yield _gauge(
        "refunds_redis_memory_max_bytes",
        "Memory limit of the server, 0 for none.",
        info.get("maxmemory", 0),
    )
    yield _gauge(
        "refunds_redis_clients", "Connections to the server.", info.get("connected_clients", 0)
    )
    yield _gauge(
        "refunds_redis_uptime_seconds",
        "Seconds since the server started.",
        info.get("uptime_in_seconds", 0),
    )


def _queues(app: Celery) -> Iterator[Metric]:
    up = GaugeMetricFamily("refunds_broker_up", "Whether the broker answers, and takes messages.")
    try:
        depths = _in_time(lambda: _depths(app))
    except queues.PUBLISH_ERRORS:
        up.add_metric([], 0)
        yield up
        return
    up.add_metric([], 1)
    yield up
    family = GaugeMetricFamily(
        "refunds_queue_messages", "Messages waiting in a lane's queue.", labels=("lane",)
    )
    for lane, depth in depths.items():
        family.add_metric((lane.value,), depth)
    yield family


def _depths(app: Celery) -> Mapping[Lane, int]:
    depths = {lane: queues.queue_depth(app, lane) for lane in Lane}
    queues.offer(app)
    return depths


def _gauge(name: str, sentence: str, value: float) -> Metric:
    return GaugeMetricFamily(name, sentence, value=value)


def _counter(name: str, sentence: str, value: float) -> Metric:
    return CounterMetricFamily(name, sentence, value=value)


def registry_of(
    store: Store,
    app: Celery | None = None,
    *,
    backlog_warning: int | None = None,
    rungs: Sequence[timedelta] = (),
) -> CollectorRegistry:
    """Return a registry with this installation's metrics, without those of the serving process."""
    registry = CollectorRegistry(auto_describe=False)
    # Describing the metrics would read Redis too, and an unavailable server must not stop this from
    # starting.
    registry.register(RefundsCollector(store, app, backlog_warning=backlog_warning, rungs=rungs))
    return registry


def render(
    store: Store,
    app: Celery | None = None,
    *,
    backlog_warning: int | None = None,
    rungs: Sequence[timedelta] = (),
) -> str:
    """Return the whole exposition as text."""
    registry = registry_of(store, app, backlog_warning=backlog_warning, rungs=rungs)
    return generate_latest(registry).decode()


@contextmanager
def serving(
    store: Store,
    app: Celery | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 9464,
    backlog_warning: int | None = None,
    rungs: Sequence[timedelta] = (),
) -> Iterator[int]:
    """Serve `/metrics` from a thread until the end of the block, and yield the port.

    Port 0 picks a free one.

    Raises `OSError` if the port is taken.
    """
    registry = registry_of(store, app, backlog_warning=backlog_warning, rungs=rungs)
    server, thread = start_http_server(port, addr=host, registry=registry)
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def serve(
    store: Store,
    app: Celery | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 9464,
    backlog_warning: int | None = None,
    rungs: Sequence[timedelta] = (),
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve `/metrics` until SIGTERM or SIGINT; call it from the main thread.

    `say` receives the address.
    """
    ends = {signal.SIGTERM, signal.SIGINT}
    # Blocked before the threads start, since they inherit the mask: only `sigwait` below then
    # receives the signal.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    try:
        with serving(
            store, app, host=host, port=port, backlog_warning=backlog_warning, rungs=rungs
        ) as taken:
            shown = f"[{host}]" if ":" in host else host
            say(f"metrics at http://{shown}:{taken}/metrics")
            signal.sigwait(ends)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
