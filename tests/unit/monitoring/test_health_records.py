"""What the doctor says of the records.

What holds them back, what is old, and what waits for a person.
"""

from __future__ import annotations

import time
from typing import Any

import pytest
import redis

from tests.support.cli_runner import Cli, Records
from tests.unit.monitoring.examining import examined
from worker.batches import cancel_batch, close_batch, open_batch
from worker.store import meta
from worker.store.flags import keep_webhook_endpoint, key_print

HOUR_MS = 3_600_000


def now_ms() -> int:
    return int(time.time() * 1000)


def test_records_of_another_schema_are_a_guard(doctor: Cli, sync_redis: redis.Redis) -> None:
    sync_redis.hset("refunds:meta", "schema", "1")
    assert examined(doctor).of("schema")[0] == "ok"
    sync_redis.hset("refunds:meta", "schema", "99")
    said = examined(doctor)
    assert (said.of("schema")[0], said.code) == ("fail", 6)
    assert "version 99, and this program supports 1" in said.of("schema")[1]


def test_records_pinned_to_another_provider_are_a_guard(doctor: Cli, records: Records) -> None:
    records.store.run(meta.pin("elsewhere.example", "live"))
    said = examined(doctor)
    assert (said.of("records")[0], said.code) == ("fail", 6)


@pytest.mark.parametrize(
    ("key", "field", "value", "name", "state", "code"),
    [
        ("refunds:meta", "paused", "1700000000000", "pause", "warn", 0),
        ("refunds:meta", "credentials_refused_at", "1700000000000", "breaker", "fail", 2),
        ("refunds:meta", "account_lost_at", "1700000000000", "account", "fail", 2),
        ("refunds:gate", "blocked_until", "later", "rate", "warn", 0),
        ("refunds:meta", "suspect_until", "later", "recovery", "warn", 0),
    ],
)
def test_what_holds_refunds_back_is_told_while_it_stands(
    doctor: Cli,
    sync_redis: redis.Redis,
    key: str,
    field: str,
    value: str,
    name: str,
    state: str,
    code: int,
) -> None:
    assert name not in examined(doctor).checks
    sync_redis.hset(key, field, str(now_ms() + HOUR_MS) if value == "later" else value)
    said = examined(doctor)
    assert (said.of(name)[0], said.code) == (state, code)


def test_a_payment_that_is_missing_is_named_with_what_may_be_done(
    doctor: Cli, sync_redis: redis.Redis
) -> None:
    lost: dict[Any, Any] = {"account_lost_at": "1700000000000", "account_lost_payment": "pi_9"}
    sync_redis.hset("refunds:meta", mapping=lost)
    _, text, fix = examined(doctor).of("account")
    assert ("pi_9" in text, "2023-11-14" in text, "refunds resume --account" in fix) == (
        True,
        True,
        True,
    )


def test_a_key_that_the_records_do_not_know_is_a_warning(
    doctor: Cli, sync_redis: redis.Redis
) -> None:
    known = key_print(doctor.environment["REFUNDS_API_KEY"], "salt")
    sync_redis.hset("refunds:meta", mapping={"key_salt": "salt", "key_prints": f"other {known}"})
    said = examined(doctor)
    assert (said.of("account")[0], said.code) == ("ok", 0)
    sync_redis.hset("refunds:meta", "key_prints", "other")
    said = examined(doctor)
    assert (said.of("account")[0], said.code) == ("warn", 0)


def test_what_held_refunds_back_before_is_not_told(doctor: Cli, sync_redis: redis.Redis) -> None:
    sync_redis.hset("refunds:gate", "blocked_until", str(now_ms() - 1))
    sync_redis.hset("refunds:meta", "suspect_until", str(now_ms() - 1))
    sync_redis.zadd("refunds:outages", {"host:9": now_ms() - HOUR_MS})
    assert not {"rate", "recovery", "outage"} & examined(doctor).checks.keys()


def test_workers_without_a_provider_are_named(doctor: Cli, sync_redis: redis.Redis) -> None:
    sync_redis.zadd("refunds:outages", {"host:1": now_ms()})
    sync_redis.zadd("refunds:workers", {"host:1": now_ms(), "host:2": now_ms() - HOUR_MS})
    said = examined(doctor)
    assert (said.of("outage")[0], "host:1" in said.of("outage")[1]) == ("warn", True)
    assert said.of("workers")[:2] == ("ok", "1 running: host:1")


