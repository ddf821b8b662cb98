"""The judge of `./ops/dev prove` must be able to find fault.

Each rule with evidence that breaks it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ops.lab.prove.evidence import Evidence, Post
from ops.lab.prove.judge import judged, recoveries, taken_up
from ops.lab.prove.planted import RULES, SUBJECT
from ops.lab.prove.posts import sent_past_the_window
from ops.lab.prove.scenarios import Result
from ops.lab.prove.table import (
    control_was_caught,
    exit_code,
    ours_failed,
    rendered,
    rows_of,
    summary,
)
from ops.lab.prove.violation import Violation
from worker.model.request import RefundRequest

NAME = "a-1"
PAYMENT = "pi_a"
A_VIOLATION = Violation(rule="money twice", about=NAME, fact="seen")


def entry(version: int, source: str | None, target: str, label: str, **more: Any) -> dict[str, Any]:
    return {
        "version": version,
        "at": 1_000_000 + version * 1000,
        "from": source,
        "to": target,
        "status": "pending" if target != "settled" else more.pop("status", "succeeded"),
        "label": label,
        **more,
    }


HISTORY = (
    entry(1, None, "queued", "accepted"),
    entry(2, "queued", "sending", "send"),
    entry(3, "sending", "settled", "succeeded"),
)
DOUBTED = (
    *HISTORY[:2],
    entry(3, "sending", "in_doubt", "no_reply"),
    entry(4, "in_doubt", "in_doubt", "absence_proven"),
    entry(5, "in_doubt", "sending", "resend"),
    entry(6, "sending", "settled", "succeeded"),
)
RECORD = {
    "stage": "settled",
    "status": "succeeded",
    "version": "3",
    "amount": "500",
    "provider_refund_id": "re_1",
}
BODY = f'{{"payment_intent": "{PAYMENT}", "amount": "500"}}'
POST = Post(at=1002.5, refund_id=NAME, generation="1", key="k", body=BODY, fault=None, answered=200)


def effect(identity: str, status: str = "succeeded", amount: int = 500) -> dict[str, Any]:
    return {
        "event": "effect",
        "refund": identity,
        "refund_id": NAME,
        "payment_intent": PAYMENT,
        "amount": amount,
        "status": status,
    }


def told(history: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    """What Redis holds of a refund with this history, in every place that tells of it."""
    last = history[-1]
    record = RECORD | {"stage": last["to"], "status": last["status"], "version": str(len(history))}
    events = [
        {
            "refund_id": NAME,
            "version": str(one["version"]),
            "to": one["to"],
            "status": one["status"],
        }
        for one in history
    ]
    due = frozenset[str]() if last["to"] == "settled" else frozenset({NAME})
    return {"histories": {NAME: history}, "records": {NAME: record}, "events": events, "due": due}


def good(**changes: Any) -> Evidence:
    facts = {
        "accepted": {NAME: RefundRequest(refund_id=NAME, payment_intent=PAYMENT, amount=500)},
        "ledger": [effect("re_1")],
        "posts": [POST],
        "started": 1000.0,
        "ended": 1100.0,
        **told(HISTORY),
    }
    return Evidence(**{**facts, **changes})


def failed(code: str, *seen: str, **changes: Any) -> Evidence:
    """A refund that ended failed after attempts that were seen so, with nothing in the ledger."""
    history = [HISTORY[0]]
    for place, one in enumerate(seen):
        history.append(
            entry(2 + 2 * place, "queued" if place == 0 else "waiting", "sending", "send")
        )
        history.append(entry(3 + 2 * place, "sending", "waiting", one, seen=one))
    history[-1] |= {"to": "settled", "status": "failed", "label": code}
    facts = told(tuple(history))
    facts["records"] = {NAME: facts["records"][NAME] | {"error_code": code}}
    return good(**{"ledger": [], **facts, **changes})


REFUSED = [replace(POST, answered=402)]
RESENT = [POST, replace(POST, at=1005.5)]
OVERDUE = (*HISTORY[:2], entry(70, "sending", "settled", "succeeded") | {"version": 3})
BROKEN = {
    "money twice": good(ledger=[effect("re_1"), effect("re_2")]),
    "over": good(captured={PAYMENT: 400}),
    "unasked": good(posts=[POST, replace(POST, refund_id="b-1", key="l")]),
    "lost": good(records={}),
    "stranded": good(**told(HISTORY[:2])),
    "false succeeded": good(ledger=[]),
    "false id": good(ledger=[effect("re_2")]),
    "amount": good(ledger=[effect("re_1", amount=501)]),
    "false failed": good(
        **told((*HISTORY[:2], entry(3, "sending", "settled", "declined", status="failed")))
    ),
    "body": good(**told(DOUBTED), posts=[POST, replace(RESENT[1], body=f"{BODY} ")]),
    "key": good(posts=[POST, replace(POST, refund_id="b-1")]),
    "history": good(histories={NAME: HISTORY[:1]}),
    "transition": good(**told((HISTORY[0], entry(2, "queued", "waiting", "claimed")))),
    "clock": good(ended=1001.5),
    "events": good(events=[]),
    "index": good(due=frozenset({NAME})),
    "taken up late": good(**told(OVERDUE), kills=[1002.1]),
    "unproven": good(posts=RESENT),
    "held": good(held=[(1002.2, 1002.8)]),
    "secret": good(leaks=["worker-0.log holds sk_test_…"]),
}


@pytest.mark.parametrize("rule", BROKEN)
def test_the_judge_finds_what_breaks_a_rule(rule: str) -> None:
    assert rule in {violation.rule for violation in judged(BROKEN[rule])}


@pytest.mark.parametrize(
    ("fields", "ledger", "rules"),
    [
        ({"stage": "in_doubt", "payment_intent": "pi_missing_1"}, [], set()),
        ({"stage": "in_doubt", "payment_intent": "pi_missing_1"}, [effect("re_1")], {"stranded"}),
        ({"stage": "in_doubt", "payment_intent": PAYMENT}, [], {"stranded"}),
        ({"stage": "waiting", "payment_intent": "pi_missing_1"}, [], {"stranded"}),
        (
            {
                "stage": "processing",
                "provider_refund_id": "re_somebody_elses",
                "missing_since": "1",
            },
            [],
            set(),
        ),
        ({"stage": "processing", "provider_refund_id": "re_somebody_elses"}, [], {"stranded"}),
        (
            {"stage": "processing", "provider_refund_id": "re_1", "missing_since": "1"},
            [],
            {"stranded"},
        ),
        (
            {
                "stage": "processing",
                "provider_refund_id": "re_somebody_elses",
                "missing_since": "1",
            },
            [effect("re_1")],
            {"stranded"},
        ),
    ],
)
def test_only_what_waits_for_something_that_never_was_may_rest_without_an_end(
    fields: dict[str, str], ledger: list[dict[str, Any]], rules: set[str]
) -> None:
    facts = told(HISTORY[:2])
    facts["records"] = {NAME: RECORD | fields}
    found = {violation.rule for violation in judged(good(**facts, ledger=ledger))}
    assert found & {"stranded"} == rules


def test_a_refund_that_moved_may_wait_for_an_id_that_only_a_false_reply_named() -> None:
    facts = told(HISTORY[:2])
    facts["records"] = {
        NAME: (
            RECORD
            | {
                "stage": "processing",
                "provider_refund_id": "re_somebody_elses",
                "missing_since": "1",
            }
        )
    }
    false_reply = replace(POST, fault="wrong_resource_after")
    found = judged(good(**facts, posts=[false_reply], ledger=[effect("re_1")]))
    assert not [violation for violation in found if violation.rule == "stranded"]


def test_the_judge_finds_nothing_in_a_good_run() -> None:
    assert judged(good()) == []
    assert judged(good(**told(DOUBTED), posts=RESENT)) == []


def test_a_refund_may_fail_where_somebody_refused_it() -> None:
    assert judged(failed("card_declined", "refused", posts=REFUSED)) == []
    assert judged(failed("unknown", "done", posts=[POST], failed_there=frozenset({NAME}))) == []
    assert judged(failed("budget_spent", "may_have_happened", posts=[POST], max_attempts=1)) == []


@pytest.mark.parametrize(
    "evidence",
    [
        failed("no_reply", "may_have_happened", posts=[replace(POST, answered=None)]),
        failed("http_500", "may_have_happened", posts=[replace(POST, answered=500)]),
        failed("card_declined", "refused", posts=[replace(POST, answered=402, fault="cut_after")]),
        failed("budget_spent", "not_done", posts=[replace(POST, answered=429)], max_attempts=1),
    ],
)
def test_a_refund_that_nobody_refused_may_not_fail_even_where_no_money_moved(
    evidence: Evidence,
) -> None:
    assert {violation.rule for violation in judged(evidence)} == {"false failed"}


@pytest.mark.parametrize(
    "body",
    [
        f'{{"payment_intent": "{PAYMENT}", "amount": "501"}}',
        f'{{"payment_intent": "{PAYMENT}"}}',
        '{"payment_intent": "pi_b", "amount": "500"}',
    ],
)
def test_a_request_for_other_money_than_was_asked_for_is_found_though_the_record_agrees(
    body: str,
) -> None:
    assert {one.rule for one in judged(good(posts=[replace(POST, body=body)]))} == {"unasked"}


@pytest.mark.parametrize("answered", [401, 403])
def test_no_refund_may_fail_while_and_because_the_key_is_refused(answered: int) -> None:
    posts = [replace(POST, answered=answered, fault=f"http_{answered}")]
    evidence = failed("credentials_refused", "refused", posts=posts, refused=[(1002.0, 1010.0)])
    assert {violation.rule for violation in judged(evidence)} == {"credentials"}
    assert (
        judged(failed("card_declined", "refused", posts=REFUSED, refused=[(1002.6, 1010.0)])) == []
    )


def test_a_second_effect_beside_a_first_one_is_found_though_the_first_failed_later() -> None:
    later = {**effect("re_1", "failed"), "event": "status"}
    assert {
        one.rule for one in judged(good(ledger=[effect("re_1", "pending"), effect("re_2"), later]))
    } >= {"money twice"}
    assert (
        judged(good(**resettled(), ledger=[effect("re_1", "pending"), later, effect("re_2")])) == []
    )


REVERSED = (*HISTORY, entry(4, "settled", "settled", "reversed", status="failed"))
BACK = {**effect("re_1", "failed"), "event": "status", "was": "succeeded"}
AGAIN = {**effect("re_1"), "event": "status", "was": "failed"}


def test_a_reversal_is_judged_by_the_status_that_it_left() -> None:
    assert judged(good(**told(REVERSED), ledger=[effect("re_1"), BACK], failed_there={NAME})) == []
    stale = judged(good(ledger=[effect("re_1"), BACK]))
    assert [violation.rule for violation in stale] == ["false succeeded"]
    unseen = good(**told(REVERSED), ledger=[effect("re_1"), BACK, AGAIN], failed_there={NAME})
    assert [violation.rule for violation in judged(unseen)] == ["false failed"]


def test_a_retry_before_the_earlier_refund_came_back_is_no_second_effect() -> None:
    ledger = [effect("re_1"), BACK, effect("re_2")]
    assert judged(good(**resettled(), ledger=[*ledger, AGAIN])) == []
    too_late = [effect("re_1"), BACK, AGAIN, effect("re_2")]
    assert "money twice" in {one.rule for one in judged(good(**resettled(), ledger=too_late))}


def resettled() -> dict[str, Any]:
    """What Redis holds where the second of two provider's refunds is the one."""
    facts = told(HISTORY)
    return facts | {"records": {NAME: facts["records"][NAME] | {"provider_refund_id": "re_2"}}}


