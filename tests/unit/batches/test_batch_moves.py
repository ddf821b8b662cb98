"""A batch canceled and a batch sent again.

Only what may be, whatever moves meanwhile, and told to the last refund.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import redis

from tests.support.cli_runner import Records
from worker.batches import (
    BatchDraft,
    cancel_batch,
    close_batch,
    look_at_batch,
    moves,
    open_batch,
    read_batch,
    retry_batch,
)
from worker.errors import GuardRefused, NotFound
from worker.model.refund import Refund, Retriable, Stage, Status
from worker.model.request import idempotency_key
from worker.model.steps import Step
from worker.rules import proofs
from worker.store import saves, scripts
from worker.store.scripts import Command
from worker.store.store import Store

YES = frozenset({Retriable.YES})
ALL = YES | {Retriable.UNKNOWN}


@pytest.fixture
def batch(records: Records) -> Records:
    """A batch with a refund in every stage: row-N on pi_N."""
    open_batch(records.store, "b-1", file="season.csv", digest="d1", rows=9)
    fill(records, "b-1", 0)
    return records


def fill(records: Records, batch_id: str, start: int) -> None:
    put: list[Any] = [
        records.queued,
        records.sending,
        records.succeeded,
        records.in_review,
        records.queued,
    ]
    for number, make in enumerate(put, start):
        more = {"provider_refund_id": f"re_{number}"} if make == records.succeeded else {}
        make(f"row-{number}", payment_intent=f"pi_{number}", batch_id=batch_id, **more)


def failed(
    records: Records, refund_id: str, kind: Retriable | None, batch_id: str = "b-1", **fields: Any
) -> Refund:
    refund = records.sending(
        refund_id, payment_intent=f"pi_{refund_id}", batch_id=batch_id, **fields
    )
    changes = {"error_code": "balance_insufficient", "retriable": kind} | proofs.settled_drops()
    step = Step(
        to=Stage.SETTLED, status=Status.FAILED, label="balance_insufficient", changes=changes
    )
    assert records.store.run(saves.save(refund, step)).result == "saved"
    return records.get(refund_id)


def waiting(records: Records, refund_id: str, batch_id: str = "b-1") -> Refund:
    refund = records.sending(refund_id, payment_intent=f"pi_{refund_id}", batch_id=batch_id)
    step = Step(to=Stage.WAITING, status=Status.PENDING, label="rate_limited")
    assert records.store.run(saves.save(refund, step)).result == "saved"
    return records.get(refund_id)


def test_cancel_stops_what_was_not_sent_and_leaves_what_was(batch: Records) -> None:
    waiting(batch, "row-w")
    before = {number: batch.get(f"row-{number}") for number in (1, 2, 3)}
    done = cancel_batch(batch.store, "b-1", "kim")
    assert done.canceled == 3
    assert [batch.get(refund_id).status for refund_id in ("row-0", "row-4", "row-w")] == [
        "canceled"
    ] * 3
    assert {number: batch.get(f"row-{number}") for number in (1, 2, 3)} == before
    assert (done.batch.state, done.batch.canceled_by) == ("canceled", "kim")
    assert done.batch.statuses == {"canceled": 3, "succeeded": 1, "pending": 2}
    assert batch.store.history("row-0")[-1]["by"] == "kim"


def test_cancel_leaves_the_refunds_of_others_alone(batch: Records) -> None:
    batch.queued("alone", payment_intent="pi_alone")
    open_batch(batch.store, "b-2", file="other.csv", digest="d2", rows=5)
    batch.queued("other", payment_intent="pi_other", batch_id="b-2")
    cancel_batch(batch.store, "b-1", "kim")
    assert {batch.get(refund_id).status for refund_id in ("alone", "other")} == {"pending"}


def test_a_canceled_batch_has_nothing_left_to_cancel_and_lets_nothing_be_claimed(
    batch: Records,
) -> None:
    cancel_batch(batch.store, "b-1", "kim")
    assert cancel_batch(batch.store, "b-1", "lee").canceled == 0
    assert read_batch(batch.store, "b-1").canceled_by == "kim"
    with pytest.raises(AssertionError, match="canceled"):
        batch.sending("late", payment_intent="pi_late", batch_id="b-1")
    assert batch.get("late").status == "canceled"


def test_cancel_stops_the_resend_of_a_refund_in_review_although_nothing_else_moves(
    records: Records,
) -> None:
    open_batch(records.store, "b-1", file="season.csv", digest="d1", rows=1)
    records.in_review("row-0", payment_intent="pi_0", batch_id="b-1")
    close_batch(records.store, "b-1", handed_in=1, conflicting=0)
    assert cancel_batch(records.store, "b-1", "kim").changed
    assert read_batch(records.store, "b-1").state == "canceled"


class Dying(Store):
    """A store that dies before its n-th pipeline of calls."""

    left = 1

    def run_many(self, batch: Sequence[Command[Any]]) -> list[Any]:
        if batch and batch[0].script is scripts.SAVE:
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
        return super().run_many(batch)


def test_a_cancel_killed_half_way_is_finished_by_the_same_call(
    records: Records, any_redis: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moves, "PAGE", 4)
    open_batch(records.store, "b-1", file="season.csv", digest="d1", rows=10)
    for number in range(10):
        records.queued(f"row-{number}", payment_intent=f"pi_{number}", batch_id="b-1")
    with pytest.raises(KeyboardInterrupt):
        cancel_batch(Dying(any_redis, durable=False), "b-1", "kim")
    assert read_batch(records.store, "b-1").statuses == {"canceled": 4, "pending": 6}
    assert cancel_batch(records.store, "b-1", "kim").canceled == 6
    assert read_batch(records.store, "b-1").statuses == {"canceled": 10}


class Racing(Store):
    """A store in which a worker claims `row-0` between the reading and the saving of its cancel."""

    raced = False

    def run_many(self, batch: Sequence[Command[Any]]) -> list[Any]:
        if not self.raced and batch and batch[0].script is scripts.SAVE:
            self.raced = True
            step = Step(to=Stage.SENDING, status=Status.PENDING, label="claimed")
            refund = self.get("row-0")
            assert refund is not None
            super().run_many([saves.save(refund, step)])
        return super().run_many(batch)


def test_what_is_claimed_while_it_is_canceled_is_left_to_its_end(
    batch: Records, any_redis: redis.Redis
) -> None:
    done = cancel_batch(Racing(any_redis, durable=False), "b-1", "kim")
    assert (done.canceled, batch.get("row-0").stage, batch.get("row-4").status) == (
        1,
        "sending",
        "canceled",
    )


def test_retry_sends_again_only_what_failed_and_is_retriable_as_a_new_generation(
    batch: Records,
) -> None:
    old = failed(batch, "yes", Retriable.YES)
    kept = [
        failed(batch, "no", Retriable.NO),
        failed(batch, "unknown", Retriable.UNKNOWN),
        failed(batch, "none", None),
    ]
    others = [batch.get(f"row-{number}") for number in range(5)]
    nudged: list[str] = []
    done = retry_batch(batch.store, "b-1", "kim", kinds=YES, nudge=nudged.extend)
    assert (done.retried, done.left, nudged) == (1, {"no": 1, "unknown": 2}, ["yes"])
    again = batch.get("yes")
    assert (again.stage, again.status, again.generation, again.error_code) == (
        "queued",
        "pending",
        2,
        None,
    )
    assert again.idempotency_key == idempotency_key("yes", 2) != old.idempotency_key
    body = str(batch.store.redis.get("refunds:body:yes"))
    assert '"refund_generation":"2"' in body
    assert '"refund_id":"yes"' in body
    assert batch.store.redis.zrange("refunds:index:queued.bulk", 0, -1) == ["row-0", "row-4", "yes"]
    assert [batch.get(refund.refund_id) for refund in kept + others] == kept + others
    assert read_batch(batch.store, "b-1").statuses == {"pending": 5, "succeeded": 1, "failed": 3}


def test_retry_with_unknown_takes_those_too_and_never_what_cannot_help(batch: Records) -> None:
    for refund_id, kind in (
        ("yes", Retriable.YES),
        ("no", Retriable.NO),
        ("unknown", Retriable.UNKNOWN),
        ("x", None),
    ):
        failed(batch, refund_id, kind)
    nudged: list[str] = []
    done = retry_batch(batch.store, "b-1", "kim", kinds=ALL, nudge=nudged.extend)
    assert (done.retried, done.left, sorted(nudged)) == (3, {"no": 1}, ["unknown", "x", "yes"])


@pytest.mark.parametrize("amount", [500, None])
@pytest.mark.parametrize(
    ("is_allowed", "other", "is_sent"),
    [
        (False, "queued", False),
        (False, "succeeded", False),
        (False, "failed", True),
        (True, "queued", True),
    ],
)
def test_what_failed_is_not_sent_again_beside_another_refund_of_its_payment_and_amount(
    records: Records, amount: int | None, other: str, *, is_allowed: bool, is_sent: bool
) -> None:
    """As when a corrected file was imported under ids of its own."""
    opening = BatchDraft(allow_repeat=is_allowed)
    open_batch(records.store, "b-1", file="a.csv", digest="d1", rows=1, opening=opening)
    before = failed(records, "row", Retriable.YES, amount=amount)
    getattr(records, other)("new", payment_intent="pi_row", amount=amount)
    records.queued("less", payment_intent="pi_row", amount=499)
    done = retry_batch(records.store, "b-1", "kim", kinds=YES, nudge=lambda _: None)
    assert (done.retried, done.attempted, done.moved) == (int(is_sent), int(not is_sent), 0)
    assert done.first_attempted == ([] if is_sent else [("row", "new")])
    assert (records.get("row") == before) is not is_sent


def test_a_retry_of_all_that_is_left_asks_for_all_that_is_left_again(batch: Records) -> None:
    refund = failed(batch, "rest", Retriable.YES, amount=None)
    assert refund.all_remaining
    retry_batch(batch.store, "b-1", "kim", kinds=YES, nudge=lambda _: None)
    assert '"amount"' not in str(batch.store.redis.get("refunds:body:rest"))


def test_a_retry_is_recorded_before_its_nudge_and_repeated_does_nothing(batch: Records) -> None:
    failed(batch, "yes", Retriable.YES)
    seen: list[str] = []
    retry_batch(
        batch.store,
        "b-1",
        "kim",
        kinds=YES,
        nudge=lambda ids: seen.extend(batch.get(each).stage for each in ids),
    )
    assert seen == ["queued"]
    assert retry_batch(batch.store, "b-1", "kim", kinds=YES, nudge=seen.extend).retried == 0


def test_a_canceled_or_unknown_batch_is_not_sent_again(batch: Records) -> None:
    failed(batch, "yes", Retriable.YES)
    cancel_batch(batch.store, "b-1", "kim")
    with pytest.raises(GuardRefused, match="was canceled"):
        retry_batch(batch.store, "b-1", "kim", kinds=YES, nudge=lambda _: None)
    with pytest.raises(NotFound, match="batch list"):
        cancel_batch(batch.store, "b-9", "kim")
    with pytest.raises(NotFound, match="batch list"):
        look_at_batch(batch.store, "b-9")


def test_the_pace_is_the_batchs_own_share_of_what_settled_lately(records: Records) -> None:
    open_batch(records.store, "b-1", file="season.csv", digest="d1", rows=40)
    # Begun a minute ago, as the pace sees it.
    created = read_batch(records.store, "b-1").created_at
    assert created is not None
    records.store.redis.hincrby("refunds:batch:b-1", "created_at", -60_000)
    for number in range(30):
        mine = {"batch_id": "b-1"} if number % 2 else {}
        records.succeeded(f"row-{number}", f"re_{number}", payment_intent=f"pi_{number}", **mine)
    for number in range(30, 45):
        records.queued(f"row-{number}", payment_intent=f"pi_{number}", batch_id="b-1")
    seen = look_at_batch(records.store, "b-1")
    assert seen.rate == pytest.approx(15 / 60)
    assert seen.eta is not None
    assert (seen.eta - seen.now).total_seconds() == pytest.approx(60)
    assert replace(seen, batch=replace(seen.batch, state="paused")).eta is None


def test_a_look_at_a_batch_costs_the_same_for_ten_refunds_and_for_a_thousand(
    sync_redis: redis.Redis,
) -> None:
    records = Records(store=Store(sync_redis, durable=False))
    counts = []
    for batch_id, rows in (("b-1", 150), ("b-2", 400)):
        open_batch(records.store, batch_id, file="season.csv", digest=batch_id, rows=rows)
        for number in range(rows):
            refund_id = f"{batch_id}-{number}"
            records.succeeded(
                refund_id, f"re_{refund_id}", payment_intent=f"pi_{refund_id}", batch_id=batch_id
            )
        look_at_batch(records.store, batch_id)  # From here on the server knows the script.
        sync_redis.config_resetstat()
        look_at_batch(records.store, batch_id)
        statistics: Any = sync_redis.info("commandstats")
        counts.append(
            {name: found["calls"] for name, found in statistics.items() if "resetstat" not in name}
        )
    assert counts[0] == counts[1]
