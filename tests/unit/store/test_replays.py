"""Claims to send again: a replay within the key's window, and a resend after proven absence."""

from __future__ import annotations

from datetime import timedelta

from tests.factories import (
    HOUR,
    MAYBE,
    MINUTE,
    NOW,
    SECOND,
    TRUST,
    VERIFY,
    a_request,
)
from tests.support.store_world import World, at_stage
from worker.model.answers import Readback, ReadbackVerdict
from worker.model.refund import Refund, Stage
from worker.model.request import request_body
from worker.rules import readback
from worker.rules.attempts import VERDICT_LIFE

ABSENT = Readback(verdict=ReadbackVerdict.ABSENT, reason="so")


def proven_absent(world: World) -> Refund:
    """A refund in doubt, by two looks a settle time apart proven absent just now."""
    at_stage(world, Stage.IN_DOUBT)
    for _ in range(2):
        world.pass_time(VERIFY.settle)
        refund = world.get()
        world.save(refund, readback.after_readback(refund, ABSENT, VERIFY, world.now, 0))
    refund = world.get()
    assert refund.proven_absent_at == world.now
    return refund


def test_replay_sends_the_same_bytes_and_the_doubt_stays(world: World) -> None:
    refund = at_stage(world, Stage.IN_DOUBT)
    world.pass_time(MINUTE)
    claim = world.claim(kind="replay")
    assert claim.claimed
    assert claim.body == request_body(a_request(), 1)
    assert claim.refund is not None
    assert (claim.refund.doubt_since, claim.refund.attempts, claim.refund.resends) == (
        refund.doubt_since,
        2,
        0,
    )
    assert claim.refund.idempotency_key == refund.idempotency_key


def test_replay_waits_for_its_time(world: World) -> None:
    at_stage(world, Stage.IN_DOUBT)
    assert world.claim(kind="replay").result == "early"


def test_replay_window_is_judged_by_the_servers_clock_from_the_first_attempt(world: World) -> None:
    at_stage(world, Stage.IN_DOUBT)
    window = timedelta(hours=22)
    world.store.now = NOW + window
    before = world.dump()
    assert (
        world.claim(kind="replay", replay_window=window - timedelta(milliseconds=1)).result
        == "window"
    )
    assert world.dump() == before
    assert world.claim(kind="replay", replay_window=window).claimed


def test_replays_do_not_move_the_window(world: World) -> None:
    at_stage(world, Stage.IN_DOUBT)
    for _ in range(3):
        world.pass_time(HOUR)
        world.attempt(MAYBE, kind="replay", rules=TRUST)
    assert world.get().first_attempt_at == NOW
    world.pass_time(HOUR)
    assert world.claim(kind="replay", replay_window=4 * HOUR - SECOND).result == "window"


def test_resend_after_proven_absence_clears_the_doubt_and_counts(world: World) -> None:
    refund = proven_absent(world)
    claim = world.claim(kind="resend", version=refund.version)
    assert claim.claimed
    after = world.get()
    assert (after.stage, after.resends, after.attempts) == (Stage.SENDING, 1, 2)
    assert (after.doubt_since, after.absent_at, after.proven_absent_at, after.quiet_at) == (
        None,
    ) * 4
    assert (after.idempotency_key, after.generation) == (refund.idempotency_key, 1)
    assert claim.body == request_body(a_request(), 1)
    world.check()


def test_verdict_of_absence_ages_by_the_servers_clock(world: World) -> None:
    refund = proven_absent(world)
    world.pass_time(VERDICT_LIFE)
    before = world.dump()
    assert world.claim(kind="resend", version=refund.version).claimed
    world.restore(before)
    world.pass_time(timedelta(milliseconds=1))
    assert world.claim(kind="resend", version=refund.version).result == "verdict"
    assert world.dump() == before


def test_resend_without_a_verdict_is_refused(world: World) -> None:
    refund = at_stage(world, Stage.IN_DOUBT)
    assert world.claim(kind="resend", version=refund.version).result == "verdict"


def test_resend_rests_on_the_version_at_which_absence_was_proven(world: World) -> None:
    refund = proven_absent(world)
    assert world.claim(kind="resend", version=refund.version - 1).result == "stale"


def test_look_that_can_no_longer_tell_takes_the_verdict_back(world: World) -> None:
    refund = proven_absent(world)
    look = Readback(verdict=ReadbackVerdict.INCONCLUSIVE, reason="so")
    assert (
        world.save(refund, readback.after_readback(refund, look, VERIFY, world.now, 0)).result
        == "saved"
    )
    assert world.claim(kind="resend", version=refund.version).result == "verdict"


def test_resend_is_not_claimed_twice_on_one_verdict(world: World) -> None:
    refund = proven_absent(world)
    world.attempt(MAYBE, kind="resend", version=refund.version)
    world.pass_time(SECOND)
    assert world.claim(kind="resend", version=refund.version).result == "stale"
    assert world.claim(kind="resend").result == "verdict"