def test_nothing_is_claimed_or_sent_between_a_recovery_and_the_word_to_go_on() -> None:
    assert [one.fact for one in judged(good(held=[(1001.9, 1002.2)]))] == [
        "claimed with everything paused"
    ]
    assert judged(good(held=[(1002.6, 1010.0)])) == []


def test_a_claim_after_a_doubt_without_its_proof_is_found_in_the_history_alone() -> None:
    guessed = (
        *DOUBTED[:3],
        entry(4, "in_doubt", "sending", "replay"),
        entry(5, "sending", "settled", "succeeded"),
    )
    assert {violation.rule for violation in judged(good(**told(guessed)))} == {"unproven"}


REPLAYED = (
    *HISTORY[:2],
    entry(3, "sending", "in_doubt", "no_reply", ms=1500),
    entry(4, "in_doubt", "sending", "replay"),
    entry(5, "sending", "settled", "succeeded", ms=30),
)


def trusting(
    history: tuple[dict[str, Any], ...], *moments: float, window: float = 60.0
) -> Evidence:
    """A refund whose keys are trusted, with POSTs at these moments."""
    return good(
        **told(history),
        posts=[replace(POST, at=at) for at in moments],
        verify=False,
        key_window=window,
    )


def test_a_trusted_key_may_be_sent_again_within_its_window_and_by_a_claim() -> None:
    assert judged(trusting(REPLAYED, 1002.5, 1004.5)) == []
    tried = (*HISTORY[:2], entry(3, "sending", "settled", "succeeded", ms=900, tries=2))
    assert judged(trusting(tried, 1002.5, 1002.9)) == []
    assert {
        one.rule for one in judged(trusting(HISTORY[:2] + REPLAYED[2:], 1002.5, 1002.9, 1004.5))
    } == {"unclaimed"}


