"""What a person decides of a refund that may have happened is held against what the provider
shows.
"""

from __future__ import annotations

import httpx
import pytest
import redis.asyncio

from tests.factories import BLIND, HOUR, NOW, VERIFY, refund_payload
from tests.unit.engine.deciding import bring_to_review, decided, look, posts, sources
from tests.unit.engine.rereads import NAMED, hint
from tests.unit.engine.shop import (
    BY_ID,
    LIST,
    PAID,
    POST,
    TOTALS,
    Shop,
    error,
    listing,
    opened,
    says,
    totals,
)
from worker.model.refund import Refund, Stage, Status
from worker.rules import attempts, decisions, proofs


@pytest.mark.parametrize("word", ["failed", "absent"])
async def test_a_decision_that_nothing_confirms_comes_back_to_the_person_with_the_reason(
    async_redis: redis.asyncio.Redis, word: str
) -> None:
    async with opened(async_redis, BLIND) as shop:
        refund = await bring_to_review(shop)
        step = (
            decisions.resolve_failed(refund, "gone")
            if word == "failed"
            else decisions.resolve_resend(refund)
        )
        await decided(shop, step)
        refund = await look(shop)
        assert (refund.stage, refund.operator_says, refund.operator_by) == (
            Stage.REVIEW,
            None,
            None,
        )
        assert "nothing may be read back" in (await shop.history())[-1]["alarm"]
        assert "--unverified" in (await shop.history())[-1]["alarm"]
        assert posts(shop) == 1


async def test_a_person_may_settle_unverified_what_nothing_shows_and_the_record_says_so(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, BLIND) as shop:
        refund = await bring_to_review(shop)
        await decided(shop, decisions.resolve_failed(refund, "gone", by="ann", unverified=True))
        refund = await look(shop)
        assert (refund.status, refund.evidence, refund.error_code) == (
            Status.FAILED,
            "operator",
            "gone",
        )
        assert refund.error_message == "settled by a person, not verified: nothing may be read back"
        assert (await sources(shop))[-1] == ("operator_says_failed", "operator", "ann")
        assert keeps_nothing_of_the_word(refund)


def keeps_nothing_of_the_word(refund: Refund) -> bool:
    """Tell whether the record carries nothing of a decision any more."""
    return not any(
        (refund.operator_says, refund.operator_by, refund.operator_code, refund.operator_unverified)
    )


async def test_a_person_may_have_it_sent_unverified_and_the_history_says_on_whose_word(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, BLIND) as shop:
        refund = await bring_to_review(shop)
        await decided(shop, decisions.resolve_resend(refund, by="ann", unverified=True))
        # The reply may be that of the first send, which the provider has kept with the key.
        shop.provider.will(BY_ID, says())
        shop.wake_nobody()
        assert (await look(shop)).stage is Stage.PROCESSING
        refund = await look(shop)
        assert (refund.status, refund.evidence, posts(shop)) == (Status.SUCCEEDED, "lookup", 2)
        assert (await sources(shop))[-4:] == [
            ("operator_says_absent", "operator", "ann"),
            ("resend", "operator", "ann"),
            ("late_success", "reply", None),
            ("succeeded", "lookup", None),
        ]
        assert keeps_nothing_of_the_word(refund)


