"""Laws that hold for every refund and every outcome; the table of moves."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.factories import (
    BAD_KEY,
    HOUR,
    MAYBE,
    MINUTE,
    NOT_DONE,
    NOT_SENT,
    NOW,
    REFUSED,
    SECOND,
    SERVER_ERROR,
    TRUST,
    VERIFY,
    a_refund,
    done_as,
)
from tests.strategies import answers, attempts, jitters, looks, outcomes, refunds, rules, spans
from tests.unit.rules.stepping import DESIGN_MOVES, assert_is_a_move, with_changes
from worker.errors import IllegalMove, NotCancelable, NotInReview
from worker.model.answers import Answer, Outcome, Readback, ReadbackVerdict, TryVerdict
from worker.model.refund import Refund, Stage, Status
from worker.model.steps import Action, Step
from worker.rules.attempts import Rules, after_attempt, after_lapse, next_action, refused_unsent
from worker.rules.decisions import (
    cancel,
    resolve_failed,
    resolve_resend,
    resolve_succeeded,
    retry_failed,
)
from worker.rules.outcomes import contradiction, fold
from worker.rules.polls import after_poll
from worker.rules.proofs import done
from worker.rules.readback import after_readback
from worker.rules.rechecks import (
    CandidateVerdict,
    RecheckResult,
    after_recheck,
    as_readback,
    judge_candidate,
    shown_refund,
)
from worker.rules.transitions import TRANSITIONS, check_move, sources_of

law = settings(deadline=None, max_examples=100)


# The table


def test_moves_are_those_of_the_design_and_no_others() -> None:
    moves = {(stage.value, to.value) for stage, row in TRANSITIONS.items() for to in row}
    designed = {(stage, to) for stage, row in DESIGN_MOVES.items() for to in row}
    # Added since: a server restored from an old snapshot may have sent what its records call
    # unsent; what cannot be confirmed before a send is not sent; a proof may come while what a
    # person had named is still being verified, or against what is recorded, which a person then
    # ends.
    added = {
        ("queued", "in_doubt"),
        ("waiting", "in_doubt"),
        ("queued", "review"),
        ("waiting", "review"),
        # The provider shows a refund that a webhook named, or one of an earlier generation.
        ("queued", "processing"),
    }
    added |= {("processing", "processing"), ("review", "review"), ("settled", "processing")}
    assert moves == designed | added


@pytest.mark.parametrize("source", Stage)
@pytest.mark.parametrize("target", Stage)
def test_move_outside_the_table_is_illegal_and_one_inside_is_not(
    source: Stage, target: Stage
) -> None:
    assert (source in sources_of(target)) is (target in TRANSITIONS[source])
    if target in TRANSITIONS[source]:
        check_move("a", source, target)
    else:
        with pytest.raises(IllegalMove) as caught:
            check_move("a", source, target)
        assert (caught.value.refund_id, caught.value.source, caught.value.target) == (
            "a",
            source,
            target,
        )


# Laws of every step


@law
@given(refund=refunds(Stage.SENDING), outcome=outcomes, rules=rules, jitter=jitters)
def test_every_outcome_of_an_attempt_leads_along_a_legal_move(
    refund: Refund, outcome: Outcome, rules: Rules, jitter: float
) -> None:
    step = after_attempt(refund, outcome, rules, NOW, jitter)
    assert_is_a_move(step, refund)
    assert step.proof is (outcome.verdict is TryVerdict.DONE)
    assert not step.quiet


@law
@given(refund=refunds(Stage.SENDING), rules=rules, jitter=jitters)
def test_every_lapse_leads_into_doubt_or_review_with_the_doubt_noted(
    refund: Refund, rules: Rules, jitter: float
) -> None:
    step = after_lapse(refund, rules, NOW, jitter)
    assert_is_a_move(step, refund)
    assert step.to in {Stage.IN_DOUBT, Stage.REVIEW}
    assert step.changes["doubt_since"] == (refund.doubt_since or NOW)
    assert step.changes["quiet_at"] == refund.next_check_at


@law
@given(refund=refunds(Stage.IN_DOUBT), look=looks(), rules=rules, jitter=jitters)
def test_every_look_leads_along_a_legal_move(
    refund: Refund, look: Readback, rules: Rules, jitter: float
) -> None:
    step = after_readback(refund, look, rules, NOW, jitter)
    assert_is_a_move(step, refund)
    assert step.to is not Stage.SENDING
    assert step.to is not Stage.SETTLED or look.verdict in {
        ReadbackVerdict.FOUND,
        ReadbackVerdict.FOUND_IN_TOTALS,
    }
    # A total is not the provider's word on this refund: it settles only the version that was looked
    # at.
    assert step.proof is (look.found is not None)


@law
@given(refund=refunds(Stage.PROCESSING), answer=answers(), jitter=jitters)
def test_every_poll_leads_along_a_legal_move(refund: Refund, answer: Answer, jitter: float) -> None:
    step = after_poll(refund, answer, NOW, jitter)
    assert_is_a_move(step, refund)
    if step.to is Stage.SETTLED:
        assert step.changes["provider_refund_id"] == refund.provider_refund_id


@law
@given(refund=refunds())
def test_cancel_retry_and_a_persons_decisions_lead_along_legal_moves_or_are_refused(
    refund: Refund,
) -> None:
    steps: list[Step | None] = [retry_failed(refund)]
    try:
        steps.append(cancel(refund))
    except NotCancelable:
        assert refund.stage not in {Stage.QUEUED, Stage.WAITING}
    if refund.stage is Stage.REVIEW:
        steps += [
            resolve_succeeded(refund, "re_9", NOW),
            resolve_failed(refund, "declined"),
            resolve_resend(refund),
        ]
    else:
        with pytest.raises(NotInReview):
            resolve_failed(refund, "x")
        with pytest.raises(NotInReview):
            resolve_resend(refund)
        with pytest.raises(NotInReview):
            resolve_succeeded(refund, "re_9", NOW)
    for step in steps:
        if step is not None:
            assert_is_a_move(step, refund)


@law
@given(refund=refunds(), rules=rules)
def test_every_refund_needs_something_definite_now(refund: Refund, rules: Rules) -> None:
    action = next_action(refund, rules, NOW)
    sends = Action.GIVE_UP if refund.operator_says == "failed" else Action.SEND
    allowed = {
        Stage.QUEUED: {Action.SEND},
        # Only an older version let one wait that the provider had reported as pending.
        Stage.WAITING: {sends if refund.processing_since is None else Action.REVIEW},
        Stage.SENDING: {Action.LAPSE},
        Stage.IN_DOUBT: {Action.READ_BACK, Action.REPLAY, Action.REVIEW},
        Stage.PROCESSING: {Action.POLL},
        Stage.REVIEW: {Action.NOTHING},
        Stage.SETTLED: {Action.NOTHING},
    }
    assert action in allowed[refund.stage]
    if refund.stage is not Stage.QUEUED:
        early = replace(refund, next_check_at=NOW + SECOND)
        assert next_action(early, rules, NOW) is Action.NOTHING


# Doubt


@law
@given(refund=refunds(Stage.SENDING), tried=attempts, rules=rules, jitter=jitters)
def test_doubt_is_sticky_until_done(
    refund: Refund, tried: list[Outcome], rules: Rules, jitter: float
) -> None:
    outcome = fold(tried)
    assume(outcome.verdict is not TryVerdict.DONE)
    assume(refund.doubt_since is not None or outcome.doubt)
    step = after_attempt(refund, outcome, rules, NOW, jitter)
    assert step.to in {Stage.IN_DOUBT, Stage.REVIEW}
    assert step.status is Status.PENDING
    assert with_changes(refund, step, NOW).doubt_since == (refund.doubt_since or NOW)


@law
@given(refund=refunds(Stage.IN_DOUBT), look=looks(), rules=rules, jitter=jitters)
def test_look_that_finds_nothing_never_takes_the_doubt_away(
    refund: Refund, look: Readback, rules: Rules, jitter: float
) -> None:
    assume(look.verdict not in {ReadbackVerdict.FOUND, ReadbackVerdict.FOUND_IN_TOTALS})
    step = after_readback(refund, look, rules, NOW, jitter)
    assert step.to in {Stage.IN_DOUBT, Stage.REVIEW}
    assert with_changes(refund, step, NOW).doubt_since == refund.doubt_since


@law
@given(refund=refunds(), data=st.data())
def test_refund_in_doubt_is_neither_canceled_nor_refused_unsent_nor_let_go_without_a_look(
    refund: Refund, data: st.DataObject
) -> None:
    doubtful = replace(refund, doubt_since=data.draw(spans.map(lambda span: NOW - span)))
    with pytest.raises(NotCancelable):
        cancel(doubtful)
    with pytest.raises(IllegalMove):
        refused_unsent(doubtful, "currency_mismatch", "no")
    if doubtful.stage is Stage.REVIEW:
        step = resolve_resend(doubtful)
        assert (step.to, step.changes["operator_says"]) == (Stage.IN_DOUBT, "absent")


@law
@given(
    refund=refunds(Stage.SENDING),
    rounds=st.lists(st.tuples(outcomes, spans), min_size=1, max_size=6),
    rules=rules,
    jitter=jitters,
)
def test_refund_that_may_have_happened_once_is_never_failed_by_any_later_attempt(
    refund: Refund, rounds: list[tuple[Outcome, timedelta]], rules: Rules, jitter: float
) -> None:
    now, doubted = NOW, refund.doubt_since is not None
    for outcome, wait in rounds:
        if outcome.verdict is TryVerdict.DONE:
            return
        doubted = doubted or outcome.doubt
        step = after_attempt(refund, outcome, rules, now, jitter)
        assert not (doubted and step.to in {Stage.SETTLED, Stage.WAITING})
        if step.to in {Stage.SETTLED, Stage.REVIEW}:
            return
        now += wait
        refund = replace(with_changes(refund, step, now), stage=Stage.SENDING, next_check_at=now)


@pytest.mark.parametrize("first", [MAYBE, SERVER_ERROR])
@pytest.mark.parametrize("second", [NOT_SENT, NOT_DONE, REFUSED, BAD_KEY])
def test_refusal_after_a_doubt_may_be_our_own_first_refund_speaking(
    first: Outcome, second: Outcome
) -> None:
    refund = a_refund()
    doubted = with_changes(refund, after_attempt(refund, first, TRUST, NOW, 0), NOW)
    step = after_attempt(replace(doubted, stage=Stage.SENDING), second, TRUST, NOW + MINUTE, 0)
    assert (step.to, step.status) == (Stage.IN_DOUBT, Status.PENDING)


@pytest.mark.parametrize("status", ["pending", "succeeded", "failed", "canceled"])
def test_proof_of_done_clears_the_doubt(status: str) -> None:
    refund = a_refund(doubt_since=NOW - HOUR, operator_says="absent", absent_at=NOW)
    step = after_attempt(refund, done_as(status), VERIFY, NOW, 0)
    after = with_changes(refund, step, NOW)
    assert (after.doubt_since, after.operator_says, after.absent_at) == (None, None, None)
    assert step.proof


# Rechecks: what a webhook names, and settled refunds read again


@law
@given(refund=refunds(), rules=rules, recheck=st.booleans())
def test_refund_with_an_unread_candidate_is_never_sent(
    refund: Refund, rules: Rules, *, recheck: bool
) -> None:
    named = replace(refund, hinted="re_9")
    action = next_action(named, rules, NOW, recheck=recheck)
    assert action not in {Action.SEND, Action.REPLAY}


@law
@given(refund=refunds(), answer=answers())
def test_named_refund_is_taken_only_if_the_provider_shows_it_with_our_id_and_payment(
    refund: Refund, answer: Answer
) -> None:
    candidate = judge_candidate(refund, "re_1", answer)
    if candidate.verdict is CandidateVerdict.OURS:
        assert candidate.found is not None
        assert candidate.found.refund_id == refund.refund_id
        assert contradiction(candidate.found, refund) is None
        step = done(refund, candidate.found, "lookup", NOW)
        assert refund.stage is Stage.SENDING or step.to in {Stage.SETTLED, Stage.PROCESSING}
    for read in ([candidate], [candidate, candidate]):
        read_back = as_readback(read)
        if read_back is not None and refund.stage is Stage.IN_DOUBT:
            step = after_readback(refund, read_back, VERIFY, NOW, 0)
            assert_is_a_move(step, refund)
            assert step.proof is (read_back.found is not None)


@law
@given(refund=refunds(), answer=answers())
def test_settled_status_changes_only_by_the_providers_answer_for_its_own_refund(
    refund: Refund, answer: Answer
) -> None:
    result, step = after_recheck(refund, answer, NOW)
    if step is None:
        return
    assert result is RecheckResult.CHANGED
    assert refund.stage is Stage.SETTLED
    assert_is_a_move(step, refund)
    found = shown_refund(answer)
    assert found is not None
    assert found.id == refund.provider_refund_id
    assert (refund.status is Status.SUCCEEDED) is (step.status is Status.FAILED)
    assert (found.status == "succeeded") is (step.status is Status.SUCCEEDED)
    assert not step.proof