def test_a_trusted_key_is_not_sent_past_its_window_without_a_proof_of_absence() -> None:
    assert {one.rule for one in judged(trusting(REPLAYED, 1002.5, 1004.5, window=1.0))} == {
        "window"
    }
    assert sent_past_the_window(trusting(REPLAYED, 1002.5, 1004.5, window=1.0))
    assert not sent_past_the_window(trusting(REPLAYED, 1002.5, 1004.5))
    waited = (*HISTORY[:2], entry(3, "sending", "waiting", "rate_limited", ms=9), *REPLAYED[3:])
    waited = (*waited[:3], waited[3] | {"from": "waiting", "label": "send"}, waited[4])
    told_to_wait = trusting(waited, 1002.5, 1004.5, window=1.0)
    limited = replace(told_to_wait, posts=[replace(POST, answered=429), replace(POST, at=1004.5)])
    assert judged(limited) == []
    assert not sent_past_the_window(limited)
    resent = tuple(one | ({"ms": 5} if one["from"] == "sending" else {}) for one in DOUBTED)
    assert judged(trusting(resent, 1002.5, 1005.5, window=1.0)) == []
    again = (*resent[:-1], resent[-1] | {"tries": 2})
    assert {one.rule for one in judged(trusting(again, 1002.5, 1005.5, 1005.7, window=1.0))} == {
        "window"
    }


