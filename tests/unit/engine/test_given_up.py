"""A refund that a person gave up ends as the provider shows it, and as failed once it is absent."""

from __future__ import annotations

import redis.asyncio

from tests.factories import refund_payload
from tests.unit.engine.deciding import bring_to_review, decided, look, posts, sources
from tests.unit.engine.shop import LIST, PAID, listing, opened, totals
from worker.model.refund import Stage, Status
from worker.rules import decisions


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