def test_the_oldest_refund_is_told_and_warned_of_after_an_hour(
    doctor: Cli, sync_redis: redis.Redis, records: Records
) -> None:
    records.queued("order-1")
    records.queued("order-2", payment_intent="pi_2")
    said = examined(doctor)
    assert (said.of("oldest")[0], "order-1" in said.of("oldest")[1]) == ("ok", True)
    sync_redis.hset("refunds:refund:order-2", "created_at", str(now_ms() - 26 * HOUR_MS - 60_000))
    state, text, fix = examined(doctor).of("oldest")
    assert (state, fix) == ("warn", "refunds status order-2 --history")
    assert "accepted 1 d 2 h ago and is queued" in text


def test_watch_that_is_off_or_a_day_behind_is_a_warning(
    doctor: Cli, sync_redis: redis.Redis, records: Records
) -> None:
    records.succeeded("order-1")
    assert examined(doctor).of("watch")[:2] == (
        "ok",
        "settled refunds are read again after 1d,7d,30d,60d",
    )
    state, text, fix = examined(doctor, REFUNDS_WATCH="off").of("watch")
    assert (state, "is not noticed" in text, "REFUNDS_WATCH=1d" in fix) == ("warn", True, True)
    sync_redis.zadd("refunds:index:succeeded", {"order-1": now_ms() - 50 * HOUR_MS})
    sync_redis.hset("refunds:watch", f"succeeded:{24 * HOUR_MS}", str(now_ms() - 60 * HOUR_MS))
    state, text, fix = examined(doctor).of("watch")
    assert (state, fix) == ("warn", "refunds watch status")
    assert "1 d 2 h ago" in text


def test_erasure_of_metadata_that_is_a_day_behind_is_a_warning(
    doctor: Cli, sync_redis: redis.Redis, records: Records
) -> None:
    records.succeeded("order-1", metadata={"customer": "ada"})
    assert "metadata" not in examined(doctor).checks
    settled = now_ms() - 50 * HOUR_MS
    sync_redis.zadd("refunds:index:succeeded", {"order-1": settled})
    assert examined(doctor, REFUNDS_METADATA_DAYS="1.5").of("metadata")[:2] == (
        "ok",
        "erased 1.5 d after a refund settled",
    )
    state, text, fix = examined(doctor, REFUNDS_METADATA_DAYS="1").of("metadata")
    assert (state, "1 d 2 h behind" in text) == ("warn", True)
    assert "REFUNDS_METADATA_DAYS=1 " in fix
    sync_redis.hset("refunds:watch", "erased:succeeded", str(settled))
    assert examined(doctor, REFUNDS_METADATA_DAYS="1").of("metadata")[0] == "ok"


def test_the_oldest_is_found_behind_many_that_are_due_before_it(
    doctor: Cli, sync_redis: redis.Redis, records: Records
) -> None:
    for number in range(30):
        records.queued(f"order-{number}", payment_intent=f"pi_{number}")
    sync_redis.hset("refunds:refund:order-29", "created_at", str(now_ms() - 2 * HOUR_MS))
    sync_redis.zadd("refunds:index:queued", {"order-29": now_ms() + HOUR_MS})
    assert "order-29" in examined(doctor).of("oldest")[1]


def test_a_doubt_that_lasts_is_warned_of(
    doctor: Cli, sync_redis: redis.Redis, records: Records
) -> None:
    records.queued("order-1")
    sync_redis.hset(
        "refunds:refund:order-1", mapping={"stage": "in_doubt", "doubt_since": str(now_ms())}
    )
    sync_redis.zrem("refunds:index:queued", "order-1")
    sync_redis.zadd("refunds:index:in_doubt", {"order-1": now_ms()})
    said = examined(doctor)
    assert (said.of("refunds")[1], "doubt" in said.checks) == (
        "1 in progress, 1 in doubt, read back automatically",
        False,
    )
    sync_redis.hset("refunds:refund:order-1", "doubt_since", str(now_ms() - HOUR_MS))
    assert examined(doctor).of("doubt") == (
        "warn",
        "order-1 has been in doubt for 1 h",
        "refunds status order-1 --history",
    )
    # Two looks a long settle time apart take their time.
    assert "doubt" not in examined(doctor, REFUNDS_SETTLE_SECONDS="3600").checks


