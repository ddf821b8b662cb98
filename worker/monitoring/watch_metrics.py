"""The metrics of rechecks, of reversals and of the watch of settled refunds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from worker.model.currencies import KNOWN as CURRENCIES
from worker.rules.codes import OTHER
from worker.rules.rechecks import RESULTS
from worker.store.watch_state import WatchState, rung_name

UNKNOWN: Final = "unknown"
"""The label of amounts whose currency was neither stated nor shown."""
_REVERSED: Final = "reversed:"


def watch_metrics(
    watch: WatchState, counters: Mapping[str, int], currencies: Iterable[str]
) -> Iterator[Metric]:
    """Yield the families; `currencies` are the labels of the amounts that settled so far."""
    yield GaugeMetricFamily(
        "refunds_rechecks_waiting",
        "Refunds to be read again, because of a webhook or for the watch.",
        value=watch.waiting,
    )
    results = CounterMetricFamily(
        "refunds_rechecks", "Reads of refunds outside their own schedule.", labels=("result",)
    )
    for result in RESULTS:
        results.add_metric((result,), counters.get(f"recheck:{result}", 0))
    yield results
    reversals = CounterMetricFamily(
        "refunds_reversed",
        "Refunds that succeeded and that the provider failed later.",
        labels=("currency",),
    )
    # A currency is shown at 0 before its first reversal, so that an alert sees an increase.
    found = dict.fromkeys((*currencies, OTHER, UNKNOWN), 0)
    for name, count in counters.items():
        if name.startswith(_REVERSED):
            currency = name.removeprefix(_REVERSED)
            label = currency if currency in CURRENCIES or currency == UNKNOWN else OTHER
            found[label] = found.get(label, 0) + count
    for currency, count in sorted(found.items()):
        reversals.add_metric((currency,), count)
    yield reversals
    lags = GaugeMetricFamily(
        "refunds_watch_lag_seconds",
        "Seconds for which a settled refund has been due to be read again by the watch, by rung.",
        labels=("rung", "status"),
    )
    for rung in watch.rungs:
        lags.add_metric((rung_name(rung.after), rung.status.value), rung.lag.total_seconds())
    yield lags
    yield CounterMetricFamily(
        "refunds_watch_blind",
        "Reads of the watch left out, because a refund has no provider id to be read by.",
        value=watch.blind,
    )
