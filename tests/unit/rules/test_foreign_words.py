"""What a provider may say in any shape that JSON allows.

Kept bounded, clean and of one alphabet, or not at all.
"""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.factories import NOW, VERIFY, a_refund, a_reply, refund_payload
from tests.strategies import json_values
from worker.model.answers import Outcome, TryVerdict
from worker.model.refund import Refund, Retriable, Stage, Status
from worker.model.request import MAX_AMOUNT
from worker.model.steps import Step
from worker.rules.attempts import after_attempt
from worker.rules.outcomes import classify
from worker.rules.polls import after_poll

law = settings(deadline=None, max_examples=200)

EMAIL = "jane.doe@example.com"
KEY = "sk_live_9f8e7d6c5b4a"
HOSTILE = f"\x1b[31m{EMAIL}\x1b[0m {KEY} \u202e" + "x" * 900_000
LONGEST = 200


def said(
    payload: Any, http_status: int = 200, refund: Refund | None = None, **fields: Any
) -> Outcome:
    """What a reply says of a refund."""
    refund = refund or a_refund(metadata={"email": EMAIL})
    return classify(a_reply(http_status, payload, hide=refund.metadata, **fields), refund)


def ended(payload: Any, http_status: int = 200, refund: Refund | None = None) -> Step:
    """Where a reply to a first attempt leads a refund."""
    refund = refund or a_refund(metadata={"email": EMAIL})
    return after_attempt(refund, said(payload, http_status, refund), VERIFY, NOW, 0)


def is_clean(text: str) -> bool:
    return text.isprintable() and len(text) <= LONGEST and EMAIL not in text and KEY not in text


def texts_in(step: Step) -> list[str]:
    """Every text that a step writes, into the record, the history and the log."""
    return [
        text for text in (*step.changes.values(), step.label, step.alarm) if isinstance(text, str)
    ]


# Amounts


@pytest.mark.parametrize(
    "amount", [10**19, 10**30, MAX_AMOUNT + 1, str(MAX_AMOUNT + 1), 1e19, 1e300]
)
def test_amount_beyond_what_a_refund_can_be_is_not_believed(amount: Any) -> None:
    all_that_is_left = a_refund(amount=None, all_remaining=True)
    outcome = said(refund_payload(amount=amount), refund=all_that_is_left)
    assert (outcome.verdict, outcome.code, outcome.doubt) == (
        TryVerdict.MAYBE,
        "contradictory_reply",
        True,
    )


def test_largest_amount_there_is_is_read() -> None:
    outcome = said(
        refund_payload(amount=MAX_AMOUNT), refund=a_refund(amount=None, all_remaining=True)
    )
    assert outcome.found is not None
    assert outcome.found.amount == MAX_AMOUNT


@pytest.mark.parametrize(
    ("amount", "seen"),
    [("500.0", TryVerdict.DONE), ("5e2", TryVerdict.DONE), ("500.5", TryVerdict.MAYBE)],
)
def test_amount_as_a_float_is_read_only_if_it_is_whole(amount: str, seen: TryVerdict) -> None:
    payload = json.loads(json.dumps(refund_payload()).replace("500", amount, 1))
    assert type(payload["amount"]) is float
    assert said(payload).verdict is seen


# Statuses


@pytest.mark.parametrize(
    ("word", "status"),
    [
        ("SUCCEEDED", Status.SUCCEEDED),
        (" Succeeded ", Status.SUCCEEDED),
        ("Failed", Status.FAILED),
        ("CANCELED", Status.CANCELED),
        ("cancelled", Status.CANCELED),
        ("Cancelled", Status.CANCELED),
    ],
)
def test_known_status_in_another_spelling_is_that_status(word: str, status: Status) -> None:
    step = ended(refund_payload(status=word))
    assert (step.to, step.status) == (Stage.SETTLED, status)
    assert step.changes["provider_status"] == status.value


