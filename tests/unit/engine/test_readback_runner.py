"""Read-backs: what is asked of the provider in each mode, in which order, and what is made of no
answer.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import httpx
import pytest
import redis.asyncio

from tests.factories import (
    BLIND,
    HOUR,
    NOW,
    PAYMENT,
    SECOND,
    VERIFY,
    a_refund,
    found,
    refund_payload,
)
from tests.unit.engine.shop import (
    BY_ID,
    LIST,
    PAID,
    PROBE,
    TOTALS,
    Answer,
    Shop,
    error,
    freeze_before_save,
    listing,
    opened,
    says,
    totals,
)
from worker.engine.candidates import CandidateReader
from worker.engine.readback_runner import ReadbackRunner
from worker.model.answers import Outcome, Readback, ReadbackVerdict, TryVerdict
from worker.model.refund import Baseline, Refund, Stage, Status
from worker.rules.attempts import Rules
from worker.rules.rechecks import changed_by_provider
from worker.store import saves

BASELINE = Baseline(refunded=500, currency="usd", remaining=500, shown_by=PAYMENT)


class Lens:
    """A `ReadbackRunner` with what it reported of the provider."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self.trouble: list[Outcome] = []
        self.answers = 0
        self.turns = 0
        self.runner = ReadbackRunner(
            shop.store,
            shop.gateway,
            shop.service._recorder,
            rules=shop.rules,
            account=shop.service.account,
            candidates=CandidateReader(
                shop.store,
                shop.gateway,
                account=shop.service.account,
                note_trouble=self._note_trouble,
                note_answer=self._note_answer,
            ),
            note_trouble=self._note_trouble,
            note_answer=self._note_answer,
        )

    async def _note_trouble(self, outcome: Outcome) -> None:
        self.trouble.append(outcome)

    async def _turn(self) -> None:
        self.turns += 1
        # Waited for before a call, never after it.
        assert self.turns == len(self.shop.provider.asked) + 1

    def _note_answer(self) -> None:
        self.answers += 1

    async def run(self, **fields: Any) -> Readback:
        known = {"baseline": BASELINE, "first_attempt_at": NOW - HOUR}
        refund = a_refund(Stage.IN_DOUBT, **(known | fields))
        return await self.runner.run(refund, NOW, self._turn)


@pytest.fixture
def rules() -> Rules:
    return VERIFY


@pytest.fixture
async def lens(async_redis: redis.asyncio.Redis, rules: Rules) -> AsyncIterator[Lens]:
    async with opened(async_redis, rules) as shop:
        yield Lens(shop)


async def settle(
    shop: Shop, refund_id: str = "b", provider_refund_id: str = "re_2", **fields: Any
) -> Refund:
    """Another refund of the payment, done two hours before."""
    shop.store.now = NOW - 2 * HOUR
    await shop.accept(refund_id)
    payload = refund_payload(
        id=provider_refund_id, metadata={"refund_id": refund_id, "refund_generation": "1"}, **fields
    )
    shop.provider.will("POST /v1/refunds", says(200, payload))
    if shop.rules.wants_baseline:
        shop.provider.will(PAID, totals(0))
    await shop.handle(refund_id)
    shop.store.now = NOW
    shop.provider.asked.clear()
    refund = await shop.stored(refund_id)
    assert refund.provider_refund_id == provider_refund_id
    return refund


def theirs(status: str, **fields: Any) -> dict[str, Any]:
    """The other refund as the provider shows it."""
    shown = {
        "id": "re_2",
        "status": status,
        "metadata": {"refund_id": "b", "refund_generation": "1"},
    }
    return refund_payload(**(shown | fields))


# The list


async def test_list_is_read_and_judged_with_the_other_refunds_of_the_payment(lens: Lens) -> None:
    await settle(lens.shop)
    lens.shop.provider.will(LIST, listing(theirs("succeeded")))
    lens.shop.provider.will(PAID, totals(500))
    look = await lens.run()
    assert (look.verdict, lens.shop.provider.asked, lens.answers, lens.trouble) == (
        ReadbackVerdict.ABSENT,
        [LIST, PAID],
        1,
        [],
    )
    lens.shop.provider.will(LIST, listing())
    assert (await lens.run()).verdict is ReadbackVerdict.INCONCLUSIVE


