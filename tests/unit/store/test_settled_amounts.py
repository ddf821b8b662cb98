"""What the caller asked for is known of a refund that settled with another amount."""

from __future__ import annotations

import pytest

from tests.factories import BLIND, a_reply, found, refund_payload
from tests.support.saving import held
from tests.support.store_world import ID, World
from tests.unit.store.test_contradicted import FAILED, contradict
from worker.errors import NotRetriable
from worker.model.refund import Stage, Status
from worker.rules import contradictions, decisions, polls, proofs, rechecks


def settle_with_another_amount(world: World, refund_id: str) -> None:
    """A person names another refund of the provider, and insists on it whatever its amount is."""
    refund = contradict(world, world.get(), refund_id)
    world.save(refund, contradictions.ended(refund, refund_id, world.now, "me"))
    poll(world, refund_id)
    if (refund := world.get()).stage is Stage.REVIEW:
        insists = decisions.resolve_succeeded(refund, refund_id, world.now, unverified=True)
        world.save(refund, insists)
        poll(world, refund_id)
    settled = world.get()
    assert (settled.stage, settled.amount) == (Stage.SETTLED, 1)


def poll(world: World, refund_id: str) -> None:
    answer = a_reply(payload=refund_payload(id=refund_id, amount=1))
    refund = world.get()
    world.save(refund, polls.after_poll(refund, answer, world.now, 0))


def fail_at_the_provider(world: World, refund_id: str) -> None:
    refund = world.get()
    failed = found(id=refund_id, amount=1, status="failed")
    step = rechecks.changed_by_provider(refund, failed, "lookup", world.now)
    assert step is not None
    assert world.save(refund, step).result == "saved"


@pytest.mark.parametrize("times", [1, 2])
def test_refund_that_settled_with_another_amount_is_still_what_was_asked(
    world: World, times: int
) -> None:
    world.accept()
    asked = world.get().fingerprint
    world.attempt(FAILED)
    for number in range(times):
        settle_with_another_amount(world, f"re_{number}")
        fail_at_the_provider(world, f"re_{number}")
    refund = world.get()
    assert (refund.status, refund.fingerprint) == (Status.FAILED, asked)
    assert not refund.can_be_made_again
    assert world.accept().result == "exists"
    assert world.accept(amount=1).result == "conflict"
    with pytest.raises(NotRetriable):
        decisions.retry_one(refund, unknown=True)


def test_late_proof_without_an_amount_is_of_the_amount_that_was_sent(world: World) -> None:
    claim = held(world)
    assert claim.refund is not None
    asked = claim.refund
    world.lapse(ID, BLIND)
    reviewed = world.get()
    insists = decisions.resolve_succeeded(reviewed, "re_other", world.now, unverified=True)
    world.save(reviewed, insists)
    poll(world, "re_other")
    assert (world.get().stage, world.get().amount) == (Stage.SETTLED, 1)
    refund = contradict(world, world.get(), "re_late")
    world.save(refund, contradictions.ended(refund, "re_late", world.now, "me"))
    proof = proofs.done(asked, found(id="re_late", amount=None), "reply", world.now)
    assert world.save(asked, proof).result == "saved"
    refund = world.get()
    assert (refund.stage, refund.amount) == (Stage.SETTLED, asked.amount)
    assert refund.fingerprint == asked.fingerprint