def test_a_second_send_after_an_answer_that_says_not_done_is_no_violation() -> None:
    again = (
        *HISTORY[:2],
        entry(3, "sending", "waiting", "rate_limited"),
        entry(4, "waiting", "sending", "send"),
        entry(5, "sending", "settled", "succeeded"),
    )
    limited = [replace(POST, answered=429), replace(POST, at=1004.5)]
    silent = [replace(POST, answered=None), replace(POST, at=1004.5)]
    assert judged(good(**told(again), posts=limited)) == []
    assert {violation.rule for violation in judged(good(**told(again), posts=silent))} == {
        "unproven"
    }


def test_how_long_the_claims_of_a_killed_worker_lay_is_told() -> None:
    lapsed = (*HISTORY[:2], entry(47, "sending", "in_doubt", "lease_lapsed") | {"version": 3})
    assert taken_up(good(**told(lapsed), kills=[1002.5])) == [44.5]
    assert taken_up(good(kills=[1002.5])) == []


def test_what_was_unsettled_when_the_faults_stopped_counts_into_the_recovery() -> None:
    assert recoveries(good(), fault_end=1001.0) == [2.0]
    assert recoveries(good(), fault_end=1004.0) == []


def test_the_control_is_judged_without_histories_by_what_money_did() -> None:
    bare = good(histories=None, events=(), ledger=[effect("re_1"), effect("re_2")])
    assert {violation.rule for violation in judged(bare)} == {"money twice"}


