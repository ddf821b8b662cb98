"""A refund that a person named at the provider is read by its id before it counts."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import redis.asyncio

from tests.factories import HOUR, found, refund_payload
from tests.unit.engine.deciding import bring_to_review, decided, look, sources
from tests.unit.engine.rereads import NAMED as READ_OF_NAMED
from tests.unit.engine.rereads import failed_and_retried, hint, posts, retry
from tests.unit.engine.shop import BY_ID, ID, PAID, POST, Shop, error, opened, says, totals
from worker.model.refund import Refund, Stage, Status
from worker.rules import decisions, proofs
from worker.rules.attempts import MAX_PROCESSING, Rules
from worker.store import saves

NOT_OURS: dict[str, Any] = {"payment_intent": None, "metadata": None}

NAMED = Rules(idempotency="verify", readback="none")


async def named(shop: Shop, payload: dict[str, Any], *, unverified: bool = False) -> Refund:
    """Let a person name the provider's refund, and a worker read it."""
    refund = await bring_to_review(shop)
    step = decisions.resolve_succeeded(refund, "re_1", shop.now, by="ann", unverified=unverified)
    await decided(shop, step)
    shop.provider.will(BY_ID, says(200, payload))
    return await look(shop)


async def named_then_replaced(shop: Shop) -> None:
    """Let a person name one, and a late reply show another one, which fails."""
    refund = await bring_to_review(shop)
    await decided(shop, decisions.resolve_succeeded(refund, "re_1", shop.now, by="ann"))
    # A worker that was frozen saves what it had read before.
    late = proofs.done(refund, found(id="re_9", status="pending"), "reply", shop.now)
    assert (await shop.store.run(saves.save(refund, late))).result == "saved"
    failed = says(200, refund_payload(id="re_9", status="failed"))
    shop.provider.will(READ_OF_NAMED, failed)
    assert (await look(shop)).status is Status.FAILED


async def test_a_refund_that_a_person_named_is_known_by_its_own_words_or_by_the_persons(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, NAMED) as shop:
        refund = await named(shop, refund_payload())
        assert (refund.status, refund.evidence) == (Status.SUCCEEDED, "lookup")
        assert (await sources(shop))[-1] == ("succeeded", "lookup", None)


async def test_a_named_refund_that_does_not_name_us_rests_on_the_persons_word(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, NAMED) as shop:
        refund = await named(shop, refund_payload(status="pending", **NOT_OURS))
        assert (refund.stage, refund.evidence, refund.operator_says) == (
            Stage.PROCESSING,
            "operator",
            None,
        )
        shop.provider.will(BY_ID, says(200, refund_payload(**NOT_OURS)))
        refund = await look(shop)
        assert (refund.status, refund.evidence) == (Status.SUCCEEDED, "operator")
        assert (await sources(shop))[-1] == ("succeeded", "operator", "ann")


@pytest.mark.parametrize("differs", [{"amount": 700}, {"currency": "eur"}])
async def test_a_named_refund_of_another_amount_or_currency_is_ours_only_where_the_person_insists(
    async_redis: redis.asyncio.Redis, differs: dict[str, Any]
) -> None:
    async with opened(async_redis, NAMED) as shop:
        shown = refund_payload(**differs)
        refund = await named(shop, shown | {"currency": "usd"} if "amount" in differs else shown)
        if "currency" in differs:
            # Nobody stated a currency, so none contradicts.
            assert refund.status is Status.SUCCEEDED
            return
        assert (refund.stage, refund.error_code, refund.provider_refund_id) == (
            Stage.REVIEW,
            "contradictory_reply",
            None,
        )
        step = decisions.resolve_succeeded(refund, "re_1", shop.now, by="ann", unverified=True)
        await decided(shop, step)
        refund = await look(shop)
        assert (refund.status, refund.amount, refund.currency) == (Status.SUCCEEDED, 700, "usd")
        assert (refund.evidence, (await sources(shop))[-1]) == (
            "operator",
            ("succeeded", "operator", "ann"),
        )


@pytest.mark.parametrize(
    "differs",
    [
        {"payment_intent": "pi_other"},
        {"id": "re_2"},
        {"status": "odd"},
        {"object": "charge"},
        {"amount": 0},
    ],
)
async def test_what_cannot_be_ours_stays_with_the_person_whatever_is_insisted_on(
    async_redis: redis.asyncio.Redis, differs: dict[str, Any]
) -> None:
    async with opened(async_redis, NAMED) as shop:
        refund = await named(shop, refund_payload(**differs), unverified=True)
        assert refund.stage is Stage.REVIEW


