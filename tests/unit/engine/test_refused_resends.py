"""A person had a refund sent again whose earlier attempt may have moved money, and that send did
nothing: what ends the refund after that must not rest on the person's word alone.
"""

from __future__ import annotations

import httpx
import pytest
import redis.asyncio

from tests.factories import BLIND, HOUR, VERIFY, refund_payload
from tests.unit.engine.deciding import bring_to_review, decided, look, posts
from tests.unit.engine.rereads import NAMED, OWN, RETRIED, failed_and_retried, hint, retry, settle
from tests.unit.engine.shop import (
    ID,
    LIST,
    PAID,
    POST,
    TOTALS,
    Given,
    Shop,
    error,
    listing,
    opened,
    says,
    totals,
)
from worker.errors import NotCancelable
from worker.model.refund import Refund, Retriable, Stage, Status
from worker.rules import decisions, proofs
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


# The provider makes a refund for the send, and that one fails


def second(status: str) -> httpx.Response:
    """What the send after a person's word made."""
    return says(200, refund_payload(id="re_2", status=status, failure_reason="insufficient_funds"))


async def resent(shop: Shop, shows: str) -> Refund:
    """A refund in doubt that was sent again, and what that send made has ended as shown."""
    refund = await bring_to_review(shop)
    await decided(shop, decisions.resolve_resend(refund, by="ann", unverified=True))
    shop.provider.will(LIST, listing())
    shop.provider.will(PAID, EMPTY)
    replies = {"at once": second("failed"), "later": second("pending")}
    shop.provider.will(POST, replies.get(shows, httpx.ReadError("cut")))
    shop.provider.will(RETRIED, second("failed"))
    refund = await look(shop, 1 if shop.rules is BLIND else 2)
    if shows == "by a webhook":
        await hint(shop, "re_2")
        await shop.store.redis.zadd("refunds:rechecks", {refund.refund_id: 1})
    return refund if shows == "at once" else await look(shop)


@pytest.mark.parametrize("shows", ["at once", "later", "by a webhook"])
async def test_failed_send_proves_nothing_of_what_only_a_person_calls_absent(
    async_redis: redis.asyncio.Redis, shows: str
) -> None:
    async with opened(async_redis, BLIND) as shop:
        refund = await resent(shop, shows)
        assert (refund.stage, refund.error_code, posts(shop)) == (
            Stage.REVIEW,
            "insufficient_funds",
            2,
        )
        assert (refund.provider_refund_id, refund.prior_refund_ids) == (None, "re_2")
        assert "may have moved the money" in (await shop.history())[-1]["alarm"]


async def test_failed_send_is_the_only_one_while_a_persons_word_is_not_followed(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, BLIND) as shop:
        refund = await bring_to_review(shop)
        await decided(shop, decisions.resolve_resend(refund, by="ann", unverified=True))
        await shop.store.redis.hset("refunds:meta", "paused", "1")
        refund = await look(shop)
        assert (refund.stage, refund.evidence, posts(shop)) == (Stage.IN_DOUBT, "operator", 1)
        shop.provider.will(OWN, says_failed())
        await hint(shop, "re_1")
        refund = await look(shop)
        assert (refund.status, refund.provider_refund_id) == (Status.FAILED, "re_1")


async def failed_after_it_was_missing(shop: Shop) -> Refund:
    """A refund in review: what its second send made was not shown at first, and then as failed."""
    refund = await bring_to_review(shop)
    await decided(shop, decisions.resolve_resend(refund, by="ann", unverified=True))
    shop.provider.will(POST, second("pending"))
    await look(shop)
    shop.provider.will(RETRIED, error(404), second("failed"))
    assert (await look(shop)).missing_since is not None
    refund = await look(shop)
    assert refund.stage is Stage.REVIEW
    shop.pass_time(HOUR)
    return refund


async def test_refund_that_a_person_names_may_lag_whatever_was_missing_before(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, BLIND) as shop:
        refund = await failed_after_it_was_missing(shop)
        await decided(shop, decisions.resolve_succeeded(refund, "re_9", shop.now, by="ann"))
        shop.provider.will(NAMED, error(404))
        shop.provider.will(PAID, EMPTY)
        assert (await look(shop)).stage is Stage.PROCESSING


