"""One refund in flight on a payment, and a wake for the one that has waited longest."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import redis

from tests.factories import (
    BLIND,
    HOUR,
    MAYBE,
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
from tests.support.store_world import LEASE, World, at_stage, only_time_moved
from worker.model.answers import Outcome, Readback, ReadbackVerdict
from worker.model.refund import Lane, Refund, Stage
from worker.rules import attempts, decisions, proofs, readback
from worker.rules.rechecks import changed_by_provider
from worker.store import reads


def accept(world: World, *refund_ids: str) -> None:
    for refund_id in refund_ids:
        world.accept(refund_id)
        world.pass_time(SECOND)


def waiters(world: World) -> list[str]:
    members: list[str] = world.redis.zrange(f"refunds:waiters:{PAYMENT}", 0, -1)  # type: ignore[assignment]
    return members


def test_locked_payment_defers_a_claim_without_version_history_or_attempt(world: World) -> None:
    accept(world, "a", "b")
    world.claim("a")
    before = world.dump()
    claim = world.claim("b")
    assert (claim.result, claim.body) == ("locked", b"")
    assert only_time_moved(before, world.dump())
    assert (world.get("b").version, world.get("b").attempts) == (1, 0)
    assert world.get("b").next_check_at == world.get("a").next_check_at
    assert waiters(world) == ["b"]
    world.check()


def test_deferred_refund_is_due_at_least_a_second_on(world: World) -> None:
    accept(world, "a", "b")
    world.claim("a")
    world.pass_time(HOUR)
    assert world.claim("b").result == "locked"
    assert world.get("b").next_check_at == world.now + SECOND


@pytest.mark.parametrize("stage", [Stage.SENDING, Stage.IN_DOUBT])
def test_refund_in_flight_or_in_doubt_holds_its_payment(world: World, stage: Stage) -> None:
    at_stage(world, stage, "a")
    world.accept("b")
    assert world.claim("b").result == "locked"


@pytest.mark.parametrize(
    "stage", [Stage.QUEUED, Stage.WAITING, Stage.PROCESSING, Stage.REVIEW, Stage.SETTLED]
)
def test_refund_that_is_neither_in_flight_nor_in_doubt_frees_its_payment(
    world: World, stage: Stage
) -> None:
    at_stage(world, stage, "a")
    world.accept("b")
    assert world.claim("b").claimed
    world.check()


def test_lock_is_kept_from_sending_through_doubt_to_the_replay(world: World) -> None:
    accept(world, "a", "b")
    world.attempt(MAYBE, "a")
    assert world.claim("b").result == "locked"
    world.pass_time(MINUTE)
    assert world.claim("a", "replay").claimed
    assert world.claim("b").result == "locked"
    world.check()


def test_refunds_of_different_payments_do_not_wait_for_each_other(world: World) -> None:
    world.accept("a")
    world.accept("b", payment_intent="pi_2")
    assert world.claim("a").claimed
    assert world.claim("b").claimed


@pytest.mark.parametrize(
    "outcome",
    [NOT_DONE, REFUSED, done_as("pending"), done_as("succeeded")],
    ids=lambda outcome: outcome.verdict.value,
)
def test_refund_that_frees_the_payment_makes_the_oldest_waiter_due_at_once(
    world: World, outcome: Outcome
) -> None:
    accept(world, "a", "b", "c", "d")
    claim = world.claim("a")
    for refund_id in ("d", "b", "c"):
        world.claim(refund_id)
    assert waiters(world) == ["b", "c", "d"]
    world.pass_time(SECOND)
    saved = world.end(claim, outcome)
    assert (saved.result, saved.woken) == ("saved", "b")
    assert world.get("b").next_check_at == world.score("due", "b") == world.now
    assert world.swept() == ["b"]
    assert world.claim("b").claimed
    assert waiters(world) == ["c", "d"]
    world.check()


def test_waiters_go_one_after_the_other_in_the_order_in_which_they_were_accepted(
    world: World,
) -> None:
    ids = ["a", "b", "c", "d"]
    accept(world, *ids)
    claim = world.claim("a")
    for refund_id in reversed(ids[1:]):
        world.claim(refund_id)
    order: list[str] = []
    while (
        woken := world.end(claim, done_as("succeeded", id=f"re_{len(order)}")).woken
    ) is not None:
        order.append(woken)
        claim = world.claim(woken)
        assert claim.claimed
    assert order == ids[1:]
    world.check()


def test_waiter_that_asks_twice_waits_once(world: World) -> None:
    accept(world, "a", "b")
    world.claim("a")
    for _ in range(2):
        assert world.claim("b").result == "locked"
    assert waiters(world) == ["b"]


def test_waiting_refund_with_a_retry_to_come_is_woken_too(world: World) -> None:
    accept(world, "a", "b")
    world.attempt(NOT_DONE, "b")
    claim = world.claim("a")
    world.pass_time(MINUTE)
    assert world.claim("b").result == "locked"
    assert world.end(claim, REFUSED).woken == "b"
    assert world.claim("b").claimed


def test_canceled_waiter_is_passed_over(world: World) -> None:
    accept(world, "a", "b", "c")
    claim = world.claim("a")
    world.claim("b")
    world.claim("c")
    assert world.save(world.get("b"), decisions.cancel(world.get("b"))).result == "saved"
    assert world.end(claim, REFUSED).woken == "c"
    world.check()


def test_lapsed_claimant_keeps_the_payment_until_the_doubt_is_gone(world: World) -> None:
    accept(world, "a", "b")
    world.claim("a")
    world.pass_time(LEASE)
    assert world.claim("b").result == "locked"
    world.lapse("a")
    assert world.claim("b").result == "locked"
    refund = world.get("a")
    saved = world.save(refund, proofs.to_review({}, "inconclusive", "so"))
    assert saved.woken == "b"
    assert world.claim("b").claimed


def counter(world: World) -> int:
    return int(world.hash(f"payment:{PAYMENT}").get("seq", "0"))


def test_every_move_that_may_have_changed_a_total_raises_the_payments_counter(world: World) -> None:
    accept(world, "a", "b")
    counted = [counter(world)]
    claim = world.claim("a")
    counted.append(counter(world))
    world.end(claim, done_as("pending"))
    counted.append(counter(world))
    world.save(world.get("a"), proofs.done(world.get("a"), found(), "reply", world.now))
    counted.append(counter(world))
    shown = found(refund_id="a", status="failed")
    reversal = changed_by_provider(world.get("a"), shown, "list", NOW)
    assert reversal is not None
    world.save(world.get("a"), reversal)
    counted.append(counter(world))
    assert counted == [0, 1, 2, 3, 4]


def test_refund_of_which_nothing_was_sent_leaves_the_payments_counter_alone(world: World) -> None:
    accept(world, "a", "b")
    world.save(world.get("a"), decisions.cancel(world.get("a")))
    world.save(world.get("b"), attempts.refused_unsent(world.get("b"), "currency_mismatch", "no"))
    assert counter(world) == 0


@pytest.mark.parametrize("first", ["a", "b"])
def test_refund_that_a_person_has_sent_again_waits_for_the_one_in_flight_on_its_payment(
    world: World, first: str
) -> None:
    reviewed = at_stage(world, Stage.REVIEW, "a")
    world.accept("b")
    claim = world.claim("b")
    assert (
        world.save(reviewed, decisions.resolve_resend(reviewed, unverified=True)).result == "saved"
    )
    told = world.get("a")
    look = Readback(verdict=ReadbackVerdict.INCONCLUSIVE, reason="so")
    world.save(told, readback.after_readback(told, look, VERIFY, world.now, 0))
    world.check()
    believed = world.get("a")
    assert believed.proven_absent_at == world.now
    assert world.claim("a", "resend", version=believed.version).result == "locked"
    if first == "b":
        world.end(claim, REFUSED)
        assert world.claim("a", "resend", version=believed.version).claimed
    else:
        world.save(believed, proofs.done(believed, found(), "list", world.now))
        assert world.get("b").stage is Stage.SENDING
        assert world.hash(f"payment:{PAYMENT}")["lock"] == "b"
    world.check()


def test_refund_whose_resend_had_to_wait_wakes_the_waiter_and_not_itself(world: World) -> None:
    reviewed = at_stage(world, Stage.REVIEW, "a")
    accept(world, "b", "waiter")
    claim = world.claim("b")
    world.save(reviewed, decisions.resolve_resend(reviewed, unverified=True))
    look = Readback(verdict=ReadbackVerdict.INCONCLUSIVE, reason="so")
    world.save(world.get("a"), readback.after_readback(world.get("a"), look, VERIFY, world.now, 0))
    version = world.get("a").version
    assert world.claim("a", "resend", version=version).result == "locked"
    world.end(claim, REFUSED)
    assert world.claim("waiter").result == "locked"
    claim = world.claim("a", "resend", version=version)
    assert claim.claimed
    assert world.end(claim, replace(NOT_DONE, retry_after=HOUR)).woken == "waiter"
    assert world.get("a").next_check_at == world.now + HOUR


def test_waiter_is_woken_by_the_last_of_several_doubts_alone(world: World) -> None:
    accept(world, "a", "b", "waiter")
    for refund_id in ("a", "b"):
        refund = world.get(refund_id)
        step = decisions.recovered(refund, world.now, world.now)
        assert step is not None
        assert world.save(refund, step).result == "saved"
    assert world.claim("waiter").result == "locked"
    woken = []
    for refund_id in ("a", "b"):
        refund = world.get(refund_id)
        proof = proofs.done(refund, found(id=f"re_{refund_id}"), "list", world.now)
        woken.append(world.save(refund, proof).woken)
        world.check()
    assert woken == [None, "waiter"]
    assert world.claim("waiter").claimed


def test_lock_of_a_holder_that_is_gone_is_free(world: World) -> None:
    world.accept("a")
    world.redis.hset(f"refunds:payment:{PAYMENT}", "lock", "vanished")
    assert world.claim("a").claimed


def test_siblings_with_a_refund_of_the_provider_each_are_read_up_to_the_bound(
    world: World,
) -> None:
    for number in range(3):
        world.accept(f"sibling-{number}")
        world.attempt(done_as("succeeded", id=f"re_{number}"), f"sibling-{number}")
    world.accept("a")
    world.attempt(done_as("pending", id="re_a"), "a")
    assert len(world.store.run(reads.siblings(PAYMENT, "a", most=3)) or ()) == 3


def test_siblings_beyond_the_bound_are_not_read_at_all(world: World) -> None:
    for number in range(4):
        world.accept(f"sibling-{number}")
    world.accept("a")
    assert len(world.store.run(reads.siblings(PAYMENT, "a", most=4)) or ()) == 4
    assert world.store.run(reads.siblings(PAYMENT, "a", most=3)) is None
    # Far beyond it, not even the names are read.
    assert world.store.run(reads.siblings(PAYMENT, "a", most=0)) is None


@pytest.mark.parametrize(("fields", "read"), [(9, ()), (10, None)])
def test_payment_with_more_fields_than_its_siblings_may_have_is_not_read(
    world: World, fields: int, read: tuple[Refund, ...] | None
) -> None:
    """One sibling, the refund itself, two fields each, and five of the payment."""
    owners: dict[Any, Any] = {f"owner:re_{number}": "gone" for number in range(fields)}
    world.redis.hset(f"refunds:payment:{PAYMENT}", mapping=owners)
    assert world.store.run(reads.siblings(PAYMENT, "a", most=1)) == read


def test_waiter_looks_again_later_than_those_before_it(world: World) -> None:
    accept(world, "a", "b", "c", "d")
    world.claim("a")
    for refund_id in ("b", "c", "d"):
        world.claim(refund_id)
    looks_at = [world.get(refund_id).next_check_at for refund_id in ("a", "b", "c", "d")]
    begun = looks_at[0]
    assert begun is not None
    assert looks_at == [
        begun,
        begun,
        begun + timedelta(milliseconds=100),
        begun + timedelta(milliseconds=200),
    ]
    world.check()


def test_doubts_beside_the_lock_get_it_one_after_the_other_the_oldest_first(world: World) -> None:
    accept(world, "a", "b", "c")
    for refund_id in ("a", "b", "c"):
        world.attempt(MAYBE, refund_id, rules=BLIND)
    for refund_id in ("c", "b", "a"):
        refund = world.get(refund_id)
        assert world.save(refund, decisions.resolve_resend(refund)).result == "saved"
        world.check()
    holders = []
    for refund_id in ("c", "a", "b"):
        holders.append(world.hash(f"payment:{PAYMENT}")["lock"])
        refund = world.get(refund_id)
        world.save(
            refund,
            proofs.done(
                refund, found(id=f"re_{refund_id}", refund_id=refund_id), "list", world.now
            ),
        )
        world.check()
    assert holders == ["c", "a", "b"]
    assert "lock" not in world.hash(f"payment:{PAYMENT}")


def test_doubt_beside_the_lock_that_ends_first_leaves_the_lock_where_it_is(world: World) -> None:
    accept(world, "a", "b")
    for refund_id in ("a", "b"):
        world.attempt(MAYBE, refund_id, rules=BLIND)
        refund = world.get(refund_id)
    for refund_id in ("a", "b"):
        refund = world.get(refund_id)
        world.save(refund, decisions.resolve_resend(refund))
    refund = world.get("b")
    world.save(refund, proofs.done(refund, found(id="re_b", refund_id="b"), "list", world.now))
    assert world.hash(f"payment:{PAYMENT}")["lock"] == "a"
    world.check()


def test_refund_costs_the_server_the_same_however_many_its_payment_has(
    sync_redis: redis.Redis,
) -> None:
    world = World(sync_redis)
    world.accept("first", payment_intent="pi_first")
    world.attempt(done_as("succeeded"), "first")  # from here on the server knows every script
    costs = []
    for others in (1, 39):
        payment = f"pi_{others}"
        for number in range(others):
            world.accept(f"{payment}-{number}", payment_intent=payment)
        world.redis.config_resetstat()
        world.accept(f"{payment}-last", payment_intent=payment)
        world.attempt(done_as("succeeded", id=f"re_{payment}"), f"{payment}-last")
        stats: Any = world.redis.info("commandstats")
        costs.append({name: stat["calls"] for name, stat in stats.items()})
    assert costs[0] == costs[1]
    # Nor does one command read the whole payment.
    assert "cmdstat_hkeys" not in costs[1]


def test_siblings_are_our_other_refunds_of_the_payment(world: World) -> None:
    accept(world, "a", "b", "c")
    world.accept("elsewhere", payment_intent="pi_2")
    others = world.store.run(reads.siblings(PAYMENT, "b")) or ()
    assert sorted(refund.refund_id for refund in others) == ["a", "c"]
    assert world.get("a") in others
    assert world.store.run(reads.siblings("pi_none", "b")) == ()


def test_refund_named_like_one_of_the_providers_is_not_a_sibling_by_that(world: World) -> None:
    """The payment has a field `owner:re_1`."""
    for name in ("e_1", "re_1"):
        world.accept(name, payment_intent="pi_2")
    world.accept("a")
    world.attempt(done_as("succeeded", id="re_1"), "a")
    assert [one.refund_id for one in world.store.run(reads.siblings(PAYMENT, "b")) or ()] == ["a"]


def test_woken_row_of_a_file_is_swept_in_its_own_lane(world: World) -> None:
    world.accept("a")
    world.accept("b", lane=Lane.BULK)
    claim = world.claim("a")
    world.claim("b")
    assert world.end(claim, REFUSED).woken == "b"
    (due,) = world.sweep()
    assert (due.refund_id, due.lane, due.stage) == ("b", Lane.BULK, Stage.QUEUED)


def test_first_doubt_of_a_payment_does_not_delay_a_sibling_beyond_its_look(world: World) -> None:
    accept(world, "a", "b")
    world.attempt(MAYBE, "a", rules=VERIFY)
    world.claim("b")
    assert world.get("b").next_check_at == world.get("a").next_check_at
    assert world.now > NOW
