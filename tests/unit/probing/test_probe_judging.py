"""The judgements of a probe on answers that no sandbox gives."""

from __future__ import annotations

import pytest

from worker.model.answers import NoReply, Outcome, PaymentView, ProviderRefund, Reply, TryVerdict
from worker.probing import judging
from worker.probing.advice import advise
from worker.probing.questions import Finding, Question, Verdict

RUN = "probe-1"
PAYMENT = "pi_1"
FIRST = ProviderRefund(
    id="re_1", status="succeeded", amount=1, payment_intent=PAYMENT, refund_id=f"{RUN}-1"
)
OTHER = ProviderRefund(
    id="re_2", status="succeeded", amount=1, payment_intent=PAYMENT, refund_id=f"{RUN}-2"
)


def done(found: ProviderRefund) -> Outcome:
    return Outcome(verdict=TryVerdict.DONE, code="done", http_status=200, found=found)


MISMATCH = Outcome(verdict=TryVerdict.MISMATCH, code="idempotency_error", http_status=400)
CONFLICT = Outcome(
    verdict=TryVerdict.MAYBE, code="idempotency_key_in_use", http_status=409, doubt=True
)
FIRST_AGAIN = Outcome(
    verdict=TryVerdict.MAYBE, code="contradictory_reply", http_status=200, doubt=True
)
REFUSED = Outcome(verdict=TryVerdict.REFUSED, code="duplicate", http_status=400)


@pytest.mark.parametrize(
    ("again", "other", "rose", "count", "verdict"),
    [
        (done(FIRST), MISMATCH, 0, 1, Verdict.YES),
        (done(FIRST), MISMATCH, None, 1, Verdict.YES),
        (done(FIRST), MISMATCH, 0, None, Verdict.YES),
        (done(FIRST), MISMATCH, None, None, Verdict.UNCLEAR),
        (done(FIRST), MISMATCH, None, 0, Verdict.UNCLEAR),
        (done(FIRST), MISMATCH, 1, None, Verdict.NO),
        (done(FIRST), MISMATCH, 0, 2, Verdict.NO),
        (done(FIRST), MISMATCH, 1, 1, Verdict.NO),
        (done(FIRST), done(OTHER), 1, 1, Verdict.NO),
        (done(OTHER), MISMATCH, 0, 1, Verdict.NO),
        (REFUSED, MISMATCH, 0, 1, Verdict.UNCLEAR),
        (CONFLICT, MISMATCH, 0, 1, Verdict.UNCLEAR),
    ],
)
def test_a_key_counts_as_honoured_only_where_one_refund_was_counted(
    again: Outcome, other: Outcome, rose: int | None, count: int | None, verdict: Verdict
) -> None:
    assert judging.key(again, other, FIRST, rose=rose, count=count).verdict is verdict


@pytest.mark.parametrize(
    ("other", "verdict"),
    [
        (MISMATCH, Verdict.YES),
        (CONFLICT, Verdict.YES),
        (done(OTHER), Verdict.NO),
        (done(FIRST), Verdict.NO),
        (FIRST_AGAIN, Verdict.NO),
        (REFUSED, Verdict.UNCLEAR),
    ],
)
def test_other_bytes_under_a_key_must_be_refused_for_the_key(
    other: Outcome, verdict: Verdict
) -> None:
    assert judging.other_bytes(other, FIRST).verdict is verdict


@pytest.mark.parametrize(
    ("key", "guard", "value"),
    [
        (Verdict.YES, Verdict.YES, "trust"),
        (Verdict.YES, Verdict.NO, "verify"),
        (Verdict.YES, Verdict.UNCLEAR, "verify"),
        (Verdict.UNCLEAR, Verdict.YES, "verify"),
        (Verdict.NO, Verdict.YES, "verify"),
    ],
)
def test_trust_follows_from_both_answers_alone(key: Verdict, guard: Verdict, value: str) -> None:
    findings = {
        Question.KEY: Finding(verdict=key, evidence=""),
        Question.GUARD: Finding(verdict=guard, evidence=""),
    }
    assert (
        next(
            advice.value for advice in advise(findings) if advice.variable == "REFUNDS_IDEMPOTENCY"
        )
        == value
    )


def test_nothing_shown_leaves_every_default() -> None:
    assert {advice.variable: advice.value for advice in advise({})} == {
        "REFUNDS_IDEMPOTENCY": "verify",
        "REFUNDS_READBACK": "totals",
        "REFUNDS_TOTALS": "hint",
        "REFUNDS_KEY_WINDOW_HOURS": "23",
    }


def test_neither_list_nor_total_leaves_every_doubt_to_a_person() -> None:
    findings = {
        question: Finding(verdict=Verdict.NO, evidence="")
        for question in (Question.LIST, Question.TOTALS)
    }
    assert {advice.variable: advice.value for advice in advise(findings)}[
        "REFUNDS_READBACK"
    ] == "none"


@pytest.mark.parametrize(
    ("refunded", "still", "verdict"),
    [(1, True, Verdict.YES), (0, True, Verdict.NO), (1, False, Verdict.UNCLEAR),
     (0, False, Verdict.UNCLEAR), (7, True, Verdict.UNCLEAR), (None, True, Verdict.UNCLEAR)],
)  # fmt: skip
def test_a_total_speaks_of_pending_refunds_only_while_one_is_pending(
    refunded: int | None, still: bool, verdict: Verdict  # noqa: FBT001 - a table of cases
) -> None:  # fmt: skip
    before, after = PaymentView(refunded=0), PaymentView(refunded=refunded)
    assert judging.pending(before, after, 1, still=still).verdict is verdict


@pytest.mark.parametrize(
    ("entries", "complete", "verdict"),
    [
        ([FIRST], True, Verdict.YES),
        ([FIRST, OTHER], True, Verdict.YES),
        ([FIRST], False, Verdict.NO),
        ([ProviderRefund(id="re_1", payment_intent=PAYMENT)], True, Verdict.NO),
        ([FIRST, ProviderRefund(id="re_9", payment_intent="pi_9")], True, Verdict.NO),
        ([FIRST, ProviderRefund(id="re_9")], True, Verdict.NO),
    ],
)
def test_a_list_is_of_use_only_whole_with_our_id_and_of_this_payment(
    entries: list[ProviderRefund], complete: bool, verdict: Verdict  # noqa: FBT001 - a table of cases
) -> None:  # fmt: skip
    finding = judging.listed(
        entries, complete=complete, found=FIRST, refund_id=f"{RUN}-1", payment_intent=PAYMENT
    )
    assert finding is not None
    assert finding.verdict is verdict


def test_a_list_without_the_refund_may_only_be_late() -> None:
    assert (
        judging.listed(
            [OTHER], complete=True, found=FIRST, refund_id=f"{RUN}-1", payment_intent=PAYMENT
        )
        is None
    )


def test_a_failing_list_is_not_a_missing_one() -> None:
    assert judging.no_list(Reply(http_status=404)).verdict is Verdict.NO
    assert judging.no_list(Reply(http_status=500)).verdict is Verdict.UNCLEAR
    assert judging.no_list(Reply(http_status=429)).verdict is Verdict.UNCLEAR
    assert judging.no_list(NoReply(reason="cut")).verdict is Verdict.UNCLEAR