def half_imported(records: Records, batch_id: str, file: str = "june refunds.csv") -> None:
    open_batch(records.store, batch_id, file=file, digest=f"digest of {batch_id}", rows=1_200)
    records.store.redis.hset(f"refunds:batch:{batch_id}", "created_at", now_ms() - HOUR_MS)


def test_a_file_that_was_imported_in_part_is_told_with_the_command_that_continues_it(
    doctor: Cli, records: Records
) -> None:
    half_imported(records, "b-1")
    half_imported(records, "b-2", "stdin")
    records.queued("order-1", batch_id="b-2")
    records.store.redis.hset("refunds:refund:order-1", "created_at", now_ms() - HOUR_MS)
    said = examined(doctor)
    assert said.of("import b-1") == (
        "warn",
        "b-1 was imported only in part: 0 of its 1,200 rows were accepted, and none for 2 minutes",
        (
            "refunds import 'june refunds.csv', with the options of its import; to give up the"
            " rest, and what was not sent: refunds batch cancel b-1"
        ),
    )
    assert said.of("import b-2")[1].endswith(
        "1 of its 1,200 rows was accepted, and none for 2 minutes"
    )
    assert said.of("import b-2")[2].startswith("refunds import -, with")


@pytest.mark.parametrize("kind", ["whole", "canceled", "begun just now", "running"])
def test_an_import_that_runs_or_is_over_is_not_told(
    doctor: Cli, records: Records, kind: str
) -> None:
    half_imported(records, "b-1")
    if kind == "whole":
        close_batch(records.store, "b-1", handed_in=0, conflicting=0)
    elif kind == "canceled":
        cancel_batch(records.store, "b-1", "ann")
    elif kind == "begun just now":
        records.store.redis.hset("refunds:batch:b-1", "created_at", now_ms())
    else:
        # It has just accepted another row.
        records.queued("order-1", batch_id="b-1")
    assert "import b-1" not in examined(doctor).checks


def test_batches_that_paused_themselves_are_told_with_why(
    doctor: Cli, sync_redis: redis.Redis
) -> None:
    sync_redis.zadd("refunds:batches", {"b-1": 1, "b-2": 2, "b-3": 3})
    sync_redis.hset(
        "refunds:batch:b-1", mapping={"state": "paused", "paused_reason": "balance_insufficient"}
    )
    sync_redis.hset("refunds:batch:b-2", "state", "paused")
    sync_redis.hset("refunds:batch:b-3", "state", "running")
    said = examined(doctor)
    state, text, fix = said.of("batch b-1")
    assert (state, "balance_insufficient" in text, fix) == (
        "warn",
        True,
        "fix the cause, then refunds batch resume b-1",
    )
    assert said.of("batches") == ("warn", "paused by a person: b-2", "refunds batch resume b-2")


def test_messages_and_reviews_wait_for_a_person(
    doctor: Cli, sync_redis: redis.Redis, records: Records
) -> None:
    records.in_review("order-1")
    sync_redis.lpush("refunds:rejected", "{}")
    said = examined(doctor)
    assert said.of("review")[2] == "refunds review list"
    assert said.of("messages")[2].endswith("refunds rejected list")


def test_refunds_that_the_provider_contradicts_are_told_of(
    doctor: Cli, sync_redis: redis.Redis
) -> None:
    assert "contradicted" not in examined(doctor).checks
    sync_redis.zadd("refunds:contradicted", {"order-1": 1})
    assert examined(doctor).of("contradicted") == (
        "warn",
        "records that contradict the provider: 1",
        "refunds review list",
    )


def test_it_says_whether_webhooks_are_on(doctor: Cli, records: Records) -> None:
    state, text, _ = examined(doctor).of("webhooks")
    assert (state, text.startswith("off: ")) == ("ok", True)
    text = examined(doctor, REFUNDS_WEBHOOK_SECRETS="planted-secret-4711").of("webhooks")[1]
    assert text == "on: a secret is set, and no endpoint was registered from here"
    keep_webhook_endpoint(records.store, "https://refunds.example.com/", "we_1")
    text = examined(doctor).of("webhooks")[1]
    assert text == "on: registered for https://refunds.example.com/"