async def test_pending_refund_may_lag_whatever_was_missing_before(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, BLIND) as shop:
        refund = await failed_after_it_was_missing(shop)
        await decided(shop, decisions.resolve_resend(refund, by="ann", unverified=True))
        shop.provider.will(POST, says(200, refund_payload(id="re_9", status="pending")))
        assert (await look(shop)).stage is Stage.PROCESSING
        shop.provider.will(NAMED, error(404))
        shop.provider.will(PAID, EMPTY)
        assert (await look(shop)).stage is Stage.PROCESSING


async def test_word_about_an_earlier_generation_says_nothing_of_a_retry(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, BLIND) as shop:
        await settle(shop, "failed")
        # A worker of the version before does not know the field, and so leaves it.
        await shop.set(absent_by_word="1")
        await retry(shop)
        shop.provider.will(OWN, says_failed())
        metadata = {"refund_id": ID, "refund_generation": "2"}
        failed = refund_payload(id="re_2", status="failed", metadata=metadata)
        shop.provider.will(POST, says(200, failed))
        refund = await look(shop)
        assert (refund.status, refund.provider_refund_id) == (Status.FAILED, "re_2")


async def test_failed_refund_that_is_named_for_a_settled_one_changes_nothing(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, BLIND) as shop:
        await shop.accept()
        shop.provider.will(POST, error(402, "insufficient_funds"))
        await shop.handle()
        # As the version before leaves it.
        await shop.set(absent_by_word="1")
        settled = await shop.stored()
        shop.provider.will(OWN, says_failed())
        await hint(shop, "re_1")
        await shop.handle()
        refund = await shop.stored()
        assert (refund.stage, refund.version) == (Stage.SETTLED, settled.version)
        assert refund.candidates == ()


