"""What one move writes beside the record.

The payment's lock and waiters, history, counters, a batch's streak.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import redis

from tests.factories import (
    HOUR,
    MINUTE,
    NOT_DONE,
    NOW,
    PAYMENT,
    REFUSED,
    SECOND,
    VERIFY,
    done_as,
    found,
)
from tests.support.store_world import ID, World, at_stage
from worker.model.refund import Lane, Stage, Status
from worker.model.steps import Step
from worker.model.times import to_ms
from worker.rules import attempts, proofs
from worker.rules.decisions import cancel, recovered, retry_failed
from worker.rules.rechecks import changed_by_provider

ON_PAYMENT = f"payment:{PAYMENT}"
WAITERS = f"refunds:waiters:{PAYMENT}"
BATCH = "refunds:batch:b"


@pytest.fixture
def world(sync_redis: redis.Redis) -> World:
    """The records on the real server: what is asked here is asked of the fake by the other
    tests.
    """
    return World(sync_redis)


def recover(world: World) -> None:
    """Let what is accepted now begin in doubt, as after a recovery."""
    span = {"suspect_since": to_ms(world.now - HOUR), "suspect_until": to_ms(world.now + HOUR)}
    for name, value in span.items():
        world.redis.hset("refunds:meta", name, value)


def number(world: World, name: str, key: str = "counters") -> int:
    return int(world.hash(key).get(name, "0"))


# The payment's lock


def test_lock_stays_with_who_holds_it_when_another_begins_in_doubt(world: World) -> None:
    at_stage(world, Stage.IN_DOUBT, "a")
    recover(world)
    world.accept("b")
    assert world.get("b").stage is Stage.IN_DOUBT
    assert world.hash(ON_PAYMENT)["lock"] == "a"
    world.check()


def test_lock_is_taken_by_the_first_that_begins_in_doubt(world: World) -> None:
    recover(world)
    world.accept("b")
    assert world.hash(ON_PAYMENT)["lock"] == "b"
    assert number(world, "move:new:in_doubt") == 1
    world.check()


def test_of_two_in_doubt_the_one_that_holds_the_lock_goes_first_and_the_other_waits_for_it(
    world: World,
) -> None:
    at_stage(world, Stage.IN_DOUBT, "a")
    recover(world)
    world.accept("b")
    world.pass_time(MINUTE)
    assert world.claim("b", "replay").result == "locked"
    assert world.claim("a", "replay").claimed


def test_doubt_that_comes_while_another_refund_is_sent_waits_behind_it(world: World) -> None:
    at_stage(world, Stage.SENDING, "a")
    recover(world)
    world.accept("b")
    assert world.hash(ON_PAYMENT)["lock"] == "a"
    assert world.redis.zrange(f"refunds:doubts:{PAYMENT}", 0, -1) == ["b"]
    assert world.claim("b", "replay").result == "locked"
    world.check()


def test_refund_that_waits_for_a_payment_is_told_when_the_one_in_the_way_is_due(
    world: World,
) -> None:
    at_stage(world, Stage.SENDING, "a")
    world.accept("b")
    refused = world.claim("b")
    assert (refused.result, world.get("b").next_check_at) == (
        "locked",
        world.get("a").next_check_at,
    )


# Waiters


def wait_for(world: World, holder: str, *ids: str) -> None:
    """Let refunds wait for the payment that another one holds."""
    at_stage(world, Stage.SENDING, holder)
    for refund_id in ids:
        world.pass_time(SECOND)
        world.accept(refund_id)
        assert world.claim(refund_id).result == "locked"


def test_waiter_without_a_record_and_one_that_has_gone_on_are_passed_over(world: World) -> None:
    world.accept("done")
    world.attempt(REFUSED, "done")
    wait_for(world, "a", "b", "c")
    world.redis.zadd(WAITERS, {"ghost": 0, "done": 1})
    refund = world.get("a")
    saved = world.save(refund, attempts.after_attempt(refund, NOT_DONE, VERIFY, world.now, 0))
    assert saved.woken == "b"
    assert world.get("b").next_check_at == world.now
    assert world.redis.zrange(WAITERS, 0, -1) == ["c"]
    world.check()


def test_waiter_of_a_waiting_stage_is_woken_too(world: World) -> None:
    world.accept("b")
    world.attempt(NOT_DONE, "b")
    at_stage(world, Stage.SENDING, "a")
    world.pass_time(10 * SECOND)
    assert world.claim("b").result == "locked"
    refund = world.get("a")
    assert (
        world.save(refund, attempts.after_attempt(refund, NOT_DONE, VERIFY, world.now, 0)).woken
        == "b"
    )


def test_waiter_that_begins_to_doubt_waits_no_longer(world: World) -> None:
    wait_for(world, "a", "b")
    refund = world.get("b")
    step = recovered(refund, world.now - HOUR, world.now)
    assert step is not None
    assert world.save(refund, step).result == "saved"
    assert world.redis.zscore(WAITERS, "b") is None


# History


@pytest.mark.parametrize("code", ["send", "accepted", "waiting", "pending"])
def test_label_that_is_a_word_of_our_own_is_kept_as_the_provider_said_it(
    world: World, code: str
) -> None:
    world.accept()
    world.attempt(replace(NOT_DONE, code=code))
    assert world.store.history(ID)[-1]["label"] == code


def test_proof_of_an_older_attempt_keeps_its_number(world: World) -> None:
    world.accept()
    first = world.claim()
    assert first.refund is not None
    world.lapse()
    world.pass_time(HOUR)
    assert world.claim(kind="replay").refund is not None
    assert world.get().attempts == 2
    step = proofs.done(first.refund, found(), "reply", world.now)
    assert world.save(first.refund, step, {"attempt": 1, "seen": "done"}).result == "saved"
    last = world.store.history(ID)[-1]
    assert (last["attempt"], last["seen"], last["from"]) == (1, "done", "sending")


@pytest.mark.parametrize(
    ("detail", "attempt"), [({"attempt": 1}, 1), ({"attempt": 12}, 12), ({}, 1)]
)
def test_attempt_in_the_history_is_the_one_that_was_told_or_claimed(
    world: World, detail: dict[str, Any], attempt: int
) -> None:
    world.accept()
    claimed = world.claim()
    assert claimed.refund is not None
    world.save(
        claimed.refund,
        attempts.after_attempt(claimed.refund, NOT_DONE, VERIFY, world.now, 0),
        detail,
    )
    assert world.store.history(ID)[-1]["attempt"] == attempt


# The record


@pytest.mark.parametrize(
    ("outcome", "kept"),
    [(done_as(), False), (done_as("canceled"), False), (REFUSED, True)],
    ids=["done", "off", "no"],
)
def test_lane_is_kept_only_of_what_may_go_again(world: World, outcome: Any, *, kept: bool) -> None:
    world.accept(lane=Lane.BULK)
    world.attempt(outcome)
    assert ("lane" in world.hash(f"refund:{ID}")) is kept


def test_each_settled_refund_clears_away_two_that_have_expired(world: World) -> None:
    long_ago = to_ms(NOW - timedelta(days=401))
    world.redis.zadd("refunds:index:succeeded", {f"old-{n}": long_ago + n for n in range(5)})
    world.accept()
    world.attempt(done_as())
    assert world.redis.zrange("refunds:index:succeeded", 0, -1) == ["old-2", "old-3", "old-4", ID]


# Counters


@pytest.mark.parametrize(("currency", "told"), [(None, "unknown"), ("eur", "eur")])
def test_money_on_its_way_is_counted_by_the_stage_it_is_in(
    world: World, currency: str | None, told: str
) -> None:
    def on_its_way() -> dict[str, int]:
        counted = {
            name: int(value)
            for name, value in world.hash("counters").items()
            if name.startswith("open:")
        }
        return {name: value for name, value in counted.items() if value}

    world.accept(currency=currency)
    assert on_its_way() == {f"open:queued:{told}": 500}
    world.claim()
    assert on_its_way() == {f"open:sending:{told}": 500}
    refund = world.get()
    world.save(refund, attempts.after_attempt(refund, NOT_DONE, VERIFY, world.now, 0))
    assert on_its_way() == {f"open:waiting:{told}": 500}
    world.pass_time(HOUR)
    world.attempt(replace(REFUSED, code="insufficient_funds"))
    assert on_its_way() == {}
    failed = world.get()
    step = retry_failed(failed)
    assert step is not None
    world.save(failed, step)
    assert on_its_way() == {f"open:queued:{told}": 500}


def test_refund_of_all_that_is_left_is_on_its_way_with_no_amount(world: World) -> None:
    world.accept(amount=None)
    world.attempt(NOT_DONE)
    assert [name for name in world.hash("counters") if name.startswith("open:")] == []


@pytest.mark.parametrize(
    ("outcome", "counted"),
    [
        (REFUSED, {"failed:amount_too_large": "1"}),
        (replace(REFUSED, code="Odd Code"), {"failed:other": "1"}),
        (done_as(), {}),
        (done_as("canceled"), {}),
    ],
    ids=["known", "odd", "done", "canceled"],
)
def test_failures_are_counted_by_their_code(
    world: World, outcome: Any, counted: dict[str, str]
) -> None:
    world.accept()
    world.attempt(outcome)
    found = {
        name: value for name, value in world.hash("counters").items() if name.startswith("failed:")
    }
    assert found == counted


def test_failure_without_a_code_is_counted_as_other(world: World) -> None:
    world.accept()
    claimed = world.claim()
    assert claimed.refund is not None
    world.save(claimed.refund, Step(to=Stage.SETTLED, status=Status.FAILED, label="x"))
    assert number(world, "failed:other") == 1


def test_open_refunds_of_a_payment_are_counted_until_there_are_none(world: World) -> None:
    for name in "ab":
        world.accept(name)
    world.attempt(done_as(id="re_a"), "a")
    assert number(world, "open", ON_PAYMENT) == 1
    shown = found(id="re_a", refund_id="a", status="failed")
    reversal = changed_by_provider(world.get("a"), shown, "list", NOW)
    assert reversal is not None
    assert world.save(world.get("a"), reversal).result == "saved"
    assert number(world, "open", ON_PAYMENT) == 1
    world.attempt(REFUSED, "b")
    assert "open" not in world.hash(ON_PAYMENT)
    assert world.expires(ON_PAYMENT)


# A batch


def fail(world: World, count: int, code: str = "card_gone", prefix: str = "r") -> None:
    """Let so many rows of the batch fail with a code."""
    for row in range(count):
        refund_id = f"{prefix}{row}"
        world.accept(refund_id, batch="b", payment_intent=f"pi_{refund_id}")
        world.attempt(replace(REFUSED, code=code), refund_id)


def begin(world: World, state: str = "running") -> None:
    world.redis.hset(BATCH, "state", state)


def streak(world: World) -> tuple[str | None, str | None]:
    batch = world.hash("batch:b")
    return batch.get("streak_code"), batch.get("streak")


def test_twenty_failures_in_a_row_with_one_code_pause_a_batch(world: World) -> None:
    begin(world)
    fail(world, 19)
    assert world.hash("batch:b")["state"] == "running"
    assert streak(world) == ("card_gone", "19")
    fail(world, 1, prefix="last")
    batch = world.hash("batch:b")
    assert (batch["state"], batch["paused_reason"], batch["paused_at"]) == (
        "paused",
        "card_gone",
        str(to_ms(world.now)),
    )
    assert streak(world) == (None, None)


def test_row_of_failures_begins_anew_with_another_code(world: World) -> None:
    begin(world)
    fail(world, 19)
    fail(world, 1, "other", prefix="o")
    assert streak(world) == ("other", "1")
    fail(world, 19, prefix="s")
    assert (world.hash("batch:b")["state"], streak(world)) == ("running", ("card_gone", "19"))


def test_row_of_failures_ends_with_a_success(world: World) -> None:
    begin(world)
    fail(world, 3)
    world.accept("good", batch="b", payment_intent="pi_good")
    world.attempt(done_as(), "good")
    assert streak(world) == (None, None)


def test_canceled_row_neither_ends_nor_lengthens_a_row_of_failures(world: World) -> None:
    begin(world)
    fail(world, 3)
    world.accept("off", batch="b", payment_intent="pi_off")
    world.save(world.get("off"), cancel(world.get("off")))
    assert streak(world) == ("card_gone", "3")


def test_reversal_is_no_failure_of_the_row(world: World) -> None:
    begin(world)
    world.accept("good", batch="b", payment_intent="pi_good")
    world.attempt(done_as(id="re_good"), "good")
    fail(world, 3, "unknown")
    shown = found(id="re_good", refund_id="good", payment_intent="pi_good", status="failed")
    reversal = changed_by_provider(world.get("good"), shown, "list", NOW)
    assert reversal is not None
    assert world.save(world.get("good"), reversal).result == "saved"
    assert streak(world) == ("unknown", "3")


def test_failures_without_a_code_are_a_row_of_unknown_ones(world: World) -> None:
    begin(world)
    for row in range(20):
        world.accept(f"r{row}", batch="b", payment_intent=f"pi_{row}")
        claimed = world.claim(f"r{row}")
        assert claimed.refund is not None
        world.save(claimed.refund, Step(to=Stage.SETTLED, status=Status.FAILED, label="x"))
    assert world.hash("batch:b")["paused_reason"] == "unknown"


@pytest.mark.parametrize("state", ["canceled", "paused"])
def test_only_a_running_batch_is_paused(world: World, state: str) -> None:
    begin(world)
    fail(world, 19)
    begin(world, state)
    world.redis.hset(f"{BATCH}", "paused_reason", "mine")
    world.accept("last", batch="b", payment_intent="pi_last")
    # Claimed before the batch was stopped.
    world.redis.hset(BATCH, "state", "running")
    claimed = world.claim("last")
    world.redis.hset(BATCH, "state", state)
    assert claimed.refund is not None
    world.end(claimed, replace(REFUSED, code="card_gone"))
    assert (world.hash("batch:b")["state"], world.hash("batch:b")["paused_reason"]) == (
        state,
        "mine",
    )


def test_row_accepted_after_a_recovery_is_counted_in_its_batch(world: World) -> None:
    begin(world)
    recover(world)
    world.accept("r", batch="b")
    batch = world.hash("batch:b")
    assert (batch["stage:in_doubt"], batch["status:pending"]) == ("1", "1")
    assert not [name for name in batch if name.startswith("stage:") and name != "stage:in_doubt"]
    assert world.redis.lrange("refunds:batch-refunds:b", 0, -1) == ["r"]
    world.check()
