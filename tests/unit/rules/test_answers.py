"""What one answer says of a refund, and what an attempt's tries say together."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.factories import (
    MAYBE,
    NOT_DONE,
    NOT_SENT,
    PAYMENT,
    REFUSED,
    SERVER_ERROR,
    a_refund,
    a_reply,
    an_error,
    done_as,
    error_in,
    refund_in,
    refund_payload,
)
from tests.strategies import answers, attempts, json_values, replies
from worker.model.answers import Answer, NoReply, NotSent, Outcome, Payload, Reply, TryVerdict
from worker.model.refund import Stage
from worker.model.request import is_provider_id
from worker.rules.outcomes import classify, fold, key_accepted, key_refused, owned_elsewhere
from worker.rules.payloads import STATUSES, read_amount, read_time

law = settings(deadline=None, max_examples=150)

REFUND = a_refund()
ERROR = {"type": "invalid_request_error", "code": "amount_too_large", "message": "too much"}
MISMATCH_ERROR = {
    "type": "idempotency_error",
    "code": "idempotency_mismatch",
    "message": "other parameters",
}

ROWS: list[tuple[str, Answer, TryVerdict]] = [
    ("connection refused", NotSent(reason="connection refused"), TryVerdict.NOT_SENT),
    ("pool timeout", NotSent(reason="pool timeout"), TryVerdict.NOT_SENT),
    ("429 with an error", an_error(429, "rate_limit"), TryVerdict.NOT_DONE),
    ("429 with nothing readable", a_reply(429), TryVerdict.NOT_DONE),
    ("401 with an error", an_error(401, "invalid_api_key"), TryVerdict.NOT_DONE),
    ("401 with nothing readable", a_reply(401), TryVerdict.NOT_DONE),
    *(
        (
            f"{code} idempotency mismatch",
            a_reply(code, {"error": MISMATCH_ERROR}),
            TryVerdict.MISMATCH,
        )
        for code in (400, 422)
    ),
    ("400 idempotency mismatch, flat", a_reply(400, MISMATCH_ERROR), TryVerdict.MISMATCH),
    *(
        (f"{code} nested error", a_reply(code, {"error": ERROR}), TryVerdict.REFUSED)
        for code in (400, 402, 403, 404, 422)
    ),
    *(
        (f"{code} flat error", a_reply(code, ERROR), TryVerdict.REFUSED)
        for code in (400, 402, 403, 404, 422)
    ),
    *(
        (f"{code} without a body", a_reply(code), TryVerdict.MAYBE)
        for code in (400, 402, 403, 404, 422)
    ),
    *(
        (f"{code} with other JSON", a_reply(code, {"ok": False}), TryVerdict.MAYBE)
        for code in (400, 402, 404, 422)
    ),
    *(
        (f"{code} with a refund", a_reply(code, refund_payload()), TryVerdict.MAYBE)
        for code in (400, 404, 409, 500)
    ),
    *(
        (f"2xx {status}", a_reply(200, refund_payload(status=status)), TryVerdict.DONE)
        for status in ("pending", "succeeded", "failed", "canceled")
    ),
    ("201 created", a_reply(201, refund_payload()), TryVerdict.DONE),
    (
        "200 with id and status alone",
        a_reply(200, {"id": "re_1", "status": "succeeded"}),
        TryVerdict.DONE,
    ),
    ("200 without a body", Reply(http_status=200), TryVerdict.MAYBE),
    ("204 without a body", Reply(http_status=204), TryVerdict.MAYBE),
    ("200 with an empty object", a_reply(200, {"": ""}), TryVerdict.MAYBE),
    ("200 with an error inside", a_reply(200, {"error": ERROR}), TryVerdict.MAYBE),
    ("200 without an id", a_reply(200, refund_payload(id=None)), TryVerdict.MAYBE),
    ("200 with an empty id", a_reply(200, refund_payload(id="")), TryVerdict.MAYBE),
    ("200 with a number for an id", a_reply(200, refund_payload(id=7)), TryVerdict.MAYBE),
    *(
        (f"200 with {name} for an id", a_reply(200, refund_payload(id=identity)), TryVerdict.MAYBE)
        for name, identity in [
            ("a path", "../payouts"),
            ("a query", "re/1?x"),
            ("two words", "re 1"),
            ("a novel", "x" * 5000),
        ]
    ),
    ("200 with an object for a kind", a_reply(200, refund_payload(object={})), TryVerdict.MAYBE),
    ("200 without a status", a_reply(200, refund_payload(status=None)), TryVerdict.MAYBE),
    (
        "200 with an unknown status",
        a_reply(200, refund_payload(status="on_hold")),
        TryVerdict.MAYBE,
    ),
    *(
        (f"{code} error", an_error(code), TryVerdict.MAYBE)
        for code in (405, 406, 408, 409, 410, 418, 500, 502, 503, 504)
    ),
    ("409 mismatch: perhaps in flight", a_reply(409, {"error": MISMATCH_ERROR}), TryVerdict.MAYBE),
    *((f"{code} redirect", a_reply(code), TryVerdict.MAYBE) for code in (301, 302, 303, 307, 308)),
    ("100 continue as a final answer", a_reply(100), TryVerdict.MAYBE),
    ("a status from nowhere", a_reply(999, {"error": ERROR}), TryVerdict.MAYBE),
    ("read timeout", NoReply(reason="read timeout"), TryVerdict.MAYBE),
    ("connection reset", NoReply(reason="connection reset"), TryVerdict.MAYBE),
    ("cut body", NoReply(reason="body cut"), TryVerdict.MAYBE),
    ("over 1 MB", NoReply(reason="over 1 MB"), TryVerdict.MAYBE),
]


@pytest.mark.parametrize(
    ("answer", "seen"), [pytest.param(answer, seen, id=name) for name, answer, seen in ROWS]
)
def test_answer_means_what_the_table_of_evidence_says(answer: Answer, seen: TryVerdict) -> None:
    outcome = classify(answer, REFUND)
    assert outcome.verdict is seen
    assert outcome.doubt is (seen is TryVerdict.MAYBE)
    assert (outcome.found is not None) is (
        seen is TryVerdict.DONE or outcome.code == "unknown_status"
    )


CONTRADICTIONS: list[tuple[str, dict[str, Any]]] = [
    ("another payment", {"payment_intent": "pi_other"}),
    ("another payment, expanded", {"payment_intent": {"id": "pi_other"}}),
    ("a payment that is no text", {"payment_intent": 7}),
    ("a payment without an id", {"payment_intent": {}}),
    ("an amount of thousands of digits", {"amount": "9" * 5000}),
    ("another amount", {"amount": 501}),
    ("another amount, as text", {"amount": "501"}),
    ("no amount of money", {"amount": 0}),
    ("a negative amount", {"amount": -500}),
    ("a fractional amount", {"amount": 500.5}),
    ("a bool for an amount", {"amount": True}),
    ("words for an amount", {"amount": "five"}),
    ("an amount in other digits", {"amount": "\u0665\u0660\u0660"}),
    ("another currency", {"currency": "eur"}),
    ("a currency that is no text", {"currency": 840}),
    ("another refund's id", {"metadata": {"refund_id": "order-2"}}),
    ("another generation", {"metadata": {"refund_id": "order-1001-1", "refund_generation": "2"}}),
    ("another kind of object", {"object": "charge"}),
]


@pytest.mark.parametrize(
    "fields", [pytest.param(fields, id=name) for name, fields in CONTRADICTIONS]
)
@pytest.mark.parametrize("status", ["pending", "succeeded", "failed"])
def test_success_that_contradicts_the_refund_in_one_field_may_have_happened(
    fields: dict[str, Any], status: str
) -> None:
    outcome = classify(a_reply(200, refund_payload(status=status) | fields), REFUND)
    assert (outcome.verdict, outcome.code, outcome.doubt) == (
        TryVerdict.MAYBE,
        "contradictory_reply",
        True,
    )
    assert outcome.found is None


@pytest.mark.parametrize(
    "name", ["object", "amount", "currency", "payment_intent", "metadata", "created"]
)
def test_success_that_leaves_a_field_out_or_null_is_still_done(name: str) -> None:
    without = refund_payload()
    del without[name]
    assert classify(a_reply(200, without), REFUND).verdict is TryVerdict.DONE
    assert classify(a_reply(200, refund_payload(**{name: None})), REFUND).verdict is TryVerdict.DONE


@pytest.mark.parametrize(
    "fields",
    [
        {"amount": "500"},
        {"currency": "USD"},
        {"payment_intent": {"id": PAYMENT, "object": "payment_intent"}},
        {"metadata": {"order": "1001"}},
    ],
    ids=["amount as text", "currency in capitals", "payment expanded", "metadata without our id"],
)
def test_success_that_says_the_same_in_another_way_is_done(fields: dict[str, Any]) -> None:
    assert classify(a_reply(200, refund_payload() | fields), REFUND).verdict is TryVerdict.DONE


def test_refund_of_all_that_is_left_accepts_any_amount_of_money_and_no_other() -> None:
    refund = a_refund(amount=None, all_remaining=True)
    assert classify(a_reply(200, refund_payload(amount=99)), refund).verdict is TryVerdict.DONE
    assert classify(a_reply(200, refund_payload(amount=0)), refund).verdict is TryVerdict.MAYBE


def test_rate_limit_carries_how_long_to_wait() -> None:
    outcome = classify(a_reply(429, retry_after=timedelta(seconds=7)), REFUND)
    assert (outcome.code, outcome.retry_after) == ("rate_limited", timedelta(seconds=7))


@pytest.mark.parametrize(
    ("http_status", "suspected"),
    [(400, False), (401, True), (402, False), (403, True), (404, False), (429, False)],
)
def test_only_401_and_403_put_the_credentials_under_suspicion(
    http_status: int,
    suspected: bool,  # noqa: FBT001 - a table's column
) -> None:
    assert classify(an_error(http_status), REFUND).credentials is suspected


def test_403_is_everyones_trouble_once_a_harmless_get_was_refused_too() -> None:
    outcome = key_refused(classify(an_error(403, "forbidden"), REFUND))
    assert (outcome.verdict, outcome.credentials, outcome.doubt) == (
        TryVerdict.NOT_DONE,
        True,
        False,
    )


def test_403_is_the_refunds_own_refusal_once_a_harmless_get_was_answered() -> None:
    outcome = key_accepted(classify(an_error(403, "not_allowed"), REFUND))
    assert (outcome.verdict, outcome.credentials, outcome.code) == (
        TryVerdict.REFUSED,
        False,
        "not_allowed",
    )


def test_only_5xx_counts_as_a_server_error() -> None:
    marked = [
        status for status in range(100, 600) if classify(a_reply(status), REFUND).server_error
    ]
    assert marked == list(range(500, 600))


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (
            {"error": {"type": "card_error", "code": "declined", "message": "no"}},
            ("card_error", "declined", "no"),
        ),
        (
            {"type": "card_error", "code": "declined", "message": "no"},
            ("card_error", "declined", "no"),
        ),
        ({"error": {"type": "card_error"}}, ("card_error", None, None)),
        ({"error": {"code": "declined", "message": 7}}, (None, "declined", None)),
        ({"error": {"type": "card_error", "code": ""}}, ("card_error", None, None)),
        ({"error": "not found", "code": "x"}, (None, "x", "not found")),
        ({"error": {"message": "no"}}, (None, None, "no")),
        ({"error": "not found"}, (None, None, "not found")),
        ({"message": "no"}, (None, None, "no")),
        ({}, None),
        (None, None),
    ],
)
def test_provider_error_is_read_nested_or_flat(
    payload: Any, expected: tuple[str | None, str, str | None]
) -> None:
    assert error_in(payload) == expected


@pytest.mark.parametrize(
    ("message", "kept"),
    [
        ("no such payment for jane@example.com", "no such payment for ***"),
        ("jane@example.com and jane@example.community", "*** and ***"),
        ('declined {"metadata": {"email": "jane@example.com"}}', "declined"),
        ("{", ""),
        ("known as Ms jane@example.com", "known as ***"),
        ("the web shop is closed", "the web shop is closed"),
        ("order 1001 of the web shop", "order *** of the web shop"),
        ("jane@example.com" * 40, "***" * 40),
    ],
)
def test_message_that_repeats_what_was_asked_is_kept_without_it(message: str, kept: str) -> None:
    metadata = {
        "a": "jane@example.com",
        "b": "jane@example.community",
        "channel": "web",
        "order": "1001",
    }
    metadata["known_as"] = "Ms jane@example.com"
    payload = {"error": {"type": "card_error", "code": "declined", "message": message}}
    assert error_in(payload, *metadata.values()) == ("card_error", "declined", kept or None)


def test_secret_in_a_provider_error_is_not_kept() -> None:
    error = {
        "error": {"type": "x", "code": "sk_test_abc", "message": "Invalid key: sk_live_abcdef\n"}
    }
    assert classify(a_reply(401, error), REFUND).message == "***: Invalid key: ***"
    assert "sk_test" not in str(classify(a_reply(400, error), REFUND))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (500, 500),
        ("500", 500),
        (0, 0),
        (None, None),
        (-1, -1),
        (True, -1),
        (5.0, 5),
        (5.5, -1),
        (float("nan"), -1),
        (float("inf"), -1),
        ("", -1),
        ("5e2", -1),
        (" 5", -1),
        ("\u0665", -1),
        ([500], -1),
    ],
)
def test_amount_is_read_as_an_integer_or_as_plain_digits_and_never_guessed(
    value: Any, expected: int | None
) -> None:
    assert read_amount(value) == expected


@pytest.mark.parametrize("value", [1769850000, 1769850000000])
def test_time_is_read_in_seconds_and_in_milliseconds(value: int) -> None:
    assert read_time(value) == datetime(2026, 1, 31, 9, tzinfo=UTC)


@law
@given(value=json_values)
def test_any_json_is_a_time_or_none(value: Any) -> None:
    assert read_time(value) is None or (type(value) is int and value > 0)


@law
@given(
    payload=st.dictionaries(st.text(max_size=8), json_values, max_size=4),
    identity=st.one_of(json_values, st.from_regex(r"re_[A-Za-z0-9]{1,20}", fullmatch=True)),
)
def test_payload_without_an_id_that_can_stand_in_a_path_is_no_refund(
    payload: dict[str, Any], identity: Any
) -> None:
    parsed = refund_in(payload | {"id": identity})
    assert (parsed is not None) is is_provider_id(identity)
    assert parsed is None or parsed.id == identity


@law
@given(reply=replies())
def test_reply_that_is_not_on_the_list_may_have_happened(reply: Reply) -> None:
    outcome = classify(reply, REFUND)
    payload = reply.payload or Payload()
    allowed = {TryVerdict.MAYBE}
    if 200 <= reply.http_status < 300 and payload.refund is not None:
        allowed.add(TryVerdict.DONE)
    elif reply.http_status in {401, 429}:
        allowed = {TryVerdict.NOT_DONE}
    elif reply.http_status in {400, 402, 403, 404, 422} and payload.error is not None:
        allowed = {TryVerdict.REFUSED, TryVerdict.MISMATCH}
    assert outcome.verdict in allowed
    assert outcome.doubt is (outcome.verdict is TryVerdict.MAYBE)


@law
@given(answer=answers(), stage=st.sampled_from(Stage))
def test_every_answer_has_a_meaning_at_every_stage(answer: Answer, stage: Stage) -> None:
    outcome = classify(answer, a_refund(stage))
    assert (outcome.found is not None) is (
        outcome.verdict is TryVerdict.DONE or outcome.code == "unknown_status"
    )
    assert outcome.found is None or (outcome.found.status in STATUSES) is (
        outcome.verdict is TryVerdict.DONE
    )


STRENGTH = [
    TryVerdict.NOT_SENT,
    TryVerdict.NOT_DONE,
    TryVerdict.REFUSED,
    TryVerdict.MAYBE,
    TryVerdict.MISMATCH,
    TryVerdict.DONE,
]


@law
@given(tried=attempts, data=st.data())
def test_attempt_is_its_strongest_try_in_whatever_order_they_came(
    tried: list[Outcome], data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(tried))
    strongest = max((outcome.verdict for outcome in tried), key=STRENGTH.index)
    assert fold(tried).verdict is fold(shuffled).verdict is strongest
    assert fold(tried).tries == len(tried)


@law
@given(tried=attempts)
def test_one_doubtful_try_leaves_the_whole_attempt_in_doubt(tried: list[Outcome]) -> None:
    assert fold(tried).doubt is any(outcome.verdict is TryVerdict.MAYBE for outcome in tried)


@law
@given(before=st.lists(st.sampled_from([NOT_SENT, NOT_DONE, REFUSED, MAYBE]), max_size=4))
def test_proof_of_done_wins_over_whatever_was_seen_beside_it(before: list[Outcome]) -> None:
    done = done_as("succeeded")
    for tried in ([*before, done], [done, *before]):
        assert fold(tried).found == done.found


@law
@given(tried=attempts)
def test_folding_one_try_changes_nothing_and_folding_in_parts_agrees_with_folding_at_once(
    tried: list[Outcome],
) -> None:
    whole = fold(tried)
    for cut in range(1, len(tried)):
        parts = fold([fold(tried[:cut]), fold(tried[cut:])])
        assert (parts.verdict, parts.doubt) == (whole.verdict, whole.doubt)
    assert fold(tried[:1]).verdict is tried[0].verdict


def test_attempt_keeps_the_odd_refund_that_a_try_showed() -> None:
    odd = replace(MAYBE, odd="re_1", is_unnamed=True)
    for tried in ([odd, MAYBE], [MAYBE, odd], [odd]):
        assert (fold(tried).odd, fold(tried).is_unnamed) == ("re_1", True)
    assert (fold([MAYBE, MAYBE]).odd, fold([MAYBE, MAYBE]).is_unnamed) == (None, False)


def test_attempt_counts_the_5xx_in_a_row_at_its_end() -> None:
    assert fold([SERVER_ERROR, MAYBE, SERVER_ERROR, SERVER_ERROR]).server_errors == 2
    assert fold([SERVER_ERROR, SERVER_ERROR, NOT_DONE]).server_errors == 0
    assert fold([SERVER_ERROR, NOT_SENT]).server_errors == 1


@pytest.mark.parametrize(
    ("tried", "alone"),
    [
        ([SERVER_ERROR], True),
        ([NOT_SENT, SERVER_ERROR, NOT_SENT], True),
        ([MAYBE, SERVER_ERROR], False),
        ([SERVER_ERROR, MAYBE], False),
        ([MAYBE], False),
    ],
)
def test_row_of_5xx_goes_on_from_the_attempt_before_only_where_nothing_else_was_answered(
    tried: list[Outcome],
    alone: bool,  # noqa: FBT001 - a table's column
) -> None:
    assert fold(tried).only_server_errors is alone


def test_the_latest_of_equal_tries_speaks_for_the_attempt() -> None:
    first, second = an_error(400, "first"), an_error(400, "second")
    assert fold([classify(first, REFUND), classify(second, REFUND)]).code == "second"


def test_success_whose_refund_belongs_to_another_record_is_a_doubt_that_names_both() -> None:
    success = fold([SERVER_ERROR, classify(a_reply(200), REFUND)])
    expected = Outcome(
        verdict=TryVerdict.MAYBE,
        code="owned_elsewhere",
        message="the reply's refund re_1 belongs to refund order-7",
        doubt=True,
        http_status=200,
        tries=2,
    )
    assert owned_elsewhere(success, "order-7") == expected
    unnamed = owned_elsewhere(Outcome(verdict=TryVerdict.DONE, code="done"), "order-7")
    assert unnamed.message == "the reply's refund ? belongs to refund order-7"
