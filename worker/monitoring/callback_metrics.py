"""The metrics of callbacks to a shop's endpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from worker.store.callback_state import CallbackState

RESULTS: Final = ("delivered", "failed", "refused", "dead")
"""What may become of a try; `dead` counts the last ones once more."""


def callback_metrics(
    state: CallbackState, counters: Mapping[str, int], now: datetime
) -> Iterator[Metric]:
    """Yield the families; the endpoints are those that a worker has served."""

    def seconds(since: datetime | None) -> float:
        return 0 if since is None else max(0, (now - since).total_seconds())

    yield GaugeMetricFamily(
        "refunds_callbacks_on",
        "Whether endpoints learn of refunds (refunds callbacks on).",
        value=state.on_since is not None,
    )
    yield GaugeMetricFamily(
        "refunds_callbacks_unshared_oldest_seconds",
        "Seconds for which the oldest refund has waited to be shared out to the endpoints.",
        value=seconds(state.unshared_since),
    )
    tries = CounterMetricFamily(
        "refunds_callbacks",
        "Callbacks that were sent, by what became of them.",
        labels=("endpoint", "result"),
    )
    waiting = GaugeMetricFamily(
        "refunds_callbacks_waiting",
        "Refunds and batches that an endpoint does not hold in their present version.",
        labels=("endpoint",),
    )
    oldest = GaugeMetricFamily(
        "refunds_callbacks_oldest_seconds",
        "Seconds for which the oldest of them has been waiting, 0 if there is none.",
        labels=("endpoint",),
    )
    dead = GaugeMetricFamily(
        "refunds_callbacks_dead",
        "Refunds and batches that are not sent to an endpoint any more.",
        labels=("endpoint",),
    )
    for each in state.endpoints:
        for result in RESULTS:
            tries.add_metric((each.name, result), counters.get(f"callback:{each.name}:{result}", 0))
        waiting.add_metric((each.name,), each.waiting)
        oldest.add_metric((each.name,), seconds(each.waiting_since))
        dead.add_metric((each.name,), each.dead)
    yield from (tries, waiting, oldest, dead)
