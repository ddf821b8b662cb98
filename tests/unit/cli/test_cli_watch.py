"""`refunds watch` and `refunds list --reversed`: what is read again, and what was reversed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import redis

from tests.factories import found
from tests.support.cli_runner import Cli, Records
from worker.model.refund import Stage
from worker.model.times import rfc3339
from worker.rules import rechecks as rules
from worker.store import rechecks, saves

DAY_MS = 86_400_000
RUNGS = tuple(timedelta(days=days) for days in (1, 7, 30, 60))


def reversed_refund(records: Records, refund_id: str = "order-1") -> None:
    """A refund that succeeded and that the provider failed later."""
    refund = records.succeeded(refund_id, f"re_{refund_id}", payment_intent=f"pi_{refund_id}")
    shown = found(
        id=f"re_{refund_id}",
        status="failed",
        failure_reason="lost_or_stolen_card",
        payment_intent=refund.payment_intent,
        refund_id=refund_id,
    )
    step = rules.changed_by_provider(refund, shown, "lookup", refund.updated_at)
    assert step is not None
    assert records.store.run(saves.save(refund, step)).result == "saved"


def aged(sync_redis: redis.Redis, records: Records, refund_id: str, days: float) -> None:
    """Let a settled refund have settled so many days ago."""
    settled = int(records.store.time().timestamp() * 1000 - days * DAY_MS)
    sync_redis.zadd("refunds:index:succeeded", {refund_id: settled})


def test_reversed_refunds_are_listed_and_no_others(cli: Cli, records: Records) -> None:
    records.succeeded("order-0", "re_0", payment_intent="pi_0")
    reversed_refund(records)
    (seen,) = cli("list", "--reversed", "--json").objects
    assert (seen["refund_id"], seen["status"]) == ("order-1", "failed")
    assert seen["reversed_at"] is not None
    (line,) = cli("list", "--reversed").out.splitlines()[1:]
    assert "reversed: lost_or_stolen_card" in line
    assert cli("list", "--reversed", "--status", "succeeded").err == "no refund matches\n"
    assert cli("list", "--reversed", "--batch", "b-none").code == 3


def test_status_says_when_the_reversal_was_seen(cli: Cli, records: Records) -> None:
    reversed_refund(records)
    (line,) = [line for line in cli("status", "order-1").out.splitlines() if "reversed" in line]
    assert "after it had succeeded" in line
    assert cli("status", "order-1", "--json").object["reversed_at"] is not None


def test_retried_refund_stays_listed_as_reversed_with_its_present_status(
    cli: Cli, records: Records
) -> None:
    reversed_refund(records)
    reversed_refund(records, "order-2")
    assert cli("retry", "order-1", "--unknown").code == 0
    listed = cli("list", "--reversed", "--json").objects
    assert {each["refund_id"]: each["status"] for each in listed} == {
        "order-1": "pending",
        "order-2": "failed",
    }
    assert cli("watch", "status", "--json").object["reversed"] == len(listed)


def test_watch_status_shows_one_reversal_and_every_rung(cli: Cli, records: Records) -> None:
    reversed_refund(records)
    records.store.run(rechecks.watch(RUNGS, rate=5, most=5))
    shown = cli("watch", "status", "--json").object
    assert (shown["reversed"], shown["blind"], shown["waiting"]) == (1, 0, 0)
    assert [(each["rung"], each["status"]) for each in shown["rungs"]] == [
        *((rung, "succeeded") for rung in ("1d", "7d", "30d", "60d")),
        *((rung, "failed") for rung in ("1d", "7d")),
        *((rung, "canceled") for rung in ("1d", "7d")),
    ]
    assert all(each["cursor"] is not None for each in shown["rungs"])
    assert (shown["calls_a_day"], shown["most_calls_a_day"]) == (1, 432_000)
    ran = cli("watch", "status")
    assert ran.code == 0
    assert "refunds list --reversed" in ran.err


def test_watch_that_is_off_or_has_not_begun_says_what_to_do(cli: Cli) -> None:
    assert "start a worker with 'refunds worker'" in cli("watch", "status").err
    off = cli("watch", "status", "--json", REFUNDS_WATCH="off")
    assert off.object["rungs"] == []
    assert "set REFUNDS_WATCH" in cli("watch", "status", REFUNDS_WATCH="off").err
    refused = cli("watch", "backfill", "--since", "2026-01-01", REFUNDS_WATCH="off")
    assert refused.code == 2
    assert "REFUNDS_WATCH is off" in refused.err


def test_backfill_says_how_many_are_read_again_and_a_second_one_says_the_same(
    cli: Cli, records: Records, sync_redis: redis.Redis
) -> None:
    records.store.run(rechecks.watch(RUNGS, rate=5, most=5))
    for number, days in enumerate((100, 10, 0.5)):
        refund_id = f"order-{number}"
        records.succeeded(refund_id, f"re_{number}", payment_intent=f"pi_{number}")
        aged(sync_redis, records, refund_id, days)
    since = rfc3339(datetime.now(UTC) - timedelta(days=200))
    ran = cli("watch", "backfill", "--since", since, "--json")
    assert (ran.code, ran.object["refunds"]) == (0, 2)
    assert "follow it with 'refunds watch status'" in ran.err
    again = cli("watch", "backfill", "--since", since)
    assert (again.code, again.out) == (9, "")
    assert "nothing that settled since then is to be read again" in again.err


@pytest.mark.parametrize("since", ["yesterday", "2026-13-01", "2999-01-01"])
def test_backfill_from_no_time_in_the_past_is_rejected(cli: Cli, since: str) -> None:
    ran = cli("watch", "backfill", "--since", since)
    assert (ran.code, ran.out) == (3, "")
    assert "2026-01-31T09:00:00Z" in ran.err or "must be in the past" in ran.err


def test_review_shows_the_refund_that_it_possibly_is(
    cli: Cli, records: Records, sync_redis: redis.Redis
) -> None:
    records.in_review("order-1")
    assert records.get("order-1").stage is Stage.REVIEW
    assert (
        cli("review", "show", "order-1", "--json").object["evidence"]["possible_refund_id"] is None
    )
    sync_redis.hset("refunds:refund:order-1", "possible_refund_id", "re_maybe")
    shown = cli("review", "show", "order-1", "--json").object
    assert shown["evidence"]["possible_refund_id"] == "re_maybe"
    text = cli("review", "show", "order-1").out
    assert "re_maybe, which agrees and names no refund of yours" in text
    assert "refunds review resolve order-1 --succeeded re_maybe --version" in text
    assert "possibly re_maybe" in cli("review", "list").out
