"""A person decides beside an odd refund of the provider: that one is read before money moves.

Every POST is counted.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import httpx
import pytest
import redis.asyncio

from tests.factories import BLIND, HOUR, VERIFY, found, refund_payload
from tests.unit.engine.decided import (
    ODD,
    SECOND_GENERATION,
    decided,
    given_up,
    has_no_decision,
    in_conflict_with_an_odd_one,
    insisted,
    pending_and_in_review,
)
from tests.unit.engine.rereads import NAMED, OWN, hint, posts, retry, settle
from tests.unit.engine.shop import (
    BY_ID,
    ID,
    LIST,
    PAID,
    POST,
    error,
    in_doubt,
    listing,
    opened,
    says,
    totals,
)
from worker.model.refund import Stage, Status
from worker.rules import decisions, proofs
from worker.rules.attempts import MAX_PROCESSING, Rules
from worker.store import saves


@pytest.mark.parametrize("shown", [{"status": "settling"}, ODD])
@pytest.mark.parametrize("first", ["re_8", None])
async def test_nothing_is_sent_on_a_word_beside_an_odd_one_that_is_done_by_then(
    async_redis: redis.asyncio.Redis, first: str | None, shown: dict[str, Any]
) -> None:
    async with opened(async_redis, BLIND) as shop:
        await shop.accept()
        shop.provider.will(POST, httpx.ReadError("cut"))
        await shop.handle()
        for name in (first, "re_9"):
            if name is not None:
                shop.provider.will(
                    f"GET /v1/refunds/{name}", says(200, refund_payload(id=name, **shown))
                )
                await hint(shop, name)
                await shop.handle()
                shop.pass_time(HOUR)
        assert ((await shop.stored()).stage, posts(shop)) == (Stage.REVIEW, 1)
        await insisted(shop)
        for name in ("re_8", "re_9"):
            shop.provider.will(f"GET /v1/refunds/{name}", says(200, refund_payload(id=name)))
        shop.provider.will(POST, says(200, refund_payload(id="re_2")))
        await shop.handle()
        # Two of ours may both have moved the money.
        stage = Stage.SETTLED if first is None else Stage.REVIEW
        assert ((await shop.stored()).stage, posts(shop)) == (stage, 1)


async def test_refund_is_not_failed_on_a_word_beside_an_odd_one_that_shows_that_it_was_done(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, BLIND) as shop:
        await shop.accept()
        await in_conflict_with_an_odd_one(shop)
        await given_up(shop, unverified=True)
        shop.provider.will(NAMED, says(200, refund_payload(id="re_9")))
        await shop.handle()
        refund = await shop.stored()
        assert (refund.status, refund.provider_refund_id) == (Status.SUCCEEDED, "re_9")


async def test_odd_one_that_had_moved_nothing_is_read_by_its_id_before_a_send_on_a_word(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, BLIND) as shop:
        await shop.accept()
        await hint(shop)
        shop.provider.will(NAMED, says(200, refund_payload(id="re_9", status="failed", **ODD)))
        assert await shop.handle() == "in review (conflict)"
        await insisted(shop)
        shop.provider.will(NAMED, says(200, refund_payload(id="re_9")))
        await shop.handle()
        refund = await shop.stored()
        assert (refund.status, refund.provider_refund_id) == (Status.SUCCEEDED, "re_9")
        assert posts(shop) == 0


async def test_retry_is_sent_beside_one_that_moved_nothing_when_a_webhook_named_it(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, BLIND) as shop:
        await shop.accept()
        shop.provider.will(POST, says(200, refund_payload(status="pending")))
        await shop.handle()
        await hint(shop)
        shop.provider.will(NAMED, says(200, refund_payload(id="re_9", status="failed")))
        shop.provider.will(OWN, says(200, refund_payload(status="failed")))
        shop.wake_nobody()
        await shop.handle()
        shop.pass_time(HOUR)
        assert (await shop.handle()).startswith("failed")
        await retry(shop)
        shop.provider.will(POST, says(200, refund_payload(id="re_2", metadata=SECOND_GENERATION)))
        await shop.handle()
        assert ((await shop.stored()).status, posts(shop)) == (Status.SUCCEEDED, 2)


async def test_retry_is_not_sent_beside_an_odd_one_that_a_person_did_not_name(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, BLIND) as shop:
        await shop.accept()
        await in_conflict_with_an_odd_one(shop)
        refund = await shop.stored()
        await decided(shop, decisions.resolve_succeeded(refund, "re_1", shop.now, by="ann"))
        shop.provider.will(BY_ID, says(200, refund_payload(status="failed", metadata={})))
        assert (await shop.handle()).startswith("failed")
        sent = posts(shop)
        await retry(shop)
        shop.provider.will(POST, says(200, refund_payload(id="re_2", metadata=SECOND_GENERATION)))
        await shop.handle()
        assert ((await shop.stored()).stage, posts(shop)) == (Stage.REVIEW, sent)


async def test_retry_is_not_sent_beside_an_odd_one_that_was_read_with_the_one_that_failed(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, BLIND) as shop:
        await shop.accept()
        for name, shown in (("re_9", ODD), ("re_1", {"status": "failed"})):
            await hint(shop, name)
            answer = says(200, refund_payload(id=name, **shown))
            shop.provider.will(f"GET /v1/refunds/{name}", answer)
        assert (await shop.handle()).startswith("failed")
        await shop.handle()
        await retry(shop)
        shop.provider.will(POST, says(200, refund_payload(id="re_2", metadata=SECOND_GENERATION)))
        await shop.handle()
        assert ((await shop.stored()).stage, posts(shop)) == (Stage.REVIEW, 0)


async def test_odd_one_that_was_named_before_a_retry_is_read_before_a_send_on_a_word(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, BLIND) as shop:
        await settle(shop, "failed")
        await hint(shop)
        await retry(shop)
        shop.provider.will(NAMED, says(200, refund_payload(id="re_9", **ODD)))
        assert await shop.handle() == "in review (conflict)"
        await insisted(shop)
        ours = refund_payload(id="re_9", metadata=SECOND_GENERATION)
        shop.provider.will(NAMED, says(200, ours))
        shop.provider.will(OWN, says(200, refund_payload(status="failed")))
        shop.provider.will(POST, says(200, refund_payload(id="re_2", metadata=SECOND_GENERATION)))
        await shop.handle()
        assert ((await shop.stored()).provider_refund_id, posts(shop)) == ("re_9", 0)


async def test_refund_that_a_person_named_while_an_odd_one_was_read_is_read_before_a_send(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, BLIND) as shop:
        await shop.accept()
        shop.provider.will(POST, httpx.ReadError("cut"))
        assert (await shop.handle()).startswith("in review")
        await hint(shop)

        async def read(_: httpx.Request) -> httpx.Response:
            refund = await shop.stored()
            await decided(shop, decisions.resolve_succeeded(refund, "re_1", shop.now, by="ann"))
            return says(200, refund_payload(id="re_9", **ODD))

        other = refund_payload(id="re_9", metadata={"refund_id": "other"})
        shop.provider.will(NAMED, read, says(200, other))
        shop.wake_nobody()
        assert await shop.handle() == "in review (conflict)"
        await insisted(shop)
        shop.provider.will(OWN, says(200, refund_payload(metadata={})))
        shop.provider.will(PAID, totals(0))
        shop.provider.will(POST, says(200, refund_payload(id="re_2")))
        await shop.handle()
        assert ((await shop.stored()).stage, posts(shop)) == (Stage.REVIEW, 1)


async def test_odd_one_is_read_before_a_send_although_another_one_that_failed_was_shown_since(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, BLIND) as shop:
        await shop.accept()
        # A restored server may have lost a retry.
        await shop.set(retry_may_be_lost="1")
        await in_conflict_with_an_odd_one(shop)
        shop.provider.will(OWN, says(200, refund_payload(status="failed")))
        await hint(shop, "re_1")
        shop.wake_nobody()
        assert await shop.handle() == "in review (unknown)"
        await insisted(shop)
        shop.provider.will(NAMED, says(200, refund_payload(id="re_9")))
        shop.provider.will(POST, says(200, refund_payload(id="re_2")))
        await shop.handle()
        assert ((await shop.stored()).provider_refund_id, posts(shop)) == ("re_9", 1)


async def test_odd_one_that_was_read_before_a_person_decided_is_read_again_before_a_send(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, Rules(idempotency="verify", readback="totals")) as shop:
        shop.wake_nobody()
        shop.provider.will(PAID, totals(0))
        await in_doubt(shop)
        await hint(shop)
        odd = says(200, refund_payload(id="re_9", status="settling"))
        shop.provider.will(NAMED, odd)
        shop.pass_time(HOUR)
        assert await shop.handle() == "in review (conflict)"

        async def decided_meanwhile(_: httpx.Request) -> httpx.Response:
            await insisted(shop)
            return odd

        shop.provider.will(NAMED, decided_meanwhile, says(200, refund_payload(id="re_9")))
        await shop.handle()
        await shop.handle()
        assert ((await shop.stored()).provider_refund_id, posts(shop)) == ("re_9", 1)


@pytest.mark.parametrize("other", [{}, ODD])
async def test_retry_is_not_sent_beside_one_that_a_list_showed_and_a_person_did_not_name(
    async_redis: redis.asyncio.Redis, other: dict[str, Any]
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await shop.accept()
        shop.provider.will(POST, httpx.ReadError("cut"))
        await shop.handle()
        failed = refund_payload(status="failed")
        shop.provider.will(LIST, listing(refund_payload(id="re_9", **other), failed))
        shop.pass_time(HOUR)
        assert await shop.handle() == "in review (conflict)"
        refund = await shop.stored()
        await decided(shop, decisions.resolve_succeeded(refund, "re_1", shop.now, by="ann"))
        shop.provider.will(BY_ID, says(200, failed))
        assert (await shop.handle()).startswith("failed")
        await retry(shop)
        shop.provider.will(NAMED, says(200, refund_payload(id="re_9", **other)))
        shop.provider.will(POST, says(200, refund_payload(id="re_2", metadata=SECOND_GENERATION)))
        await shop.handle()
        assert posts(shop) == 1


@pytest.mark.parametrize("comes", ["late", "in time"])
async def test_retry_is_not_sent_beside_an_odd_one_that_a_frozen_worker_did_not_know_of(
    async_redis: redis.asyncio.Redis, comes: str
) -> None:
    async with opened(async_redis, BLIND) as shop:
        await shop.accept()
        before = await shop.stored()
        await in_conflict_with_an_odd_one(shop)
        known = before if comes == "late" else await shop.stored()
        failed = proofs.done(known, found(status="failed"), "reply", shop.now)
        assert (await shop.store.run(saves.save(known, failed))).result == "saved"
        sent = posts(shop)
        await retry(shop)
        shop.provider.will(POST, says(200, refund_payload(id="re_2", metadata=SECOND_GENERATION)))
        await shop.handle()
        assert ((await shop.stored()).stage, posts(shop)) == (Stage.REVIEW, sent)


async def test_retry_of_a_reversed_refund_is_not_sent_beside_an_odd_one(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, BLIND) as shop:
        await shop.accept()
        await in_conflict_with_an_odd_one(shop)
        refund = await shop.stored()
        await decided(shop, decisions.resolve_succeeded(refund, "re_1", shop.now, by="ann"))
        own = refund_payload(metadata={})
        shop.provider.will(BY_ID, says(200, own))
        assert await shop.handle() == "succeeded"
        await shop.handle()
        shop.provider.will(BY_ID, says(200, own | {"status": "failed"}))
        await shop.store.redis.zadd("refunds:rechecks", {ID: 1})
        assert (await shop.handle()).startswith("failed")
        sent = posts(shop)
        await retry(shop)
        shop.provider.will(POST, says(200, refund_payload(id="re_2", metadata=SECOND_GENERATION)))
        await shop.handle()
        assert ((await shop.stored()).stage, posts(shop)) == (Stage.REVIEW, sent)


@pytest.mark.parametrize(
    ("shown", "owner", "wait", "code"),
    [
        (error(404), None, HOUR, "refund_missing"),
        (error(500), None, MAX_PROCESSING, "pending_too_long"),
        (says(200, refund_payload(metadata={})), "order-2", HOUR, "owned_elsewhere"),
    ],
)
async def test_odd_one_is_read_before_a_send_although_a_person_named_another_id_in_vain(
    async_redis: redis.asyncio.Redis,
    shown: httpx.Response,
    owner: str | None,
    wait: timedelta,
    code: str,
) -> None:
    async with opened(async_redis, BLIND) as shop:
        await shop.accept()
        await in_conflict_with_an_odd_one(shop)
        refund = await shop.stored()
        await decided(shop, decisions.resolve_succeeded(refund, "re_1", shop.now, by="ann"))
        if owner is not None:
            await shop.store.redis.set("refunds:owner:re_1", owner)
        shop.provider.will(BY_ID, shown)
        shop.provider.will(PAID, totals(0))
        for _ in range(3):
            await shop.handle()
            shop.service.breaker.answered()
            shop.pass_time(wait)
        assert (await shop.stored()).error_code == code
        await insisted(shop)
        shop.provider.will(NAMED, says(200, refund_payload(id="re_9")))
        shop.provider.will(POST, says(200, refund_payload(id="re_2")))
        await shop.handle()
        assert ((await shop.stored()).provider_refund_id, posts(shop)) == ("re_9", 1)


@pytest.mark.parametrize("decision", ["resend", "failed"])
async def test_odd_one_is_read_before_a_word_counts_although_its_own_was_named_and_is_gone(
    async_redis: redis.asyncio.Redis, decision: str
) -> None:
    async with opened(async_redis, BLIND) as shop:
        await pending_and_in_review(shop)
        refund = await shop.stored()
        await decided(shop, decisions.resolve_succeeded(refund, "re_1", shop.now, by="ann"))
        shop.provider.will(OWN, says(200, refund_payload(status="pending")), error(404))
        shop.provider.will(PAID, totals(0))
        for _ in range(3):
            await shop.handle()
            shop.pass_time(HOUR)
        refund = await shop.stored()
        assert (refund.error_code, refund.provider_refund_id) == ("refund_missing", "re_1")
        await (insisted(shop) if decision == "resend" else given_up(shop, unverified=True))
        shop.provider.will(NAMED, says(200, refund_payload(id="re_9")))
        shop.provider.will(POST, says(200, refund_payload(id="re_2")))
        await shop.handle()
        assert ((await shop.stored()).stage, posts(shop)) == (Stage.REVIEW, 1)


@pytest.mark.parametrize("decision", ["resend", "failed"])
async def test_odd_one_is_read_before_a_word_counts_although_the_refund_of_its_own_is_gone(
    async_redis: redis.asyncio.Redis, decision: str
) -> None:
    async with opened(async_redis, BLIND) as shop:
        await pending_and_in_review(shop)
        await (insisted(shop) if decision == "resend" else given_up(shop, unverified=True))
        shop.provider.will(OWN, error(404))
        shop.provider.will(PAID, totals(0))
        shop.provider.will(NAMED, says(200, refund_payload(id="re_9")))
        shop.provider.will(POST, says(200, refund_payload(id="re_2")))
        shop.pass_time(HOUR)
        await shop.handle()
        assert ((await shop.stored()).stage, posts(shop)) == (Stage.REVIEW, 1)


@pytest.mark.parametrize("says_failed", [False, True])
@pytest.mark.parametrize("as_stored_before", [False, True])
@pytest.mark.parametrize("odd", [{"status": "settling"}, ODD])
async def test_refund_of_which_an_odd_one_is_shown_is_neither_sent_nor_failed_at_once(
    async_redis: redis.asyncio.Redis,
    odd: dict[str, Any],
    *,
    as_stored_before: bool,
    says_failed: bool,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await shop.accept()
        await hint(shop)
        shown = refund_payload(id="re_9", **odd)
        shop.provider.will(NAMED, says(200, shown))
        assert await shop.handle() == "in review (conflict)"
        if as_stored_before:
            await shop.store.redis.hdel(f"refunds:refund:{ID}", "doubt_since", "doubted")
        if says_failed:
            await given_up(shop, unverified=False)
        else:
            await decided(shop, decisions.resolve_resend(await shop.stored(), by="ann"))
        shop.provider.will(LIST, listing(shown))
        assert (await shop.handle()).startswith("in review")
        refund = await shop.stored()
        assert (refund.stage, posts(shop)) == (Stage.REVIEW, 0)
        assert has_no_decision(refund)


async def test_whoever_decides_about_a_doubt_knows_of_each_odd_one_that_was_named(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await in_doubt(shop)
        for name in ("re_9", "re_8"):
            await hint(shop, name)
            shop.provider.will(f"GET /v1/refunds/{name}", says(200, refund_payload(id=name, **ODD)))
        shop.wake_nobody()
        shop.pass_time(VERIFY.settle)
        assert await shop.handle() == "in review (conflict)"
        assert await shop.handle() == "in review (conflict)"
        message = (await shop.stored()).error_message or ""
        assert [message.count(name) for name in ("re_9", "re_8")] == [1, 1]
        assert posts(shop) == 1
