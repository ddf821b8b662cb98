"""What Prometheus is told: figures from Redis alone, labels from bounded sets, worker counts added
up.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from datetime import timedelta
from time import monotonic

import pytest
import redis
import redis.asyncio
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from worker.broker import queues
from worker.errors import StoreUnavailable
from worker.model.answers import Outcome, TryVerdict
from worker.model.refund import Lane, Stage, Status
from worker.model.request import RefundRequest
from worker.model.steps import Step
from worker.monitoring import metrics, snapshot
from worker.rules.codes import CODES
from worker.settings import Settings
from worker.store import claims, creations, flags, saves
from worker.store.async_store import AsyncStore
from worker.store.connection import connect
from worker.store.counters import BOUNDS, WEBHOOK_RESULTS, Counters
from worker.store.store import Store

Figures = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(text: str) -> Figures:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def of(figures: Figures, name: str, **labels: str) -> float | None:
    return figures.get((name, frozenset(labels.items())))


@pytest.fixture
def store(sync_redis: redis.Redis) -> Store:
    return Store(sync_redis, durable=False)


@pytest.fixture
def seen(store: Store) -> Callable[[], Figures]:
    return lambda: parsed(metrics.render(store))


@pytest.fixture
def async_store(async_redis: redis.asyncio.Redis) -> AsyncStore:
    return AsyncStore(async_redis, durable=False)


def accept(
    store: Store, refund_id: str, lane: Lane = Lane.SINGLE, amount: int | None = 500
) -> None:
    request = RefundRequest(refund_id=refund_id, payment_intent=f"pi_{refund_id}", amount=amount)
    store.run(creations.create(request, lane))


def settle(store: Store, refund_id: str, status: Status, **changes: object) -> None:
    claim = store.run(
        claims.claim(
            refund_id,
            "send",
            token="t",
            lease=timedelta(seconds=45),
            replay_window=timedelta(hours=1),
        )
    )
    assert claim.claimed
    assert claim.refund is not None
    step = Step(to=Stage.SETTLED, status=status, label="test", changes=changes)
    assert store.run(saves.save(claim.refund, step, {})).result == "saved"


def test_an_empty_installation_shows_zeros_and_no_worker(seen: Callable[[], Figures]) -> None:
    figures = seen()
    assert of(figures, "refunds_redis_up") == 1
    assert of(figures, "refunds_workers") == 0
    assert of(figures, "refunds_due_lag_seconds") == 0
    assert of(figures, "refunds_records", status="pending", stage="in_doubt", lane="all") == 0
    assert of(figures, "refunds_oldest_age_seconds", stage="queued", lane="refunds") == 0


def test_refunds_are_counted_by_status_stage_and_lane(
    store: Store, seen: Callable[[], Figures]
) -> None:
    for number in range(3):
        accept(store, f"bulk-{number}", Lane.BULK)
    for number in range(2):
        accept(store, f"single-{number}")
    settle(store, "single-0", Status.SUCCEEDED)
    figures = seen()
    assert (
        of(figures, "refunds_records", status="pending", stage="queued", lane="refunds.bulk") == 3
    )
    assert of(figures, "refunds_records", status="pending", stage="queued", lane="refunds") == 1
    assert of(figures, "refunds_records", status="succeeded", stage="settled", lane="all") == 1
    assert of(figures, "refunds_moves_total", **{"from": "new", "to": "queued"}) == 5
    assert of(figures, "refunds_moves_total", **{"from": "sending", "to": "settled"}) == 1


def test_money_is_summed_by_status_and_currency(store: Store, seen: Callable[[], Figures]) -> None:
    for number, (status, currency) in enumerate(
        [(Status.SUCCEEDED, "usd"), (Status.SUCCEEDED, "eur")]
    ):
        accept(store, f"order-{number}", amount=700)
        settle(store, f"order-{number}", status, currency=currency)
    accept(store, "order-9", amount=300)
    settle(store, "order-9", Status.FAILED, currency="usd")
    figures = seen()
    assert of(figures, "refunds_amount_minor", status="succeeded", currency="usd") == 700
    assert of(figures, "refunds_amount_minor", status="succeeded", currency="eur") == 700
    assert of(figures, "refunds_amount_minor", status="failed", currency="usd") == 300


def test_the_oldest_age_is_that_of_acceptance_and_not_of_the_next_look(
    store: Store, seen: Callable[[], Figures]
) -> None:
    for number in range(snapshot.SAMPLE * 2):
        accept(store, f"order-{number}")
    now = snapshot.snapshot(store).now_ms
    # Due last of all, and the oldest: a long backoff hides it at the far end of the index.
    store.redis.hset(store.key("refund:order-7"), "created_at", now - 7_200_000)
    store.redis.zadd(store.key("index:queued"), {"order-7": now + 86_400_000})
    age = of(seen(), "refunds_oldest_age_seconds", stage="queued", lane="refunds")
    assert age is not None
    assert 7200 <= age < 7260


def test_lag_workers_flags_batches_and_rejected_messages_are_told(
    store: Store, seen: Callable[[], Figures]
) -> None:
    now = snapshot.snapshot(store).now_ms
    accept(store, "order-1")
    store.redis.zadd(store.key("due"), {"order-1": now - 90_000})
    store.redis.zadd(store.key("workers"), {"alive:1": now, "gone:2": now - 120_000})
    store.redis.hset(
        store.key("meta"),
        mapping={"paused": now, "credentials_refused_at": now, "account_lost_at": now},
    )
    store.redis.hset(store.key("gate"), "blocked_until", now + 60_000)
    for batch, state, pending in [
        ("b-1", "running", 2),
        ("b-2", "running", 0),
        ("b-3", "canceled", 5),
    ]:
        store.redis.zadd(store.key("batches"), {batch: now})
        store.redis.hset(
            store.key(f"batch:{batch}"), mapping={"state": state, "status:pending": pending}
        )
    store.redis.lpush(store.key("rejected"), "{}")
    store.redis.hset(store.key("counters"), mapping={"rejected": 9, "contradicted": 4})
    store.redis.zadd(store.key("contradicted"), {"order-8": now, "order-9": now})
    figures = seen()
    lag = of(figures, "refunds_due_lag_seconds")
    assert lag is not None
    assert 90 <= lag < 150
    assert of(figures, "refunds_workers") == 1
    assert of(figures, "refunds_paused") == 1
    assert of(figures, "refunds_breaker_open", breaker="credentials") == 1
    assert of(figures, "refunds_breaker_open", breaker="account") == 1
    assert of(figures, "refunds_breaker_open", breaker="rate") == 1
    assert of(figures, "refunds_batches_running") == 1
    assert of(figures, "refunds_rejected_messages_kept") == 1
    assert of(figures, "refunds_rejected_messages_total") == 9
    assert of(figures, "refunds_contradicted") == 2
    assert of(figures, "refunds_contradictions_total") == 4


def test_a_batch_that_paused_itself_is_told_while_refunds_of_it_wait(
    store: Store, seen: Callable[[], Figures]
) -> None:
    now = snapshot.snapshot(store).now_ms
    itself = {"state": "paused", "paused_reason": "card_declined"}
    batches: dict[str, dict[str, str | int]] = {
        "b-waits": itself | {"status:pending": 2, "stage:review": 1},
        "b-settled": itself | {"status:pending": 0, "status:failed": 20},
        "b-in-review": itself | {"status:pending": 1, "stage:review": 1},
        "b-by-a-person": {"state": "paused", "paused_by": "kim", "status:pending": 2},
        "b-running": {"state": "running", "status:pending": 2},
        "b-canceled": {"state": "canceled", "status:pending": 2},
    }
    for batch, fields in batches.items():
        store.redis.zadd(store.key("batches"), {batch: now})
        store.redis.hset(store.key(f"batch:{batch}"), mapping=fields)  # type: ignore[arg-type]  # invariance of the client's types
    store.redis.zadd(store.key("batches"), {"b-expired": now})
    figures = seen()
    assert of(figures, "refunds_batches_paused_themselves") == 1
    assert of(figures, "refunds_batches_running") == 1


def test_rechecks_reversals_and_the_lag_of_the_watch_are_told(store: Store) -> None:
    rungs = (timedelta(days=1), timedelta(hours=36))

    def figures() -> Figures:
        return parsed(metrics.render(store, rungs=rungs))

    accept(store, "order-1")
    settle(store, "order-1", Status.SUCCEEDED, currency="eur", provider_refund_id="re_1")
    # A currency is there before its first reversal: from absent to 1 is no increase for an alert.
    before = figures()
    assert of(before, "refunds_reversed_total", currency="eur") == 0
    assert of(before, "refunds_watch_lag_seconds", rung="1d", status="succeeded") == 0
    now = snapshot.snapshot(store).now_ms
    day = 86_400_000
    store.redis.zadd(store.key("index:succeeded"), {"order-1": now - day - 90_000})
    store.redis.hset(
        store.key("watch"),
        mapping={f"succeeded:{day}": now - 2 * day, f"succeeded:{day * 3 // 2}": now, "blind": 3},
    )
    store.redis.zadd(store.key("rechecks"), {"order-1": now, "order-2": now})
    counted = {"recheck:confirmed": 4, "reversed:eur": 1, "reversed:zzz": 2}
    store.redis.hset(store.key("counters"), mapping=counted)  # type: ignore[arg-type]  # invariance of the client's types
    after = figures()
    lag = of(after, "refunds_watch_lag_seconds", rung="1d", status="succeeded")
    assert lag is not None
    assert 90 <= lag < 150
    assert of(after, "refunds_watch_lag_seconds", rung="36h", status="succeeded") == 0
    assert of(after, "refunds_watch_lag_seconds", rung="1d", status="failed") == 0
    assert of(after, "refunds_watch_blind_total") == 3
    assert of(after, "refunds_rechecks_waiting") == 2
    assert of(after, "refunds_rechecks_total", result="confirmed") == 4
    assert of(after, "refunds_rechecks_total", result="reversed") == 0
    assert of(after, "refunds_reversed_total", currency="eur") == 1
    assert of(after, "refunds_reversed_total", currency="other") == 2


def test_a_codes_shape_and_number_are_bounded_and_the_rest_is_one_label(
    store: Store, seen: Callable[[], Figures]
) -> None:
    planted = {f"failed:code_{number}": 2 for number in range(200)}
    planted |= {
        "failed:card_declined": 5,
        "failed:Ein Satz, kein Code": 3,
        "answer:done": 7,
        "answer:code_1": 8,
    }
    planted |= {
        "open:queued:usd": 900,
        "open:in_doubt:<script>": 4,
        "open:queued:zzz": 5,
        "open:queued:unknown": 6,
    }
    store.redis.hset(store.key("counters"), mapping=planted)  # type: ignore[arg-type]  # invariance of the client's types
    figures = seen()
    codes = {
        dict(labels)["error_code"] for name, labels in figures if name == "refunds_failures_total"
    }
    assert codes == {*CODES, "other"}
    assert of(figures, "refunds_failures_total", error_code="card_declined") == 5
    assert of(figures, "refunds_failures_total", error_code="other") == 3 + 2 * 200
    assert of(figures, "refunds_answers_total", code="done") == 7
    assert of(figures, "refunds_answers_total", code="other") == 8
    assert of(figures, "refunds_unsettled_amount_minor", stage="queued", currency="usd") == 900
    assert of(figures, "refunds_unsettled_amount_minor", stage="in_doubt", currency="other") == 4
    assert of(figures, "refunds_unsettled_amount_minor", stage="queued", currency="other") == 5
    assert of(figures, "refunds_unsettled_amount_minor", stage="queued", currency="unknown") == 6


def test_the_first_failures_with_a_code_are_an_increase(
    store: Store, seen: Callable[[], Figures]
) -> None:
    assert of(seen(), "refunds_failures_total", error_code="card_declined") == 0
    store.redis.hset(store.key("counters"), "failed:card_declined", 50)
    assert of(seen(), "refunds_failures_total", error_code="card_declined") == 50
    assert of(seen(), "refunds_failures_total", error_code="insufficient_funds") == 0


def test_no_label_holds_an_id(store: Store) -> None:
    accept(store, "canary-order-77", Lane.BULK)
    accept(store, "canary-order-78")
    settle(store, "canary-order-78", Status.FAILED, error_code="card_declined")
    assert "canary" not in metrics.render(store)


async def test_what_workers_counted_is_added_up_over_all_of_them(
    async_store: AsyncStore, seen: Callable[[], Figures]
) -> None:
    for _ in range(2):
        tally = Counters()
        tally.call("create_refund", "2xx", 0.03)
        tally.call("create_refund", "5xx", 999.0)
        tally.attempt(Outcome(verdict=TryVerdict.DONE, code="done"))
        tally.attempt(Outcome(verdict=TryVerdict.MAYBE, code="Weird Code!"))
        tally.gate_waited(1.5)
        await tally.flush(async_store, worker="w:1", provider_away=False)
        tally.gate_waited(2.0)
        await tally.flush(async_store, worker="w:1", provider_away=False)
        await tally.flush(async_store, worker="w:1", provider_away=False)
    figures = seen()
    assert (
        of(
            figures,
            "refunds_provider_calls_total",
            **{"operation": "create_refund", "class": "5xx"},
        )
        == 2
    )
    assert of(figures, "refunds_attempts_total", outcome="done") == 2
    assert of(figures, "refunds_answers_total", code="other") == 2
    assert of(figures, "refunds_gate_wait_seconds_total") == 4.0
    assert (
        of(figures, "refunds_provider_call_seconds_bucket", operation="create_refund", le="0.025")
        == 0
    )
    assert (
        of(figures, "refunds_provider_call_seconds_bucket", operation="create_refund", le="0.05")
        == 2
    )
    assert (
        of(figures, "refunds_provider_call_seconds_bucket", operation="create_refund", le="60.0")
        == 2
    )
    assert (
        of(figures, "refunds_provider_call_seconds_bucket", operation="create_refund", le="+Inf")
        == 4
    )
    assert of(
        figures, "refunds_provider_call_seconds_sum", operation="create_refund"
    ) == pytest.approx(1998.06)


def test_a_call_that_takes_exactly_a_bound_counts_within_it() -> None:
    tally = Counters()
    for bound in BOUNDS:
        tally.call("get_refund", "2xx", bound)
    assert all(tally._counts[f"call_le:get_refund:{bound}"] == 1 for bound in BOUNDS)


async def test_counts_of_a_failed_flush_are_kept_for_the_next(
    async_store: AsyncStore, seen: Callable[[], Figures]
) -> None:
    tally = Counters()
    tally.call("create_refund", "2xx", 0.1)
    away = AsyncStore(redis.asyncio.Redis(port=1, retry=AsyncRetry(NoBackoff(), 0)), durable=False)
    with pytest.raises(StoreUnavailable):
        await tally.flush(away, worker="w:1", provider_away=False)
    await tally.flush(async_store, worker="w:1", provider_away=False)
    assert (
        of(seen(), "refunds_provider_calls_total", **{"operation": "create_refund", "class": "2xx"})
        == 1
    )


async def test_webhooks_are_counted_by_what_became_of_them(
    async_store: AsyncStore, seen: Callable[[], Figures]
) -> None:
    assert {of(seen(), "refunds_webhooks_total", result=name) for name in WEBHOOK_RESULTS} == {0}
    tally = Counters()
    for result in ("hinted", "hinted", "forged"):
        tally.webhook(result)
    await tally.flush_counts(async_store)
    await tally.flush_counts(async_store)
    assert of(seen(), "refunds_webhooks_total", result="hinted") == 2
    assert of(seen(), "refunds_webhooks_total", result="forged") == 1
    assert of(seen(), "refunds_webhooks_total", result="stale") == 0


async def test_counts_of_webhooks_outlive_an_outage_and_touch_no_workers_outage(
    async_store: AsyncStore, seen: Callable[[], Figures]
) -> None:
    await Counters().flush(async_store, worker="w:1", provider_away=True)
    tally = Counters()
    tally.webhook("hinted")
    away = AsyncStore(redis.asyncio.Redis(port=1, retry=AsyncRetry(NoBackoff(), 0)), durable=False)
    with pytest.raises(StoreUnavailable):
        await tally.flush_counts(away)
    await tally.flush_counts(async_store)
    assert of(seen(), "refunds_webhooks_total", result="hinted") == 1
    assert of(seen(), "refunds_breaker_open", breaker="outage") == 1


def test_a_registered_endpoint_is_shown(store: Store, seen: Callable[[], Figures]) -> None:
    assert of(seen(), "refunds_webhooks_set_up") == 0
    flags.keep_webhook_endpoint(store, "https://refunds.example.com/", "we_1")
    assert of(seen(), "refunds_webhooks_set_up") == 1


async def test_an_outage_is_told_while_a_living_worker_holds_back_for_it(
    async_store: AsyncStore, seen: Callable[[], Figures]
) -> None:
    for worker, away, shown in [("w:1", True, 1), ("w:2", False, 1), ("w:1", False, 0)]:
        await Counters().flush(async_store, worker=worker, provider_away=away)
        assert of(seen(), "refunds_breaker_open", breaker="outage") == shown
    await async_store.redis.zadd("refunds:outages", {"dead:1": 1})
    assert of(seen(), "refunds_breaker_open", breaker="outage") == 0


def test_a_worker_counts_known_codes_by_name_and_all_others_as_one() -> None:
    tally = Counters()
    for number in range(50):
        tally.attempt(Outcome(verdict=TryVerdict.REFUSED, code=f"code_{number}"))
    for code in ("done", "card_declined", "no_reply"):
        tally.attempt(Outcome(verdict=TryVerdict.REFUSED, code=code))
    answers = {name: count for name, count in tally._counts.items() if name.startswith("answer:")}
    assert answers == {
        "answer:other": 50,
        "answer:done": 1,
        "answer:card_declined": 1,
        "answer:no_reply": 1,
    }


async def test_a_figure_that_can_count_no_further_keeps_no_other_from_being_counted(
    async_store: AsyncStore, seen: Callable[[], Figures]
) -> None:
    most = {"answer:done": str(2**63 - 1), "answer:no_reply": "text"}
    await async_store.redis.hset(async_store.key("counters"), mapping=most)  # type: ignore[arg-type]  # see above
    tally = Counters()
    for code in ("done", "no_reply", "card_declined"):
        tally.attempt(Outcome(verdict=TryVerdict.REFUSED, code=code))
    await tally.flush(async_store, worker="w", provider_away=False)
    await tally.flush(async_store, worker="w", provider_away=False)
    assert of(seen(), "refunds_answers_total", code="card_declined") == 1
    assert of(seen(), "refunds_answers_total", code="done") == float(2**63 - 1)


def test_a_server_that_is_away_is_told_and_no_figure_is_guessed() -> None:
    away = Store(
        redis.Redis(port=1, retry=Retry(NoBackoff(), 0)), durable=False, address="127.0.0.1:1"
    )
    figures = parsed(metrics.render(away))
    assert figures == {("refunds_redis_up", frozenset()): 0}


def test_queue_depths_come_from_the_broker_and_a_broker_away_is_told(
    store: Store, redis_url: str
) -> None:
    app = queues.make_celery(Settings.load(redis_url=redis_url))
    for number in range(3):
        queues.nudge(app, [f"order-{number}"], Lane.BULK)
    figures = parsed(metrics.render(store, app))
    assert of(figures, "refunds_queue_messages", lane="refunds.bulk") == 3
    assert of(figures, "refunds_queue_messages", lane="refunds") == 0
    away = queues.make_celery(
        Settings.load(redis_url=redis_url, broker_url="redis://127.0.0.1:1/0")
    )
    figures = parsed(metrics.render(store, away))
    assert of(figures, "refunds_broker_up") == 0
    assert of(figures, "refunds_redis_up") == 1
    assert not [name for name, _ in figures if name == "refunds_queue_messages"]


def test_a_server_that_hangs_is_told_before_prometheus_gives_up(
    store: Store, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 2 * metrics.ANSWER_SECONDS < 10, "Prometheus waits ten seconds for all figures"
    monkeypatch.setattr(metrics, "ANSWER_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        hanging = Store(connect(url), durable=False, address="silent")
        began = monotonic()
        assert parsed(metrics.render(hanging)) == {("refunds_redis_up", frozenset()): 0}
        app = queues.make_celery(Settings.load(redis_url=redis_url, broker_url=url))
        figures = parsed(metrics.render(store, app))
        assert monotonic() - began < 5
    assert of(figures, "refunds_broker_up") == 0
    assert of(figures, "refunds_redis_up") == 1


def test_depth_that_counts_as_deep_is_shown_as_it_is_set(store: Store) -> None:
    assert of(parsed(metrics.render(store, backlog_warning=7)), "refunds_backlog_warning") == 7
    with (
        metrics.serving(store, port=0, backlog_warning=8) as port,
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response,
    ):
        assert of(parsed(response.read().decode()), "refunds_backlog_warning") == 8
    assert of(parsed(metrics.render(store)), "refunds_backlog_warning") is None


def test_each_scrape_is_computed_anew(store: Store) -> None:
    with metrics.serving(store, port=0) as port:

        def scraped() -> Figures:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
                assert response.headers["Content-Type"].startswith("text/plain")
                return parsed(response.read().decode())

        queued = {"status": "pending", "stage": "queued", "lane": "refunds"}
        assert of(scraped(), "refunds_records", **queued) == 0
        accept(store, "order-1")
        assert of(scraped(), "refunds_records", **queued) == 1
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10)


SERVE = """
import redis, sys
from worker.monitoring import metrics
from worker.store.store import Store
client = redis.Redis.from_url(sys.argv[1], decode_responses=True)
store = Store(client, durable=False)
metrics.serve(store, port=0, say=lambda sentence: print(sentence, flush=True))
print("ended", flush=True)
"""


def test_serving_says_where_and_ends_in_good_order_at_sigterm(redis_url: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, redis_url], stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        told = process.stdout.readline()
        where, port = told.strip().removesuffix("/metrics").rsplit(":", 1)
        assert where == "metrics at http://127.0.0.1"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
            assert b"refunds_redis_up 1.0" in response.read()
        process.terminate()
        assert process.stdout.read() == "ended\n"
        assert process.wait(10) == 0


def test_requests_to_the_api_are_shown_by_operation_and_status(
    sync_redis: redis.Redis,
) -> None:
    sync_redis.hset("refunds:counters", "http:GET /v1/refunds/{refund_id}:200", "3")
    shown = parsed(metrics.render(Store(sync_redis)))
    operation = "GET /v1/refunds/{refund_id}"
    assert of(shown, "refunds_http_requests_total", operation=operation, status="200") == 3
