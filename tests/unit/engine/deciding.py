"""What the tests of a person's decisions share: a refund in review, the decision, and the worker's
read-backs after it.
"""

from __future__ import annotations

from typing import Any

import httpx
import redis.asyncio

from tests.factories import HOUR, refund_payload
from tests.unit.engine.shop import LIST, PAID, POST, Shop, listing, opened, says, totals
from worker.model.refund import Refund, Stage, Status
from worker.model.steps import Step
from worker.rules import attempts, decisions
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
        await decided(shop, attempts.to_review(changes, "inconclusive", "it cannot be told"))
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


async def test_a_refund_that_a_person_gave_up_is_succeeded_where_the_provider_shows_it(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        refund = await bring_to_review(shop)
        await decided(shop, decisions.resolve_failed(refund, "paid_in_cash", by="ann"))
        shop.provider.will(LIST, listing(refund_payload()))
        refund = await look(shop)
        assert (refund.status, refund.provider_refund_id, refund.evidence) == (
            Status.SUCCEEDED,
            "re_1",
            "list",
        )
        assert (await sources(shop))[-2:] == [
            ("operator_says_failed", "operator", "ann"),
            ("succeeded", "list", None),
        ]
        assert posts(shop) == 1


async def test_a_refund_that_a_person_gave_up_is_failed_once_it_is_proven_absent(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        refund = await bring_to_review(shop)
        await decided(shop, decisions.resolve_failed(refund, "paid_in_cash", by="ann"))
        shop.provider.will(LIST, listing())
        shop.provider.will(PAID, totals(0))
        assert (await look(shop)).stage is Stage.IN_DOUBT
        refund = await look(shop)
        assert (refund.stage, refund.status, refund.error_code) == (
            Stage.SETTLED,
            Status.FAILED,
            "paid_in_cash",
        )
        assert (refund.evidence, refund.retriable, refund.operator_by) == ("list", "no", None)
        assert (await sources(shop))[-2:] == [
            ("absent", "list", None),
            ("operator_says_failed", "list", "ann"),
        ]
        assert posts(shop) == 1
