"""What a payment's refunded total proves, and every reason to say nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from tests.factories import MINUTE, NOW, a_refund, found
from tests.unit.rules.siblings import STARTED, sibling
from worker.model.answers import PaymentView, ProviderRefund, Readback, ReadbackVerdict
from worker.model.refund import Baseline, Refund, Stage, Status
from worker.rules.evidence import judge_totals

BASELINE = Baseline(refunded=0, currency="usd", remaining=1000)


def totalled(
    refunded: int | None,
    *siblings: Refund,
    refund: Refund | None = None,
    reread: Mapping[str, ProviderRefund | None] | None = None,
    proof: bool = True,
    **view: Any,
) -> Readback:
    shown = PaymentView(**({"refunded": refunded, "captured": 1000, "currency": "usd"} | view))
    refund = refund or a_refund(Stage.IN_DOUBT, first_attempt_at=STARTED, baseline=BASELINE)
    return judge_totals(refund, shown, siblings=siblings, reread=reread or {}, totals_proof=proof)


@pytest.mark.parametrize("proof", [True, False])
def test_total_that_rose_by_our_amount_is_found_without_an_id(
    proof: bool,  # noqa: FBT001 - both cases
) -> None:
    look = totalled(500, proof=proof)
    assert (look.verdict, look.found) == (ReadbackVerdict.FOUND_IN_TOTALS, None)


def test_refund_of_all_that_is_left_is_found_when_the_total_rose_by_what_was_left() -> None:
    refund = a_refund(
        Stage.IN_DOUBT,
        first_attempt_at=STARTED,
        baseline=BASELINE,
        amount=None,
        all_remaining=True,
        currency=None,
    )
    assert totalled(1000, refund=refund).verdict is ReadbackVerdict.FOUND_IN_TOTALS
    assert totalled(999, refund=refund).verdict is ReadbackVerdict.INCONCLUSIVE


def test_unchanged_total_shows_absence_only_where_pending_refunds_are_known_to_be_in_it() -> None:
    assert totalled(0, proof=True).verdict is ReadbackVerdict.ABSENT
    assert totalled(0, proof=False).verdict is ReadbackVerdict.INCONCLUSIVE


@pytest.mark.parametrize("refunded", [1, 499, 501, 1000])
def test_total_that_moved_by_anything_else_is_inconclusive(refunded: int) -> None:
    assert totalled(refunded).verdict is ReadbackVerdict.INCONCLUSIVE


def test_totals_that_cannot_be_compared_are_inconclusive() -> None:
    without_baseline = a_refund(Stage.IN_DOUBT)
    assert totalled(500, refund=without_baseline).verdict is ReadbackVerdict.INCONCLUSIVE
    assert totalled(500, currency="eur").verdict is ReadbackVerdict.INCONCLUSIVE
    outdated = a_refund(Stage.IN_DOUBT, baseline=replace(BASELINE, shown_by=""))
    look = totalled(500, refund=outdated, shown_by="")
    assert (look.verdict, look.reason) == (
        ReadbackVerdict.INCONCLUSIVE,
        "no totals were read before the latest attempt",
    )
    several = totalled(None, problem="the payment has several charges")
    assert (several.verdict, several.reason) == (
        ReadbackVerdict.INCONCLUSIVE,
        "the payment has several charges",
    )


@pytest.mark.parametrize("remaining", [None, 0])
def test_refund_of_an_unknown_or_empty_remainder_is_inconclusive(remaining: int | None) -> None:
    baseline = Baseline(refunded=0, currency="usd", remaining=remaining)
    refund = a_refund(Stage.IN_DOUBT, baseline=baseline, amount=None, all_remaining=True)
    for refunded in (0, 500):
        assert totalled(refunded, refund=refund).verdict is ReadbackVerdict.INCONCLUSIVE


@pytest.mark.parametrize("stage", [Stage.SENDING, Stage.IN_DOUBT, Stage.PROCESSING, Stage.REVIEW])
@pytest.mark.parametrize("refunded", [0, 500])
def test_sibling_that_is_moving_makes_the_totals_inconclusive(stage: Stage, refunded: int) -> None:
    # Re-read as it is recorded: its stage alone speaks against the totals.
    reread = {"re_2": found(id="re_2")}
    look = totalled(refunded, sibling(stage), reread=reread)
    assert (look.verdict, look.reason) == (
        ReadbackVerdict.INCONCLUSIVE,
        f"another refund of the payment is {stage}",
    )


@pytest.mark.parametrize(
    "other",
    [
        sibling(Stage.QUEUED),
        sibling(Stage.WAITING),
        sibling(status=Status.CANCELED, attempts=0, provider_refund_id=None, updated_at=NOW),
        sibling(status=Status.FAILED, provider_refund_id=None),
    ],
    ids=["queued", "waiting", "canceled unsent", "refused long ago"],
)
@pytest.mark.parametrize(
    ("refunded", "verdict"), [(0, ReadbackVerdict.ABSENT), (500, ReadbackVerdict.FOUND_IN_TOTALS)]
)
def test_sibling_that_never_moved_the_total_does_not_disturb(
    other: Refund, refunded: int, verdict: ReadbackVerdict
) -> None:
    assert totalled(refunded, other).verdict is verdict


@pytest.mark.parametrize("field", ["prior_refund_ids", "set_aside_ids", "contradicted_by"])
@pytest.mark.parametrize("stage", [Stage.QUEUED, Stage.SETTLED])
@pytest.mark.parametrize("status", ["failed", "succeeded", "pending", None])
def test_other_refund_of_a_sibling_that_may_have_raised_the_total_is_not_taken_for_ours(
    field: str, stage: Stage, status: str | None
) -> None:
    other = sibling(stage, **{field: "re_1"})
    refund = a_refund(Stage.IN_DOUBT, first_attempt_at=STARTED, baseline=BASELINE)
    shown = None if status is None else found(id="re_1", status=status)
    reread = {"re_1": shown, "re_2": found(id="re_2", status="succeeded", amount=100)}
    if stage is Stage.SETTLED:
        refund = replace(refund, baseline=HUNDRED)
    else:
        del reread["re_2"]
    before = refund.baseline.refunded if refund.baseline is not None else 0
    look = totalled(before + 500, other, refund=refund, reread=reread)
    expected = "FOUND_IN_TOTALS" if status == "failed" else "INCONCLUSIVE"
    assert look.verdict is ReadbackVerdict[expected]


@pytest.mark.parametrize("field", ["prior_refund_ids", "set_aside_ids", "contradicted_by"])
def test_other_refund_of_a_sibling_that_is_pending_proves_nothing_though_the_total_holds_it(
    field: str,
) -> None:
    refund = a_refund(
        Stage.IN_DOUBT,
        first_attempt_at=STARTED,
        baseline=Baseline(refunded=600, currency="usd", remaining=400),
    )
    reread = {"re_1": found(id="re_1", status="pending"), "re_2": found(id="re_2", amount=100)}
    shown: dict[str, Any] = {field: "re_1"}
    other = sibling(**shown)
    look = totalled(1100, other, refund=refund, reread=reread)
    assert look.verdict is ReadbackVerdict.INCONCLUSIVE
    assert look.reason == (
        "another refund of the payment has another refund of the provider, re_1, which is pending"
    )
    # Its own may be pending: that is compared with its record.
    own = sibling(Stage.QUEUED, provider_status="pending")
    reread = {"re_2": found(id="re_2", status="pending", amount=600)}
    look = totalled(1100, own, refund=refund, reread=reread)
    assert look.verdict is ReadbackVerdict.FOUND_IN_TOTALS


@pytest.mark.parametrize("status", ["succeeded", "pending"])
@pytest.mark.parametrize(
    ("before", "verdict"),
    [(0, ReadbackVerdict.ABSENT), (500, ReadbackVerdict.INCONCLUSIVE)],
    ids=["nothing else", "an unknown one"],
)
def test_refund_of_another_payment_that_a_person_named_for_a_sibling_is_in_no_total_of_this_one(
    status: str, before: int, verdict: ReadbackVerdict
) -> None:
    baseline = Baseline(refunded=before, currency="usd", remaining=1000 - before)
    refund = a_refund(Stage.IN_DOUBT, first_attempt_at=STARTED, baseline=baseline)
    other = sibling(Stage.QUEUED, prior_refund_ids="re_1")
    reread = {"re_1": found(id="re_1", payment_intent="pi_other", status=status)}
    assert totalled(before, other, refund=refund, reread=reread).verdict is verdict


@pytest.mark.parametrize(
    "shown",
    [
        {"payment_intent": "", "status": "succeeded"},
        {"payment_intent": "", "status": "pending"},
        {"status": "settling"},
        {"status": None},
    ],
)
def test_refund_of_a_sibling_that_cannot_be_judged_may_have_raised_the_total(
    shown: dict[str, Any],
) -> None:
    refund = a_refund(Stage.IN_DOUBT, first_attempt_at=STARTED, baseline=BASELINE)
    other = sibling(Stage.QUEUED, prior_refund_ids="re_1")
    reread = {"re_1": found(id="re_1", **shown)}
    look = totalled(500, other, refund=refund, reread=reread)
    assert look.verdict is ReadbackVerdict.INCONCLUSIVE


@pytest.mark.parametrize("payment_intent", ["", "pi_other"])
def test_total_is_not_made_up_by_a_refund_whose_payment_cannot_be_read(payment_intent: str) -> None:
    """What was in it may be somebody else's, and reversed since."""
    baseline = Baseline(refunded=500, currency="usd", remaining=500)
    refund = a_refund(Stage.IN_DOUBT, first_attempt_at=STARTED, baseline=baseline)
    other = sibling(Stage.QUEUED, prior_refund_ids="re_1")
    reread = {"re_1": found(id="re_1", payment_intent=payment_intent, status="succeeded")}
    look = totalled(500, other, refund=refund, reread=reread)
    assert look.verdict is ReadbackVerdict.INCONCLUSIVE