async def test_a_resend_that_a_list_bears_out_rests_on_the_list(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        refund = await bring_to_review(shop, resends=3)
        await decided(shop, decisions.resolve_resend(refund, by="ann"))
        shop.provider.will(LIST, listing())
        shop.provider.will(PAID, totals(0))
        refund = await look(shop, 2)
        assert (refund.status, posts(shop)) == (Status.SUCCEEDED, 2)
        assert (await sources(shop))[-3:-1] == [
            ("absence_proven", "list", "ann"),
            ("resend", "list", "ann"),
        ]


async def test_nothing_is_sent_for_what_an_id_at_the_provider_still_shows_as_pending(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, BLIND) as shop:
        refund = await bring_to_review(shop)
        await shop.set(provider_refund_id="re_1", provider_status="pending")
        for step in (
            decisions.resolve_resend(refund, unverified=True),
            decisions.resolve_failed(refund, "gone", unverified=True),
        ):
            await decided(shop, step)
            shop.provider.will(BY_ID, says(200, refund_payload(status="pending")))
            refund = await look(shop)
            assert (refund.stage, refund.provider_refund_id, refund.evidence) == (
                Stage.PROCESSING,
                "re_1",
                "lookup",
            )
            assert (await sources(shop))[-1] == ("processing", "lookup", None)
            await decided(
                shop, proofs.to_review({"doubt_since": shop.now}, "pending_too_long", "too long")
            )
            refund = await shop.stored()
        assert posts(shop) == 1


async def test_what_the_provider_calls_pending_for_a_month_may_be_given_up_unverified(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, BLIND) as shop:
        await bring_to_review(shop)
        since = int((NOW - attempts.MAX_PROCESSING).timestamp() * 1000)
        await shop.set(
            provider_refund_id="re_1", provider_status="pending", processing_since=str(since)
        )
        await decided(shop, decisions.resolve_failed(await shop.stored(), "gone", unverified=True))
        shop.provider.will(BY_ID, says(200, refund_payload(status="pending")))
        refund = await look(shop)
        assert (refund.status, refund.evidence, refund.error_code) == (
            Status.FAILED,
            "operator",
            "gone",
        )


async def test_an_id_that_the_provider_does_not_know_any_more_is_no_reason_not_to_look_further(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await bring_to_review(shop)
        await shop.set(provider_refund_id="re_1", provider_status="pending")
        await decided(shop, decisions.resolve_resend(await shop.stored()))
        shop.provider.will(BY_ID, error(404, "resource_missing"))
        shop.provider.will(LIST, listing())
        shop.provider.will(PAID, totals(0))
        shop.provider.will(POST, says(200, refund_payload(id="re_2")))
        refund = await look(shop, 2)
        assert (refund.status, refund.provider_refund_id, posts(shop)) == (
            Status.SUCCEEDED,
            "re_2",
            2,
        )


@pytest.mark.parametrize("status", ["pending", "succeeded"])
async def test_an_id_that_could_not_be_read_before_a_send_on_a_word_is_read_before_the_next_one(
    async_redis: redis.asyncio.Redis, status: str
) -> None:
    async with opened(async_redis, BLIND) as shop:
        await bring_to_review(shop)
        await shop.set(provider_refund_id="re_1", provider_status="pending")
        await decided(shop, decisions.resolve_resend(await shop.stored(), unverified=True))
        shop.provider.will(BY_ID, error(500))
        shop.provider.will(POST, error(429), says(200, refund_payload(id="re_2")))
        refund = await look(shop, 3)
        assert (refund.stage, posts(shop)) == (Stage.WAITING, 2)
        shop.provider.will(BY_ID, says(200, refund_payload(status=status)))
        refund = await look(shop)
        assert (refund.stage, refund.error_code, posts(shop)) == (Stage.REVIEW, "conflict", 2)


@pytest.mark.parametrize(("status", "stage"), [(500, Stage.REVIEW), (401, Stage.WAITING)])
async def test_an_id_that_cannot_be_read_within_the_allowed_age_comes_back_to_the_person(
    async_redis: redis.asyncio.Redis, status: int, stage: Stage
) -> None:
    async with opened(async_redis, BLIND) as shop:
        await bring_to_review(shop)
        await shop.set(provider_refund_id="re_1", provider_status="pending")
        await decided(shop, decisions.resolve_resend(await shop.stored(), unverified=True))
        shop.provider.will(BY_ID, error(500))
        shop.provider.will(POST, error(429))
        assert (await look(shop, 4)).stage is Stage.WAITING
        shop.provider.will(BY_ID, error(status))
        shop.pass_time(BLIND.max_age)
        assert (await look(shop)).stage is stage
        assert posts(shop) == 2


@pytest.mark.parametrize(("status", "stage"), [(500, Stage.REVIEW), (401, Stage.WAITING)])
async def test_a_payment_that_cannot_be_read_within_the_allowed_age_comes_back_to_the_person(
    async_redis: redis.asyncio.Redis, status: int, stage: Stage
) -> None:
    async with opened(async_redis, TOTALS) as shop:
        await bring_to_review(shop)
        await decided(shop, decisions.resolve_resend(await shop.stored(), unverified=True))
        shop.provider.will(PAID, error(500))
        shop.provider.will(POST, error(429))
        assert (await look(shop, 3)).stage is Stage.WAITING
        shop.provider.will(PAID, error(status))
        shop.pass_time(TOTALS.max_age)
        assert (await look(shop)).stage is stage
        assert posts(shop) == 2


@pytest.mark.parametrize("word", ["failed", "absent"])
async def test_another_refund_that_failed_says_nothing_of_one_that_a_person_decided_about(
    async_redis: redis.asyncio.Redis, word: str
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await bring_to_review(shop)
        await shop.set(provider_refund_id="re_1", provider_status="pending")
        refund = await shop.stored()
        step = (
            decisions.resolve_failed(refund, "gone")
            if word == "failed"
            else decisions.resolve_resend(refund)
        )
        await decided(shop, step)
        await hint(shop)
        shop.provider.will(NAMED, says(200, refund_payload(id="re_9", status="failed")))
        shop.provider.will(BY_ID, says(200, refund_payload(status="pending")))
        refund = await look(shop)
        assert (refund.stage, refund.provider_refund_id) == (Stage.PROCESSING, "re_1")
        assert (refund.hinted, posts(shop)) == (None, 1)


async def gone(shop: Shop) -> Refund:
    """A refund that was never in doubt, pending at the provider and then not known there any
    more.
    """
    await shop.accept()
    shop.provider.will(POST, says(200, refund_payload(status="pending")))
    shop.provider.will(BY_ID, error(404, "resource_missing"))
    shop.provider.will(PAID, totals(0))
    await shop.handle()
    shop.pass_time(HOUR)
    refund = await look(shop, 2)
    while refund.stage is Stage.PROCESSING:
        shop.pass_time(HOUR)
        refund = await look(shop)
    assert (refund.stage, refund.error_code, refund.quiet_at) == (
        Stage.REVIEW,
        "refund_missing",
        None,
    )
    return refund


@pytest.mark.parametrize(("word", "sent"), [("failed", 1), ("absent", 2)])
async def test_a_decision_about_a_refund_that_was_never_in_doubt_is_verified_like_any_other(
    async_redis: redis.asyncio.Redis, word: str, sent: int
) -> None:
    async with opened(async_redis) as shop:
        refund = await gone(shop)
        step = (
            decisions.resolve_failed(refund, "gone")
            if word == "failed"
            else decisions.resolve_resend(refund)
        )
        await decided(shop, step)
        shop.provider.will(LIST, listing())
        shop.provider.will(PAID, totals(0))
        shop.provider.will(POST, says(200, refund_payload(id="re_2")))
        refund = await look(shop, 3)
        assert (refund.stage, posts(shop)) == (Stage.SETTLED, sent)


@pytest.mark.parametrize("word", ["failed", "absent"])
async def test_a_decision_about_a_refund_that_was_never_in_doubt_comes_back_if_nothing_may_be_read(
    async_redis: redis.asyncio.Redis, word: str
) -> None:
    async with opened(async_redis, BLIND) as shop:
        refund = await gone(shop)
        step = (
            decisions.resolve_failed(refund, "gone")
            if word == "failed"
            else decisions.resolve_resend(refund)
        )
        await decided(shop, step)
        refund = await look(shop, 2)
        assert (refund.stage, refund.operator_says, posts(shop)) == (Stage.REVIEW, None, 1)


async def test_a_rise_long_after_a_pending_refund_was_sent_is_not_taken_for_it(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, TOTALS) as shop:
        refund = await gone(shop)
        # Somebody else made an equal refund while ours was pending.
        shop.provider.will(PAID, totals(500))
        await decided(shop, decisions.resolve_failed(refund, "gone"))
        assert (await look(shop)).stage is Stage.REVIEW
        assert (await shop.history())[-1]["label"] == "found_late"


async def test_an_id_that_shows_somebody_elses_refund_comes_back_to_the_person(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await bring_to_review(shop)
        await shop.set(provider_refund_id="re_1")
        await decided(shop, decisions.resolve_failed(await shop.stored(), "gone", unverified=True))
        shop.provider.will(BY_ID, says(200, refund_payload(payment_intent="pi_other")))
        refund = await look(shop)
        assert (refund.stage, refund.error_code, refund.operator_says) == (
            Stage.REVIEW,
            "conflict",
            None,
        )
        assert (await sources(shop))[-1] == ("conflict", "lookup", None)


async def test_nothing_is_sent_for_what_an_id_at_the_provider_still_shows_with_an_unknown_status(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await shop.accept()
        shop.provider.will(POST, says(200, refund_payload(status="settling")))
        assert await shop.handle() == "in review (unknown_status)"
        shop.provider.will(BY_ID, says(200, refund_payload(status="settling")))
        step = decisions.resolve_resend(await shop.stored(), by="ann", unverified=True)
        await decided(shop, step)
        refund = await look(shop, 3)
        assert (refund.stage, refund.error_code, posts(shop)) == (Stage.REVIEW, "unknown_status", 1)
        assert (refund.provider_refund_id, refund.provider_status) == ("re_1", "settling")


@pytest.mark.parametrize(
    ("word", "stage", "evidence"),
    [
        ("failed", Stage.REVIEW, None),
        ("failed unverified", Stage.SETTLED, "operator"),
        ("absent", Stage.REVIEW, None),
    ],
)
async def test_a_rise_of_the_total_is_shown_to_the_person_who_says_that_nothing_happened(
    async_redis: redis.asyncio.Redis, word: str, stage: Stage, evidence: str | None
) -> None:
    async with opened(async_redis, TOTALS) as shop:
        refund = await bring_to_review(shop)
        if word == "absent":
            # Whoever wants it sent again is not believed against a rise, unverified or not.
            await decided(shop, decisions.resolve_resend(refund, unverified=True))
        else:
            await decided(
                shop,
                decisions.resolve_failed(refund, "gone", unverified=word.endswith("unverified")),
            )
        shop.provider.will(PAID, totals(500))
        refund = await look(shop)
        assert (refund.stage, refund.evidence, posts(shop)) == (stage, evidence, 1)
        if word != "failed unverified":
            assert "rose by exactly" in (await shop.history())[-1]["alarm"]
        assert not refund.operator_says


async def test_a_look_that_is_not_answered_is_tried_again_before_a_word_is_taken(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        refund = await bring_to_review(shop)
        await decided(shop, decisions.resolve_failed(refund, "gone", unverified=True))
        shop.provider.will(LIST, error(503), error(503), listing(refund_payload()))
        assert (await look(shop, 2)).stage is Stage.IN_DOUBT
        assert (await look(shop)).status is Status.SUCCEEDED


@pytest.mark.parametrize(("unverified", "stage"), [(True, Stage.SETTLED), (False, Stage.REVIEW)])
async def test_looks_that_are_never_answered_leave_the_decision_to_the_person(
    async_redis: redis.asyncio.Redis, *, unverified: bool, stage: Stage
) -> None:
    async with opened(async_redis) as shop:
        refund = await bring_to_review(shop)
        await decided(shop, decisions.resolve_failed(refund, "gone", unverified=unverified))
        shop.provider.will(LIST, error(503))
        refund = await look(shop, 3)
        assert (refund.stage, shop.provider.asked.count(LIST)) == (stage, 3)


async def test_a_refused_key_is_no_reason_to_take_a_word(async_redis: redis.asyncio.Redis) -> None:
    async with opened(async_redis) as shop:
        refund = await bring_to_review(shop)
        await decided(shop, decisions.resolve_failed(refund, "gone", unverified=True))
        shop.provider.will(LIST, error(401, "bad_key"))
        assert (await look(shop, 5)).stage is Stage.IN_DOUBT


async def test_a_key_that_stood_for_other_contents_is_a_doubt(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await shop.accept()
        shop.provider.will(POST, error(400, "x", "idempotency_error"))
        await shop.handle()
        refund = await shop.stored()
        assert (refund.stage, refund.doubt_since) == (Stage.REVIEW, NOW)
        await decided(shop, decisions.resolve_failed(refund, "gone"))
        assert (await shop.stored()).stage is Stage.IN_DOUBT


async def test_a_resend_on_a_persons_word_that_never_gets_through_is_no_proof_that_nothing_was_done(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, BLIND) as shop:
        refund = await bring_to_review(shop)
        shop.provider.will(POST, error(429))
        shop.pass_time(BLIND.max_age)
        await decided(shop, decisions.resolve_resend(refund, unverified=True))
        refund = await look(shop)
        assert (refund.stage, refund.doubted) == (Stage.REVIEW, True)
        assert (await shop.history())[-1]["label"] == "budget_spent"
        await decided(shop, decisions.resolve_failed(refund, "gone"))
        assert (await shop.stored()).stage is Stage.IN_DOUBT


@pytest.mark.parametrize("unverified", [True, False])
@pytest.mark.parametrize("code", ["charge_already_refunded", "amount_too_large", "some_new_code"])
async def test_a_refusal_that_may_be_an_echo_settles_nothing_after_a_persons_word(
    async_redis: redis.asyncio.Redis, code: str, *, unverified: bool
) -> None:
    async with opened(async_redis, BLIND if unverified else VERIFY) as shop:
        refund = await bring_to_review(shop)
        await decided(shop, decisions.resolve_resend(refund, unverified=unverified))
        shop.provider.will(LIST, listing())
        shop.provider.will(PAID, totals(0))
        shop.provider.will(POST, error(400, code))
        refund = await look(shop, 1 if unverified else 2)
        assert (posts(shop), refund.stage, refund.doubted) == (2, Stage.REVIEW, True)
        assert refund.error_code == code
        # Nor does a second word of the same person.
        await decided(shop, decisions.resolve_resend(refund, unverified=True))
        refund = await look(shop, 3)
        assert (posts(shop), refund.stage) == (3, Stage.REVIEW)


async def test_total_that_could_not_be_read_before_a_send_on_a_word_says_nothing_after_it(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, TOTALS) as shop:
        refund = await bring_to_review(shop)
        # Somebody else has made a refund of the same amount meanwhile.
        shop.provider.will(PAID, error(500))
        shop.provider.will(POST, httpx.ReadError("reset"))
        await decided(shop, decisions.resolve_resend(refund, by="ann", unverified=True))
        refund = await look(shop, 3)
        assert (posts(shop), refund.stage) == (2, Stage.IN_DOUBT)
        shop.provider.will(PAID, totals(500))
        assert (await look(shop, 3)).status is Status.PENDING
