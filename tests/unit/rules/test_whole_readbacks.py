"""What a list and a total prove of one refund, in full."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.factories import (
    HOUR,
    NOW,
    SECOND,
    a_refund,
    found,
    payment_in,
)
from worker.model.answers import (
    PaymentView,
    ProviderRefund,
    Readback,
    ReadbackVerdict,
)
from worker.model.refund import Baseline, Retriable, Stage, Status
from worker.rules.evidence import judge_absence, judge_list, judge_totals

REFUND = a_refund()
ERROR = {"type": "api_error", "code": "broken", "message": "because"}


IN_DOUBT = a_refund(Stage.IN_DOUBT, first_attempt_at=NOW - HOUR)
FOREIGN = found(id="re_f", refund_id=None, generation=None, amount=499)


def sibling(**fields: Any) -> Any:
    known = {
        "refund_id": "order-1001-2",
        "provider_refund_id": "re_2",
        "updated_at": NOW - 2 * HOUR,
    }
    return a_refund(Stage.SETTLED, **(known | fields))


@pytest.mark.parametrize(
    ("entry", "verdict"),
    [
        (FOREIGN, ReadbackVerdict.ABSENT),
        (replace(FOREIGN, amount=500), ReadbackVerdict.INCONCLUSIVE),
        (replace(FOREIGN, amount=501), ReadbackVerdict.ABSENT),
        (replace(FOREIGN, amount=None), ReadbackVerdict.INCONCLUSIVE),
        (replace(FOREIGN, amount=-1), ReadbackVerdict.INCONCLUSIVE),
        (found(generation="2"), ReadbackVerdict.INCONCLUSIVE),
        # One of ours that is written in another way than we write it.
        (found(generation="01"), ReadbackVerdict.INCONCLUSIVE),
        (found(generation="0", status="failed"), ReadbackVerdict.ABSENT),
        (found(generation="0"), ReadbackVerdict.INCONCLUSIVE),
        (found(generation="x"), ReadbackVerdict.INCONCLUSIVE),
        (found(generation=""), ReadbackVerdict.INCONCLUSIVE),
    ],
)
def test_entry_that_may_be_ours_proves_no_absence(
    entry: ProviderRefund, verdict: ReadbackVerdict
) -> None:
    assert judge_list(IN_DOUBT, [entry], complete=True, siblings=()).verdict is verdict


def test_list_is_read_as_this_and_nothing_else() -> None:
    def look(*entries: ProviderRefund, complete: bool = True, siblings: Any = ()) -> Readback:
        return judge_list(IN_DOUBT, entries, complete=complete, siblings=siblings)

    assert look(found()) == Readback(
        verdict=ReadbackVerdict.FOUND, reason="listed with our id", found=found()
    )
    assert look() == Readback(verdict=ReadbackVerdict.ABSENT, reason="not in the payment's list")
    assert look(complete=False).verdict is ReadbackVerdict.INCONCLUSIVE
    assert look(found(), found(id="re_2")).verdict is ReadbackVerdict.CONFLICT
    assert "amount" in look(found(amount=1)).reason
    assert "status" in look(found(status="new")).reason
    assert look(found(status="new")).verdict is ReadbackVerdict.CONFLICT
    # A sibling that is known to exist and is not shown.
    assert "1 refund" in look(siblings=[sibling()]).reason
    assert (
        look(replace(FOREIGN, id="re_2", amount=500), siblings=[sibling()]).verdict
        is ReadbackVerdict.ABSENT
    )
    by_our_id = replace(FOREIGN, refund_id="order-1001-2", amount=500)
    assert (
        look(by_our_id, siblings=[sibling(provider_refund_id=None)]).verdict
        is ReadbackVerdict.ABSENT
    )
    assert look(by_our_id).verdict is ReadbackVerdict.INCONCLUSIVE


def totals(
    refunded: int | None,
    *,
    amount: int | None = 500,
    proof: bool = True,
    at: tuple[str | None, str | None] = ("ch_1", "ch_1"),
    captured: int | None = None,
    **fields: Any,
) -> Readback:
    refund = replace(
        IN_DOUBT,
        amount=amount,
        baseline=Baseline(refunded=100, currency="usd", remaining=1, shown_by=at[0]),
        **fields,
    )
    view = PaymentView(refunded=refunded, captured=captured, currency="usd", shown_by=at[1])
    known = {"re_2": found(id="re_2", amount=100)}
    return judge_totals(refund, view, siblings=[sibling()], reread=known, totals_proof=proof)


def test_total_is_read_as_this_and_nothing_else() -> None:
    assert totals(600) == Readback(
        verdict=ReadbackVerdict.FOUND_IN_TOTALS,
        reason="the refunded total rose by exactly our amount",
    )
    assert totals(100) == Readback(
        verdict=ReadbackVerdict.ABSENT, reason="the refunded total is unchanged"
    )
    unproven = totals(100, proof=False)
    assert unproven.verdict is ReadbackVerdict.INCONCLUSIVE
    assert "unchanged" in unproven.reason
    moved = totals(107)
    assert moved.verdict is ReadbackVerdict.INCONCLUSIVE
    assert "moved by 7, not by 500" in moved.reason
    assert "moved by 1, not by 500" in totals(101, proof=False).reason


@pytest.mark.parametrize("at", [("ch_1", "ch_2"), ("ch_1", None), (None, "ch_1"), ("ch_1", "pi_1")])
@pytest.mark.parametrize("refunded", [100, 600])
def test_totals_of_another_charge_than_before_prove_nothing(
    at: tuple[str | None, str | None], refunded: int
) -> None:
    judged = totals(refunded, at=at)
    assert judged.verdict is ReadbackVerdict.INCONCLUSIVE
    assert judged.reason == "the totals are shown by another charge than before the first attempt"


@pytest.mark.parametrize("refunded", [100, 600])
def test_totals_beside_another_captured_amount_prove_nothing(refunded: int) -> None:
    assert totals(refunded, captured=101).verdict is not ReadbackVerdict.INCONCLUSIVE
    for captured in (100, 102):
        judged = totals(refunded, captured=captured)
        assert (judged.verdict, judged.reason) == (
            ReadbackVerdict.INCONCLUSIVE,
            "the captured amount has changed",
        )


@pytest.mark.parametrize(
    ("listed", "view", "problem"),
    [
        ([], PaymentView(refunded=0), None),
        (
            [],
            PaymentView(refunded=1),
            "the payment's refunded total is 1, and the listed refunds sum to 0",
        ),
        ([], PaymentView(problem="the payment has several charges"), None),
        ([], PaymentView(problem="the payment shows no refunded total"), None),
        ([], PaymentView(problem="the charge shows no refunded total"), None),
        ([], PaymentView(problem="the currency cannot be read"), "the currency cannot be read"),
        ([], PaymentView(), "the payment shows no refunded total"),
        ([found(amount=500)], PaymentView(refunded=500), None),
        ([found(amount=500, status="pending")], PaymentView(refunded=0), None),
        ([found(amount=499, status="pending")], PaymentView(refunded=499), None),
        (
            [found(amount=500, status="pending")],
            PaymentView(refunded=500),
            (
                "the payment's refunded total holds 500 more than the listed refunds that"
                " succeeded, and it is not known whether it counts the pending ones"
            ),
        ),
        (
            [
                found(amount=500, status="failed"),
                found(amount=100),
                found(amount=7, status="canceled"),
            ],
            PaymentView(refunded=600),
            "the payment's refunded total is 600, and the listed refunds sum to 100",
        ),
        (
            [found(amount=500, status="pending")],
            PaymentView(refunded=300),
            "the payment's refunded total is 300, and the listed refunds sum to 500",
        ),
        (
            [found(amount=500, status="pending"), found(amount=100)],
            PaymentView(refunded=500),
            "the payment's refunded total is 500, and the listed refunds sum to 600",
        ),
        ([found(amount=500, status="pending"), found(amount=100)], PaymentView(refunded=100), None),
        ([found(amount=400, status="pending"), found(amount=100)], PaymentView(refunded=500), None),
        (
            [found(amount=500)],
            PaymentView(refunded=0),
            "the payment's refunded total is 0, and the listed refunds sum to 500",
        ),
        ([found(amount=0)], PaymentView(refunded=0), None),
        ([found(amount=400, status="pending"), found(amount=0)], PaymentView(refunded=400), None),
        ([found(amount=500, status="pending"), found(amount=0)], PaymentView(refunded=0), None),
        (
            [found(amount=None)],
            PaymentView(refunded=0),
            "the list shows a refund whose amount cannot be read",
        ),
        (
            [found(amount=-1)],
            PaymentView(refunded=0),
            "the list shows a refund whose amount cannot be read",
        ),
    ],
)
def test_absence_by_a_list_is_checked_against_the_payments_total(
    listed: list[ProviderRefund], view: PaymentView, problem: str | None
) -> None:
    assert judge_absence(IN_DOUBT, listed, view, totals_proof=False) == problem


@pytest.mark.parametrize(
    ("fields", "totals_proof", "proves"),
    [
        ({}, False, False),
        ({}, True, True),
        ({"amount": 501}, False, True),
        ({"amount": None, "all_remaining": True}, False, False),
        ({"stage": Stage.QUEUED}, False, True),
    ],
    ids=["as large", "counted", "smaller", "all that is left", "before a first send"],
)
def test_pending_refund_that_is_as_large_proves_no_absence_unless_the_total_is_known_to_count_it(
    fields: dict[str, Any],
    totals_proof: bool,  # noqa: FBT001 - both cases
    proves: bool,  # noqa: FBT001 - both cases
) -> None:
    refund = replace(IN_DOUBT, **fields)
    pending, view = found(id="re_2", amount=500, status="pending"), PaymentView(refunded=500)
    problem = judge_absence(refund, [pending], view, totals_proof=totals_proof)
    assert (problem is None) == proves


@pytest.mark.parametrize(
    ("payload", "problem"),
    [
        (
            {"charges": {"data": [{"id": "ch_1", "amount_refunded": 5, "payment_intent": "pi_2"}]}},
            "another payment",
        ),
        (
            {
                "latest_charge": {
                    "id": "ch_1",
                    "amount_refunded": 5,
                    "payment_intent": {"id": "pi_2"},
                }
            },
            "another payment",
        ),
        (
            {"latest_charge": {"id": "ch_1", "amount_refunded": 5, "payment_intent": []}},
            "another payment",
        ),
        (
            {"amount_refunded": 4, "latest_charge": {"id": "ch_1", "amount_refunded": 5}},
            "differ in the refunded total",
        ),
        ({"amount_refunded": 5, "latest_charge": {"id": "ch_1", "amount_refunded": 5}}, None),
        ({"amount_refunded": 5, "latest_charge": {"id": "ch_1"}}, None),
        (
            {
                "amount_refunded": 5,
                "charges": {"data": [{"id": "ch_1", "amount_refunded": 2}], "has_more": True},
            },
            None,
        ),
        (
            {"charges": {"data": [{"id": "ch_1", "amount_refunded": 5, "payment_intent": "pi_1"}]}},
            None,
        ),
        ({"amount_refunded": 5, "captured": False}, "not captured"),
        ({"amount_refunded": 5, "paid": False}, "not captured"),
        ({"amount_refunded": 5, "status": "failed"}, "not captured"),
        ({"amount_refunded": 5, "captured": True, "paid": True, "status": "succeeded"}, None),
        ({"amount_refunded": 6, "amount_captured": 5}, "contradicts its other figures"),
        ({"amount_refunded": 5, "amount_captured": 5, "refunded": True}, None),
        (
            {"amount_refunded": 5, "amount_captured": 5, "refunded": False},
            "contradicts its other figures",
        ),
        (
            {"amount_refunded": 4, "amount_captured": 5, "refunded": True},
            "contradicts its other figures",
        ),
        ({"amount_refunded": 4, "amount_captured": 5, "refunded": False}, None),
        ({"amount_refunded": 4, "amount_captured": 5, "refunded": "yes"}, None),
        ({"amount_refunded": 0, "amount_captured": 0, "refunded": False}, None),
        (
            {"amount_refunded": 0, "amount_captured": 0, "refunded": True},
            "contradicts its other figures",
        ),
        ({"amount_refunded": 5, "refunded": False}, None),
    ],
)
def test_totals_that_contradict_themselves_or_show_another_payment_are_not_read(
    payload: dict[str, Any], problem: str | None
) -> None:
    view = payment_in({"id": "pi_1", "currency": "usd", **payload})
    assert (view.refunded is None) == (problem is not None)
    assert (problem or "") in (view.problem or "")


def test_totals_name_the_object_that_shows_them() -> None:
    assert payment_in({"id": "pi_1", "amount_refunded": 5}).shown_by == "pi_1"
    assert (
        payment_in({"id": "pi_1", "latest_charge": {"id": "ch_1", "amount_refunded": 5}}).shown_by
        == "ch_1"
    )
    assert payment_in({"amount_refunded": 5}).shown_by is None


def test_smallest_refund_there_is_can_be_found_in_the_totals() -> None:
    assert totals(101, amount=1).verdict is ReadbackVerdict.FOUND_IN_TOTALS
    assert totals(101, amount=None, all_remaining=True).verdict is ReadbackVerdict.FOUND_IN_TOTALS
    assert totals(100, amount=0).verdict is ReadbackVerdict.INCONCLUSIVE


@pytest.mark.parametrize(
    ("other", "reread", "verdict"),
    [
        (sibling(), {"re_2": found(id="re_2", amount=100)}, ReadbackVerdict.ABSENT),
        (sibling(), {"re_2": found(id="re_2", status="failed")}, ReadbackVerdict.INCONCLUSIVE),
        (sibling(), {"re_2": None}, ReadbackVerdict.INCONCLUSIVE),
        (sibling(), {}, ReadbackVerdict.INCONCLUSIVE),
        (
            sibling(updated_at=NOW - HOUR),
            {"re_2": found(id="re_2", amount=100)},
            ReadbackVerdict.INCONCLUSIVE,
        ),
        (
            sibling(updated_at=NOW - HOUR - SECOND),
            {"re_2": found(id="re_2", amount=100)},
            ReadbackVerdict.ABSENT,
        ),
        (
            sibling(
                updated_at=NOW,
                attempts=0,
                provider_refund_id=None,
                status=Status.CANCELED,
                retriable=Retriable.NO,
            ),
            {},
            ReadbackVerdict.INCONCLUSIVE,
        ),
        (sibling(provider_refund_id=None, status=Status.FAILED), {}, ReadbackVerdict.INCONCLUSIVE),
    ],
)
def test_refund_beside_it_that_may_have_moved_the_total_leaves_it_undecided(
    other: Any, reread: Any, verdict: ReadbackVerdict
) -> None:
    refund = replace(IN_DOUBT, baseline=Baseline(refunded=100, currency="usd", remaining=1))
    view = PaymentView(refunded=100, currency="usd")
    look = judge_totals(refund, view, siblings=[other], reread=reread, totals_proof=True)
    assert look.verdict is verdict


def test_refund_beside_one_of_unknown_beginning_leaves_it_undecided() -> None:
    refund = replace(
        IN_DOUBT,
        first_attempt_at=None,
        baseline=Baseline(refunded=100, currency="usd", remaining=1),
    )
    view = PaymentView(refunded=100, currency="usd")
    reread = {"re_2": found(id="re_2", amount=100)}
    look = judge_totals(refund, view, siblings=[sibling()], reread=reread, totals_proof=True)
    assert look.verdict is ReadbackVerdict.INCONCLUSIVE