async def test_list_that_was_not_read_to_its_end_proves_no_absence(lens: Lens) -> None:
    lens.shop.provider.will(LIST, says(200, {"data": []}))
    assert (await lens.run()).verdict is ReadbackVerdict.INCONCLUSIVE


async def test_list_that_shows_less_than_the_payments_total_proves_no_absence(lens: Lens) -> None:
    lens.shop.provider.will(LIST, listing())
    lens.shop.provider.will(PAID, totals(500))
    read_back = await lens.run()
    assert (read_back.verdict, read_back.reason) == (
        ReadbackVerdict.INCONCLUSIVE,
        "the payment's refunded total is 500, and the listed refunds sum to 0",
    )
    assert lens.shop.provider.asked == [LIST, PAID]


async def test_total_that_only_the_charge_shows_is_read_there_and_compared_with_the_list(
    lens: Lens,
) -> None:
    charge = {
        "id": "ch_1",
        "payment_intent": PAYMENT,
        "currency": "usd",
        "amount": 1000,
        "amount_refunded": 500,
    }
    lens.shop.provider.will(LIST, listing())
    lens.shop.provider.will(
        PAID, says(200, {"id": PAYMENT, "currency": "usd", "latest_charge": "ch_1"})
    )
    lens.shop.provider.will("GET /v1/charges/ch_1", says(200, charge))
    assert (await lens.run()).verdict is ReadbackVerdict.INCONCLUSIVE
    assert (lens.shop.provider.asked, lens.turns) == ([LIST, PAID, "GET /v1/charges/ch_1"], 3)
    lens.shop.provider.will("GET /v1/charges/ch_1", says(200, charge | {"amount_refunded": 0}))
    assert (await lens.run()).verdict is ReadbackVerdict.ABSENT


async def test_charge_that_cannot_be_read_leaves_the_absence_unproven(lens: Lens) -> None:
    lens.shop.provider.will(LIST, listing())
    lens.shop.provider.will(
        PAID, says(200, {"id": PAYMENT, "currency": "usd", "latest_charge": "ch_1"})
    )
    lens.shop.provider.will("GET /v1/charges/ch_1", says(503, {}))
    assert (await lens.run()).verdict is ReadbackVerdict.UNREADABLE
    assert len(lens.trouble) == 1


async def test_reversal_of_another_refund_that_the_list_shows_is_saved(lens: Lens) -> None:
    await settle(lens.shop)
    lens.shop.provider.will(
        LIST, listing(theirs("failed"), theirs("succeeded", id="re_9", metadata={}))
    )
    await lens.run()
    other = await lens.shop.stored("b")
    assert (other.status, other.provider_status) == (Status.FAILED, "failed")
    assert (await lens.shop.history("b"))[-1]["look"] == "reversed"


@pytest.mark.parametrize("passed", [timedelta(0), SECOND])
@pytest.mark.parametrize(("before", "after"), [("succeeded", "failed"), ("failed", "succeeded")])
async def test_list_of_before_another_refund_changed_does_not_change_it_back(
    lens: Lens, before: str, after: str, passed: timedelta
) -> None:
    other = await settle(lens.shop, status=before)

    async def meanwhile(_: httpx.Request) -> httpx.Response:
        lens.shop.pass_time(passed)
        step = changed_by_provider(
            other, found(id="re_2", status=after, refund_id="b"), "lookup", NOW
        )
        assert step is not None
        await lens.shop.store.run(saves.save(other, step))
        return listing(theirs(before), theirs("succeeded", id="re_9", metadata={}))

    lens.shop.provider.will(LIST, meanwhile)
    await lens.run()
    assert (await lens.shop.stored("b")).status == after


