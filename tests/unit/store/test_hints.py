"""Webhooks in the records: which refund they make due, and what is noted on it.

An event never changes a status, and holds a send back until the named refund was read.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.factories import (
    HOUR,
    MAYBE,
    PAYMENT,
    SECOND,
    a_request,
    done_as,
)
from tests.support.store_world import ID, P, World, at_stage
from tests.unit.store.hinting import MS, NAMED, due, hint
from worker.errors import NotCancelable
from worker.model.hints import Hint
from worker.model.refund import Lane, Stage, Status
from worker.model.steps import Step
from worker.model.times import to_ms
from worker.rules import attempts, decisions, proofs
from worker.rules.rechecks import identified
from worker.store import claims, reads, rechecks
from worker.store.rechecks import Hinted


def test_event_about_an_unsent_refund_makes_it_due_and_no_claim_is_granted(world: World) -> None:
    world.accept()
    assert hint(world) == due(world, Stage.QUEUED)
    refund = world.get()
    assert (refund.candidates, refund.version, refund.next_check_at) == (("re_9",), 1, world.now)
    assert world.claim().result == "unchecked"
    assert world.swept() == [ID]
    world.check()


@pytest.mark.parametrize("stage", [Stage.SENDING, Stage.IN_DOUBT, Stage.SETTLED])
def test_refund_that_only_a_reply_ties_to_ours_is_kept_once_like_that_of_an_earlier_generation(
    world: World, stage: Stage
) -> None:
    at_stage(world, stage)
    world.redis.hset(f"{P}refund:{ID}", "prior_refund_ids", "re_8")
    for _ in range(2):
        world.store.run(rechecks.hint(NAMED, is_kept=True))
        assert (world.get().prior_ids, world.get().ids_named) == (("re_8", "re_9"), ("re_9",))


@pytest.mark.parametrize("stage", [Stage.QUEUED, Stage.WAITING])
def test_cancel_that_was_decided_before_an_event_named_a_refund_is_decided_again(
    world: World, stage: Stage
) -> None:
    """Otherwise the caller hears that nothing was sent, and the next read shows that it was."""
    at_stage(world, stage)
    before = world.get()
    step = decisions.cancel(before)
    hint(world)
    hinted = world.get()
    assert world.save(before, step).result == "stale"
    assert world.get() == hinted
    with pytest.raises(NotCancelable, match="may exist at the provider as re_9"):
        decisions.cancel(hinted)
    world.check()


def test_review_that_a_person_ended_before_an_event_named_a_refund_is_decided_again(
    world: World,
) -> None:
    world.accept()
    claimed = world.claim().refund
    assert claimed is not None
    step = Step(to=Stage.REVIEW, status=Status.PENDING, label="asked", delay=HOUR)
    assert world.save(claimed, step).result == "saved"
    before = world.get()
    ended = decisions.resolve_failed(before, "not_wanted")
    assert ended.to is Stage.SETTLED
    hint(world)
    assert world.save(before, ended).result == "stale"
    assert decisions.resolve_failed(world.get(), "not_wanted").to is Stage.WAITING
    world.check()


@pytest.mark.parametrize("kind", ["replay", "resend"])
def test_event_about_a_refund_in_doubt_makes_it_due_and_no_claim_is_granted(
    world: World, kind: claims.ClaimKind
) -> None:
    world.accept()
    world.attempt(MAYBE)
    assert world.get().next_check_at != world.now
    assert hint(world) == due(world, Stage.IN_DOUBT)
    world.redis.hset(f"refunds:refund:{ID}", "proven_absent_at", str(to_ms(world.now)))
    assert world.get().next_check_at == world.now
    assert world.claim(kind=kind).result == "unchecked"
    world.check()


def test_event_during_an_attempt_is_noted_and_forbids_a_further_try(world: World) -> None:
    world.accept()
    claim = world.claim()
    assert world.store.run(claims.stands(ID, claim.token)) == ""
    assert hint(world) == Hinted(result="hinted")
    assert world.store.run(claims.stands(ID, claim.token)) == "hinted"
    world.end(claim, MAYBE)
    assert (world.get().stage, world.get().candidates) == (Stage.IN_DOUBT, ("re_9",))
    world.check()


def test_event_before_the_reply_is_over_with_the_reply_that_names_the_same_refund(
    world: World,
) -> None:
    world.accept()
    claim = world.claim()
    hint(world)
    world.end(claim, done_as("succeeded", id="re_9"))
    assert (world.get().status, world.get().hinted, world.get().hints_used) == (
        Status.SUCCEEDED,
        None,
        None,
    )
    assert world.keys("rechecks") == []
    world.check()


@pytest.mark.parametrize("status", ["succeeded", "failed", "canceled"])
@pytest.mark.parametrize(
    ("fields", "again"),
    [
        ({"hints_used": "re_9"}, ("re_9",)),
        ({"hints_used": "re_9", "hinted": "re_8"}, ("re_8", "re_9")),
        # Its own, and those of earlier generations, are read in any case.
        ({"hints_used": "re_1 re_7? re_8 re_9?", "prior_refund_ids": "re_8"}, ("re_7", "re_9")),
    ],
)
def test_what_webhooks_named_before_a_late_proof_is_read_again_before_a_retry(
    world: World, fields: dict[Any, Any], again: tuple[str, ...], status: str
) -> None:
    world.accept()
    claim = world.claim()
    world.redis.hset(f"{P}refund:{ID}", mapping=fields)
    world.end(claim, done_as(status))
    assert (world.get().status, world.get().candidates) == (status, again)
    assert world.hash(f"refund:{ID}")["hints_used"] == fields["hints_used"]
    assert world.score("rechecks", ID) == world.now
    world.check()


def test_what_webhooks_named_is_not_kept_once_its_own_refund_alone_was_named(world: World) -> None:
    world.accept()
    claim = world.claim()
    world.redis.hset(f"{P}refund:{ID}", "hints_used", "re_1?")
    world.end(claim, done_as())
    assert not {"hinted", "hints_used"} & world.hash(f"refund:{ID}").keys()
    assert world.keys("rechecks") == []


def test_refund_named_before_the_reply_is_still_to_be_read_if_the_reply_shows_another(
    world: World,
) -> None:
    world.accept()
    claim = world.claim()
    hint(world)
    world.end(claim, done_as("succeeded", id="re_1"))
    assert world.get().candidates == ("re_9",)
    assert [(one.refund_id, one.lane, one.stage) for one in world.sweep()] == [
        (ID, Lane.BULK, None)
    ]
    world.check()


def test_what_a_person_gave_up_is_named_no_more_and_is_not_stored(world: World) -> None:
    world.accept()
    world.attempt(MAYBE)
    hint(world)
    decided = Step(
        to=Stage.IN_DOUBT,
        status=Status.PENDING,
        label="operator_says_absent",
        changes={"hints_dropped": world.get().hinted},
    )
    # Named only after the person decided, so it is still to be read.
    hint(world, replace(NAMED, provider_refund_id="re_8"))
    assert world.save(world.get(), decided).result == "saved"
    stored = world.hash(f"refund:{ID}")
    assert (stored["hinted"], "hints_dropped" in stored) == ("re_8", False)
    world.check()


def test_event_about_a_pending_refund_makes_its_next_poll_due(world: World) -> None:
    world.accept()
    world.attempt(done_as("pending", id="re_9"))
    assert hint(world) == due(world, Stage.PROCESSING)
    assert (world.get().hinted, world.get().next_check_at) == (None, world.now)
    world.check()


def test_event_about_a_settled_refund_makes_it_due_once_in_half_a_minute(world: World) -> None:
    world.accept()
    world.attempt(done_as("succeeded", id="re_9"))
    before = world.get()
    assert hint(world) == due(world, Stage.SETTLED)
    assert world.get() == before
    assert world.swept() == [ID]
    second = world.now + rechecks.REST + MS
    for _ in range(29):
        world.pass_time(SECOND)
        # The next one is read half a minute after the first: what it reports is not lost.
        assert hint(world).due == ()
        assert world.score("rechecks", ID) == second
    for _ in range(40):
        # What is due is not put off by further events.
        world.pass_time(SECOND)
        hint(world)
    assert world.swept() == [ID]
    assert world.swept() == []
    world.check()


def test_refund_is_found_by_its_provider_id_if_the_event_does_not_name_ours(world: World) -> None:
    world.accept()
    world.attempt(done_as("succeeded", id="re_9"))
    assert hint(world, Hint(provider_refund_id="re_9")) == due(world, Stage.SETTLED)


@pytest.mark.parametrize(
    "named",
    [
        Hint(provider_refund_id="re_9", refund_id=ID, payment_intent="pi_other"),
        Hint(provider_refund_id="re_9", refund_id="other", payment_intent="pi_other"),
        Hint(provider_refund_id="re_9"),
        Hint(),
    ],
)
def test_event_that_concerns_nothing_here_changes_nothing(world: World, named: Hint) -> None:
    world.accept()
    before = world.dump()
    assert hint(world, named) == Hinted(result="unknown")
    assert world.dump() == before


def test_event_about_a_refund_whose_record_is_gone_is_unknown(world: World) -> None:
    world.accept()
    world.attempt(done_as("succeeded", id="re_9"))
    world.redis.delete(f"{P}refund:{ID}")
    assert hint(world, Hint(provider_refund_id="re_9")) == Hinted(result="unknown")


def test_event_that_names_only_the_payment_makes_its_doubts_due(world: World) -> None:
    for number, refund_id in enumerate(("doubt", "queued", "review", "done")):
        world.accept(a_request(refund_id, amount=500 + number))
    world.attempt(done_as("succeeded", id="re_1"), "done")
    world.attempt(MAYBE, "doubt")
    step = proofs.to_review({}, "no_readback", "so")
    claimless = world.get("review")
    world.save(claimless, step)
    found = hint(world, Hint(provider_refund_id="re_9", payment_intent=PAYMENT))
    assert found.result == "payment"
    assert {(one.refund_id, one.stage) for one in found.due} == {
        ("doubt", Stage.IN_DOUBT),
        ("review", Stage.REVIEW),
    }
    assert world.get("queued").candidates == world.get("done").candidates == ()
    world.check()


@pytest.mark.parametrize(("status", "is_read"), [("succeeded", False), ("failed", True)])
def test_event_that_agrees_with_the_record_needs_no_read(
    world: World, status: str, *, is_read: bool
) -> None:
    world.accept()
    world.attempt(done_as("succeeded", id="re_9"))
    found = hint(world, replace(NAMED, status=status))
    assert (found.result, bool(found.due)) == ("hinted", is_read)
    assert (world.score("rechecks", ID) is not None) is is_read


def test_retry_with_an_earlier_provider_refund_is_claimed_only_after_that_was_read(
    world: World,
) -> None:
    world.accept()
    world.attempt(done_as("failed", id="re_1"))
    step = decisions.retry_failed(world.get())
    assert step is not None
    world.save(world.get(), step)
    assert world.get().prior_ids == ("re_1",)
    for read_at in (None, world.now - attempts.VERDICT_LIFE - SECOND, world.now + SECOND):
        assert world.claim(prior_read_at=read_at).result == "unchecked"
    assert world.claim(prior_read_at=world.now - attempts.VERDICT_LIFE).claimed
    assert "prior_read_at" not in world.hash(f"refund:{ID}")
    world.check()


def test_event_about_a_refund_that_has_just_settled_is_not_lost_with_the_poll_it_hastened(
    world: World,
) -> None:
    world.accept()
    world.attempt(done_as("pending", id="re_9"))
    hint(world)
    world.pass_time(SECOND)
    pending = world.get()
    later = Step(to=Stage.PROCESSING, status=pending.status, label="x", delay=6 * HOUR, quiet=True)
    assert world.save(pending, later).result == "saved"
    # The next poll is due half a minute after the first event. A poll before that settles it.
    hint(world)
    at = world.get().next_check_at
    shown = done_as("succeeded", id="re_9").found
    assert shown is not None
    world.save(world.get(), proofs.done(world.get(), shown, "lookup", world.now))
    assert (world.get().status, world.keys("rechecks")) == (Status.SUCCEEDED, [])
    world.pass_time(SECOND)
    assert hint(world, replace(NAMED, status="failed")).due == ()
    assert world.score("rechecks", ID) == at
    world.check()


def test_event_that_comes_while_a_refund_learns_its_id_is_not_forgotten(world: World) -> None:
    world.accept()
    world.attempt(done_as("succeeded", id="re_9"))
    world.redis.hdel(f"refunds:refund:{ID}", "provider_refund_id")
    hint(world)
    recheck = world.store.run(reads.load(ID)).recheck
    world.pass_time(SECOND)
    hint(world, replace(NAMED, status="failed"))
    shown = done_as("succeeded", id="re_9").found
    assert shown is not None
    step = identified(world.get(), shown)
    assert step is not None
    assert world.save(world.get(), step).result == "saved"
    world.store.run(rechecks.rechecked(ID, answered=True, recheck=recheck, read=["re_9"]))
    assert (world.get().hinted, world.swept()) == (None, [ID])