HUNDRED = Baseline(refunded=100, currency="usd", remaining=900)
ABOVE_A_HUNDRED = a_refund(Stage.IN_DOUBT, first_attempt_at=STARTED, baseline=HUNDRED)


@pytest.mark.parametrize(
    ("refunded", "verdict"), [(100, ReadbackVerdict.ABSENT), (600, ReadbackVerdict.FOUND_IN_TOTALS)]
)
def test_baseline_made_of_refunds_known_by_id_and_unchanged_can_be_compared(
    refunded: int, verdict: ReadbackVerdict
) -> None:
    known = {"re_2": found(id="re_2", amount=99), "re_3": found(id="re_3", amount=1)}
    others = (sibling(), sibling(refund_id="order-1001-3", provider_refund_id="re_3"))
    assert totalled(refunded, *others, refund=ABOVE_A_HUNDRED, reread=known).verdict is verdict


@pytest.mark.parametrize(
    ("others", "reread"),
    [
        ((), {}),
        ((sibling(),), {"re_2": found(id="re_2", amount=99)}),
        ((sibling(),), {"re_2": found(id="re_2", amount=101)}),
        ((sibling(),), {"re_2": found(id="re_2", amount=None)}),
        ((sibling(),), {"re_2": found(id="re_2", amount=-1)}),
        (
            (sibling(), sibling(refund_id="order-1001-3", provider_refund_id="re_3")),
            {"re_2": found(id="re_2", amount=100), "re_3": found(id="re_3", amount=0)},
        ),
        (
            (sibling(provider_status="failed", status=Status.FAILED),),
            {"re_2": found(id="re_2", amount=100, status="failed")},
        ),
        (None, {}),
    ],
    ids=[
        "made elsewhere",
        "a part of it",
        "more than it",
        "no amount",
        "no readable amount",
        "nothing",
        "fallen",
        "too many",
    ],
)
@pytest.mark.parametrize("refunded", [100, 600])
def test_baseline_of_which_a_part_may_fall_back_proves_nothing(
    others: tuple[Refund, ...] | None, reread: dict[str, ProviderRefund | None], refunded: int
) -> None:
    view = PaymentView(refunded=refunded, captured=1000, currency="usd")
    look = judge_totals(ABOVE_A_HUNDRED, view, siblings=others, reread=reread, totals_proof=True)
    assert look.verdict is ReadbackVerdict.INCONCLUSIVE


