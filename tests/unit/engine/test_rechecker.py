"""Reads of a refund outside its own schedule: what they confirm, change, and leave."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import redis.asyncio

from tests.factories import refund_payload
from tests.unit.engine.rereads import (
    NAMED,
    OWN,
    Rereads,
    failed_and_retried,
    hint,
    labels,
    of_generation,
    retried_and_refused,
    settle,
)
from tests.unit.engine.shop import ID, PAID, POST, TOTALS, error, events, opened, says, totals
from worker.engine import endings
from worker.model.refund import Stage, Status
from worker.rules import decisions
from worker.rules.rechecks import WAITS
from worker.store import saves


async def waiting(rereads: Rereads) -> None:
    """A refund that was not sent yet, and is tried again later."""
    await rereads.shop.accept()
    rereads.shop.provider.will(POST, error(429))
    await rereads.shop.handle()
    assert (await rereads.shop.stored()).stage is Stage.WAITING


async def scheduled(rereads: Rereads) -> int:
    """How many refunds are to be read again."""
    count: int = await rereads.shop.store.redis.zcard("refunds:rechecks")
    return count


async def test_unsent_retry_takes_the_earlier_refund_as_its_own_and_counts_it_as_found(
    rereads: Rereads,
) -> None:
    await failed_and_retried(rereads.shop)
    await rereads.named(says(200, of_generation(1)))
    assert str(await rereads.run()) == "succeeded"
    refund = await rereads.shop.stored()
    assert (refund.provider_refund_id, refund.contradicted_by) == ("re_9", None)
    assert (await labels(rereads))[-1] == "prior_succeeded"
    # What earlier generations made is read before a send, not by this recheck.
    assert (rereads.counts, rereads.shop.provider.asked) == (["found"], [NAMED])


# A named refund that is ours, or not


async def test_named_refund_that_is_ours_is_saved_and_counted_as_found(rereads: Rereads) -> None:
    await rereads.shop.accept()
    await rereads.named(says(200, refund_payload(id="re_9")))
    assert str(await rereads.run()) == "succeeded"
    assert (await rereads.shop.stored()).provider_refund_id == "re_9"
    assert (rereads.counts, rereads.answers, rereads.trouble) == (["found"], 1, [])


@pytest.mark.parametrize("metadata", [{}, {"refund_id": "other"}])
async def test_unsent_refund_may_be_sent_once_the_named_one_is_refuted(
    rereads: Rereads, metadata: dict[str, str]
) -> None:
    await rereads.shop.accept()
    await rereads.named(says(200, refund_payload(id="re_9", metadata=metadata)))
    assert await rereads.run() is None
    assert (rereads.counts, rereads.answers, rereads.trouble) == (["refuted"], 1, [])


async def test_waiting_refund_may_be_sent_once_the_named_one_is_refuted(rereads: Rereads) -> None:
    await waiting(rereads)
    await rereads.named(says(200, refund_payload(id="re_9", metadata={})))
    assert await rereads.run() is None
    assert rereads.counts == ["refuted"]


async def test_waiting_refund_goes_to_a_person_if_the_named_one_stays_unreadable(
    rereads: Rereads,
) -> None:
    await waiting(rereads)
    await rereads.named(error(500))
    for wait in WAITS:
        assert str(await rereads.run()).startswith("waiting")
        assert (rereads.counts, rereads.codes) == (["again"], ["some_code"])
        rereads.shop.pass_time(wait)
    assert str(await rereads.run()) == "in review (hint_unreadable)"
    assert rereads.counts == ["given_up"]
    assert (await rereads.shop.stored()).error_code == "hint_unreadable"


async def test_save_of_a_named_refund_is_tried_until_redis_answers(
    rereads: Rereads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.engine.recorder._PAUSE", 0.0)
    await rereads.shop.accept()
    await rereads.named(says(200, refund_payload(id="re_9")))
    rereads.shop.store.failing = ["save"]
    assert str(await rereads.run()) == "succeeded"
    assert (await rereads.shop.stored()).provider_refund_id == "re_9"


async def test_refund_that_totals_proved_is_counted_as_identified_by_the_named_one(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, TOTALS) as shop:
        rereads = Rereads(shop)
        await shop.accept()
        shop.provider.will(PAID, totals(0))
        shop.provider.will(POST, httpx.ReadError("reset"))
        await shop.handle()
        shop.provider.will(PAID, totals(500))
        for end in ("in doubt", "succeeded"):
            shop.pass_time(TOTALS.settle)
            assert await shop.handle() == end
        assert (await shop.stored()).provider_refund_id is None
        await rereads.named(says(200, refund_payload(id="re_9")))
        assert str(await rereads.run()) == "succeeded"
        refund = await shop.stored()
        assert (refund.provider_refund_id, refund.evidence) == ("re_9", "lookup")
        assert (rereads.counts, (await labels(rereads))[-1:]) == (["identified"], ["identified"])


# A settled refund's own


async def test_settled_refund_that_the_provider_confirms_is_an_answer_and_counted_once(
    rereads: Rereads,
) -> None:
    await settle(rereads.shop)
    await hint(rereads.shop, "re_1")
    rereads.shop.provider.will(OWN, says())
    assert str(await rereads.run()) == "succeeded"
    assert (rereads.counts, rereads.answers, rereads.trouble) == (["confirmed"], 1, [])
    assert await scheduled(rereads) == 0


async def test_settled_refund_that_cannot_be_read_is_trouble_and_given_up_after_its_waits(
    rereads: Rereads, log: list[Any]
) -> None:
    await settle(rereads.shop)
    await hint(rereads.shop, "re_1")
    rereads.shop.provider.will(OWN, error(503, "away"))
    for wait in WAITS:
        await rereads.run()
        assert (rereads.counts, rereads.codes, rereads.answers) == (["again"], ["away"], 0)
        rereads.shop.pass_time(wait)
    assert str(await rereads.run()) == "succeeded"
    assert (rereads.counts, rereads.codes) == (["given_up"], ["away"])
    assert events(log, refund_id=ID).count("recheck_given_up") == 1
    assert await scheduled(rereads) == 0


async def test_settled_refund_that_is_shown_with_another_amount_is_counted_once(
    rereads: Rereads, log: list[Any]
) -> None:
    await settle(rereads.shop)
    await hint(rereads.shop, "re_1")
    rereads.shop.provider.will(OWN, says(200, refund_payload(amount=499)))
    assert str(await rereads.run()) == "succeeded"
    assert (rereads.counts, rereads.answers, rereads.trouble) == (["contradicts"], 1, [])
    assert events(log, alarm=True, provider_refund_id="re_1") == ["proof_against_settled"]


async def test_reversal_is_saved_as_seen_by_a_recheck_once_redis_answers(
    rereads: Rereads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.engine.recorder._PAUSE", 0.0)
    await settle(rereads.shop)
    await hint(rereads.shop, "re_1")
    rereads.shop.provider.will(OWN, says(200, refund_payload(status="failed")))
    rereads.shop.store.failing = ["save"]
    assert str(await rereads.run()) == "failed (unknown)"
    last = (await rereads.shop.history())[-1]
    assert (last["label"], last["seen"]) == ("reversed", "recheck")
    assert (rereads.counts, rereads.answers, await scheduled(rereads)) == (["reversed"], 1, 0)


# A settled refund's earlier generations


async def test_earlier_refund_that_has_still_failed_is_confirmed_without_an_alarm(
    rereads: Rereads, log: list[Any]
) -> None:
    await retried_and_refused(rereads.shop)
    assert str(await rereads.run()).startswith("failed")
    assert (rereads.counts, rereads.answers, rereads.trouble) == (["confirmed"], 1, [])
    assert events(log, alarm=True, provider_refund_id="re_1") == []


async def test_earlier_refund_that_moved_money_is_a_contradiction_and_not_read_again(
    rereads: Rereads,
) -> None:
    await retried_and_refused(rereads.shop)
    rereads.shop.provider.will(OWN, says())
    assert await rereads.run() == endings.CONTRADICTED
    assert (await rereads.shop.stored()).contradicted_by == "re_1"
    assert (rereads.counts, rereads.answers) == (["contradicts"], 1)
    assert await scheduled(rereads) == 0


@pytest.mark.parametrize("differs", [{"amount": 499}, {"status": "odd"}])
async def test_earlier_refund_that_cannot_be_ours_is_an_alarm_and_changes_nothing(
    rereads: Rereads, log: list[Any], differs: dict[str, Any]
) -> None:
    await retried_and_refused(rereads.shop)
    before = await rereads.shop.stored()
    rereads.shop.provider.will(OWN, says(200, refund_payload(**differs)))
    assert str(await rereads.run()).startswith("failed")
    assert await rereads.shop.stored() == before
    assert (rereads.counts, rereads.answers) == (["contradicts"], 1)
    assert events(log, alarm=True, provider_refund_id="re_1") == ["proof_against_settled"]


async def test_earlier_refund_that_cannot_be_read_is_trouble_and_read_again(
    rereads: Rereads,
) -> None:
    await retried_and_refused(rereads.shop)
    rereads.shop.provider.will(OWN, error(503, "away"))
    await rereads.run()
    assert (rereads.counts, rereads.codes, rereads.answers) == (["again"], ["away"], 0)
    assert await scheduled(rereads) == 1


async def test_reversal_of_a_retry_is_its_ending_although_the_earlier_refund_agrees(
    rereads: Rereads,
) -> None:
    await retried_and_refused(rereads.shop, "succeeded")
    metadata = {"refund_id": ID, "refund_generation": "2"}
    reversed_ = refund_payload(id="re_2", metadata=metadata, status="failed")
    rereads.shop.provider.will("GET /v1/refunds/re_2", says(200, reversed_))
    assert str(await rereads.run()) == "failed (unknown)"
    assert (rereads.counts, await scheduled(rereads)) == (["reversed", "confirmed"], 0)


# The record changes while it is read


async def test_reversal_of_a_record_that_changes_meanwhile_is_read_again(rereads: Rereads) -> None:
    shop = rereads.shop
    await settle(shop)
    await hint(shop, "re_1", "failed")

    async def changed(_: httpx.Request) -> httpx.Response:
        await shop.set(version="99")
        return says(200, refund_payload(status="failed"))

    shop.provider.will(OWN, changed)
    await rereads.run()
    assert ((await shop.stored()).status, await scheduled(rereads)) == (Status.SUCCEEDED, 1)
    shop.provider.will(OWN, says(200, refund_payload(status="failed")))
    await rereads.run()
    assert ((await shop.stored()).status, await scheduled(rereads)) == (Status.FAILED, 0)


async def test_earlier_refund_that_was_done_is_kept_if_its_retry_is_canceled_meanwhile(
    rereads: Rereads, log: list[Any]
) -> None:
    shop = rereads.shop
    await failed_and_retried(shop)
    await hint(shop, "re_1", "succeeded")

    async def canceled(_: httpx.Request) -> httpx.Response:
        # Saved just before the event came, by a server whose scripts did not see the event.
        name = (await shop.stored()).hinted
        await shop.store.redis.hdel(f"refunds:refund:{ID}", "hinted")
        refund = await shop.stored()
        assert (
            await shop.store.run(saves.save(refund, decisions.cancel(refund)))
        ).result == "saved"
        await shop.set(hinted=str(name))
        return says(200, refund_payload(metadata={"refund_id": ID, "refund_generation": "1"}))

    shop.provider.will(OWN, canceled)
    assert await rereads.run() is endings.CONTRADICTED
    refund = await shop.stored()
    assert (refund.status, refund.contradicted_by) == (Status.CANCELED, "re_1")
    assert events(log, alarm=True) == ["refund_needs_attention"]