@pytest.mark.parametrize("status", ["failed", "pending"])
async def test_named_refund_is_read_before_one_of_ours_that_a_webhook_named(
    async_redis: redis.asyncio.Redis, status: str
) -> None:
    async with opened(async_redis, NAMED) as shop:
        refund = await bring_to_review(shop)
        await decided(shop, decisions.resolve_succeeded(refund, "re_1", shop.now, by="ann"))
        await hint(shop)
        shop.provider.will(READ_OF_NAMED, says(200, refund_payload(id="re_9", status=status)))
        # A replica lags.
        shop.provider.will(BY_ID, error(404), says(200, refund_payload(**NOT_OURS)))
        for _ in range(2):
            await shop.handle()
        refund = await look(shop)
        assert (refund.status, refund.provider_refund_id) == (Status.SUCCEEDED, "re_1")


@pytest.mark.parametrize("shown", [["failed"], ["pending", "failed"]])
@pytest.mark.parametrize("is_known", [True, False])
async def test_named_refund_of_an_earlier_generation_that_failed_does_not_end_the_doubt_of_a_retry(
    async_redis: redis.asyncio.Redis, shown: list[str], *, is_known: bool
) -> None:
    async with opened(async_redis, NAMED) as shop:
        await failed_and_retried(shop)
        shop.provider.will(BY_ID, says(200, refund_payload(status="failed")))
        shop.provider.will(POST, httpx.ReadError("cut"))
        assert (await shop.handle()).startswith("in review")
        if not is_known:
            # One of records that a restored server lost, which contradicted the record.
            await shop.store.redis.hdel(f"refunds:refund:{ID}", "prior_refund_ids")
            await shop.set(contradicted_by="re_1")
        refund = await shop.stored()
        await decided(shop, decisions.resolve_succeeded(refund, "re_1", shop.now, by="ann"))
        shop.provider.will(BY_ID, *(says(200, refund_payload(status=each)) for each in shown))
        refund = await look(shop, len(shown))
        assert (refund.stage, refund.prior_ids, posts(shop)) == (Stage.REVIEW, ("re_1",), 1)
        assert refund.contradicted_by is None


@pytest.mark.parametrize("was_told_before", [False, True])
@pytest.mark.parametrize("is_told_again", [False, True])
async def test_named_refund_that_a_webhook_named_too_is_read_again_although_it_was_missing(
    async_redis: redis.asyncio.Redis, *, is_told_again: bool, was_told_before: bool
) -> None:
    async with opened(async_redis, NAMED) as shop:
        refund = await bring_to_review(shop)
        sent = posts(shop)
        shop.provider.will(BY_ID, error(404))
        shop.provider.will(PAID, totals(0))
        if was_told_before:
            await hint(shop, "re_1")
            await shop.handle()
            refund = await shop.stored()
        await decided(shop, decisions.resolve_succeeded(refund, "re_1", shop.now, by="ann"))
        if not was_told_before:
            await hint(shop, "re_1")
        while (refund := await look(shop)).stage is not Stage.REVIEW:
            pass
        assert refund.error_code == "refund_missing"
        if is_told_again:
            shop.pass_time(HOUR)
            await hint(shop, "re_1", "succeeded")
        else:
            await decided(shop, decisions.resolve_resend(refund, by="bob", unverified=True))
        # A replica had lagged.
        shop.provider.will(BY_ID, says())
        refund = await look(shop)
        assert (refund.status, refund.provider_refund_id) == (Status.SUCCEEDED, "re_1")
        assert posts(shop) == sent


@pytest.mark.parametrize(
    ("shown", "owner", "evidence"),
    [(NOT_OURS, None, "operator"), (NOT_OURS, ID, "lookup"), ({}, None, "lookup")],
)
async def test_retry_is_not_sent_beside_a_named_refund_that_a_late_reply_had_replaced(
    async_redis: redis.asyncio.Redis, shown: dict[str, Any], owner: str | None, evidence: str
) -> None:
    async with opened(async_redis, NAMED) as shop:
        await named_then_replaced(shop)
        sent = posts(shop)
        await retry(shop)
        if owner is not None:
            await shop.store.redis.set("refunds:owner:re_1", owner)
        shop.provider.will(BY_ID, says(200, refund_payload(**shown)))
        refund = await look(shop)
        assert (refund.status, refund.provider_refund_id) == (Status.SUCCEEDED, "re_1")
        assert (refund.evidence, (await sources(shop))[-1][1]) == (evidence, evidence)
        assert posts(shop) == sent


