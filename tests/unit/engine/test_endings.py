"""How a handling left a refund: the words a task returns, which Flower's settings let through and
nothing else.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from tests.factories import (
    BAD_KEY,
    MAYBE,
    MISMATCH,
    NOT_DONE,
    NOT_SENT,
    NOW,
    REFUSED,
    TRUST,
    a_refund,
    done_as,
)
from worker.engine import endings
from worker.engine.endings import Ending
from worker.model.answers import Outcome
from worker.model.refund import Refund, Stage, Status
from worker.rules import attempts, proofs

FAILED = a_refund(Stage.SETTLED, status=Status.FAILED, error_code="card_declined")


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        (done_as(), "succeeded"),
        (done_as("failed", failure_reason="lost_or_stolen_card"), "failed (lost_or_stolen_card)"),
        (done_as("canceled"), "canceled"),
        (done_as("pending"), "processing"),
        (REFUSED, "failed (amount_too_large)"),
        (NOT_SENT, "waiting (not_sent)"),
        (NOT_DONE, "waiting (rate limited)"),
        (BAD_KEY, "waiting (key refused)"),
        (MAYBE, "in doubt"),
        (MISMATCH, "in review (idempotency_error)"),
    ],
)
def test_a_saved_step_is_said_in_plain_words(outcome: Outcome, words: str) -> None:
    step = attempts.after_attempt(a_refund(), outcome, TRUST, NOW, 0.5)
    assert str(endings.saved(step, "saved")) == words


def test_a_step_into_review_is_named_by_its_own_reason_not_by_an_older_code() -> None:
    step = proofs.to_review({"error_code": "no_reply"}, "inconclusive", "it cannot be told")
    assert str(endings.saved(step, "saved")) == "in review (inconclusive)"


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ("stale", "changed meanwhile"),
        ("already", "changed meanwhile"),
        ("owned", "changed meanwhile"),
        ("missing", "unknown id"),
        ("contradicts", "contradicts the record"),
    ],
)
def test_a_step_that_was_not_saved_says_nothing_of_where_it_led(result: str, words: str) -> None:
    assert str(endings.saved(proofs.done(a_refund(), done_found(), "reply", NOW), result)) == words


def done_found() -> Any:
    return done_as().found


@pytest.mark.parametrize(
    ("refund", "words"),
    [
        (None, "unknown id"),
        (a_refund(Stage.SETTLED), "succeeded"),
        (a_refund(Stage.SETTLED, error_code="stale_code"), "succeeded"),
        (FAILED, "failed (card_declined)"),
        (a_refund(Stage.SETTLED, status=Status.FAILED), "failed"),
        (a_refund(Stage.SETTLED, status=Status.CANCELED), "canceled"),
        (a_refund(Stage.QUEUED, error_code="of_an_earlier_generation"), "queued"),
        (a_refund(Stage.SENDING), "sending"),
        (a_refund(Stage.WAITING, error_code="lock_timeout"), "waiting (lock_timeout)"),
        (a_refund(Stage.WAITING, error_code="credentials_refused"), "waiting (key refused)"),
        (a_refund(Stage.IN_DOUBT, error_code="no_reply"), "in doubt"),
        (a_refund(Stage.PROCESSING), "processing"),
        (a_refund(Stage.REVIEW, error_code="found_late"), "in review (found_late)"),
    ],
)
def test_a_refund_that_needs_nothing_is_said_as_it_stands(
    refund: Refund | None, words: str
) -> None:
    assert str(endings.standing(refund)) == words


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        ("paused", "paused"),
        ("parked", "key refused"),
        ("account", "account not confirmed"),
        ("behind", "Redis has forgotten claims"),
        ("blocked", "rate limited"),
        ("batch", "batch on hold"),
        ("narrow", "the file starts with a few rows at a time"),
        ("locked", "another refund of the payment is in progress"),
        ("no_body", "its stored request is gone"),
    ],
)
def test_a_refused_claim_says_what_the_refund_waits_for(result: str, reason: str) -> None:
    assert str(endings.not_claimed(result, a_refund(Stage.QUEUED))) == f"queued ({reason})"
    assert (
        str(endings.not_claimed(result, a_refund(Stage.WAITING, error_code="not_sent")))
        == f"waiting ({reason})"
    )
    assert endings.not_claimed(result, a_refund(Stage.QUEUED)).common


@pytest.mark.parametrize("result", ["stage", "early", "moved", "canceled", "window", "verdict"])
def test_a_claim_refused_for_the_refund_itself_shows_its_record(result: str) -> None:
    assert endings.not_claimed(result, FAILED) == endings.standing(FAILED)


def test_a_claim_of_an_unknown_id_is_said_so() -> None:
    assert endings.not_claimed("missing", None) == endings.UNKNOWN


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("credentials_refused", "key refused"),
        ("rate_limited", "rate limited"),
        ("http_503", "payment unreadable"),
        ("currency_unconfirmed", "currency not confirmed"),
    ],
)
def test_a_payment_that_could_not_be_read_says_why(code: str, reason: str) -> None:
    ending = endings.postponed(a_refund(Stage.QUEUED), code)
    assert (str(ending), ending.common) == (f"queued ({reason})", True)


@pytest.mark.parametrize(
    ("stopping", "away", "words"),
    [
        (False, False, "given back"),
        (False, True, "given back (provider away)"),
        (True, False, "given back (worker stopping)"),
        (True, True, "given back (worker stopping)"),
    ],
)
def test_a_refund_that_was_not_begun_says_why(words: str, *, stopping: bool, away: bool) -> None:
    ending = endings.given_back(stopping=stopping, provider_away=away)
    assert (str(ending), ending.kind, ending.begun) == (words, words, False)


def test_an_ending_of_which_no_more_is_known_has_no_reason_and_counts_by_its_word() -> None:
    plain = endings.standing(a_refund(Stage.SETTLED))
    assert (plain.reason, plain.common, plain.kind) == ("", False, "succeeded")


def test_whatever_else_became_of_a_refund_it_was_begun() -> None:
    assert all(
        ending.begun for ending in (endings.UNKNOWN, endings.STORE_AWAY, endings.standing(FAILED))
    )


@pytest.mark.parametrize(
    "code",
    [
        "person@example.com",
        "sk_test_canary51f7c0",
        "card declined for Jane Roe",
        "\x1b[31mred",
        "declined\n",
        "a" * 61,
        "",
    ],
)
def test_a_code_that_may_hold_anything_is_not_shown(code: str) -> None:
    assert (
        str(endings.standing(a_refund(Stage.WAITING, error_code=code))) == "waiting (another code)"
    )


@pytest.mark.parametrize("code", ["a" * 60, "E-40.013", "http_503"])
def test_a_code_of_few_plain_characters_is_shown(code: str) -> None:
    assert str(endings.standing(a_refund(Stage.WAITING, error_code=code))) == f"waiting ({code})"


def test_an_unforeseen_error_shows_its_kind_alone() -> None:
    assert str(endings.broken(LookupError("person@example.com"))) == "handling failed (LookupError)"


def test_a_request_that_breaks_rules_shows_each_rule_once() -> None:
    assert (
        str(endings.rejected(["amount", "metadata_key", "metadata_key"]))
        == "rejected (amount, metadata_key)"
    )


def test_message_that_waits_again_is_counted_with_its_reason() -> None:
    assert endings.PUT_BACK.kind == "not accepted yet (its message is queued again)"


def test_failed_refund_without_a_code_has_an_empty_reason() -> None:
    assert (
        endings.standing(a_refund(Stage.SETTLED, status=Status.FAILED, error_code=None)).reason
        == ""
    )


SUCCEEDED, DOUBT = (
    endings.standing(a_refund(Stage.SETTLED)),
    endings.standing(a_refund(Stage.IN_DOUBT)),
)


def test_one_refund_is_told_with_its_id() -> None:
    assert (
        endings.summary({"order-1001-1": FAILED_ENDING}) == "order-1001-1: failed (card_declined)"
    )


FAILED_ENDING = endings.standing(FAILED)


def test_many_are_told_by_how_many_of_each_kind() -> None:
    many = {f"s{n}": SUCCEEDED for n in range(97)}
    other = endings.standing(
        a_refund(Stage.SETTLED, status=Status.FAILED, error_code="resource_missing")
    )
    many |= {"f1": FAILED_ENDING, "f2": other, "d": DOUBT}
    assert endings.summary(many) == "97 succeeded, 2 failed, 1 in doubt"


def test_many_that_wait_for_one_thing_are_told_with_it_and_others_are_not() -> None:
    refused = endings.standing(a_refund(Stage.WAITING, error_code="credentials_refused"))
    waits = [
        endings.standing(a_refund(Stage.WAITING, error_code=code))
        for code in ("http_503", "not_sent")
    ]
    review = endings.standing(a_refund(Stage.REVIEW, error_code="credentials_refused"))
    told = endings.summary(dict(enumerate_ids([refused, refused, refused, *waits, review])))
    assert told == "3 waiting (key refused), 2 waiting, 1 in review"


def enumerate_ids(many: list[Ending]) -> list[tuple[str, Ending]]:
    return [(f"r{number}", ending) for number, ending in enumerate(many)]


@pytest.mark.parametrize(
    ("ending", "kind"),
    [
        (endings.STORE_AWAY, "not known (Redis away)"),
        (endings.NOT_SAFE, "given back (Redis may forget it)"),
        (endings.NOT_BEGUN, "not begun (Redis may forget it)"),
        (endings.PUT_BACK, "not accepted yet (its message is queued again)"),
    ],
)
def test_summary_gives_the_reason_that_refunds_have_in_common(ending: Ending, kind: str) -> None:
    assert endings.summary({"a": ending, "b": ending}) == f"2 {kind}"


def test_a_message_of_no_refunds_says_so() -> None:
    assert endings.summary({}) == "no refunds"


def every_kind() -> list[Ending]:
    """Every ending that can be counted apart from others."""
    held = ["paused", "parked", "blocked", "batch", "locked", "no_body"]
    kinds = [endings.standing(a_refund(stage)) for stage in Stage]
    kinds += [
        endings.standing(a_refund(Stage.SETTLED, status=s))
        for s in (Status.FAILED, Status.CANCELED)
    ]
    stages = (Stage.QUEUED, Stage.WAITING)
    kinds += [
        endings.not_claimed(reason, a_refund(stage)) for reason, stage in product(held, stages)
    ]
    codes = ("http_503", "currency_unconfirmed")
    kinds += [endings.postponed(a_refund(stage), code) for code, stage in product(codes, stages)]
    kinds += [
        endings.given_back(stopping=a, provider_away=b)
        for a, b in ((True, False), (False, True), (False, False))
    ]
    kinds += [
        endings.UNKNOWN,
        endings.OVERTAKEN,
        endings.CONTRADICTED,
        endings.STORE_AWAY,
        endings.broken(KeyError()),
    ]
    return kinds


def test_all_kinds_at_once_stay_short() -> None:
    told = endings.summary(dict(enumerate_ids(every_kind())))
    # Celery cuts a result after 1,024 characters.
    assert len(told) + 4 * len(every_kind()) < 1024