@pytest.mark.parametrize(("frozen", "counts"), [(120, True), (121, False)])
async def test_success_of_another_refund_that_was_read_long_ago_is_not_recorded(
    lens: Lens, frozen: int, *, counts: bool
) -> None:
    await settle(lens.shop, status="failed")
    freeze_before_save(lens.shop, frozen * SECOND)
    shown = listing(theirs("succeeded"), theirs("succeeded", id="re_9", metadata={}))
    lens.shop.provider.will(LIST, shown)
    await lens.run()
    other = await lens.shop.stored("b")
    assert other.status is (Status.SUCCEEDED if counts else Status.FAILED)


# Totals


@pytest.mark.parametrize("rules", [TOTALS])
async def test_totals_are_judged_with_the_other_refunds_read_again_before(lens: Lens) -> None:
    await settle(lens.shop)
    lens.shop.provider.will("GET /v1/refunds/re_2", says(200, theirs("succeeded")))
    lens.shop.provider.will(PAID, totals(500))
    look = await lens.run()
    assert (look.verdict, lens.answers, lens.trouble, lens.turns) == (
        ReadbackVerdict.ABSENT,
        1,
        [],
        2,
    )
    assert lens.shop.provider.asked == ["GET /v1/refunds/re_2", PAID]
    lens.shop.provider.will(PAID, totals(1000))
    assert (await lens.run()).verdict is ReadbackVerdict.FOUND_IN_TOTALS


@pytest.mark.parametrize("rules", [replace(TOTALS, totals_proof=False)])
async def test_unchanged_total_proves_nothing_where_it_may_lag(lens: Lens) -> None:
    lens.shop.provider.will(PAID, totals(500))
    assert (await lens.run()).verdict is ReadbackVerdict.INCONCLUSIVE


@pytest.mark.parametrize("rules", [TOTALS])
async def test_refund_without_a_baseline_is_not_asked_for(lens: Lens) -> None:
    look = await lens.run(baseline=None)
    assert (look.verdict, lens.shop.provider.asked) == (ReadbackVerdict.INCONCLUSIVE, [])


@pytest.mark.parametrize("rules", [TOTALS])
@pytest.mark.parametrize(
    "answer",
    [
        error(503, kind="api_error"),
        httpx.ReadError("reset"),
        says(200, {"object": "refund"}),
        says(200, theirs("succeeded", id="re_3")),
        says(200, theirs("failed")),
    ],
    ids=["503", "no reply", "no refund", "another refund", "reversed"],
)
async def test_other_refund_that_moved_or_cannot_be_read_again_leaves_the_totals_undecided(
    lens: Lens, answer: Answer
) -> None:
    await settle(lens.shop)
    lens.shop.provider.will("GET /v1/refunds/re_2", answer)
    lens.shop.provider.will(PAID, totals(1000))
    assert (await lens.run()).verdict is ReadbackVerdict.INCONCLUSIVE


@pytest.mark.parametrize("rules", [TOTALS])
async def test_reversal_of_another_refund_met_on_the_way_is_saved(lens: Lens) -> None:
    await settle(lens.shop)
    lens.shop.provider.will("GET /v1/refunds/re_2", says(200, theirs("failed")))
    lens.shop.provider.will(PAID, totals(500))
    await lens.run()
    assert (await lens.shop.stored("b")).status is Status.FAILED


@pytest.mark.parametrize("rules", [TOTALS])
async def test_other_refund_that_the_provider_never_had_is_not_asked_for(lens: Lens) -> None:
    await lens.shop.accept("b")
    lens.shop.provider.will(PAID, totals(0))
    look = await lens.run(
        baseline=Baseline(refunded=0, currency="usd", remaining=1000, shown_by=PAYMENT)
    )
    assert (look.verdict, lens.shop.provider.asked) == (ReadbackVerdict.ABSENT, [PAID])