@pytest.mark.parametrize(
    ("another", "owner", "code"),
    [
        ({"payment_intent": "pi_other"}, None, "prior_contradicts"),
        ({"metadata": {"refund_id": "order-2002-1"}, "amount": 7}, None, "prior_contradicts"),
        ({"metadata": None, "amount": 7}, None, "prior_contradicts"),
        ({"metadata": None}, "order-2002-1", "owned_elsewhere"),
    ],
)
@pytest.mark.parametrize(("decision", "sent"), [("resend", 1), ("failed", 0)])
async def test_person_ends_a_retry_beside_anothers_refund_that_was_named_by_mistake(
    async_redis: redis.asyncio.Redis,
    another: dict[str, Any],
    owner: str | None,
    code: str,
    decision: str,
    sent: int,
) -> None:
    async with opened(async_redis, NAMED) as shop:
        await named_then_replaced(shop)
        if owner is not None:
            await shop.store.redis.set("refunds:owner:re_1", owner)
        sent_before = posts(shop)
        await retry(shop)
        shop.provider.will(BY_ID, says(200, refund_payload(**another)))
        refund = await look(shop)
        assert (refund.stage, refund.error_code) == (Stage.REVIEW, code)
        if decision == "resend":
            step = decisions.resolve_resend(refund, by="bob", unverified=True)
        else:
            step = decisions.resolve_failed(refund, "gone", by="bob", unverified=True)
        await decided(shop, step)
        metadata = {"refund_id": ID, "refund_generation": "2"}
        shop.provider.will(POST, says(200, refund_payload(id="re_10", metadata=metadata)))
        assert (await look(shop)).stage is Stage.SETTLED
        assert posts(shop) - sent_before == sent


async def test_person_gives_up_a_retry_although_its_own_earlier_refund_is_shown_as_anothers(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, NAMED) as shop:
        await failed_and_retried(shop)
        shop.provider.will(BY_ID, says(200, refund_payload(payment_intent="pi_other")))
        refund = await look(shop)
        assert refund.error_code == "prior_contradicts"
        await decided(shop, decisions.resolve_failed(refund, "gone", by="bob", unverified=True))
        assert ((await look(shop)).status, posts(shop)) == (Status.FAILED, 0)


@pytest.mark.parametrize("owner", [None, "order-2002-1"])
async def test_settled_refund_is_not_contradicted_by_a_named_one_that_another_record_has(
    async_redis: redis.asyncio.Redis, owner: str | None
) -> None:
    async with opened(async_redis, NAMED) as shop:
        await named_then_replaced(shop)
        if owner is not None:
            await shop.store.redis.set("refunds:owner:re_1", owner)
        shop.provider.will(BY_ID, says(200, refund_payload(**NOT_OURS)))
        await shop.store.redis.zadd("refunds:rechecks", {ID: 1})
        refund = await look(shop)
        assert refund.contradicted_by == ("re_1" if owner is None else None)


@pytest.mark.parametrize(
    ("differs", "decision"),
    [
        ({"amount": 7, **NOT_OURS}, "resend"),
        ({"amount": 7, **NOT_OURS}, "failed"),
        ({"payment_intent": "pi_other"}, "resend"),
        ({"metadata": {"refund_id": "order-2002-1"}}, "resend"),
    ],
)
async def test_person_does_not_outweigh_an_earlier_refund_that_was_proven_to_be_the_records_own(
    async_redis: redis.asyncio.Redis, differs: dict[str, Any], decision: str
) -> None:
    async with opened(async_redis, NAMED) as shop:
        await failed_and_retried(shop)
        shop.provider.will(BY_ID, says(200, refund_payload(**differs)))
        for _ in range(2):
            refund = await look(shop)
            assert (refund.error_code, posts(shop)) == ("prior_contradicts", 0)
            if decision == "resend":
                step = decisions.resolve_resend(refund, by="bob", unverified=True)
            else:
                step = decisions.resolve_failed(refund, "gone", by="bob", unverified=True)
            await decided(shop, step)


@pytest.mark.parametrize(
    "shown",
    [
        says(200, refund_payload(status="odd", **NOT_OURS)),
        says(200, refund_payload(status=None, **NOT_OURS)),
        says(200, refund_payload(amount=7)),
        says(200, refund_payload(id="re_2")),
        error(500),
    ],
)
async def test_named_refund_that_a_poll_could_not_judge_is_read_before_a_send(
    async_redis: redis.asyncio.Redis, shown: httpx.Response
) -> None:
    async with opened(async_redis, NAMED) as shop:
        refund = await bring_to_review(shop)
        sent = posts(shop)
        await decided(shop, decisions.resolve_succeeded(refund, "re_1", shop.now, by="ann"))
        shop.provider.will(BY_ID, shown)
        shop.pass_time(MAX_PROCESSING)
        refund = await look(shop)
        assert refund.stage is Stage.REVIEW
        await decided(shop, decisions.resolve_resend(refund, by="bob", unverified=True))
        shop.provider.will(BY_ID, says(200, refund_payload(**NOT_OURS)))
        await look(shop, times=3)
        assert posts(shop) == sent
