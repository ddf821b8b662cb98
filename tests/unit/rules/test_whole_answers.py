"""What an answer, a list or a total is read as, in full.

Every field of the judgement, and every limit on it.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.factories import (
    HOUR,
    MAYBE,
    NOT_DONE,
    NOT_SENT,
    NOW,
    PAYMENT,
    REFUSED,
    SECOND,
    SERVER_ERROR,
    a_refund,
    a_reply,
    an_error,
    done_as,
    error_in,
    found,
    payment_in,
    refund_in,
    refund_payload,
)
from worker.model.answers import (
    Answer,
    NoReply,
    NotSent,
    Outcome,
    PaymentView,
    ProviderRefund,
    Readback,
    ReadbackVerdict,
    Reply,
    TryVerdict,
)
from worker.model.refund import Baseline, Retriable, Stage, Status
from worker.rules.evidence import judge_absence, judge_list, judge_totals
from worker.rules.outcomes import classify, fold, key_accepted, key_refused
from worker.rules.payloads import read_amount, read_time

REFUND = a_refund()
ERROR = {"type": "api_error", "code": "broken", "message": "because"}


def contradictory(what: str) -> Outcome:
    """A reply that says done of something else."""
    return Outcome(
        verdict=TryVerdict.MAYBE,
        code="contradictory_reply",
        message=f"the reply's {what} does not belong to this refund",
        http_status=200,
        doubt=True,
    )


# Replies


def test_refund_in_a_payload_is_read_whole() -> None:
    assert refund_in(
        refund_payload(failure_reason="lost_or_stolen_card", currency="USD")
    ) == ProviderRefund(
        id="re_1",
        status="succeeded",
        amount=500,
        currency="usd",
        payment_intent=PAYMENT,
        failure_reason="lost_or_stolen_card",
        refund_id="order-1001-1",
        generation="1",
        created=NOW,
    )


@pytest.mark.parametrize(
    ("value", "amount"),
    [
        (0, 0),
        (-1, -1),
        (10**12, 10**12),
        (10**12 + 1, -1),
        (1e12, 10**12),
        (1e12 + 1, -1),
        (-1.0, -1),
        (0.5, -1),
        ("1000000000000", 10**12),
        ("1000000000001", -1),
        ("00000000000005", -1),
        ("", -1),
        ("-5", -1),
        ("5.0", -1),
        ("٣", -1),
        (True, -1),
    ],
)
def test_amount_has_its_limits(value: Any, amount: int) -> None:
    assert read_amount(value) == amount


@pytest.mark.parametrize(
    ("value", "time"),
    [
        (0, None),
        (-1, None),
        (1, datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)),
        (10**11 - 1, datetime.fromtimestamp(10**11 - 1, UTC)),
        (10**11, datetime.fromtimestamp(10**8, UTC)),
        (10**14, datetime.fromtimestamp(10**11, UTC)),
        (10**14 + 1, None),
        (True, None),
        (1.5, None),
        ("1", None),
    ],
)
def test_time_has_its_limits(value: Any, time: datetime | None) -> None:
    assert read_time(value) == time


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        (None, None),
        ({"error": {"type": 7, "code": "x", "message": "m"}}, (None, "x", "m")),
        ({"error": {"type": "t", "code": 7}}, ("t", "7", None)),
        ({"error": {"type": "t", "code": "", "message": 7}}, ("t", None, None)),
        ({"error": {"type": 7, "code": ""}}, None),
        ({"error": {"type": 7, "code": 7}}, (None, "7", None)),
        ({"error": "text", "type": "t", "code": "c"}, ("t", "c", "text")),
    ],
)
def test_error_is_read_with_whatever_of_it_is_text(payload: Any, error: Any) -> None:
    assert error_in(payload) == error


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (
            NotSent(reason="no way"),
            Outcome(verdict=TryVerdict.NOT_SENT, code="not_sent", message="no way"),
        ),
        (
            NoReply(reason="reset"),
            Outcome(verdict=TryVerdict.MAYBE, code="no_reply", message="reset", doubt=True),
        ),
        (
            a_reply(429, {"error": ERROR}, retry_after=SECOND),
            Outcome(
                verdict=TryVerdict.NOT_DONE,
                code="rate_limited",
                message="because",
                http_status=429,
                retry_after=SECOND,
            ),
        ),
        (a_reply(429), Outcome(verdict=TryVerdict.NOT_DONE, code="rate_limited", http_status=429)),
        (
            a_reply(429, {"error": ERROR | {"code": "lock_timeout"}}, retry_after=SECOND),
            Outcome(
                verdict=TryVerdict.NOT_DONE,
                code="lock_timeout",
                message="because",
                http_status=429,
                retry_after=SECOND,
            ),
        ),
        *(
            (
                a_reply(429, {"error": {"code": code, "message": "because"}}),
                Outcome(
                    verdict=TryVerdict.NOT_DONE,
                    code="rate_limited",
                    message="because",
                    http_status=429,
                ),
            )
            for code in (None, "made_up", "card_declined")
        ),
        (
            a_reply(401, {"error": ERROR}),
            Outcome(
                verdict=TryVerdict.NOT_DONE,
                code="credentials_refused",
                message="because",
                http_status=401,
                credentials=True,
            ),
        ),
        (
            a_reply(401),
            Outcome(
                verdict=TryVerdict.NOT_DONE,
                code="credentials_refused",
                http_status=401,
                credentials=True,
            ),
        ),
        (
            an_error(400, kind="idempotency_error"),
            Outcome(
                verdict=TryVerdict.MISMATCH,
                code="idempotency_error",
                message="because",
                http_status=400,
            ),
        ),
        (
            an_error(404, "gone"),
            Outcome(verdict=TryVerdict.REFUSED, code="gone", message="because", http_status=404),
        ),
        (
            an_error(403, "no"),
            Outcome(
                verdict=TryVerdict.REFUSED,
                code="no",
                message="because",
                http_status=403,
                credentials=True,
            ),
        ),
        (
            a_reply(500, {"error": ERROR}, retry_after=SECOND),
            Outcome(
                verdict=TryVerdict.MAYBE,
                code="broken",
                message="because",
                http_status=500,
                retry_after=SECOND,
                server_error=True,
                doubt=True,
            ),
        ),
        (
            a_reply(503),
            Outcome(
                verdict=TryVerdict.MAYBE,
                code="http_503",
                http_status=503,
                server_error=True,
                doubt=True,
            ),
        ),
        (
            a_reply(409, {"error": ERROR}),
            Outcome(
                verdict=TryVerdict.MAYBE,
                code="broken",
                message="because",
                http_status=409,
                doubt=True,
            ),
        ),
        (
            a_reply(300, refund_payload()),
            Outcome(verdict=TryVerdict.MAYBE, code="http_300", http_status=300, doubt=True),
        ),
        (
            a_reply(199, refund_payload()),
            Outcome(verdict=TryVerdict.MAYBE, code="http_199", http_status=199, doubt=True),
        ),
        (
            a_reply(299, refund_payload()),
            Outcome(verdict=TryVerdict.DONE, code="done", http_status=299, found=found()),
        ),
        (
            a_reply(200),
            Outcome(verdict=TryVerdict.DONE, code="done", http_status=200, found=found()),
        ),
        (
            Reply(http_status=200),
            Outcome(
                verdict=TryVerdict.MAYBE,
                code="unreadable_success",
                message="the provider reported success without a refund",
                http_status=200,
                doubt=True,
            ),
        ),
        (
            a_reply(200, {"object": "refund"}),
            Outcome(
                verdict=TryVerdict.MAYBE,
                code="unreadable_success",
                message="the provider reported success without a refund",
                http_status=200,
                doubt=True,
            ),
        ),
        (
            a_reply(200, refund_payload(amount=1)),
            contradictory("amount"),
        ),
        (
            a_reply(200, refund_payload(object="charge", amount=1)),
            contradictory("object"),
        ),
        (
            a_reply(200, refund_payload(status=None)),
            contradictory("status"),
        ),
        (
            a_reply(200, refund_payload(status="new")),
            Outcome(
                verdict=TryVerdict.MAYBE,
                code="unknown_status",
                message="the provider shows an unknown status: 'new'",
                http_status=200,
                found=found(status="new"),
                doubt=True,
            ),
        ),
        (
            a_reply(200, refund_payload(status="new", amount=1)),
            contradictory("amount"),
        ),
    ],
)
def test_answer_is_read_as_this_and_nothing_else(answer: Answer, outcome: Outcome) -> None:
    assert classify(answer, REFUND) == outcome


def test_smallest_amount_there_is_belongs_to_a_refund_of_all_that_is_left() -> None:
    refund = a_refund(amount=None, all_remaining=True)
    assert classify(a_reply(200, refund_payload(amount=1)), refund).verdict is TryVerdict.DONE
    assert classify(a_reply(200, refund_payload(amount=0)), refund).verdict is TryVerdict.MAYBE


def test_403_becomes_everyones_trouble_or_the_refunds_own_and_keeps_the_rest() -> None:
    forbidden = classify(an_error(403, "no"), REFUND)
    assert key_refused(forbidden) == replace(
        forbidden, verdict=TryVerdict.NOT_DONE, code="credentials_refused", credentials=True
    )
    assert key_refused(replace(forbidden, credentials=False)).credentials is True
    assert key_accepted(forbidden) == replace(forbidden, credentials=False)


@pytest.mark.parametrize(
    ("tries", "folded"),
    [
        ([NOT_SENT], replace(NOT_SENT, only_server_errors=True)),
        ([NOT_DONE], NOT_DONE),
        ([MAYBE, REFUSED], replace(MAYBE, tries=2)),
        ([REFUSED, NOT_SENT], replace(REFUSED, doubt=False, tries=2)),
        (
            [replace(REFUSED, credentials=True), MAYBE, NOT_DONE],
            replace(MAYBE, credentials=True, tries=3),
        ),
        (
            [SERVER_ERROR, SERVER_ERROR],
            replace(SERVER_ERROR, tries=2, server_errors=2, only_server_errors=True),
        ),
        ([MAYBE, SERVER_ERROR], replace(SERVER_ERROR, tries=2, server_errors=1)),
        ([SERVER_ERROR, MAYBE], replace(MAYBE, tries=2)),
        (
            [SERVER_ERROR, NOT_SENT],
            replace(SERVER_ERROR, tries=2, server_errors=1, only_server_errors=True),
        ),
        ([MAYBE, done_as()], replace(done_as(), doubt=True, tries=2)),
    ],
)
def test_tries_are_folded_into_this_and_nothing_else(tries: list[Outcome], folded: Outcome) -> None:
    assert fold(tries) == folded


# Totals


@pytest.mark.parametrize(
    ("payload", "view"),
    [
        (
            {"currency": "USD", "charges": {"data": [{}, {}]}},
            PaymentView(currency="usd", problem="the payment has several charges"),
        ),
        (
            {"currency": "usd", "charges": {"data": [{"amount_refunded": 0}], "has_more": True}},
            PaymentView(currency="usd", problem="the payment has several charges"),
        ),
        (
            {"currency": "usd"},
            PaymentView(currency="usd", problem="the payment shows no refunded total"),
        ),
        (
            {"currency": "usd", "charges": {"data": ["ch_1"]}, "latest_charge": "ch_1"},
            PaymentView(currency="usd", charge="ch_1"),
        ),
        (
            {"currency": "usd", "latest_charge": 7},
            PaymentView(currency="usd", problem="the payment's charges cannot be read"),
        ),
        (
            {"currency": "usd", "latest_charge": ""},
            PaymentView(currency="usd", problem="the payment's charges cannot be read"),
        ),
        (
            {"charges": "many"},
            PaymentView(problem="the payment's charges cannot be read"),
        ),
        (
            {"charges": {"data": {}}},
            PaymentView(problem="the payment's charges cannot be read"),
        ),
        ({"charges": {"data": []}}, PaymentView(problem="the payment shows no refunded total")),
        (
            {"currency": "usd", "amount_refunded": "?"},
            PaymentView(currency="usd", problem="the charge shows no readable refunded total"),
        ),
        (
            {"currency": "usd", "amount_refunded": None},
            PaymentView(currency="usd", problem="the charge shows no readable refunded total"),
        ),
        (
            {"currency": "usd", "latest_charge": {"amount_refunded": 1, "currency": "EUR"}},
            PaymentView(currency="", problem="payment and charge differ in currency"),
        ),
        (
            {"latest_charge": {"amount_refunded": 1, "currency": "EUR", "amount": 9}},
            PaymentView(refunded=1, captured=9, currency="eur"),
        ),
        (
            {"currency": "usd", "amount_refunded": 0, "amount_captured": "?"},
            PaymentView(refunded=0, captured=None, currency="usd"),
        ),
        (
            {
                "currency": "usd",
                "amount_refunded": 0,
                "amount_captured": 1,
                "amount_received": 2,
                "amount": 3,
            },
            PaymentView(refunded=0, captured=1, currency="usd"),
        ),
        (
            {"currency": "usd", "amount_refunded": 0, "amount_received": 2, "amount": 3},
            PaymentView(refunded=0, captured=2, currency="usd"),
        ),
        (
            {"currency": "usd", "amount_refunded": 0, "amount_captured": 0, "amount": 3},
            PaymentView(refunded=0, captured=0, currency="usd"),
        ),
    ],
)
def test_totals_are_read_as_this_and_nothing_else(
    payload: dict[str, Any], view: PaymentView
) -> None:
    assert payment_in(payload) == view


@pytest.mark.parametrize(
    ("view", "baseline"),
    [
        (PaymentView(problem="why"), None),
        (
            PaymentView(refunded=0, currency="usd"),
            Baseline(refunded=0, currency="usd", remaining=None),
        ),
        (PaymentView(refunded=3, captured=10), Baseline(refunded=3, currency=None, remaining=7)),
    ],
)
def test_baseline_is_this_and_nothing_else(view: PaymentView, baseline: Baseline | None) -> None:
    assert view.baseline == baseline


# Looks


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
        (found(generation="0"), ReadbackVerdict.ABSENT),
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
        ([found(amount=500, status="pending")], PaymentView(refunded=500), None),
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
        ([found(amount=500, status="pending"), found(amount=100)], PaymentView(refunded=600), None),
        (
            [found(amount=500)],
            PaymentView(refunded=0),
            "the payment's refunded total is 0, and the listed refunds sum to 500",
        ),
        ([found(amount=0)], PaymentView(refunded=0), None),
        ([found(amount=500, status="pending"), found(amount=0)], PaymentView(refunded=500), None),
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
    assert judge_absence(listed, view) == problem


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
