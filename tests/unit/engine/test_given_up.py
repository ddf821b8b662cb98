"""A refund that a person gave up ends as the provider shows it, and as failed once it is absent."""

from __future__ import annotations

import httpx
import redis.asyncio

from tests.factories import refund_payload
from tests.unit.engine.deciding import bring_to_review, decided, look, posts, sources
from tests.unit.engine.rereads import NAMED, OWN, failed_and_retried, hint
from tests.unit.engine.shop import LIST, PAID, Answer, Shop, error, listing, opened, says, totals
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


# A webhook names a refund of the provider during the last read


def named_meanwhile(shop: Shop, answer: httpx.Response) -> Answer:
    """An answer during which a webhook names a refund."""

    async def answered(_: httpx.Request) -> httpx.Response:
        await hint(shop)
        return answer

    return answered


async def test_doubted_refund_is_not_given_up_unread_if_it_is_named_during_the_last_read(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        refund = await bring_to_review(shop)
        await decided(
            shop, decisions.resolve_failed(refund, "paid_in_cash", by="ann", unverified=True)
        )
        shop.provider.will(LIST, error(500), error(500), named_meanwhile(shop, error(500)))
        assert (await look(shop, 3)).stage is Stage.IN_DOUBT
        shop.provider.will(NAMED, says(200, refund_payload(id="re_9")))
        refund = await look(shop)
        assert (refund.status, refund.provider_refund_id) == (Status.SUCCEEDED, "re_9")
        assert refund.contradicted_by is None


async def test_retry_is_not_given_up_unread_if_it_is_named_during_the_last_read(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await failed_and_retried(shop)
        await shop.set(stage="review")
        refund = await shop.stored()
        await decided(
            shop, decisions.resolve_failed(refund, "paid_in_cash", by="ann", unverified=True)
        )
        shop.provider.will(OWN, named_meanwhile(shop, says(200, refund_payload(status="failed"))))
        assert (await look(shop)).stage is Stage.WAITING
        metadata = {"refund_id": refund.refund_id, "refund_generation": "2"}
        shop.provider.will(NAMED, says(200, refund_payload(id="re_9", metadata=metadata)))
        refund = await look(shop)
        assert (refund.status, refund.provider_refund_id) == (Status.SUCCEEDED, "re_9")
        assert refund.contradicted_by is None