@pytest.mark.parametrize(
    "word", ["requires_action", "processing", "PENDING", "Requires-Action", "requires action"]
)
def test_status_that_only_says_not_yet_is_polled_on(word: str) -> None:
    step = ended(refund_payload(status=word))
    assert (step.to, step.status) == (Stage.PROCESSING, Status.PENDING)
    assert step.changes["provider_status"] in {"pending", "requires_action", "processing"}
    polled = a_refund(Stage.PROCESSING)
    step = after_poll(polled, a_reply(200, refund_payload(status=word)), NOW, 0)
    assert (step.to, step.quiet) == (Stage.PROCESSING, True)


def test_unknown_status_in_a_reply_goes_to_a_person_with_the_word_and_the_id() -> None:
    step = ended(refund_payload(status="on_hold"))
    assert (step.to, step.status, step.proof) == (Stage.REVIEW, Status.PENDING, False)
    assert step.changes["provider_status"] == "on_hold"
    assert step.changes["provider_refund_id"] == "re_1"
    assert step.changes["error_code"] == "unknown_status"
    assert step.changes["doubt_since"] == NOW
    assert "on_hold" in step.changes["error_message"]
    assert "on_hold" in str(step.alarm)


def test_unknown_status_in_a_poll_goes_to_a_person_with_the_word() -> None:
    step = after_poll(
        a_refund(Stage.PROCESSING), a_reply(200, refund_payload(status="on_hold")), NOW, 0
    )
    assert step.to is Stage.REVIEW
    assert (step.changes["provider_status"], step.changes["error_code"]) == (
        "on_hold",
        "unknown_status",
    )
    assert "on_hold" in step.changes["error_message"]
    assert "on_hold" in str(step.alarm)


@pytest.mark.parametrize("word", [HOSTILE, {"x": 1}, [], True, 7, "", "é" * 300])
def test_status_of_any_shape_leads_to_a_person_in_clean_words(word: Any) -> None:
    step = ended(refund_payload(status=word))
    assert step.to is Stage.REVIEW
    assert all(is_clean(text) for text in texts_in(step))


# Texts


def test_failure_reason_of_any_length_and_content_is_kept_clean() -> None:
    step = ended(refund_payload(status="failed", failure_reason=HOSTILE))
    assert (step.to, step.status) == (Stage.SETTLED, Status.FAILED)
    assert all(is_clean(text) for text in texts_in(step))


def test_failure_reason_that_is_a_sentence_reaches_the_person_as_a_message() -> None:
    step = ended(
        refund_payload(status="failed", failure_reason="The card of jane.doe@example.com is closed")
    )
    assert (step.changes["error_code"], step.changes["failure_reason"]) == ("unknown", "unknown")
    assert "The card of *** is closed" in step.changes["error_message"]


def test_failure_reason_that_is_one_of_the_customers_own_words_is_hidden() -> None:
    refund = a_refund(metadata={"login": "jane_doe_77"})
    step = ended(refund_payload(status="failed", failure_reason="jane_doe_77"), refund=refund)
    assert not [text for text in texts_in(step) if "jane_doe_77" in text]


@pytest.mark.parametrize(
    "currency", ["x" * 900_000, HOSTILE, "us", "u\x1bd", "us\u0131", "1us", " usd x"]
)
def test_currency_is_three_letters_or_not_known(currency: Any) -> None:
    step = ended(refund_payload(currency=currency), refund=a_refund(currency=None))
    assert step.to is Stage.SETTLED
    assert step.changes.get("currency") is None
    stated = ended(refund_payload(currency=currency), refund=a_refund(currency="usd"))
    assert stated.to is Stage.IN_DOUBT


@law
@given(
    fields=st.dictionaries(
        st.sampled_from([*refund_payload(), "failure_reason", "error", "code"]), json_values
    )
)
def test_whatever_a_reply_holds_all_that_is_kept_of_it_is_clean(fields: dict[str, Any]) -> None:
    for http_status in (200, 400, 500):
        step = ended(refund_payload() | fields, http_status)
        assert all(is_clean(text) for text in texts_in(step))
        amount = step.changes.get("amount")
        assert amount is None or 0 < amount <= MAX_AMOUNT


# Errors


