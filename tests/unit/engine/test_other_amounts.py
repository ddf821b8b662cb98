"""A person insisted on a provider's refund of another amount than was asked: what is sent then is
what the caller asked for, or nothing.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import redis.asyncio

from tests.factories import BLIND, a_request, refund_payload
from tests.unit.engine.deciding import bring_to_review, decided, look
from tests.unit.engine.shop import ID, POST, Shop, opened, says
from worker.errors import NotRetriable
from worker.model.answers import ProviderRefund
from worker.model.refund import Refund, Retriable, Stage, Status
from worker.rules import decisions, proofs

NAMED = "GET /v1/refunds/re_9"
OTHER: dict[str, Any] = {"id": "re_9", "amount": 7}


async def insisted(shop: Shop, status: str) -> Refund:
    """A refund that a person settled as the provider's, which is of another amount."""
    refund = await bring_to_review(shop)
    step = decisions.resolve_succeeded(refund, "re_9", shop.now, by="ann", unverified=True)
    await decided(shop, step)
    shop.provider.will(NAMED, says(200, refund_payload(status=status, **OTHER)))
    refund = await look(shop)
    assert (refund.status, refund.amount) == (Status(status), 7)
    return refund


@pytest.mark.parametrize("status", ["succeeded", "failed"])
async def test_retry_never_sends_the_amount_of_the_provider_instead_of_that_asked_for(
    async_redis: redis.asyncio.Redis, status: str
) -> None:
    async with opened(async_redis, BLIND) as shop:
        await insisted(shop, status)
        if status == "succeeded":
            shop.provider.will(NAMED, says(200, refund_payload(status="failed", **OTHER)))
            await shop.store.redis.zadd("refunds:rechecks", {ID: 1})
            await shop.handle()
        refund = await shop.stored()
        assert (refund.status, refund.amount) == (Status.FAILED, 7)
        assert refund.fingerprint == a_request().fingerprint
        shop.provider.will(POST, says())
        if (step := decisions.retry_failed(refund)) is not None:
            await decided(shop, step)
        await shop.handle()
        assert {json.loads(body)["amount"] for body in shop.provider.bodies} == {"500"}
        assert refund.retriable is Retriable.NO
        with pytest.raises(NotRetriable, match="another amount"):
            decisions.retry_one(refund, unknown=True)


@pytest.mark.parametrize("status", ["succeeded", "failed"])
async def test_refund_of_another_amount_is_followed_to_its_end_while_it_is_pending(
    async_redis: redis.asyncio.Redis, status: str
) -> None:
    async with opened(async_redis, BLIND) as shop:
        refund = await bring_to_review(shop)
        step = decisions.resolve_succeeded(refund, "re_9", shop.now, by="ann", unverified=True)
        await decided(shop, step)
        pending = says(200, refund_payload(status="pending", **OTHER))
        shop.provider.will(
            NAMED, pending, pending, says(200, refund_payload(status=status, **OTHER))
        )
        assert (await look(shop, 2)).stage is Stage.PROCESSING
        refund = await look(shop)
        assert (refund.status, refund.amount, refund.evidence) == (Status(status), 7, "operator")
        assert (await shop.history())[-1]["by"] == "ann"
        assert refund.operator_by is None


async def test_refund_of_another_amount_whose_other_one_fails_too_is_not_retriable(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, BLIND) as shop:
        refund = await insisted(shop, "failed")
        # It has the amount of the provider's refund that settled it by now, and so has this one.
        shown = ProviderRefund(id="re_8", status="succeeded", amount=7)
        proof = proofs.done(refund, shown, "lookup", shop.now)
        await shop.service._recorder.contradict(refund, proof)
        refund = await shop.stored()
        await decided(shop, decisions.resolve_succeeded(refund, "re_8", shop.now, by="ann"))
        fallen = refund_payload(id="re_8", amount=7, status="failed")
        shop.provider.will("GET /v1/refunds/re_8", says(200, fallen))
        refund = await look(shop)
        assert (refund.status, refund.provider_refund_id) == (Status.FAILED, "re_8")
        assert (refund.set_aside_ids, refund.can_be_made_again) == (None, False)
        assert refund.retriable is Retriable.NO
