"""Claims, and what the rules say of their outcomes, for tests of saving."""

from __future__ import annotations

from tests.factories import (
    VERIFY,
)
from tests.support.store_world import ID, World
from worker.model.answers import Outcome, Readback, ReadbackVerdict
from worker.model.refund import Refund, Status
from worker.model.steps import Step
from worker.rules import attempts, readback
from worker.store.claims import Claim


def held(world: World, refund_id: str = ID) -> Claim:
    world.accept(refund_id)
    return world.claim(refund_id)


def settle_by_totals(world: World) -> None:
    """Two looks at the payment's total, a settle time apart, that show our amount."""
    for _ in range(2):
        refund = world.get()
        look = Readback(verdict=ReadbackVerdict.FOUND_IN_TOTALS, reason="so")
        assert (
            world.save(refund, readback.after_readback(refund, look, VERIFY, world.now, 0)).result
            == "saved"
        )
        world.pass_time(VERIFY.settle)
    assert (world.get().status, world.get().evidence) == (Status.SUCCEEDED, "totals")


def verdict(claim: Claim, outcome: Outcome, world: World) -> tuple[Refund, Step]:
    assert claim.refund is not None
    return claim.refund, attempts.after_attempt(claim.refund, outcome, VERIFY, world.now, 0)
