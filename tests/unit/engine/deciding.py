"""What the tests of a person's decisions share: a refund in review, the decision, and the worker's
read-backs after it.
"""

from __future__ import annotations

from typing import Any

import httpx

from tests.factories import HOUR
from tests.unit.engine.shop import PAID, POST, Shop, says, totals
from worker.model.refund import Refund, Stage
from worker.model.steps import Step
from worker.rules import proofs
from worker.store import saves


async def decided(shop: Shop, step: Step) -> None:
    """Save what a person has decided."""
    saved = await shop.store.run(saves.save(await shop.stored(), step, {"note": "so"}))
    assert saved.result == "saved"


async def bring_to_review(shop: Shop, **changes: Any) -> Refund:
    """A refund whose reply was cut, and that waits for a person long after."""
    await shop.accept()
    shop.provider.will(POST, httpx.ReadError("reset"), says())
    if shop.rules.wants_baseline:
        shop.provider.will(PAID, totals(0))
    await shop.handle()
    refund = await shop.stored()
    if refund.stage is not Stage.REVIEW:
        await decided(shop, proofs.to_review(changes, "inconclusive", "it cannot be told"))
    shop.pass_time(HOUR)
    return await shop.stored()


async def look(shop: Shop, times: int = 1) -> Refund:
    """Let a worker look so many times, each when it is due."""
    for _ in range(times):
        refund = await shop.stored()
        if (
            refund.next_check_at is not None
            and refund.next_check_at > shop.now
            and refund.stage is not Stage.REVIEW
        ):
            shop.pass_time(refund.next_check_at - shop.now)
        await shop.handle()
    return await shop.stored()


def posts(shop: Shop) -> int:
    return shop.provider.asked.count(POST)


async def sources(shop: Shop) -> list[tuple[str, str | None, str | None]]:
    """Label, source and person of every move."""
    return [
        (entry["label"], entry.get("source"), entry.get("by")) for entry in await shop.history()
    ]
