"""What a recheck saves, counts and reports for each thing that the provider may show."""

from __future__ import annotations

from collections.abc import Callable
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
    posts,
    retried_and_refused,
    retry,
    settle,
)
from tests.unit.engine.shop import GONE, ID, PAID, POST, TOTALS, error, events, opened, says, totals
from worker.engine import endings
from worker.model.refund import Refund, Stage, Status
from worker.model.steps import Step
from worker.rules import decisions, proofs
from worker.rules.rechecks import WAITS
from worker.store import saves

CONTRADICTORY = refund_payload(id="re_9", amount=499)


def of_generation(generation: int, **fields: Any) -> dict[str, Any]:
    """The provider's refund `re_9` with our id and a generation."""
    metadata = {"refund_id": ID, "refund_generation": str(generation)}
    return refund_payload(id="re_9", metadata=metadata, **fields)


async def review(rereads: Rereads, code: str = "some_code") -> Refund:
    """A refund that waits for a person."""
    await rereads.shop.accept()
    queued = await rereads.shop.stored()
    step: Step = proofs.to_review({"error_code": code}, code, "because")
    assert (await rereads.shop.store.run(saves.save(queued, step))).result == "saved"
    return await rereads.shop.stored()


async def waiting(rereads: Rereads) -> None:
    """A refund that was not sent yet, and is tried again later."""
    await rereads.shop.accept()
    rereads.shop.provider.will(POST, error(429))
    await rereads.shop.handle()
    assert (await rereads.shop.stored()).stage is Stage.WAITING


async def labels(rereads: Rereads) -> list[str]:
    return [entry["label"] for entry in await rereads.shop.history()]


async def moves(rereads: Rereads) -> int:
    return len(await rereads.shop.history())


async def scheduled(rereads: Rereads) -> int:
    """How many refunds are to be read again."""
    count: int = await rereads.shop.store.redis.zcard("refunds:rechecks")
    return count


# A named refund that contradicts ours


async def test_unsettled_refund_goes_to_review_once_for_each_that_contradicts_it(
    rereads: Rereads, log: list[Any]
) -> None:
    await rereads.shop.accept()
    await rereads.named(says(200, CONTRADICTORY))
    assert str(await rereads.run()) == "in review (conflict)"
    refund = await rereads.shop.stored()
    assert (refund.stage, refund.error_code, refund.hinted) == (Stage.REVIEW, "conflict", None)
    last = (await rereads.shop.history())[-1]
    assert (last["label"], last["source"], last["seen"]) == ("conflict", "lookup", "webhook")
    assert rereads.counts == ["contradicts"]
    seen, told = await rereads.shop.stored(), len(events(log, alarm=True))
    await rereads.named(says(200, CONTRADICTORY | {"id": "re_8"}), "re_8")
    assert str(await rereads.run()) == "in review (conflict)"
    assert rereads.counts == ["contradicts"]
    assert await labels(rereads) == ["accepted", "conflict", "conflict"]
    refund = await rereads.shop.stored()
    assert [name in (refund.error_message or "") for name in ("re_9", "re_8")] == [True, True]
    assert len(events(log, alarm=True)) == told + 1
    # A decision of a person who did not know of the second is refused.
    step = decisions.resolve_resend(seen, by="ann", unverified=True)
    assert (await rereads.shop.store.run(saves.save(seen, step))).result == "stale"
    # The same one tells nothing new.
    await rereads.shop.set(hinted="re_8")
    assert str(await rereads.run()) == "in review (conflict)"
    assert await labels(rereads) == ["accepted", "conflict", "conflict"]
    assert len(events(log, alarm=True)) == told + 1
    assert posts(rereads.shop) == 0


async def test_refund_in_review_for_another_reason_is_told_of_the_one_that_contradicts_it(
    rereads: Rereads,
) -> None:
    await review(rereads)
    await rereads.named(says(200, CONTRADICTORY))
    assert str(await rereads.run()) == "in review (conflict)"
    refund = await rereads.shop.stored()
    assert (refund.error_code, rereads.counts) == ("conflict", ["contradicts"])