@pytest.mark.parametrize("shows", ["at once", "later"])
async def test_failed_send_fails_what_a_list_has_proven_absent(
    async_redis: redis.asyncio.Redis, shows: str
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        refund = await resent(shop, shows)
        assert (refund.status, refund.retriable) == (Status.FAILED, Retriable.YES)


async def test_failed_send_is_read_no_more_once_it_is_known(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, BLIND) as shop:
        refund = await resent(shop, "at once")
        await hint(shop, "re_2")
        await shop.handle()
        assert (await shop.stored()).version == refund.version
        await decided(shop, decisions.resolve_failed(refund, "gone", by="ann", unverified=True))
        refund = await look(shop)
        assert (refund.status, refund.evidence, refund.error_code) == (
            Status.FAILED,
            "operator",
            "gone",
        )
        assert refund.retriable is Retriable.NO


@pytest.mark.parametrize(
    ("first", "status"), [("succeeded", Status.SUCCEEDED), (None, Status.FAILED)]
)
async def test_list_shows_what_became_of_the_first_send_beside_the_failed_one(
    async_redis: redis.asyncio.Redis, first: str | None, status: Status
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        refund = await bring_to_review(shop)
        await decided(shop, decisions.resolve_resend(refund, by="ann", unverified=True))
        unnamed = refund_payload(id="re_8", metadata={})
        shop.provider.will(LIST, listing(unnamed))
        shop.provider.will(POST, second("failed"))
        refund = await look(shop)
        assert (refund.stage, posts(shop)) == (Stage.REVIEW, 2)
        await decided(shop, decisions.resolve_failed(refund, "gone", by="ann"))
        failed = refund_payload(id="re_2", status="failed")
        shown = [failed] if first is None else [failed, refund_payload(status=first)]
        shop.provider.will(LIST, listing(*shown))
        shop.provider.will(PAID, EMPTY)
        shop.provider.will(RETRIED, second("failed"))
        refund = await look(shop, 1 if first else 3)
        assert (refund.status, refund.evidence) == (status, "list")


async def test_what_failed_beside_the_pending_send_does_not_end_it(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, BLIND) as shop:
        refund = await bring_to_review(shop)
        await decided(shop, decisions.resolve_resend(refund, by="ann", unverified=True))
        shop.provider.will(POST, second("pending"))
        refund = await look(shop)
        shop.provider.will(OWN, says_failed())
        await hint(shop, "re_1")
        await shop.handle()
        assert (await shop.stored()).version == refund.version
        shop.provider.will(RETRIED, second("succeeded"))
        refund = await look(shop)
        assert (refund.status, refund.provider_refund_id) == (Status.SUCCEEDED, "re_2")


async def test_list_that_proves_absence_later_outweighs_the_persons_word(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        refund = await bring_to_review(shop)
        await decided(shop, decisions.resolve_resend(refund, by="ann", unverified=True))
        shop.provider.will(LIST, listing(refund_payload(id="re_8", metadata={})))
        shop.provider.will(POST, httpx.ReadError("cut"), second("failed"))
        assert (await look(shop)).absent_by_word
        shop.provider.will(LIST, listing())
        shop.provider.will(PAID, EMPTY)
        refund = await look(shop, 4)
        assert (refund.status, refund.provider_refund_id, posts(shop)) == (
            Status.FAILED,
            "re_2",
            3,
        )


async def test_person_may_name_the_failed_send_as_the_one_that_counts(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, BLIND) as shop:
        refund = await resent(shop, "at once")
        await decided(shop, decisions.resolve_succeeded(refund, "re_2", shop.now, by="ann"))
        refund = await look(shop)
        assert (refund.status, refund.provider_refund_id) == (Status.FAILED, "re_2")


# A total that stays as it was shows that no money moved, and nothing of a refund that failed


async def resent_after_a_failure(shop: Shop, second: Given) -> Refund:
    """A refund whose first send failed unseen, and that was sent again since no money moved."""
    shop.provider.will(PAID, totals(0))
    shop.provider.will(POST, httpx.ReadError("cut"), second)
    shop.provider.will(OWN, says_failed())
    await shop.accept()
    refund = await look(shop, 4)
    assert posts(shop) == 2
    return refund


@pytest.mark.parametrize("stage", [Stage.IN_DOUBT, Stage.REVIEW])
async def test_earlier_send_that_failed_says_nothing_of_the_one_in_doubt(
    async_redis: redis.asyncio.Redis, stage: Stage
) -> None:
    async with opened(async_redis, TOTALS) as shop:
        refund = await resent_after_a_failure(shop, httpx.ReadError("cut"))
        if stage is Stage.REVIEW:
            await decided(shop, proofs.to_review({}, "inconclusive", "it cannot be told"))
        await hint(shop, "re_1")
        await shop.handle()
        refund = await shop.stored()
        assert (refund.stage, refund.provider_refund_id, refund.prior_refund_ids) == (
            Stage.REVIEW,
            None,
            "re_1",
        )
        assert "may be of an earlier attempt" in (await shop.history())[-1]["alarm"]
        # The person's decision is compared with the total, as for any doubt.
        await decided(shop, decisions.resolve_failed(refund, "gone", by="ann"))
        refund = await look(shop, 3)
        assert (refund.status, refund.evidence) == (Status.FAILED, "totals")


async def test_earlier_send_that_failed_ends_a_refund_whose_later_one_did_nothing(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, TOTALS) as shop:
        refund = await resent_after_a_failure(shop, error(429))
        assert refund.stage is Stage.WAITING
        shop.pass_time(HOUR)
        await hint(shop, "re_1")
        await shop.handle()
        refund = await shop.stored()
        assert (refund.status, refund.provider_refund_id) == (Status.FAILED, "re_1")


async def test_pending_refund_of_a_second_send_fails_as_the_provider_shows_it(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, TOTALS) as shop:
        refund = await resent_after_a_failure(shop, second("pending"))
        assert refund.stage is Stage.PROCESSING
        shop.provider.will(RETRIED, second("failed"))
        refund = await look(shop)
        assert (refund.status, refund.provider_refund_id) == (Status.FAILED, "re_2")


async def test_total_of_before_a_resend_that_did_nothing_is_not_compared_with_after_the_next_send(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, TOTALS) as shop:
        await shop.accept()
        shop.provider.will(PAID, totals(0))
        shop.provider.will(POST, httpx.ReadError("reset"), error(429), httpx.ReadError("reset"))
        await shop.handle()
        refund = await look(shop, 3)
        assert (refund.stage, refund.resends, posts(shop)) == (Stage.WAITING, 1, 2)
        # Somebody else makes a refund of the same amount, and the total cannot be read for a while.
        shop.provider.will(PAID, totals(500, captured=False))
        refund = await look(shop)
        assert (refund.stage, posts(shop)) == (Stage.IN_DOUBT, 3)
        shop.provider.will(PAID, totals(500))
        for _ in range(3):
            refund = await look(shop)
        assert refund.status is Status.PENDING
        # One that failed may still be of the first send.
        await hint(shop)
        shop.provider.will(NAMED, says(200, refund_payload(id="re_9", status="failed")))
        refund = await look(shop)
        assert (refund.stage, refund.prior_refund_ids) == (Stage.REVIEW, "re_9")