@pytest.mark.parametrize(
    ("payload", "code", "words"),
    [
        ({"error": "the card is closed"}, "http_400", "the card is closed"),
        ({"error": "invalid_grant"}, "invalid_grant", None),
        (
            {"error": "invalid_grant", "error_description": "no such key"},
            "invalid_grant",
            "no such key",
        ),
        ({"code": 40013, "message": "balance too low"}, "40013", "balance too low"),
        ({"code": 40013.0, "msg": "balance too low"}, "40013", "balance too low"),
        ({"error": {"code": -7, "message": "no"}}, "-7", "no"),
        ({"errors": [{"code": "E1", "message": "no such payment"}]}, "E1", "no such payment"),
        (
            {"errors": ["amount is too big", "reason is odd"]},
            "http_400",
            "amount is too big; reason is odd",
        ),
        ({"errors": {"amount": ["is too big"]}}, "http_400", "amount: is too big"),
        ({"message": "no such payment"}, "http_400", "no such payment"),
        (
            {"title": "Not allowed", "detail": "the payment is closed"},
            "http_400",
            "the payment is closed",
        ),
        ({"timestamp": "x", "status": 400, "error": "Bad Request"}, "http_400", "Bad Request"),
        ({"error": {"message": "no such payment"}}, "http_400", "no such payment"),
        ({"error": {"type": "card_error"}}, "card_error", None),
        ({"code": "not a code at all!", "message": "no"}, "http_400", "not a code at all!: no"),
        ({"code": "a" * 61, "message": "no"}, "http_400", "a" * 61 + ": no"),
        ({"code": True, "message": "no"}, "http_400", "no"),
    ],
)
def test_error_in_any_usual_shape_is_a_refusal_whose_words_reach_the_person(
    payload: Any, code: str, words: str | None
) -> None:
    outcome = said(payload, 400)
    assert (outcome.verdict, outcome.code, outcome.message) == (TryVerdict.REFUSED, code, words)
    step = ended(payload, 400)
    assert (step.to, step.status) == (Stage.SETTLED, Status.FAILED)
    assert (step.changes["error_code"], step.changes["error_message"]) == (code, words)
    assert step.changes["retriable"] is Retriable.UNKNOWN


@pytest.mark.parametrize("http_status", [400, 402, 403, 404, 422])
@pytest.mark.parametrize(
    "payload",
    [
        None,
        {},
        {"error": None},
        {"error": ""},
        {"error": []},
        {"errors": []},
        {"message": ""},
        {"ok": False},
        refund_payload(),
        refund_payload() | {"message": "m"},
        refund_payload() | {"code": "declined"},
        {"object": "refund", "error": "no"},
        {"id": "re_1", "status": "pending", "error": {"code": "c"}},
    ],
)
def test_body_without_an_error_or_with_a_refund_refuses_nothing(
    payload: Any, http_status: int
) -> None:
    assert said(payload, http_status).verdict is TryVerdict.MAYBE


@pytest.mark.parametrize(
    "payload",
    [
        {"error": {"type": "Idempotency_Error", "code": "x"}},
        {"error": {"type": "invalid_request_error", "code": "idempotency_key_in_use"}},
        {"error": "Keys for idempotent requests can only be used with the same parameters"},
        {"code": 40099, "message": "the Idempotency-Key was used before"},
    ],
)
def test_error_that_speaks_of_the_key_in_any_spelling_is_never_taken_for_a_refusal(
    payload: Any,
) -> None:
    assert said(payload, 400).verdict is TryVerdict.MISMATCH


def test_error_of_any_length_and_content_is_kept_clean() -> None:
    for field in ("code", "type", "message"):
        for http_status in (200, 400, 401, 409, 429, 500):
            outcome = said(
                {"error": {"code": "c", field: HOSTILE}}, http_status, retry_after=timedelta(0)
            )
            assert is_clean(outcome.code)
            assert outcome.message is None or is_clean(outcome.message)


def test_success_without_a_refund_says_what_the_provider_said() -> None:
    outcome = said({"error": {"code": "busy", "message": "come back later"}}, 200)
    assert (outcome.verdict, outcome.code) == (TryVerdict.MAYBE, "unreadable_success")
    assert (
        outcome.message == "the provider reported success without a refund: busy: come back later"
    )