@pytest.mark.parametrize("rules", [TOTALS])
@pytest.mark.parametrize("field", ["prior_refund_ids", "set_aside_ids", "contradicted_by"])
async def test_other_refunds_that_were_shown_for_one_of_the_payment_are_read_again_too(
    lens: Lens, field: str
) -> None:
    await settle(lens.shop)
    await lens.shop.set("b", **{field: "re_0"})
    lens.shop.provider.will("GET /v1/refunds/re_2", says(200, theirs("succeeded")))
    lens.shop.provider.will(PAID, totals(1000))
    for status, verdict in [
        ("failed", ReadbackVerdict.FOUND_IN_TOTALS),
        # It has succeeded since: the rise of the total may be this one.
        ("succeeded", ReadbackVerdict.INCONCLUSIVE),
    ]:
        lens.shop.provider.will("GET /v1/refunds/re_0", says(200, theirs(status, id="re_0")))
        assert (await lens.run()).verdict is verdict


@pytest.mark.parametrize("rules", [TOTALS])
async def test_payment_with_more_refunds_than_are_read_again_is_undecided_without_reading_any(
    lens: Lens,
) -> None:
    for number in range(51):
        await lens.shop.accept(f"other-{number}")
    lens.shop.provider.will(PAID, totals(500))
    look = await lens.run()
    assert (look.verdict, lens.shop.provider.asked) == (ReadbackVerdict.INCONCLUSIVE, [PAID])
    assert "too many refunds" in look.reason


# None


@pytest.mark.parametrize("rules", [BLIND])
async def test_where_nothing_may_be_read_back_nothing_is_asked(lens: Lens) -> None:
    look = await lens.run()
    assert (look.verdict, look.reason, lens.shop.provider.asked) == (
        ReadbackVerdict.INCONCLUSIVE,
        "nothing may be read back",
        [],
    )


# No answer


@pytest.mark.parametrize(
    ("rules", "path"), [(VERIFY, LIST), (TOTALS, PAID)], ids=["list", "totals"]
)
async def test_read_back_that_is_not_answered_is_told_and_says_when_to_come_back(
    lens: Lens, path: str
) -> None:
    lens.shop.provider.will(path, error(503, "broken", "api_error", **{"Retry-After": "60"}))
    look = await lens.run()
    assert look == Readback(
        verdict=ReadbackVerdict.UNREADABLE, reason="because", retry_after=60 * SECOND
    )
    assert [outcome.http_status for outcome in lens.trouble] == [503]
    assert lens.answers == 0
    lens.shop.provider.will(path, says(503, {}))
    assert (await lens.run()).reason == "http_503"


@pytest.mark.parametrize("status", [403, 404])
@pytest.mark.parametrize(
    ("rules", "path"), [(VERIFY, LIST), (TOTALS, PAID)], ids=["list", "totals"]
)
async def test_read_back_that_is_refused_says_by_which_code_and_whether_it_is_only_missing(
    lens: Lens, path: str, status: int
) -> None:
    lens.shop.provider.will(PAID, totals(500))
    lens.shop.provider.will(path, error(status, "resource_missing"))
    lens.shop.provider.will(PROBE, error(404))
    look = await lens.run()
    assert (look.verdict, look.missing) == (ReadbackVerdict.INCONCLUSIVE, status == 404)
    assert "resource_missing" in look.reason
    assert [outcome.verdict for outcome in lens.trouble] == [TryVerdict.REFUSED]


@pytest.mark.parametrize(
    ("rules", "path"), [(VERIFY, LIST), (TOTALS, PAID)], ids=["list", "totals"]
)
async def test_read_back_that_is_refused_for_the_keys_sake_is_not_this_refunds_trouble(
    lens: Lens, path: str
) -> None:
    lens.shop.provider.will(path, error(403))
    lens.shop.provider.will(PROBE, error(403))
    assert (await lens.run()).verdict is ReadbackVerdict.UNREADABLE
    assert [(outcome.verdict, outcome.credentials) for outcome in lens.trouble] == [
        (TryVerdict.NOT_DONE, True)
    ]


async def test_reversal_is_saved_only_where_there_is_one(lens: Lens) -> None:
    other = await settle(lens.shop)
    await lens.runner._reverse(other, found(id="re_2"), "list", NOW)
    assert (await lens.shop.stored("b")).version == other.version
    assert changed_by_provider(other, found(id="re_2"), "list", NOW) is None


# By its id


