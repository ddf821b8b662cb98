"""What an answer is read as, in full.

Every field of the judgement, and every limit on it.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.factories import (
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
    refund_in,
    refund_payload,
)
from worker.model.answers import (
    Answer,
    NoReply,
    NotSent,
    Outcome,
    ProviderRefund,
    Reply,
    TryVerdict,
)
from worker.rules.outcomes import classify, fold, key_accepted, key_refused
from worker.rules.payloads import read_amount, read_time

REFUND = a_refund()
ERROR = {"type": "api_error", "code": "broken", "message": "because"}


def contradictory(what: str, odd: str | None = None, *, is_unnamed: bool = False) -> Outcome:
    """A reply that says done of something else, or of an odd one that may be ours."""
    return Outcome(
        verdict=TryVerdict.MAYBE,
        code="contradictory_reply",
        message=f"the reply shows re_1, whose {what} does not belong to this refund",
        http_status=200,
        doubt=True,
        odd=odd,
        is_unnamed=is_unnamed,
    )


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
            contradictory("amount", odd="re_1"),
        ),
        (
            a_reply(200, refund_payload(amount=1, metadata=None)),
            contradictory("amount", odd="re_1", is_unnamed=True),
        ),
        (
            a_reply(200, refund_payload(object="charge", amount=1)),
            contradictory("object"),
        ),
        (
            a_reply(200, {"id": "re_1", "status": "succeeded", "amount": 1}),
            contradictory("amount", odd="re_1", is_unnamed=True),
        ),
        (
            a_reply(200, refund_payload(payment_intent="pi_2", amount=1)),
            contradictory("payment_intent"),
        ),
        (
            a_reply(200, refund_payload(metadata={"refund_id": "order-1001-2"})),
            contradictory("metadata.refund_id"),
        ),
        (
            a_reply(200, refund_payload(status=None)),
            contradictory("status", odd="re_1"),
        ),
        (
            a_reply(200, refund_payload(status=None, metadata=None)),
            contradictory("status", odd="re_1"),
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
            contradictory("amount", odd="re_1"),
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
