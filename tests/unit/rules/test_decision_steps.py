"""Each decision of the caller, a person or a recovery in full."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tests.factories import HOUR, MINUTE, NOW, a_refund
from tests.unit.rules.stepping import ANEW, DAY, DROPPED, NO_WORD, TOLD, pending, plain, settled
from worker.errors import InvalidRequest, NotCancelable
from worker.model.refund import Refund, Retriable, Stage, Status
from worker.model.steps import Step
from worker.rules.decisions import (
    cancel,
    recovered,
    resolve_failed,
    resolve_resend,
    resolve_succeeded,
    retry_failed,
)


@pytest.mark.parametrize("stage", [Stage.QUEUED, Stage.WAITING])
def test_cancel_leads_to_this_step_and_no_other(stage: Stage) -> None:
    of_before = dict.fromkeys(("error_code", "error_message", "retriable"))
    assert cancel(a_refund(stage)) == settled(Status.CANCELED, "canceled", DROPPED | of_before)


def test_refusal_to_cancel_says_whether_it_is_over_or_on_its_way() -> None:
    with pytest.raises(NotCancelable, match="already succeeded"):
        cancel(a_refund(Stage.SETTLED))
    with pytest.raises(NotCancelable, match="may have reached the provider"):
        cancel(a_refund(Stage.WAITING, doubt_since=NOW))
    with pytest.raises(NotCancelable, match="may have reached the provider"):
        cancel(a_refund(Stage.SENDING))


BY_ANN: dict[str, Any] = {"source": "operator", "by": "ann"}


def word(says: str, *, unverified: bool = False) -> dict[str, Any]:
    return {"operator_says": says, "operator_by": "ann", "operator_unverified": unverified}


@pytest.mark.parametrize("unverified", [True, False])
def test_person_who_names_the_providers_refund_leads_to_this_step_and_no_other(
    *, unverified: bool
) -> None:
    changes = {"provider_refund_id": "re_7", "processing_since": NOW, "operator_code": None}
    step = resolve_succeeded(a_refund(Stage.REVIEW), "re_7", NOW, by="ann", unverified=unverified)
    assert step == pending(
        Stage.PROCESSING,
        "operator_says_succeeded",
        changes | word("succeeded", unverified=unverified),
        timedelta(0),
        **BY_ANN,
    )


def test_decision_of_which_nobody_is_named_is_the_callers_and_wants_to_be_verified() -> None:
    refund = a_refund(Stage.REVIEW, doubt_since=NOW)
    for step in (
        resolve_succeeded(refund, "re_7", NOW),
        resolve_failed(refund, "x"),
        resolve_resend(refund),
    ):
        assert (step.by, step.changes["operator_by"], step.changes["operator_unverified"]) == (
            "caller",
        ) * 2 + (False,)


def test_id_that_could_not_be_asked_for_is_refused_with_all_that_is_known_of_it() -> None:
    with pytest.raises(InvalidRequest) as caught:
        resolve_succeeded(a_refund(Stage.REVIEW), "re 7", NOW)
    (error,) = caught.value.errors
    assert (error.field, error.code, error.value) == (
        "provider_refund_id",
        "provider_refund_id",
        "'re 7'",
    )
    assert error.rule


def test_person_who_gives_up_what_was_never_in_doubt_leads_to_this_step_and_no_other() -> None:
    changes = {
        **DROPPED,
        "error_code": "declined",
        "error_message": TOLD,
        "retriable": Retriable.NO,
        "evidence": "operator",
    }
    for unverified in (True, False):
        step = resolve_failed(a_refund(Stage.REVIEW), "declined", by="ann", unverified=unverified)
        assert plain(step) == settled(Status.FAILED, "operator_says_failed", changes, **BY_ANN)


DOUBTED = a_refund(
    Stage.REVIEW,
    doubt_since=NOW - HOUR,
    quiet_at=NOW - HOUR / 2,
    doubted=True,
    provider_refund_id="re_1",
)
DOUBT = {"doubt_since": NOW - HOUR, "quiet_at": NOW - HOUR / 2}


@pytest.mark.parametrize("unverified", [True, False])
def test_person_who_gives_up_what_may_have_happened_leads_to_this_step_and_no_other(
    *, unverified: bool
) -> None:
    changes = {"operator_code": "gone", **ANEW, **word("failed", unverified=unverified), **DOUBT}
    step = resolve_failed(DOUBTED, "gone", by="ann", unverified=unverified)
    assert step == pending(Stage.IN_DOUBT, "operator_says_failed", changes, timedelta(0), **BY_ANN)


@pytest.mark.parametrize("unverified", [True, False])
def test_person_who_says_absent_leads_to_these_steps_and_no_others(*, unverified: bool) -> None:
    never = a_refund(Stage.REVIEW, doubt_since=None)
    again = {"lapses": 0, "provider_refund_id": None, **NO_WORD}
    assert resolve_resend(never, by="ann", unverified=unverified) == pending(
        Stage.WAITING, "operator_says_absent", again, timedelta(0), **BY_ANN
    )
    changes = {
        "lapses": 0,
        "operator_code": None,
        **ANEW,
        **word("absent", unverified=unverified),
        **DOUBT,
    }
    assert resolve_resend(DOUBTED, by="ann", unverified=unverified) == pending(
        Stage.IN_DOUBT, "operator_says_absent", changes, timedelta(0), **BY_ANN
    )


@pytest.mark.parametrize(
    ("code", "is_read"),
    [
        ("conflict", True),
        ("refund_missing", True),
        ("contradictory_reply", True),
        ("unknown_status", True),
        ("pending_too_long", True),
        ("owned_elsewhere", True),
        ("unreadable", False),
    ],
)
@pytest.mark.parametrize("resend", [True, False])
@pytest.mark.parametrize("mark", ["", "?"])
def test_what_may_be_an_odd_refund_of_ours_is_read_again_after_a_decision(
    code: str, mark: str, *, is_read: bool, resend: bool
) -> None:
    fields: dict[str, Any] = {"error_code": code, "doubt_since": NOW, "hints_used": f"re_9{mark}"}
    refund = a_refund(Stage.REVIEW, **fields)
    step = resolve_resend(refund) if resend else resolve_failed(refund, "gone")
    assert step.changes.get("hinted") == ("re_9" if is_read else None)


@pytest.mark.parametrize(
    ("code", "before_a_send", "before_a_failure"),
    [
        ("refund_missing", "re_9", "re_9"),
        ("conflict", None, None),
        # A stuck one can still be given up.
        ("pending_too_long", "re_9", None),
    ],
)
def test_what_may_be_an_odd_refund_beside_one_that_is_gone_is_read_again_before_a_word_counts(
    code: str, before_a_send: str | None, before_a_failure: str | None
) -> None:
    fields: dict[str, Any] = {"error_code": code, "doubt_since": NOW, "hints_used": "re_1 re_9"}
    refund = a_refund(Stage.REVIEW, provider_refund_id="re_1", **fields)
    assert resolve_resend(refund).changes.get("hinted") == before_a_send
    assert resolve_failed(refund, "gone").changes.get("hinted") == before_a_failure
    # It was sent on a person's word, so what was named may not have been read before.
    sent = replace(refund, absent_by_word=True)
    assert resolve_resend(sent).changes.get("hinted") == "re_9"
    assert resolve_failed(sent, "gone").changes.get("hinted") == "re_9"


@pytest.mark.parametrize(
    ("fields", "prior_ids"),
    [
        ({"error_code": "conflict", "provider_refund_id": "re_1"}, "re_9"),
        ({"error_code": "conflict"}, None),
        ({"error_code": "unreadable", "provider_refund_id": "re_1"}, None),
    ],
)
def test_what_contradicted_the_refunds_own_is_read_before_it_is_sent_again(
    fields: dict[str, Any], prior_ids: str | None
) -> None:
    for mark in ("", "?"):
        refund = a_refund(Stage.REVIEW, doubt_since=NOW, hints_used=f"re_9{mark}", **fields)
        assert resolve_resend(refund).changes.get("prior_refund_ids") == prior_ids


@pytest.mark.parametrize("named", [{"hinted": "re_8"}, {"prior_refund_ids": "re_9"}])
def test_person_who_insists_on_a_send_is_remembered_until_what_was_named_is_read(
    named: dict[str, str],
) -> None:
    never = a_refund(Stage.REVIEW, doubt_since=None, **named)
    again = {"lapses": 0, "provider_refund_id": None, "operator_code": None}
    assert resolve_resend(never, by="ann", unverified=True) == pending(
        Stage.WAITING,
        "operator_says_absent",
        {**again, **word("absent", unverified=True)},
        timedelta(0),
        **BY_ANN,
    )
    assert resolve_resend(never, by="ann").changes == {**again, **NO_WORD}


@pytest.mark.parametrize("unverified", [True, False])
@pytest.mark.parametrize("named", [{"hinted": "re_8"}, {"prior_refund_ids": "re_9"}])
def test_person_who_gives_up_is_remembered_until_what_was_named_is_read(
    named: dict[str, str], *, unverified: bool
) -> None:
    never = a_refund(Stage.REVIEW, doubt_since=None, looks=2, **named)
    changes = {"operator_code": "gone", "looks": 0, **word("failed", unverified=unverified)}
    assert resolve_failed(never, "gone", by="ann", unverified=unverified) == pending(
        Stage.WAITING, "operator_says_failed", changes, timedelta(0), **BY_ANN
    )


def test_refund_whose_doubt_was_over_when_it_came_to_review_is_looked_for_all_the_same() -> None:
    refund = a_refund(Stage.REVIEW, doubted=True)
    for step in (resolve_failed(refund, "gone"), resolve_resend(refund)):
        assert (step.to, step.changes["doubt_since"]) == (Stage.IN_DOUBT, refund.updated_at)
        assert step.changes["quiet_at"] == refund.updated_at
    assert not {"doubt_since", "quiet_at"} & resolve_succeeded(refund, "re_1", NOW).changes.keys()


@pytest.mark.parametrize(("all_remaining", "amount"), [(True, {"amount": None}), (False, {})])
def test_retry_leads_to_this_step_and_no_other(
    *, all_remaining: bool, amount: dict[str, Any]
) -> None:
    failed = a_refund(
        Stage.SETTLED,
        status=Status.FAILED,
        retriable=Retriable.UNKNOWN,
        generation=2,
        all_remaining=all_remaining,
    )
    cleared = (
        "provider_refund_id",
        "provider_status",
        "failure_reason",
        "error_code",
        "error_message",
        "retriable",
        "evidence",
        "first_attempt_at",
        "reversed_at",
        "hints_used",
    )
    prior = {"prior_refund_ids": "re_1"}
    assert retry_failed(failed) == Step(
        to=Stage.QUEUED,
        status=Status.PENDING,
        label="retried",
        changes=dict.fromkeys(cleared) | {"generation": 3} | prior | amount,
    )


SINCE = NOW - HOUR
RECOVERED = {
    "doubt_since": SINCE,
    **NO_WORD,
    "retriable": Retriable.NO,
    "retry_may_be_lost": True,
    "first_attempt_at": SINCE,
    "quiet_at": NOW,
    "baseline": None,
    "lapses": 0,
    "server_errors": 3,
    **ANEW,
}
RECOVERED_IN_REVIEW: dict[str, Any] = {
    "updated_at": SINCE + MINUTE,
    "doubt_since": SINCE,
    "retriable": Retriable.NO,
    "retry_may_be_lost": True,
}


@pytest.mark.parametrize(
    ("refund", "step"),
    [
        (a_refund(Stage.QUEUED), pending(Stage.IN_DOUBT, "recovered", RECOVERED, timedelta(0))),
        (a_refund(Stage.SENDING), pending(Stage.IN_DOUBT, "recovered", RECOVERED, timedelta(0))),
        (
            # A worker beside the recovery may still be sending it.
            a_refund(Stage.SENDING, next_check_at=NOW + MINUTE),
            pending(
                Stage.IN_DOUBT,
                "recovered",
                RECOVERED | {"quiet_at": NOW + MINUTE},
                timedelta(0),
            ),
        ),
        (
            # So it may if the recovery is repeated at once.
            a_refund(Stage.IN_DOUBT, doubt_since=SINCE, quiet_at=NOW + MINUTE),
            pending(
                Stage.IN_DOUBT,
                "recovered",
                RECOVERED | {"quiet_at": NOW + MINUTE},
                timedelta(0),
            ),
        ),
        (
            a_refund(Stage.REVIEW, **RECOVERED_IN_REVIEW, quiet_at=NOW + MINUTE),
            pending(
                Stage.REVIEW,
                "recovered",
                {
                    "doubt_since": SINCE,
                    "quiet_at": NOW + MINUTE,
                    **NO_WORD,
                    "retriable": Retriable.NO,
                    "retry_may_be_lost": True,
                    "baseline": None,
                },
                DAY,
                quiet=True,
            ),
        ),
        (
            a_refund(Stage.IN_DOUBT, doubt_since=SINCE - HOUR, first_attempt_at=SINCE - HOUR),
            pending(
                Stage.IN_DOUBT,
                "recovered",
                RECOVERED | {"doubt_since": SINCE - HOUR, "first_attempt_at": SINCE - HOUR},
                timedelta(0),
            ),
        ),
        (
            a_refund(Stage.REVIEW),
            pending(
                Stage.REVIEW,
                "recovered",
                {
                    "doubt_since": SINCE,
                    "quiet_at": NOW,
                    **NO_WORD,
                    "retriable": Retriable.NO,
                    "retry_may_be_lost": True,
                    "baseline": None,
                },
                DAY,
            ),
        ),
        *(
            (
                a_refund(Stage.REVIEW, **{**RECOVERED_IN_REVIEW, **fields}),
                pending(
                    Stage.REVIEW,
                    "recovered",
                    {
                        "doubt_since": fields.get("doubt_since", SINCE) or SINCE,
                        "quiet_at": NOW,
                        **NO_WORD,
                        "retriable": Retriable.NO,
                        "retry_may_be_lost": True,
                        "baseline": None,
                    },
                    DAY,
                    quiet=not fields,
                ),
            )
            for fields in (
                {},
                # A later recovery: the record is as a later snapshot had it.
                {"updated_at": SINCE},
                {"retry_may_be_lost": False},
                {"doubt_since": None},
                {"retriable": None},
                {"operator_says": "absent"},
            )
        ),
        (
            a_refund(Stage.PROCESSING),
            pending(
                Stage.PROCESSING,
                "recovered",
                {"retry_may_be_lost": True, "baseline": None},
                timedelta(0),
                quiet=True,
            ),
        ),
        (a_refund(Stage.PROCESSING, retry_may_be_lost=True), None),
        (a_refund(Stage.SETTLED), None),
        (a_refund(Stage.SETTLED, status=Status.FAILED, retriable=Retriable.NO), None),
        (
            a_refund(Stage.SETTLED, status=Status.FAILED, retriable=Retriable.YES),
            settled(
                Status.FAILED,
                "recovered",
                {"retriable": Retriable.NO, "retry_may_be_lost": True},
                quiet=True,
            ),
        ),
    ],
)
def test_recovery_leads_to_this_step_and_no_other(refund: Refund, step: Step | None) -> None:
    assert recovered(refund, SINCE, NOW) == step


@pytest.mark.parametrize("stage", [Stage.SENDING, Stage.WAITING, Stage.IN_DOUBT])
def test_recovered_refund_is_quiet_from_now_on_or_once_its_lease_has_ended(stage: Stage) -> None:
    later = NOW + HOUR
    step = recovered(a_refund(stage, next_check_at=later), SINCE, NOW)
    assert step is not None
    assert step.changes["quiet_at"] == (later if stage is Stage.SENDING else NOW)
