"""Reads of a refund that contradicts the record, or has the money of another generation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.factories import refund_payload
from tests.unit.engine.rereads import (
    NAMED,
    OWN,
    Rereads,
    failed_and_retried,
    hint,
    labels,
    of_generation,
    posts,
    retried_and_refused,
    retry,
    settle,
)
from tests.unit.engine.shop import GONE, ID, PAID, events, says, totals
from worker.engine import endings
from worker.model.refund import Refund, Stage, Status
from worker.model.steps import Step
from worker.rules import decisions, proofs
from worker.store import saves

CONTRADICTORY = refund_payload(id="re_9", amount=499)


async def review(rereads: Rereads, code: str = "some_code") -> Refund:
    """A refund that waits for a person."""
    await rereads.shop.accept()
    queued = await rereads.shop.stored()
    step: Step = proofs.to_review({"error_code": code}, code, "because")
    assert (await rereads.shop.store.run(saves.save(queued, step))).result == "saved"
    return await rereads.shop.stored()


async def moves(rereads: Rereads) -> int:
    return len(await rereads.shop.history())


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