@pytest.mark.parametrize("order", [("re_7", "re_9"), ("re_9", "re_7")])
async def test_one_that_contradicts_is_in_the_history_whichever_was_named_first(
    rereads: Rereads, log: list[Any], order: tuple[str, str]
) -> None:
    """Ours settles the refund, and money may have moved twice."""
    await rereads.shop.accept()
    answers = {"re_7": refund_payload(id="re_7"), "re_9": CONTRADICTORY}
    for name in order:
        await rereads.named(says(200, answers[name]), name)
    assert str(await rereads.run()) == "succeeded"
    refund = await rereads.shop.stored()
    assert (refund.status, refund.provider_refund_id) == (Status.SUCCEEDED, "re_7")
    assert await labels(rereads) == ["accepted", "conflict", "succeeded"]
    assert rereads.counts == ["contradicts", "found"]
    assert [line["alarm"] for line in log if "alarm" in line] == [True]


def changes_while_it_is_read(
    rereads: Rereads, monkeypatch: pytest.MonkeyPatch, decide: Callable[[Refund], Step | None]
) -> None:
    read = rereads.candidates.read

    async def changed(refund: Refund, *permit: Any) -> Any:
        found = await read(refund, *permit)
        step = decide(refund)
        assert step is not None
        assert (await rereads.shop.store.run(saves.save(refund, step))).result == "saved"
        return found

    monkeypatch.setattr(rereads.candidates, "read", changed)


