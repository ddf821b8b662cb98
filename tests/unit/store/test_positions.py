"""Positions of claims: a server that forgot some grants none, until a person has recovered it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest

from tests.factories import HOUR, NOT_DONE, NOW, SECOND, done_as, found
from tests.support.store_world import World
from worker.errors import NotStorable
from worker.model.refund import Refund, Retriable, Stage
from worker.rules.rechecks import changed_by_provider
from worker.store import claims, flags, sweeps
from worker.store.claims import Claim
from worker.store.recovery import recover
from worker.store.store import Store

_NUMBERS = itertools.count()


def claimed(world: World, remembered: str = "") -> Claim:
    """Claim a refund of a payment of its own, as a worker that remembers a position."""
    number = next(_NUMBERS)
    world.accept(f"order-{number}", payment_intent=f"pi_{number}")
    return world.claim(f"order-{number}", remembered=lambda: remembered)


def copy_of(world: World) -> dict[str, Any]:
    """What a replica has."""
    return {name: world.redis.hgetall(f"refunds:{name}") for name in ("meta", "positions")}


def promote(world: World, copy: dict[str, Any]) -> None:
    """Go back to what the replica had, as far as positions are concerned."""
    for name, fields in copy.items():
        world.redis.delete(f"refunds:{name}")
        if fields:
            world.redis.hset(f"refunds:{name}", mapping=fields)


def behind_since(world: World) -> Any:
    return world.redis.hget("refunds:meta", "behind_since")


def test_each_claim_has_the_next_position_in_one_run(world: World) -> None:
    found = [claimed(world).position.split(":") for _ in range(3)]
    assert [counter for _, counter, _ in found] == ["1", "2", "3"]
    assert len({run for run, _, _ in found}) == 1
    assert len({mark for _, _, mark in found}) == 3


def test_server_that_has_what_is_remembered_grants_claims(world: World) -> None:
    remembered = claimed(world).position
    for _ in range(3):
        assert claimed(world, remembered).claimed
    assert claimed(world, claimed(world).position).claimed
    assert world.store.run(claims.position(remembered)) is None


def test_promoted_server_that_forgot_a_claim_grants_none_to_any_worker(world: World) -> None:
    claimed(world)
    replica = copy_of(world)
    remembered = claimed(world).position
    promote(world, replica)
    assert claimed(world, remembered).result == "behind"
    assert claimed(world).result == "behind"
    assert behind_since(world) is not None


def test_promoted_server_that_caught_up_by_others_claims_is_noticed(world: World) -> None:
    claimed(world)
    replica = copy_of(world)
    remembered = claimed(world).position
    promote(world, replica)
    for _ in range(3):
        assert claimed(world).claimed
    assert claimed(world, remembered).result == "behind"


def test_emptied_server_is_noticed_before_and_after_others_claim(world: World) -> None:
    remembered = claimed(world).position
    promote(world, {"meta": {}, "positions": {}})
    assert world.store.run(claims.position(remembered)) == NOW
    promote(world, {"meta": {}, "positions": {}})
    claimed(world)
    assert claimed(world, remembered).result == "behind"


def test_mark_that_later_claims_replaced_is_not_compared(world: World) -> None:
    remembered = claimed(world).position
    world.redis.hset("refunds:meta", "position", "8193")
    world.redis.hset("refunds:positions", "1", "8193:ffff")
    assert claimed(world, remembered).claimed


def test_emptied_server_is_noticed_after_so_many_claims_that_no_mark_is_left(world: World) -> None:
    remembered = claimed(world).position
    promote(world, {"meta": {}, "positions": {}})
    claimed(world)
    world.redis.hset("refunds:meta", "position", "8193")
    world.redis.hset("refunds:positions", "1", "8193:ffff")
    assert claimed(world, remembered).result == "behind"


def test_mark_takes_the_place_of_the_one_that_is_8192_claims_older(world: World) -> None:
    claimed(world)
    world.redis.hset("refunds:meta", "position", "8192")
    latest = claimed(world).position
    assert world.hash("positions") == {"1": latest.partition(":")[2]}


def test_claim_whose_position_cannot_be_kept_changes_nothing(world: World) -> None:
    world.accept("a")
    world.redis.set("refunds:positions", "text")
    world.store.run(claims.position(""))
    before = world.dump()
    with pytest.raises(NotStorable, match="a key of the records holds a value of another type"):
        world.claim("a")
    assert world.dump() == before


def test_idle_worker_stops_claims_too_and_finds_them_stopped(world: World) -> None:
    replica = copy_of(world)
    remembered = claimed(world).position
    promote(world, replica)
    assert world.store.run(claims.position("")) is None
    assert world.store.run(claims.position(remembered)) == NOW
    world.pass_time(timedelta(minutes=1))
    assert world.store.run(claims.position("")) == NOW
    assert claimed(world).result == "behind"


def test_claim_under_way_is_not_continued_on_a_server_that_forgot_others(world: World) -> None:
    claim = claimed(world)
    assert claim.refund is not None
    world.redis.hset("refunds:meta", "behind_since", "1")
    assert world.store.run(claims.stands(claim.refund.refund_id, claim.token)) == "behind"


def test_recovery_makes_every_worker_trust_the_server_again(world: World) -> None:
    replica = copy_of(world)
    remembered = [claimed(world).position for _ in range(3)]
    promote(world, replica)
    assert claimed(world, remembered[-1]).result == "behind"
    recover(world.store, NOW, resubmitted_for=timedelta(0))
    assert behind_since(world) is None
    world.redis.hdel("refunds:meta", "paused", "suspect_until")
    for position in remembered:
        assert claimed(world, position).claimed


def test_server_that_forgot_a_recovery_is_noticed(world: World) -> None:
    claimed(world)
    replica = copy_of(world)
    for _ in range(2):
        recover(world.store, NOW, resubmitted_for=timedelta(0))
    world.redis.hdel("refunds:meta", "paused", "suspect_until")
    remembered = claimed(world).position
    promote(world, replica)
    assert claimed(world, remembered).result == "behind"


def test_recovery_puts_every_refund_in_doubt_while_workers_sweep(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.store.store.PAGE", 3)
    ids = [f"order-{number}" for number in range(12)]
    for refund_id in ids:
        world.accept(refund_id, payment_intent=f"pi-{refund_id}")
    world.pass_time(sweeps.NUDGE_GRACE)
    ask: Any = world.redis.execute_command

    def asked(*command: Any, **options: Any) -> Any:
        reply = ask(*command, **options)
        if command[:2] == ("ZRANGE", "refunds:index:queued"):
            # What is due is nudged again in a while: that puts it behind the others.
            world.sweep(2)
        return reply

    monkeypatch.setattr(world.redis, "execute_command", asked)
    recover(world.store, NOW, resubmitted_for=timedelta(0))
    assert {each: world.get(each).stage for each in ids} == dict.fromkeys(ids, Stage.IN_DOUBT)


def test_recovery_puts_a_refund_in_doubt_that_a_worker_moves_meanwhile(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.accept()
    claim = world.claim()
    world.pass_time(sweeps.NUDGE_GRACE)
    read = world.store.get_many

    def read_before_a_move(ids: Sequence[str]) -> list[Refund | None]:
        found = read(ids)
        if found[0] is not None and found[0].stage is Stage.SENDING:
            world.end(claim, NOT_DONE)
        return found

    monkeypatch.setattr(world.store, "get_many", read_before_a_move)
    recovered = recover(world.store, NOW, resubmitted_for=timedelta(0))
    assert (world.get().stage, recovered.doubted) == (Stage.IN_DOUBT, 1)
    assert world.get().version == 4


def test_recovery_puts_a_refund_in_doubt_that_is_accepted_at_its_begin(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_before_a_submission(_: Store) -> datetime:
        now = world.now
        world.pass_time(timedelta(milliseconds=1))
        world.accept()
        return now

    monkeypatch.setattr(flags, "now", read_before_a_submission)
    recover(world.store, NOW, resubmitted_for=HOUR)
    assert world.get().stage is Stage.IN_DOUBT


def test_recovery_notes_that_a_pending_refund_may_have_failed_and_been_retried(
    world: World,
) -> None:
    world.accept()
    world.end(world.claim(), done_as("pending"))
    assert world.get().stage is Stage.PROCESSING
    world.pass_time(timedelta(seconds=1))
    assert recover(world.store, NOW, resubmitted_for=timedelta(0)).doubted == 0
    assert (world.get().stage, world.get().retry_may_be_lost) == (Stage.PROCESSING, True)


@pytest.mark.parametrize("succeeded_before", [True, False])
def test_success_of_before_a_recovery_may_have_been_reversed_and_retried_since_the_snapshot(
    world: World, monkeypatch: pytest.MonkeyPatch, *, succeeded_before: bool
) -> None:
    monkeypatch.setattr(flags, "now", lambda _: world.now)

    def recovered() -> None:
        recover(world.store, NOW, resubmitted_for=timedelta(0))
        world.redis.hdel("refunds:meta", "paused")

    if not succeeded_before:
        recovered()
        world.pass_time(SECOND)
    world.accept()
    world.attempt(done_as())
    if succeeded_before:
        recovered()
    for status in ("failed", "succeeded", "failed"):
        world.pass_time(SECOND)
        step = changed_by_provider(world.get(), found(status=status), "lookup", world.now)
        assert step is not None
        assert world.save(world.get(), step).result == "saved"
    retriable = Retriable.NO if succeeded_before else Retriable.UNKNOWN
    assert (world.get().retriable, world.get().retry_may_be_lost) == (retriable, succeeded_before)


@pytest.mark.parametrize(
    ("remembered", "words"),
    [
        ("1", "the remembered position cannot be read"),
        ("0-a:1", "the remembered position cannot be read"),
        ("0-a:x:b", "the remembered position cannot be read"),
        ("0-a:1000000000000000:b", "the remembered counter 1000000000000000 is not a whole number"),
    ],
)
def test_position_that_cannot_be_read_changes_nothing(
    world: World, remembered: str, words: str
) -> None:
    with pytest.raises(NotStorable, match=words):
        world.store.run(claims.position(remembered))
    assert behind_since(world) is None
