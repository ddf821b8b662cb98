"""What a read-back proves: each way to be found, each way to be absent, and every reason to say
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.factories import HOUR, MINUTE, NOW, a_refund, found, payment_in
from tests.strategies import json_values
from worker.model.answers import PaymentView, ProviderRefund, Readback, ReadbackVerdict
from worker.model.refund import Baseline, Refund, Stage, Status
from worker.rules.evidence import judge_list, judge_totals

law = settings(deadline=None, max_examples=100)

STARTED = NOW - HOUR
LONG_AGO = STARTED - timedelta(days=1)
IN_DOUBT = a_refund(Stage.IN_DOUBT, first_attempt_at=STARTED)


def sibling(stage: Stage = Stage.SETTLED, refund_id: str = "order-1001-2", **fields: Any) -> Refund:
    known = (
        {"provider_refund_id": "re_2", "provider_status": "succeeded"}
        if stage is Stage.SETTLED
        else {}
    )
    return a_refund(stage, **({"refund_id": refund_id, "updated_at": LONG_AGO} | known | fields))


def foreign(**fields: Any) -> ProviderRefund:
    return found(
        **({"id": "re_f", "refund_id": None, "generation": None, "created": LONG_AGO} | fields)
    )


def listed(
    *entries: ProviderRefund,
    complete: bool = True,
    siblings: Sequence[Refund] | None = (),
    refund: Refund = IN_DOUBT,
) -> Readback:
    return judge_list(refund, entries, complete=complete, siblings=siblings)


# The list


@pytest.mark.parametrize("complete", [True, False])
def test_listed_with_our_id_is_found_at_once_even_in_half_a_list(
    complete: bool,  # noqa: FBT001 - both cases
) -> None:
    look = listed(foreign(created=NOW), found(), complete=complete)
    assert (look.verdict, look.found) == (ReadbackVerdict.FOUND, found())


def test_entry_with_our_id_and_no_generation_is_ours() -> None:
    assert listed(found(generation=None)).verdict is ReadbackVerdict.FOUND


def test_one_refund_shown_on_two_pages_is_one_refund() -> None:
    assert listed(found(), found()).verdict is ReadbackVerdict.FOUND


def test_two_refunds_with_our_id_are_a_conflict() -> None:
    assert listed(found(), found(id="re_2")).verdict is ReadbackVerdict.CONFLICT


@pytest.mark.parametrize(
    "fields",
    [{"amount": 1}, {"currency": "eur"}, {"payment_intent": "pi_other"}, {"status": None}],
    ids=str,
)
def test_entry_with_our_id_and_a_field_that_is_not_ours_is_a_conflict(
    fields: dict[str, Any],
) -> None:
    look = listed(found(**fields))
    assert (look.verdict, look.found) == (ReadbackVerdict.CONFLICT, None)


def test_entry_with_our_id_in_a_status_that_is_not_known_is_shown_to_a_person_with_its_word() -> (
    None
):
    entry = found(status="on_hold")
    assert listed(entry) == Readback(
        verdict=ReadbackVerdict.CONFLICT,
        reason="the provider shows an unknown status: 'on_hold'",
        found=entry,
    )


def test_empty_whole_list_shows_absence() -> None:
    assert listed().verdict is ReadbackVerdict.ABSENT


@pytest.mark.parametrize(
    ("entry", "siblings"),
    [
        (foreign(amount=499), []),
        (found(id="re_2", refund_id="order-1001-2", created=NOW), [sibling()]),
        (foreign(id="re_2", created=NOW), [sibling()]),
        (
            found(id="re_2", refund_id="order-1001-2", created=NOW),
            [sibling(Stage.IN_DOUBT, provider_refund_id=None)],
        ),
    ],
    ids=[
        "of another amount than ours",
        "a sibling's by id",
        "a sibling's by its provider id",
        "an unsettled sibling's",
    ],
)
def test_list_in_which_every_entry_is_explained_shows_absence(
    entry: ProviderRefund, siblings: Sequence[Refund]
) -> None:
    assert listed(entry, siblings=siblings).verdict is ReadbackVerdict.ABSENT


def test_refund_that_a_person_only_named_for_a_sibling_may_be_this_one() -> None:
    named = sibling(Stage.PROCESSING, provider_refund_id="re_2", operator_says="succeeded")
    entry = foreign(id="re_2", created=NOW)
    assert (
        listed(entry, siblings=[replace(named, operator_says=None)]).verdict
        is ReadbackVerdict.ABSENT
    )
    assert listed(entry, siblings=[named]).verdict is ReadbackVerdict.INCONCLUSIVE


def test_an_earlier_generation_of_ours_is_not_this_one() -> None:
    refund = a_refund(Stage.IN_DOUBT, generation=2, first_attempt_at=STARTED)
    assert listed(found(generation="1"), refund=refund).verdict is ReadbackVerdict.ABSENT


def test_entry_with_our_id_and_no_generation_is_not_taken_for_a_later_one() -> None:
    refund = a_refund(Stage.IN_DOUBT, generation=2, first_attempt_at=STARTED)
    # It may be the first, which failed: what became of the second is not known.
    assert (
        listed(found(generation=None, status="failed"), refund=refund).verdict
        is ReadbackVerdict.INCONCLUSIVE
    )


@pytest.mark.parametrize("status", ["failed", "succeeded", "pending"])
def test_ours_beside_a_later_generation_that_is_not_known_here_is_a_conflict(status: str) -> None:
    look = listed(found(status=status), found(id="re_2", generation="2"))
    assert (look.verdict, "lost records had sent it again" in look.reason) == (
        ReadbackVerdict.CONFLICT,
        True,
    )


def test_ours_beside_an_earlier_generation_is_found() -> None:
    refund = a_refund(Stage.IN_DOUBT, generation=2, first_attempt_at=STARTED)
    ours = found(id="re_2", generation="2")
    for earlier in ("1", None, "x", ""):
        look = listed(found(generation=earlier, status="failed"), ours, refund=refund)
        assert (look.verdict, look.found) == (ReadbackVerdict.FOUND, ours)


def test_list_that_shows_a_later_generation_than_the_record_proves_no_absence() -> None:
    # A server that was restored from a snapshot does not know of the retry that was sent since.
    assert listed(found(generation="2", created=NOW)).verdict is not ReadbackVerdict.ABSENT


@pytest.mark.parametrize(
    ("entries", "complete", "siblings", "reason"),
    [
        ([], False, [], "not read to its end"),
        ([foreign(payment_intent="pi_other")], True, [], "do not belong to this payment"),
        ([foreign(payment_intent=None)], True, [], "do not belong to this payment"),
        ([], True, [sibling()], "leaves out 1 refund"),
        ([foreign(created=NOW)], True, [], "could be this one"),
        ([foreign()], True, [], "could be this one"),
        ([foreign(created=None)], True, [], "could be this one"),
        ([foreign(amount=None)], True, [], "could be this one"),
        ([foreign(amount=-1)], True, [], "could be this one"),
        ([foreign(status="failed")], True, [], "could be this one"),
        (
            [found(id="re_3", refund_id="not-in-our-records", created=NOW)],
            True,
            [sibling()],
            "leaves out",
        ),
        (
            [found(id="re_3", refund_id="not-in-our-records", created=NOW)],
            True,
            [],
            "could be this one",
        ),
        ([], True, None, "too many refunds"),
    ],
)
def test_list_with_a_gap_or_a_riddle_is_inconclusive(
    entries: Sequence[ProviderRefund],
    complete: bool,  # noqa: FBT001 - a table's column
    siblings: Sequence[Refund] | None,
    reason: str,
) -> None:
    look = listed(*entries, complete=complete, siblings=siblings)
    assert look.verdict is ReadbackVerdict.INCONCLUSIVE
    assert reason in look.reason


def test_any_unknown_refund_may_be_one_that_asked_for_all_that_is_left() -> None:
    everything = a_refund(Stage.IN_DOUBT, first_attempt_at=STARTED, amount=None, all_remaining=True)
    assert listed(foreign(amount=3), refund=everything).verdict is ReadbackVerdict.INCONCLUSIVE


@pytest.mark.parametrize("days", [-400, -1, 0, 1])
def test_date_of_an_entry_explains_nothing(days: int) -> None:
    # The list drops our metadata, and dates by another clock, or by the day: this entry is our own
    # refund.
    ours_unnamed = found(refund_id=None, generation=None, created=STARTED + timedelta(days=days))
    assert listed(ours_unnamed).verdict is ReadbackVerdict.INCONCLUSIVE


# The totals

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


# What a payment shows

CHARGE = {
    "id": "ch_1",
    "amount": 1000,
    "amount_captured": 900,
    "amount_refunded": 100,
    "currency": "usd",
}


@pytest.mark.parametrize(
    ("payload", "view"),
    [
        (CHARGE, PaymentView(refunded=100, captured=900, currency="usd", shown_by="ch_1")),
        (
            {"amount_refunded": "100", "amount_received": "900", "currency": "USD"},
            PaymentView(refunded=100, captured=900, currency="usd"),
        ),
        ({"amount_refunded": 0, "amount": 900}, PaymentView(refunded=0, captured=900)),
        ({"amount_refunded": 0}, PaymentView(refunded=0)),
        (
            {"currency": "usd", "charges": {"data": [CHARGE], "has_more": False}},
            PaymentView(refunded=100, captured=900, currency="usd", shown_by="ch_1"),
        ),
        (
            {"latest_charge": CHARGE},
            PaymentView(refunded=100, captured=900, currency="usd", shown_by="ch_1"),
        ),
        ({"latest_charge": "ch_1", "currency": "usd"}, PaymentView(charge="ch_1", currency="usd")),
        ({"charges": {"data": []}, "latest_charge": "ch_1"}, PaymentView(charge="ch_1")),
    ],
    ids=[
        "a charge",
        "amounts as text",
        "only an amount",
        "no amount",
        "one charge inside",
        "latest charge expanded",
        "latest charge by id",
        "no charges but a latest one",
    ],
)
def test_totals_are_read_by_the_names_that_providers_use(
    payload: dict[str, Any], view: PaymentView
) -> None:
    assert payment_in(payload) == view


@pytest.mark.parametrize(
    ("payload", "problem"),
    [
        ({}, "no refunded total"),
        ({"charges": {"data": [CHARGE, CHARGE]}}, "several charges"),
        ({"charges": {"data": [CHARGE], "has_more": True}}, "several charges"),
        ({"amount_refunded": None}, "no readable refunded total"),
        ({"amount_refunded": -1}, "no readable refunded total"),
        ({"amount_refunded": 1.5}, "no readable refunded total"),
        ({"amount_refunded": True}, "no readable refunded total"),
        ({"currency": "eur", "latest_charge": CHARGE}, "differ in currency"),
        (
            {"currency": "eur", "latest_charge": CHARGE | {"amount_refunded": None}},
            "differ in currency",
        ),
        (
            {"currency": "eur", "charges": {"data": [CHARGE | {"currency": "eur"}, CHARGE]}},
            "differ in currency",
        ),
    ],
)
def test_totals_that_cannot_be_told_say_why(payload: dict[str, Any], problem: str) -> None:
    view = payment_in(payload)
    assert view.refunded is None
    assert view.baseline is None
    assert problem in str(view.problem)


@law
@given(
    payload=st.dictionaries(
        st.sampled_from(
            ["amount_refunded", "charges", "latest_charge", "currency", "amount", "amount_captured"]
        ),
        json_values,
    )
)
def test_every_payload_is_a_view_or_a_problem(payload: dict[str, Any]) -> None:
    view = payment_in(payload)
    assert (view.refunded is not None) or view.charge or view.problem
    assert view.refunded is None or view.refunded >= 0


@pytest.mark.parametrize(
    ("payload", "currency"),
    [
        ({"currency": "USD"}, "usd"),
        ({"currency": 1}, ""),
        ({"latest_charge": CHARGE}, "usd"),
        ({"currency": "usd", "charges": {"data": [CHARGE, CHARGE]}}, "usd"),
        ({"currency": "usd", "charges": {"data": [CHARGE, {}, "ch_2"]}}, "usd"),
        ({"currency": "usd", "charges": {"data": [CHARGE, {"currency": 1}]}}, ""),
        ({"charges": {"data": [CHARGE, CHARGE]}}, None),
        ({"currency": "usd", "latest_charge": CHARGE | {"currency": None}}, "usd"),
        ({"currency": "usd", "latest_charge": CHARGE | {"amount_refunded": None}}, "usd"),
        ({"latest_charge": CHARGE | {"amount_refunded": None}}, "usd"),
        ({"currency": "eur", "latest_charge": CHARGE}, ""),
        ({"currency": "eur", "charges": {"data": [CHARGE, CHARGE]}}, ""),
    ],
)
def test_currency_is_the_payments_unless_a_charge_contradicts_it(
    payload: dict[str, Any], currency: str | None
) -> None:
    assert payment_in(payload).currency == currency


def test_baseline_is_the_total_and_what_was_left() -> None:
    assert payment_in(CHARGE).baseline == Baseline(
        refunded=100, currency="usd", remaining=800, shown_by="ch_1"
    )
    assert payment_in({"amount_refunded": 5}).baseline == Baseline(
        refunded=5, currency=None, remaining=None
    )
