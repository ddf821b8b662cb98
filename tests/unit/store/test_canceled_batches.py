"""A canceled batch stops every claim that would send, whatever led to it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.factories import HOUR
from tests.support.store_world import ID, World, at_stage
from worker.model.answers import Readback, ReadbackVerdict
from worker.model.refund import Stage, Status
from worker.rules import attempts, readback
from worker.rules.attempts import Rules


def test_a_resend_of_a_canceled_batch_settles_as_canceled_since_it_never_happened(
    world: World,
) -> None:
    refund = at_stage(world, Stage.IN_DOUBT)
    world.redis.hset(f"refunds:refund:{ID}", "batch_id", "b1")
    world.redis.hset("refunds:batch:b1", "state", "canceled")
    rules = Rules(readback="list", settle=attempts.EARLY_READBACK)
    world.redis.hset(
        f"refunds:refund:{ID}", mapping={"currency_checked": "1", "unconfirmed_since": "1"}
    )
    for _ in range(3):
        world.pass_time(rules.settle * 2)
        refund = world.get()
        look = Readback(verdict=ReadbackVerdict.ABSENT, reason="not in the payment's list")
        world.save(refund, readback.after_readback(refund, look, rules, world.now, 0))
    assert world.claim(kind="resend", version=world.get().version).result == "canceled"
    settled = world.get()
    assert (settled.status, settled.stage, settled.doubt_since) == (
        Status.CANCELED,
        Stage.SETTLED,
        None,
    )
    assert (settled.currency_checked, settled.unconfirmed_since) == (False, None)


@pytest.mark.parametrize(
    ("fields", "settles"),
    [
        ({"doubted": "1", "evidence": "list"}, True),
        ({"doubted": "1", "evidence": "totals"}, True),
        ({"doubted": "1", "evidence": "operator"}, False),
        ({"operator_says": "absent"}, False),
        ({}, True),
    ],
)
def test_row_of_a_canceled_batch_settles_unless_only_a_person_says_that_nothing_was_sent(
    world: World, fields: dict[Any, Any], *, settles: bool
) -> None:
    at_stage(world, Stage.WAITING)
    world.redis.hset(f"refunds:refund:{ID}", mapping={"batch_id": "b1", **fields})
    world.redis.hset("refunds:batch:b1", "state", "canceled")
    world.pass_time(HOUR)
    assert world.claim().result == "canceled"
    refund = world.get()
    assert (refund.stage, refund.status) == (
        (Stage.SETTLED, Status.CANCELED) if settles else (Stage.WAITING, Status.PENDING)
    )


@pytest.mark.parametrize("amount", [500, None])
def test_row_of_a_canceled_batch_settles_as_a_whole_with_an_amount_or_without(
    world: World, amount: int | None
) -> None:
    world.accept(batch="b1", amount=amount)
    world.redis.hset("refunds:batch:b1", "state", "canceled")
    assert world.claim().result == "canceled"
    assert world.check()[ID].status is Status.CANCELED


def test_state_of_a_batch_is_read_and_none_if_it_has_no_record(world: World) -> None:
    world.redis.hset("refunds:batch:b1", "state", "canceled")
    assert world.store.batch_state("b1") == "canceled"
    assert world.store.batch_state("b2") is None