@pytest.mark.parametrize(
    "other",
    [
        sibling(provider_refund_id=None, evidence="totals"),
        sibling(provider_refund_id=None, evidence="operator", status=Status.FAILED),
    ],
    ids=["found in totals", "settled by a person"],
)
@pytest.mark.parametrize("refunded", [0, 500])
def test_sibling_that_may_have_moved_money_and_has_no_id_makes_the_totals_inconclusive(
    other: Refund, refunded: int
) -> None:
    assert totalled(refunded, other).verdict is ReadbackVerdict.INCONCLUSIVE


@pytest.mark.parametrize(
    ("other", "reread"),
    [
        (sibling(updated_at=STARTED), {"re_2": found(id="re_2")}),
        (sibling(updated_at=STARTED + MINUTE, status=Status.FAILED, provider_refund_id=None), {}),
        (sibling(), {"re_2": found(id="re_2", status="failed")}),
        (sibling(), {"re_2": found(id="re_2", status="pending")}),
        (sibling(), {"re_2": None}),
        (sibling(), {}),
    ],
    ids=["settled since", "failed since", "reversed", "pending again", "unreadable", "not read"],
)
@pytest.mark.parametrize("refunded", [0, 500])
def test_sibling_that_changed_or_could_not_be_read_again_makes_the_totals_inconclusive(
    other: Refund, reread: dict[str, ProviderRefund | None], refunded: int
) -> None:
    assert totalled(refunded, other, reread=reread).verdict is ReadbackVerdict.INCONCLUSIVE
