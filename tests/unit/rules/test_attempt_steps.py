"""Each decision on an attempt in full.

Where it leads, all that it changes, when the refund is looked at next.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from tests.factories import (
    BAD_KEY,
    BLIND,
    HOUR,
    MAYBE,
    MINUTE,
    MISMATCH,
    NOT_DONE,
    NOT_SENT,
    NOW,
    REFUSED,
    SECOND,
    SERVER_ERROR,
    TRUST,
    VERIFY,
    a_refund,
    found,
)
from tests.unit.rules.stepping import ANEW, DAY, DROPPED, TOLD, pending, plain, settled
from worker.errors import IllegalMove
from worker.model.answers import Outcome, TryVerdict
from worker.model.refund import Refund, Retriable, Stage, Status
from worker.model.steps import Step
from worker.rules.attempts import (
    Rules,
    after_attempt,
    after_lapse,
    not_canceled,
    refused_unsent,
    was_pending,
)
from worker.rules.outcomes import fold
from worker.rules.proofs import (
    LATE_SUCCESS,
    NO_READBACKS,
    NO_WORD,
    done,
    settles_soon_after,
    to_review,
)

SEEN = {"error_code": "not_sent", "error_message": None, "lapses": 0, "server_errors": 0}
DOUBTED = {
    "error_code": "no_reply",
    "error_message": None,
    "lapses": 0,
    "server_errors": 0,
    "verdicts": 1,
    "doubt_since": NOW,
    "quiet_at": NOW,
    "retriable": Retriable.NO,
    **ANEW,
}
AGAIN = {"error_code": "not_sent", "error_message": None, "lapses": 0, "server_errors": 0}
"""What a try that never left changes on a refund in doubt."""

BY_REPLY = {"retriable": Retriable.NO, "evidence": "reply"}


@pytest.mark.parametrize(
    ("refund", "outcome", "rules", "step"),
    [
        (
            a_refund(attempts=3),
            NOT_SENT,
            VERIFY,
            pending(Stage.WAITING, "not_sent", SEEN, 30 * SECOND),
        ),
        (
            a_refund(attempts=3),
            replace(NOT_DONE, retry_after=8 * SECOND),
            VERIFY,
            pending(
                Stage.WAITING, "rate_limited", SEEN | {"error_code": "rate_limited"}, 9 * SECOND
            ),
        ),
        *(
            (
                a_refund(attempts=attempts),
                replace(NOT_DONE, retry_after=told),
                VERIFY,
                pending(
                    Stage.WAITING, "rate_limited", SEEN | {"error_code": "rate_limited"}, delay
                ),
            )
            for attempts, told, delay in (
                (1, 0 * SECOND, 1.5 * SECOND),
                (2, SECOND, 3 * SECOND),
                (11, 0 * SECOND, 1536 * SECOND),
                (12, 0 * SECOND, 2700 * SECOND),
                (12, HOUR, 4050 * SECOND),
            )
        ),
        (
            a_refund(attempts=9),
            NOT_SENT,
            VERIFY,
            pending(Stage.WAITING, "not_sent", SEEN, 1920 * SECOND),
        ),
        (
            a_refund(attempts=10),
            NOT_SENT,
            VERIFY,
            pending(Stage.WAITING, "not_sent", SEEN, 2700 * SECOND),
        ),
        (
            a_refund(first_attempt_at=None, verdicts=11),
            NOT_SENT,
            VERIFY,
            pending(Stage.WAITING, "not_sent", SEEN, 7.5 * SECOND),
        ),
        (
            a_refund(verdicts=4, lapses=2),
            replace(REFUSED, message="too much"),
            VERIFY,
            settled(
                Status.FAILED,
                "amount_too_large",
                DROPPED | {"error_code": "amount_too_large", "error_message": TOLD, **BY_REPLY},
                source="reply",
            ),
        ),
        # What a first refund of ours cannot have caused is believed after a doubt too.
        *(
            (
                a_refund(doubted=True, evidence="list"),
                replace(REFUSED, code=code, message="words"),
                VERIFY,
                settled(
                    Status.FAILED,
                    code,
                    DROPPED | {"error_code": code, "error_message": TOLD, **BY_REPLY},
                    source="reply",
                ),
            )
            for code in (
                "amount_too_small",
                "currency_mismatch",
                "expired_or_canceled_card",
                "lost_or_stolen_card",
                "parameter_invalid_integer",
            )
        ),
        # Any other refusal may be the echo of it, and is for a person.
        *(
            (
                a_refund(doubted=True, lapses=1),
                replace(REFUSED, code=code, message="words"),
                VERIFY,
                pending(
                    Stage.REVIEW,
                    code,
                    SEEN
                    | {
                        "error_code": code,
                        "error_message": TOLD,
                        "verdicts": 1,
                        "doubt_since": NOW,
                        "quiet_at": NOW,
                        "retriable": Retriable.NO,
                    },
                    DAY,
                    alarm=TOLD,
                ),
            )
            for code in (
                "charge_already_refunded",
                "amount_too_large",
                "balance_insufficient",
                "resource_missing",
                "new",
            )
        ),
        (
            a_refund(verdicts=12),
            NOT_SENT,
            VERIFY,
            settled(
                Status.FAILED,
                "budget_spent",
                DROPPED
                | {
                    "error_code": "budget_spent",
                    "error_message": TOLD,
                    "retriable": Retriable.YES,
                },
            ),
        ),
        # That a resend's first attempt never happened is a person's word: no proof that nothing was
        # done.
        (
            a_refund(verdicts=12, doubted=True, evidence="operator"),
            NOT_SENT,
            VERIFY,
            pending(Stage.REVIEW, "budget_spent", SEEN, DAY, alarm=TOLD),
        ),
        (
            a_refund(verdicts=12, doubted=True, evidence="list"),
            NOT_SENT,
            VERIFY,
            settled(
                Status.FAILED,
                "budget_spent",
                DROPPED
                | {
                    "error_code": "budget_spent",
                    "error_message": TOLD,
                    "retriable": Retriable.YES,
                },
            ),
        ),
        (
            a_refund(doubted=True, evidence="list"),
            MAYBE,
            VERIFY,
            pending(Stage.IN_DOUBT, "no_reply", DOUBTED | {"evidence": None}, 10 * SECOND),
        ),
        (
            a_refund(doubted=True, evidence="operator"),
            replace(REFUSED, code="new", message="words"),
            VERIFY,
            pending(
                Stage.REVIEW,
                "new",
                SEEN
                | {
                    "error_code": "new",
                    "error_message": TOLD,
                    "verdicts": 1,
                    "doubt_since": NOW,
                    "quiet_at": NOW,
                    "retriable": Retriable.NO,
                    "evidence": None,
                },
                DAY,
                alarm=TOLD,
            ),
        ),
        (
            a_refund(verdicts=12),
            BAD_KEY,
            VERIFY,
            pending(
                Stage.WAITING,
                "credentials_refused",
                SEEN | {"error_code": "credentials_refused"},
                7.5 * SECOND,
            ),
        ),
        (a_refund(), MAYBE, VERIFY, pending(Stage.IN_DOUBT, "no_reply", DOUBTED, 10 * SECOND)),
        (
            a_refund(verdicts=3, doubt_since=NOW - HOUR),
            MAYBE,
            VERIFY,
            pending(
                Stage.IN_DOUBT,
                "no_reply",
                DOUBTED | {"verdicts": 4, "doubt_since": NOW - HOUR},
                10 * SECOND,
            ),
        ),
        (
            a_refund(),
            MAYBE,
            replace(VERIFY, settle=5 * SECOND),
            pending(Stage.IN_DOUBT, "no_reply", DOUBTED, 5 * SECOND),
        ),
        (
            a_refund(),
            replace(MAYBE, retry_after=HOUR),
            VERIFY,
            pending(Stage.IN_DOUBT, "no_reply", DOUBTED, HOUR),
        ),
        (
            a_refund(),
            replace(MAYBE, retry_after=SECOND),
            VERIFY,
            pending(Stage.IN_DOUBT, "no_reply", DOUBTED, 10 * SECOND),
        ),
        (
            a_refund(attempts=3),
            MAYBE,
            TRUST,
            pending(Stage.IN_DOUBT, "no_reply", DOUBTED, 30 * SECOND),
        ),
        # Its replay would come after the window has closed.
        (
            a_refund(attempts=12, first_attempt_at=NOW - 23 * HOUR + 30 * MINUTE),
            MAYBE,
            TRUST,
            pending(Stage.IN_DOUBT, "no_reply", DOUBTED, 10 * SECOND),
        ),
        (
            a_refund(attempts=3),
            replace(MAYBE, retry_after=HOUR),
            TRUST,
            pending(Stage.IN_DOUBT, "no_reply", DOUBTED, HOUR),
        ),
        (
            a_refund(attempts=3),
            replace(MAYBE, retry_after=SECOND),
            TRUST,
            pending(Stage.IN_DOUBT, "no_reply", DOUBTED, 30 * SECOND),
        ),
        (
            a_refund(server_errors=1),
            fold([SERVER_ERROR]),
            TRUST,
            pending(
                Stage.IN_DOUBT,
                "http_500",
                DOUBTED | {"error_code": "http_500", "server_errors": 2},
                7.5 * SECOND,
            ),
        ),
        (
            a_refund(doubt_since=NOW - HOUR),
            NOT_SENT,
            VERIFY,
            pending(Stage.IN_DOUBT, "not_sent", AGAIN, 10 * SECOND),
        ),
        (
            a_refund(doubt_since=NOW - HOUR),
            REFUSED,
            TRUST,
            pending(
                Stage.IN_DOUBT,
                "amount_too_large",
                AGAIN | {"error_code": "amount_too_large", "verdicts": 1, "server_errors": 3},
                10 * SECOND,
            ),
        ),
        (a_refund(), MAYBE, BLIND, pending(Stage.REVIEW, "no_reply", DOUBTED, DAY, alarm=TOLD)),
        (
            a_refund(operator_says="absent"),
            MAYBE,
            BLIND,
            pending(Stage.REVIEW, "no_reply", DOUBTED | NO_WORD, DAY, alarm=TOLD),
        ),
        (
            a_refund(verdicts=1),
            MISMATCH,
            TRUST,
            pending(
                Stage.REVIEW,
                "idempotency_error",
                AGAIN
                | {
                    "error_code": "idempotency_error",
                    "verdicts": 2,
                    "doubt_since": NOW,
                    "quiet_at": NOW,
                },
                DAY,
                alarm=TOLD,
            ),
        ),
    ],
)
def test_attempt_leads_to_this_step_and_no_other(
    refund: Refund, outcome: Outcome, rules: Rules, step: Step
) -> None:
    assert plain(after_attempt(refund, outcome, rules, NOW, 0.5)) == step


@pytest.mark.parametrize(
    ("doubt_since", "outcome", "counts"),
    [
        (None, NOT_SENT, True),
        (None, NOT_DONE, True),
        (None, REFUSED, False),
        (NOW - HOUR, NOT_SENT, False),
    ],
)
def test_persons_decision_to_send_counts_until_a_send_may_have_left(
    doubt_since: datetime | None, outcome: Outcome, *, counts: bool
) -> None:
    decided = a_refund(
        doubted=True, doubt_since=doubt_since, operator_says="absent", evidence="operator"
    )
    step = after_attempt(decided, outcome, TRUST, NOW, 0)
    assert decided.is_only_said_absent
    assert ("operator_says" in step.changes) is not counts


@pytest.mark.parametrize("mark", ["", "?"])
@pytest.mark.parametrize("by_word", [True, None])
def test_what_was_named_is_read_again_if_a_send_on_a_persons_word_did_nothing(
    mark: str, *, by_word: bool | None
) -> None:
    refund = a_refund(hints_used=f"re_9{mark}", absent_by_word=by_word)
    step = after_attempt(refund, NOT_DONE, TRUST, NOW, 0)
    assert step.to is Stage.WAITING
    assert step.changes.get("hinted") == ("re_9" if by_word else None)


def test_refund_that_an_older_version_sent_although_it_was_pending_is_for_a_person() -> None:
    before = NOW - HOUR
    for since in (None, before):
        changes = {"doubt_since": since or NOW} | NO_WORD | NO_READBACKS
        alarm = "the provider had reported it as pending before it was to be sent again"
        step = was_pending(a_refund(Stage.WAITING, doubt_since=since), NOW)
        assert step == to_review(changes, "was_pending", alarm)


def test_only_a_success_that_is_saved_late_is_read_again() -> None:
    refund = a_refund()
    succeeded, failed = (
        done(refund, found(status=status), "reply", NOW) for status in ("succeeded", "failed")
    )
    assert settles_soon_after(succeeded, NOW) == replace(
        succeeded, settles_until=NOW + LATE_SUCCESS
    )
    assert settles_soon_after(failed, NOW) == failed


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("amount_too_large", "the refusal may be its echo"),
        ("a_code_of_tomorrow", "the refusal may be its echo"),
        ("lost_or_stolen_card", "that one may not have been refused"),
    ],
)
def test_person_learns_why_a_refusal_after_a_decision_settles_nothing(code: str, why: str) -> None:
    decided = a_refund(doubted=True, operator_says="absent", evidence="operator")
    step = after_attempt(decided, replace(REFUSED, code=code), TRUST, NOW, 0)
    assert step.to is Stage.REVIEW
    assert step.alarm == f"refused with {code} after an attempt that may have happened: {why}"


def test_refund_of_a_canceled_batch_that_only_a_person_calls_absent_is_for_a_person() -> None:
    assert plain(not_canceled()) == pending(
        Stage.REVIEW, "batch_canceled", NO_WORD | ANEW, DAY, alarm=TOLD
    )


def test_success_without_a_refund_in_it_proves_nothing() -> None:
    bare = Outcome(verdict=TryVerdict.DONE, code="done")
    assert after_attempt(a_refund(doubt_since=NOW), bare, VERIFY, NOW, 0).to is Stage.IN_DOUBT
    shown = replace(MAYBE, found=found())
    assert after_attempt(a_refund(), shown, VERIFY, NOW, 0).to is Stage.IN_DOUBT


def test_refund_that_a_guard_refuses_is_failed_in_its_words_with_secrets_taken_out() -> None:
    step = refused_unsent(
        a_refund(Stage.QUEUED), "currency_mismatch", "sk_live_0123456789abcdef is wrong"
    )
    assert plain(step) == settled(
        Status.FAILED,
        "currency_mismatch",
        DROPPED
        | {
            "error_code": "currency_mismatch",
            "error_message": TOLD,
            "retriable": Retriable.NO,
            "evidence": "lookup",
        },
        source="lookup",
    )
    assert "sk_live_0123456789abcdef" not in step.changes["error_message"]
    with pytest.raises(IllegalMove) as caught:
        refused_unsent(a_refund(Stage.IN_DOUBT), "currency_mismatch", "no")
    assert (caught.value.source, caught.value.target) == (Stage.IN_DOUBT, Stage.SETTLED)


def test_guard_refuses_nothing_for_good_of_which_an_attempt_may_have_happened() -> None:
    step = refused_unsent(
        a_refund(Stage.WAITING, doubted=True), "currency_mismatch", "sk_live_0123456789abcdef"
    )
    assert plain(step) == pending(
        Stage.REVIEW,
        "currency_mismatch",
        {"error_code": "currency_mismatch", "error_message": TOLD},
        DAY,
        alarm=TOLD,
    )
    assert "sk_live" not in step.changes["error_message"]


def test_review_is_brought_to_mind_again_a_day_later() -> None:
    assert to_review({"a": 1}, "why", "a person must") == pending(
        Stage.REVIEW, "why", {"a": 1}, DAY, alarm="a person must"
    )


LAPSED = {
    "lapses": 1,
    "doubt_since": NOW,
    "quiet_at": NOW - MINUTE,
    "error_code": "lease_lapsed",
    "error_message": TOLD,
    "retriable": Retriable.NO,
    **ANEW,
}


@pytest.mark.parametrize(
    ("refund", "rules", "step"),
    [
        (
            a_refund(next_check_at=NOW - MINUTE),
            VERIFY,
            pending(Stage.IN_DOUBT, "lease_lapsed", LAPSED, timedelta(0)),
        ),
        (
            a_refund(next_check_at=NOW - MINUTE, lapses=1, doubt_since=NOW - HOUR),
            TRUST,
            pending(
                Stage.IN_DOUBT,
                "lease_lapsed",
                LAPSED | {"lapses": 2, "doubt_since": NOW - HOUR},
                timedelta(0),
            ),
        ),
        (
            a_refund(next_check_at=NOW - MINUTE, evidence="list"),
            VERIFY,
            pending(Stage.IN_DOUBT, "lease_lapsed", LAPSED | {"evidence": None}, timedelta(0)),
        ),
        (
            a_refund(next_check_at=None),
            VERIFY,
            pending(Stage.IN_DOUBT, "lease_lapsed", LAPSED | {"quiet_at": NOW}, timedelta(0)),
        ),
        (
            a_refund(next_check_at=NOW - MINUTE, lapses=2),
            VERIFY,
            pending(Stage.REVIEW, "lease_lapsed", LAPSED | {"lapses": 3}, DAY, alarm=TOLD),
        ),
        (
            a_refund(next_check_at=NOW - MINUTE),
            BLIND,
            pending(Stage.REVIEW, "lease_lapsed", LAPSED, DAY, alarm=TOLD),
        ),
    ],
)
def test_lapse_leads_to_this_step_and_no_other(refund: Refund, rules: Rules, step: Step) -> None:
    assert plain(after_lapse(refund, rules, NOW, 0.5)) == step
