"""Webhooks in the records, as the tests of them hand one over."""

from __future__ import annotations

from datetime import timedelta

from tests.factories import PAYMENT
from tests.support.store_world import ID, World
from worker.model.hints import Hint
from worker.model.refund import Lane, Stage
from worker.store import rechecks
from worker.store.rechecks import Hinted
from worker.store.sweeps import Due

NAMED = Hint(provider_refund_id="re_9", refund_id=ID, payment_intent=PAYMENT)
MS = timedelta(milliseconds=1)


def hint(world: World, hint: Hint = NAMED) -> Hinted:
    return world.store.run(rechecks.hint(hint))


def due(world: World, stage: Stage, refund_id: str = ID) -> Hinted:
    lane = Lane.BULK if stage is Stage.SETTLED else world.get(refund_id).lane
    return Hinted(result="hinted", due=(Due(refund_id=refund_id, lane=lane, stage=stage),))