async def test_one_that_contradicts_a_refund_that_changed_meanwhile_is_an_alarm(
    rereads: Rereads, log: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    await rereads.shop.accept()
    await rereads.named(says(200, CONTRADICTORY))
    step = proofs.to_review({"error_code": "so"}, "so", "because")
    changes_while_it_is_read(rereads, monkeypatch, lambda _: step)
    await rereads.run()
    assert rereads.counts == ["contradicts"]
    alarms = [line["event"] for line in log if line.get("alarm")]
    assert alarms == ["proof_against_settled", "refund_needs_attention"]
    assert (await rereads.shop.stored()).error_code == "conflict"


async def test_one_that_contradicts_is_not_forgotten_if_a_person_decides_meanwhile(
    rereads: Rereads, monkeypatch: pytest.MonkeyPatch
) -> None:
    await review(rereads)
    await rereads.named(says(200, CONTRADICTORY))
    changes_while_it_is_read(rereads, monkeypatch, decisions.resolve_resend)
    assert str(await rereads.run()) == "in review (conflict)"
    refund = await rereads.shop.stored()
    assert (refund.stage, refund.error_code, refund.hinted) == (Stage.REVIEW, "conflict", None)
    assert refund.doubt_since is not None
    assert (await rereads.shop.history())[-1]["seen"] == "webhook"
    assert posts(rereads.shop) == 0


async def test_one_that_contradicts_a_failed_refund_is_not_forgotten_if_it_is_retried_meanwhile(
    rereads: Rereads, monkeypatch: pytest.MonkeyPatch
) -> None:
    await settle(rereads.shop, "failed")
    rereads.shop.provider.will(OWN, says(200, refund_payload(status="failed")))
    await rereads.named(says(200, CONTRADICTORY))
    changes_while_it_is_read(rereads, monkeypatch, decisions.retry_failed)
    await rereads.run()
    refund = await rereads.shop.stored()
    assert (refund.stage, refund.generation, refund.error_code) == (Stage.REVIEW, 2, "conflict")


@pytest.mark.parametrize("odd", [{"amount": 7}, {"status": "settling"}])
async def test_retry_is_not_sent_beside_an_odd_one_that_was_named_before(
    rereads: Rereads, log: list[Any], odd: dict[str, Any]
) -> None:
    await settle(rereads.shop, "failed")
    failed = says(200, refund_payload(status="failed"))
    rereads.shop.provider.will(OWN, failed)
    await rereads.named(says(200, refund_payload(id="re_9") | odd))
    before = await moves(rereads)
    assert str(await rereads.run()).startswith("failed")
    assert await moves(rereads) == before
    assert events(log, alarm=True, provider_refund_id="re_9") == ["proof_against_settled"]
    await retry(rereads.shop)
    rereads.shop.provider.will(PAID, totals(0))
    assert await rereads.shop.handle() == "in review (prior_contradicts)"
    assert posts(rereads.shop) == 0


async def test_retry_of_a_reversed_refund_is_not_sent_beside_an_odd_one_that_was_named_before(
    rereads: Rereads,
) -> None:
    await settle(rereads.shop)
    rereads.shop.provider.will(OWN, says(), says(200, refund_payload(status="failed")))
    await rereads.named(says(200, CONTRADICTORY))
    assert str(await rereads.run()) == "succeeded"
    await rereads.shop.store.redis.zadd("refunds:rechecks", {ID: 1})
    assert str(await rereads.run()).startswith("failed")
    await retry(rereads.shop)
    rereads.shop.provider.will(PAID, totals(0))
    assert await rereads.shop.handle() == "in review (prior_contradicts)"
    assert posts(rereads.shop) == 0


async def test_retry_that_was_decided_before_an_odd_one_was_read_is_not_sent_beside_it(
    rereads: Rereads,
) -> None:
    await settle(rereads.shop, "failed")
    rereads.shop.provider.will(OWN, says(200, refund_payload(status="failed")))
    refund = await rereads.shop.stored()
    step = decisions.retry_failed(refund)
    assert step is not None
    await rereads.named(says(200, CONTRADICTORY))
    await rereads.run()
    assert (await rereads.shop.store.run(saves.save(refund, step))).result == "saved"
    assert (await rereads.shop.stored()).prior_ids == ("re_9", "re_1")
    assert await rereads.shop.handle() == "in review (prior_contradicts)"
    assert posts(rereads.shop) == 0


async def test_odd_one_that_moved_nothing_does_not_hold_a_retry_back(rereads: Rereads) -> None:
    await settle(rereads.shop, "failed")
    rereads.shop.provider.will(OWN, says(200, refund_payload(status="failed")))
    await rereads.named(says(200, CONTRADICTORY | {"status": "failed"}))
    await rereads.run()
    assert (await rereads.shop.stored()).prior_refund_ids is None


@pytest.mark.parametrize(
    "shown",
    [CONTRADICTORY, refund_payload(id="re_9"), of_generation(1, amount=499), of_generation(1)],
)
@pytest.mark.parametrize("generation", [1, 2])
async def test_one_that_had_moved_nothing_and_succeeds_later_is_read_again_before_a_retry(
    rereads: Rereads, log: list[Any], shown: dict[str, Any], generation: int
) -> None:
    shop = rereads.shop
    if generation == 1:
        await settle(shop, "failed")
        shop.provider.will(OWN, says(200, refund_payload(status="failed")))
    else:
        await retried_and_refused(rereads.shop)
        await shop.set(retriable="yes")
    await rereads.named(says(200, shown | {"status": "failed"}))
    await rereads.run()
    await hint(shop, status="failed")
    assert (await shop.stored()).candidates == ()
    before = len(events(log, alarm=True))
    await hint(shop, status="succeeded")
    shop.provider.will(NAMED, says(200, shown))
    await rereads.run()
    assert len(events(log, alarm=True)) > before
    refund = await shop.stored()
    shop.provider.will(PAID, totals(0))
    if decisions.retry_failed(refund) is not None:
        await retry(shop)
        assert await shop.handle() == "in review (prior_contradicts)"
    assert posts(shop) == 0


@pytest.mark.parametrize("decided_before", [False, True])
async def test_review_tells_that_an_odd_one_which_had_moved_nothing_succeeded_later(
    rereads: Rereads, *, decided_before: bool
) -> None:
    await review(rereads)
    await rereads.named(says(200, CONTRADICTORY | {"status": "failed"}))
    await rereads.run()
    seen = await rereads.shop.stored()
    assert "moved nothing so far (failed)" in (seen.error_message or "")
    step = decisions.resolve_resend(seen, by="ann", unverified=True)
    if decided_before:
        assert (await rereads.shop.store.run(saves.save(seen, step))).result == "saved"
    await hint(rereads.shop, status="succeeded")
    rereads.shop.provider.will(NAMED, says(200, CONTRADICTORY))
    rereads.shop.wake_nobody()
    for _ in range(2):
        assert await rereads.shop.handle() == "in review (conflict)"
    refund = await rereads.shop.stored()
    assert "re_9 was read: it has our id but another amount" in (refund.error_message or "")
    assert (refund.error_message or "").count("re_9") == (1 if decided_before else 2)
    assert (await rereads.shop.store.run(saves.save(seen, step))).result == "stale"
    assert posts(rereads.shop) == 0


async def test_id_that_a_person_only_named_is_not_taken_for_ours_after_a_conflict(
    rereads: Rereads,
) -> None:
    await review(rereads)
    now = (await rereads.shop.stored()).updated_at
    step = decisions.resolve_succeeded(await rereads.shop.stored(), "re_7", now, by="ann")
    assert (
        await rereads.shop.store.run(saves.save(await rereads.shop.stored(), step))
    ).result == "saved"
    await rereads.named(says(200, CONTRADICTORY))
    assert str(await rereads.run()) == "in review (conflict)"
    refund = await rereads.shop.stored()
    assert (refund.provider_refund_id, refund.processing_since) == (None, None)


async def test_settled_refund_keeps_its_status_beside_one_that_contradicts_it_with_an_alarm(
    rereads: Rereads, log: list[Any]
) -> None:
    await settle(rereads.shop)
    before = await moves(rereads)
    await rereads.named(says(200, CONTRADICTORY))
    rereads.shop.provider.will(OWN, says())
    assert str(await rereads.run()) == "succeeded"
    refund = await rereads.shop.stored()
    assert (refund.status, refund.provider_refund_id, refund.error_code) == (
        Status.SUCCEEDED,
        "re_1",
        None,
    )
    assert await moves(rereads) == before
    assert rereads.counts == ["confirmed", "contradicts"]
    assert events(log, alarm=True, provider_refund_id="re_9") == ["proof_against_settled"]


async def test_failed_refund_stands_as_failed_for_its_reason_beside_one_that_contradicts_it(
    rereads: Rereads,
) -> None:
    await settle(rereads.shop, "failed")
    rereads.shop.provider.will(OWN, says(200, refund_payload(status="failed")))
    await rereads.named(says(200, CONTRADICTORY))
    assert str(await rereads.run()) == "failed (unknown)"


async def test_canceled_refund_beside_one_that_contradicts_it_is_an_alarm_and_changes_nothing(
    rereads: Rereads, log: list[Any]
) -> None:
    await rereads.shop.accept()
    step = decisions.cancel(await rereads.shop.stored())
    await rereads.shop.store.run(saves.save(await rereads.shop.stored(), step))
    await rereads.named(says(200, CONTRADICTORY))
    assert str(await rereads.run()) == "canceled"
    refund = await rereads.shop.stored()
    assert (refund.status, refund.prior_refund_ids) == (Status.CANCELED, None)
    assert rereads.counts == ["contradicts"]
    assert events(log, alarm=True, provider_refund_id="re_9") == ["proof_against_settled"]


# A named refund of another generation


@pytest.mark.parametrize("generation", [1, 3])
async def test_money_of_another_generation_contradicts_a_settled_retry(
    rereads: Rereads, generation: int
) -> None:
    await retried_and_refused(rereads.shop)
    await rereads.named(says(200, of_generation(generation)))
    assert await rereads.run() == endings.CONTRADICTED
    refund = await rereads.shop.stored()
    assert (refund.status, refund.contradicted_by) == (Status.FAILED, "re_9")
    assert (await labels(rereads))[-1] == "contradicted"
    assert rereads.counts == ["confirmed", "contradicts"]


@pytest.mark.parametrize("generation", [1, 3])
async def test_money_of_another_generation_contradicts_a_retry_that_is_in_review(
    rereads: Rereads, generation: int
) -> None:
    await failed_and_retried(rereads.shop)
    rereads.shop.provider.will(OWN, GONE)
    rereads.shop.provider.will(PAID, totals(0))
    assert await rereads.shop.handle() == "in review (prior_missing)"
    await rereads.named(says(200, of_generation(generation)))
    assert await rereads.run() == endings.CONTRADICTED
    refund = await rereads.shop.stored()
    assert (refund.stage, refund.contradicted_by) == (Stage.REVIEW, "re_9")
    assert refund.provider_refund_id is None
    assert rereads.counts == ["contradicts"]


async def test_refund_of_a_generation_that_lost_records_had_sent_holds_an_unsent_one_back(
    rereads: Rereads,
) -> None:
    await rereads.shop.accept()
    await rereads.named(says(200, of_generation(2)))
    assert await rereads.run() == endings.CONTRADICTED
    refund = await rereads.shop.stored()
    assert (refund.stage, refund.contradicted_by) == (Stage.REVIEW, "re_9")
    assert (rereads.counts, rereads.shop.provider.asked) == (["contradicts"], [NAMED])


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