def test_a_run_that_was_not_judged_fails_the_whole_and_stands_in_the_table() -> None:
    rows = rows_of(
        [
            Result(name="x", subject="ours", error="the fault did not fire"),
            Result(name="x", subject="control", violations=judged(BROKEN["lost"])),
            Result(name="pair 7: y", subject="ours", refunds=3, recoveries=[1.0]),
        ]
    )
    assert len(ours_failed(rows)) == 1
    assert "not judged" in rendered(rows)
    assert "random pairs" in rendered(rows)
    assert "the control's 1 in 1 runs (0 money twice, 0 false failed), and 0 stranded" in summary(
        rows
    )


def test_a_judge_that_never_catches_the_control_fails_the_whole() -> None:
    assert not control_was_caught(rows_of([Result(name="x", subject="control")]))
    assert control_was_caught(rows_of([Result(name="x", subject="ours")]))


@pytest.mark.parametrize(
    ("rules", "whole"), [({"money twice"}, False), ({"money twice", "false failed"}, True)]
)
def test_the_control_is_caught_by_name_over_the_whole_matrix(
    rules: set[str], *, whole: bool
) -> None:
    violations = [replace(A_VIOLATION, rule=rule) for rule in rules]
    rows = rows_of([Result(name="a", subject="control", violations=violations)])
    assert control_was_caught(rows, whole=whole)
    assert control_was_caught(rows, whole=True) == whole
    assert not control_was_caught(rows_of([Result(name="a", subject="control")]), whole=whole)


def test_a_planted_bug_that_is_not_caught_by_its_rule_fails_the_whole() -> None:
    name, rule = next(iter(RULES.items()))
    found = Result(name=name, subject=SUBJECT, violations=[replace(A_VIOLATION, rule=rule)])
    missed = replace(found, violations=[replace(A_VIOLATION, rule="lost")])
    unjudged = replace(found, violations=[], error="no fault fired")
    assert [exit_code(rows_of([one])) for one in (found, missed, unjudged)] == [0, 1, 3]
    assert "1 of 1" in summary(rows_of([found]))
    assert "0 of 1" in summary(rows_of([missed]))
    assert name not in rendered(rows_of([found]))


@pytest.mark.parametrize(
    ("violations", "error", "caught", "code"),
    [
        ([], None, True, 0),
        ([], "no fault fired", True, 3),
        ([A_VIOLATION], "so", True, 1),
        ([], None, False, 1),
    ],
)
def test_a_broken_promise_and_a_run_that_could_not_be_judged_end_differently(
    violations: list[Violation], error: str | None, code: int, *, caught: bool
) -> None:
    ours = Result(name="a", subject="ours", violations=violations, error=error)
    found = [A_VIOLATION, replace(A_VIOLATION, rule="false failed")]
    control = Result(name="a", subject="naive", violations=found * caught)
    assert exit_code(rows_of([ours, control])) == code
