"""A person had a refund sent again whose earlier attempt may have moved money, and that send did
nothing: what ends the refund after that must not rest on the person's word alone.
"""

from __future__ import annotations

import httpx
import pytest
import redis.asyncio

from tests.factories import BLIND, VERIFY, refund_payload
from tests.unit.engine.deciding import bring_to_review, decided, look, posts
from tests.unit.engine.rereads import OWN, failed_and_retried
from tests.unit.engine.shop import LIST, PAID, POST, Shop, error, listing, opened, totals
from worker.errors import NotCancelable
from worker.model.refund import Refund, Stage, Status
from worker.rules import decisions
from worker.rules.attempts import Rules

EMPTY = totals(0)
RULES = {"operator": BLIND, "list": VERIFY}


async def resent_in_vain(shop: Shop, source: str) -> Refund:
    """A refund in doubt, sent again as `source` calls it absent, and refused with 429."""
    refund = await bring_to_review(shop)
    await decided(shop, decisions.resolve_resend(refund, by="ann", unverified=True))
    shop.provider.will(LIST, listing())
    shop.provider.will(PAID, EMPTY)
    shop.provider.will(POST, error(429))
    refund = await look(shop, 1 if source == "operator" else 2)
    assert (refund.stage, refund.evidence, posts(shop)) == (Stage.WAITING, source, 2)
    return refund


async def retry_on_a_word(shop: Shop) -> Refund:
    """A retry whose earlier refund is not known any more, and that a person sends all the same."""
    await failed_and_retried(shop)
    shop.provider.will(OWN, error(404))
    shop.provider.will(PAID, EMPTY)
    shop.provider.will(POST, error(429))
    refund = await look(shop)
    await decided(shop, decisions.resolve_resend(refund, by="ann", unverified=True))
    return await shop.stored()


async def in_canceled_batch(shop: Shop) -> None:
    await shop.set(batch_id="b1")
    await shop.store.redis.hset("refunds:batch:b1", "state", "canceled")


async def test_refund_is_not_canceled_if_only_a_person_says_that_it_did_not_happen(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, BLIND) as shop:
        refund = await resent_in_vain(shop, "operator")
        with pytest.raises(NotCancelable, match="only a person says"):
            decisions.cancel(refund)


async def test_refund_is_canceled_if_a_list_proved_that_it_did_not_happen(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await decided(shop, decisions.cancel(await resent_in_vain(shop, "list")))
        refund = await shop.stored()
        assert (refund.status, refund.evidence) == (Status.CANCELED, "list")


@pytest.mark.parametrize("is_sent", [True, False])
async def test_retry_is_not_canceled_if_only_a_person_outweighs_its_earlier_refund(
    async_redis: redis.asyncio.Redis, *, is_sent: bool
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        refund = await retry_on_a_word(shop)
        if is_sent:
            refund = await look(shop)
        assert (refund.stage, posts(shop)) == (Stage.WAITING, int(is_sent))
        with pytest.raises(NotCancelable, match="only a person says"):
            decisions.cancel(refund)


@pytest.mark.parametrize("source", ["operator", "list"])
async def test_refund_of_a_canceled_batch_is_canceled_only_if_absence_was_proven(
    async_redis: redis.asyncio.Redis, source: str
) -> None:
    async with opened(async_redis, RULES[source]) as shop:
        await resent_in_vain(shop, source)
        await in_canceled_batch(shop)
        refund = await look(shop)
        status = Status.PENDING if source == "operator" else Status.CANCELED
        assert (refund.status, posts(shop)) == (status, 2)
        if source == "operator":
            assert (refund.stage, refund.operator_says) == (Stage.REVIEW, None)
            move = (await shop.history())[-1]
            assert move["label"] == "batch_canceled"
            assert "only a person says" in move["alarm"]


@pytest.mark.parametrize("rules", [BLIND, VERIFY], ids=["operator", "list"])
async def test_doubted_refund_of_a_canceled_batch_is_canceled_only_if_absence_was_proven(
    async_redis: redis.asyncio.Redis, rules: Rules
) -> None:
    async with opened(async_redis, rules) as shop:
        refund = await bring_to_review(shop)
        await in_canceled_batch(shop)
        await decided(shop, decisions.resolve_resend(refund, by="ann", unverified=True))
        shop.provider.will(LIST, listing())
        shop.provider.will(PAID, EMPTY)
        refund = await look(shop, 1 if rules is BLIND else 2)
        stage = Stage.REVIEW if rules is BLIND else Stage.SETTLED
        assert (refund.stage, refund.operator_says, posts(shop)) == (stage, None, 1)


@pytest.mark.parametrize("is_sent", [True, False])
async def test_retry_of_a_canceled_batch_on_a_persons_word_comes_back_to_review(
    async_redis: redis.asyncio.Redis, *, is_sent: bool
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await retry_on_a_word(shop)
        if is_sent:
            await look(shop)
            # The earlier refund is shown again, so that the retry is claimed once more.
            shop.provider.will(OWN, says_failed())
        await in_canceled_batch(shop)
        refund = await look(shop)
        assert (refund.stage, refund.operator_says, posts(shop)) == (
            Stage.REVIEW,
            None,
            int(is_sent),
        )


def says_failed() -> httpx.Response:
    return httpx.Response(200, json=refund_payload(status="failed"))


async def test_budget_of_a_retry_on_a_persons_word_ends_in_review(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await retry_on_a_word(shop)
        await look(shop)
        shop.provider.will(OWN, says_failed())
        shop.pass_time(VERIFY.max_age)
        refund = await look(shop)
        assert (refund.stage, posts(shop)) == (Stage.REVIEW, 2)
        assert (await shop.history())[-1]["label"] == "budget_spent"


@pytest.mark.parametrize("source", ["operator", "list"])
@pytest.mark.parametrize("code", ["lost_or_stolen_card", "expired_or_canceled_card"])
async def test_refusal_that_was_not_true_before_fails_only_what_is_proven_absent(
    async_redis: redis.asyncio.Redis, source: str, code: str
) -> None:
    async with opened(async_redis, RULES[source]) as shop:
        await resent_in_vain(shop, source)
        shop.provider.will(POST, error(402, code))
        refund = await look(shop)
        stage = Stage.REVIEW if source == "operator" else Stage.SETTLED
        assert (refund.stage, refund.error_code, posts(shop)) == (stage, code, 3)