NAMED: dict[str, Any] = {"operator_says": "failed", "provider_refund_id": "re_1"}


async def test_refund_that_a_person_decided_is_read_by_the_id_that_the_provider_gave_it(
    lens: Lens,
) -> None:
    lens.shop.provider.will(BY_ID, says())
    read_back = await lens.run(**NAMED)
    assert (read_back.verdict, read_back.found, read_back.source) == (
        ReadbackVerdict.FOUND,
        found(),
        "lookup",
    )
    assert (lens.shop.provider.asked, lens.answers, lens.trouble) == ([BY_ID], 1, [])


async def test_refund_with_an_unknown_status_is_kept_apart_if_a_person_says_it_never_happened(
    lens: Lens,
) -> None:
    shown = refund_payload(status="odd")
    lens.shop.provider.will(BY_ID, says(200, shown))
    read_back = await lens.run(**NAMED | {"operator_says": "absent"})
    assert (read_back.verdict, read_back.found, read_back.source) == (
        ReadbackVerdict.CONFLICT,
        found(status="odd"),
        "lookup",
    )
    assert "odd" in read_back.reason
    assert (lens.shop.provider.asked, lens.answers, lens.trouble) == ([BY_ID], 1, [])


async def test_id_that_the_provider_does_not_know_leads_to_the_list(lens: Lens) -> None:
    lens.shop.provider.will(BY_ID, error(404, "resource_missing"))
    lens.shop.provider.will(LIST, listing())
    lens.shop.provider.will(PAID, totals(0))
    assert (await lens.run(**NAMED)).verdict is ReadbackVerdict.ABSENT
    assert (lens.shop.provider.asked, lens.answers, lens.trouble) == ([BY_ID, LIST, PAID], 2, [])


@pytest.mark.parametrize(
    ("shown", "reason"),
    [
        (refund_payload(amount=499), "re_1 was read: "),
        (refund_payload(id="re_2"), "re_1 was read: the answer shows another refund"),
    ],
)
async def test_id_that_shows_another_refund_is_a_conflict(
    lens: Lens, shown: dict[str, Any], reason: str
) -> None:
    lens.shop.provider.will(BY_ID, says(200, shown))
    read_back = await lens.run(**NAMED)
    assert (read_back.verdict, read_back.source) == (ReadbackVerdict.CONFLICT, "lookup")
    assert read_back.reason.startswith(reason)
    assert read_back.reason != "re_1 was read: "
    assert (lens.shop.provider.asked, lens.answers, lens.trouble) == ([BY_ID], 1, [])


@pytest.mark.parametrize("answer", [error(503), error(400, "bad_request"), says(200, {})])
async def test_id_that_cannot_be_read_settles_nothing(lens: Lens, answer: httpx.Response) -> None:
    lens.shop.provider.will(BY_ID, answer)
    assert (await lens.run(**NAMED)).verdict in {
        ReadbackVerdict.UNREADABLE,
        ReadbackVerdict.INCONCLUSIVE,
    }
    assert (lens.shop.provider.asked, lens.answers, len(lens.trouble)) == ([BY_ID], 0, 1)


# Customers' data


@pytest.mark.parametrize(
    ("rules", "path"),
    [(VERIFY, LIST), (VERIFY, PAID), (TOTALS, PAID), (VERIFY, "GET /v1/charges/ch_1")],
    ids=["list", "payment", "totals", "charge"],
)
async def test_reason_of_a_read_that_failed_repeats_no_metadata(lens: Lens, path: str) -> None:
    told = {
        "error": {"type": "api_error", "code": "broken", "message": "no customer Ada Lovelace here"}
    }
    lens.shop.provider.will(LIST, listing())
    lens.shop.provider.will(
        PAID, says(200, {"id": PAYMENT, "currency": "usd", "latest_charge": "ch_1"})
    )
    lens.shop.provider.will(path, says(503, told))
    read_back = await lens.run(metadata={"customer": "Ada Lovelace"})
    assert (read_back.verdict, read_back.reason) == (
        ReadbackVerdict.UNREADABLE,
        "no customer *** here",
    )
