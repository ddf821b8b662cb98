"""Refunds that change after they have settled, to or from succeeded, are noted by when they did."""

from __future__ import annotations

from datetime import timedelta

from tests.factories import done_as, found
from tests.support.store_world import ID, World
from worker.rules import decisions, proofs
from worker.rules.rechecks import changed_by_provider, identified

DAY = timedelta(days=1)
NAME = "settled-again"


def turn(world: World, status: str) -> None:
    refund = world.get()
    shown = found(status=status, generation=str(refund.generation))
    step = changed_by_provider(refund, shown, "lookup", world.now)
    assert step is not None
    assert world.save(refund, step).result == "saved"


def test_refund_that_settles_once_is_not_noted(world: World) -> None:
    world.accept()
    world.attempt(done_as("succeeded"))
    assert world.keys(NAME) == []


def test_reversal_and_its_opposite_are_noted_at_their_time(world: World) -> None:
    world.accept()
    world.attempt(done_as("succeeded"))
    for status in ("failed", "succeeded"):
        world.pass_time(DAY)
        turn(world, status)
        assert world.score(NAME, ID) == world.now
    world.check()


def test_refund_that_learns_its_id_is_noted(world: World) -> None:
    world.accept()
    world.attempt(done_as("succeeded"))
    world.redis.hdel(f"refunds:refund:{ID}", "provider_refund_id")
    world.pass_time(DAY)
    step = identified(world.get(), found(id="re_9"))
    assert step is not None
    world.save(world.get(), step)
    assert world.score(NAME, ID) == world.now


def test_failed_refund_that_is_retried_is_not_noted(world: World) -> None:
    world.accept()
    world.attempt(done_as("failed", id="re_1"))
    world.save(world.get(), decisions.retry_one(world.get(), unknown=True))
    world.attempt(done_as("succeeded", id="re_2", generation="2"))
    assert world.keys(NAME) == []


def test_retried_refund_still_tells_what_was_asked_if_it_ends_with_another_amount(
    world: World,
) -> None:
    """A person may insist on a refund of another amount; the same request is then a repeat."""
    world.accept()
    asked = world.get().fingerprint
    world.attempt(done_as("failed", id="re_1"))
    assert world.redis.hget(f"refunds:refund:{ID}", "fingerprint") is None
    world.save(world.get(), decisions.retry_one(world.get(), unknown=True))
    claimed = world.claim(prior_read_at=world.now).refund
    assert claimed is not None
    other = found(id="re_2", generation="2", amount=1)
    assert world.save(claimed, proofs.done(claimed, other, "operator", world.now)).result == "saved"
    assert (world.get().amount, world.get().fingerprint) == (1, asked)
    assert world.redis.hget(f"refunds:refund:{ID}", "fingerprint") == asked


def test_refund_with_another_amount_still_tells_what_was_asked_after_the_provider_turned_it(
    world: World,
) -> None:
    """The same request stays a repeat, and one of the other amount a conflict."""
    world.accept()
    asked = world.get().fingerprint
    claimed = world.claim().refund
    assert claimed is not None
    other = found(id="re_1", amount=1)
    world.save(claimed, proofs.done(claimed, other, "operator", world.now))
    failed = found(id="re_1", amount=1, status="failed")
    turned = changed_by_provider(world.get(), failed, "lookup", world.now)
    assert turned is not None
    assert world.save(world.get(), turned).result == "saved"
    assert (world.get().status, world.get().fingerprint) == ("failed", asked)
    assert world.accept().result == "exists"
    assert world.accept(amount=1).result == "conflict"


def test_retry_of_a_reversed_refund_keeps_the_time_of_the_reversal(world: World) -> None:
    world.accept()
    world.attempt(done_as("succeeded"))
    turn(world, "failed")
    noted = world.now
    world.pass_time(DAY)
    world.save(world.get(), decisions.retry_one(world.get(), unknown=True))
    assert world.score(NAME, ID) == noted


def test_notes_are_removed_once_their_records_have_expired(world: World) -> None:
    world.redis.zadd(f"refunds:{NAME}", {"gone": 0, "kept": world.now.timestamp() * 1000})
    world.accept()
    world.attempt(done_as("succeeded"))
    turn(world, "failed")
    assert [world.score(NAME, name) is None for name in ("gone", "kept", ID)] == [
        True,
        False,
        False,
    ]


def test_key_of_another_type_stops_no_move(world: World) -> None:
    world.redis.set(f"refunds:{NAME}", "odd")
    world.accept()
    world.attempt(done_as("succeeded"))
    turn(world, "failed")
    assert world.get().status == "failed"
