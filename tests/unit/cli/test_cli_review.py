"""`refunds review`: the evidence, and what each decision does."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta

import pytest
import redis

from tests.factories import a_refund
from tests.support.cli_runner import PAYMENT, Cli, Records, messages
from worker.model.answers import ProviderRefund, Readback, ReadbackVerdict
from worker.model.refund import Lane, Refund, Stage, Status
from worker.rules import contradictions, decisions, proofs, readback
from worker.rules.attempts import Rules
from worker.store import saves
from worker.wording.decisions import resolutions


def test_the_refunds_that_need_a_person_are_listed_and_no_others(
    cli: Cli, records: Records
) -> None:
    records.in_review("stuck-1")
    records.queued("other-1", payment_intent="pi_other")
    assert [shown["refund_id"] for shown in cli("review", "list", "--json").objects] == ["stuck-1"]
    ran = cli("review")
    assert (ran.code, "stuck-1" in ran.out, "other-1" in ran.out) == (0, True, False)
    assert "review show" in ran.err


def test_nothing_to_review_is_said(cli: Cli) -> None:
    ran = cli("review")
    assert (ran.code, ran.out, ran.err) == (0, "", "no refunds need review\n")


def test_the_evidence_says_what_was_sent_what_was_read_and_what_each_decision_does(
    cli: Cli, records: Records
) -> None:
    records.succeeded("sibling-1", "re_sibling")
    refund = records.in_review("stuck-1")
    ran = cli("review", "show", "stuck-1")
    assert ran.code == 0
    why, sent, read, marks, others, decisions = re.split(
        r"\n(?=what|why|how to find|your other)", ran.out
    )[1:]
    assert why == "why it needs review\n  inconclusive: it cannot be told\n"
    assert re.fullmatch(
        r"what was sent\n  20\S+ \S+Z  attempt 1: the provider made it: inconclusive.*\n", sent
    )
    assert read == "what was read\n  nothing\n"
    for part in ("doubt since", refund.idempotency_key, "inconclusive looks", "refund_id stuck-1"):
        assert part in marks
    for part in ("sibling-1", "re_sibling"):
        assert part in others
    for part in (
        "--succeeded RE_ID",
        "--failed CODE",
        "first looks for it",
        "--resend",
        "--unverified",
        "moves twice",
    ):
        assert part in decisions


def test_the_evidence_is_one_json_object(cli: Cli, records: Records) -> None:
    records.succeeded("sibling-1")
    records.in_review("stuck-1")
    shown = cli("review", "show", "stuck-1", "--json").object
    assert set(shown) == {
        "refund",
        "why",
        "review_reason",
        "evidence",
        "history",
        "siblings",
        "resolutions",
    }
    assert (shown["refund"]["stage"], shown["evidence"]["inconclusive_looks"]) == ("review", 5)
    assert (shown["why"], shown["review_reason"]) == ("it cannot be told", "inconclusive")
    assert shown["evidence"]["metadata"] == {"refund_id": "stuck-1", "refund_generation": "1"}
    assert [sibling["refund_id"] for sibling in shown["siblings"]] == ["sibling-1"]


def test_a_refund_whose_currency_is_not_confirmed_says_that_it_is_not_sent_unchecked() -> None:
    told = resolutions(a_refund(Stage.REVIEW, asked_currency="usd"))["--resend"]
    assert "usd" in told
    assert (
        told
        != resolutions(a_refund(Stage.REVIEW, asked_currency="usd", currency_checked=True))[
            "--resend"
        ]
    )


@pytest.mark.parametrize(
    "fields", [{"prior_refund_ids": "re_1 re_9"}, {"hinted": "re_9", "prior_refund_ids": "re_1"}]
)
def test_decision_about_a_refund_for_which_another_was_named_says_that_it_is_read_first(
    fields: dict[str, str],
) -> None:
    words = resolutions(a_refund(Stage.REVIEW, **fields))
    assert "re_1 and re_9" in words["--resend"]
    assert "re_1 and re_9" in words["--failed CODE"]
    assert "settles as the provider shows it" in words["--resend"]
    assert "read" not in resolutions(a_refund(Stage.REVIEW))["--resend"]


def test_only_what_can_be_decided_is_shown(cli: Cli, records: Records) -> None:
    records.in_review("stuck-1")
    records.store.redis.hset("refunds:refund:stuck-1", "set_aside_ids", "re_9")
    shown = cli("review", "show", "stuck-1")
    assert "--failed CODE" in shown.out
    assert "--resend" not in shown.out
    told = cli("review", "show", "stuck-1", "--json").object["resolutions"]
    assert list(told) == ["--succeeded RE_ID", "--failed CODE"]
    for decision in (["--resend"], ["--failed", "gone"]):
        ran = cli("review", "resolve", "stuck-1", *decision, "--note", "seen")
        assert (ran.code == 0) is (f"{decision[0]} CODE" in told)


def test_what_was_never_in_doubt_may_be_decided_without_a_look(cli: Cli, records: Records) -> None:
    records.in_review("stuck-1", doubt=False)
    ran = cli("review", "show", "stuck-1")
    assert "looks for it" not in ran.out
    assert "it was never in doubt" in ran.out


def test_what_was_read_is_told_with_where_it_was_read(cli: Cli, records: Records) -> None:
    refund = records.in_review("stuck-1")
    records.store.run(
        saves.save(refund, decisions.resolve_failed(refund, "gone", by="ann"), {"note": "by phone"})
    )
    refund = replace(records.get("stuck-1"), quiet_at=refund.updated_at)
    look = Readback(verdict=ReadbackVerdict.ABSENT, reason="not in the payment's list")
    step = readback.after_readback(
        refund, look, Rules(readback="list"), refund.updated_at + timedelta(days=1), 0
    )
    records.store.run(saves.save(refund, step, {"look": "absent", "reason": look.reason}))
    read = (
        cli("review", "show", "stuck-1").out.split("what was read\n")[1].split("\nhow to find")[0]
    )
    assert read.endswith("read the payment's list: absent (not in the payment's list)\n")
    told = cli("status", "stuck-1", "--history").out
    assert "decided as failed, by ann “by phone”" in told


def test_a_refund_that_needs_no_person_is_shown_without_decisions(
    cli: Cli, records: Records
) -> None:
    records.queued("order-1")
    ran = cli("review", "show", "order-1")
    assert (ran.code, "--resend" in ran.out, "not in review" in ran.err) == (0, False, True)
    assert cli("review", "show", "nobody").code == 3


def test_a_claim_of_success_is_left_to_be_verified_and_nudged_for(
    cli: Cli, records: Records, sync_redis: redis.Redis
) -> None:
    records.in_review("stuck-1")
    ran = cli(
        "review",
        "resolve",
        "stuck-1",
        "--succeeded",
        "re_7",
        "--note",
        " seen in the dashboard ",
        "--json",
    )
    assert (ran.code, ran.object["stage"], ran.object["provider_refund_id"]) == (
        0,
        "processing",
        "re_7",
    )
    assert records.get("stuck-1").operator_says == "succeeded"
    last = cli("status", "stuck-1", "--history", "--json").object["history"][-1]
    assert (last["label"], last["note"], bool(last["by"])) == (
        "operator_says_succeeded",
        "seen in the dashboard",
        True,
    )
    assert messages(sync_redis, Lane.SINGLE) == 1
    assert "“seen in the dashboard”" in cli("status", "stuck-1", "--history").out


def test_a_decision_that_it_failed_settles_what_was_never_in_doubt_and_sends_nothing(
    cli: Cli, records: Records, sync_redis: redis.Redis
) -> None:
    records.in_review("stuck-1", doubt=False)
    ran = cli(
        "review",
        "resolve",
        "stuck-1",
        "--failed",
        "paid_in_cash",
        "--note",
        "agreed",
        REFUNDS_ACTOR="ann",
    )
    assert ran.code == 0
    refund = records.get("stuck-1")
    assert (refund.status, refund.stage, refund.error_code) == (
        Status.FAILED,
        Stage.SETTLED,
        "paid_in_cash",
    )
    last = records.store.history("stuck-1")[-1]
    assert (last["source"], last["by"], last["note"]) == ("operator", "ann", "agreed")
    assert messages(sync_redis, Lane.SINGLE) == 0


def test_a_decision_that_it_failed_is_looked_for_wherever_there_was_doubt(
    cli: Cli, records: Records, sync_redis: redis.Redis
) -> None:
    records.in_review("stuck-1")
    ran = cli(
        "review",
        "resolve",
        "stuck-1",
        "--failed",
        "paid_in_cash",
        "--note",
        "agreed",
        REFUNDS_ACTOR="ann",
    )
    assert (ran.code, "it settles or returns to review" in ran.err) == (0, True)
    refund = records.get("stuck-1")
    assert (refund.stage, refund.operator_says, refund.operator_by, refund.operator_code) == (
        Stage.IN_DOUBT,
        "failed",
        "ann",
        "paid_in_cash",
    )
    assert not refund.operator_unverified
    assert messages(sync_redis, Lane.SINGLE) == 1


@pytest.mark.parametrize("choice", [("--succeeded", "re_1"), ("--failed", "gone"), ("--resend",)])
def test_a_word_that_shall_count_unverified_is_kept_as_such(
    cli: Cli, records: Records, choice: tuple[str, ...]
) -> None:
    records.in_review("stuck-1")
    assert cli("review", "resolve", "stuck-1", *choice, "--unverified", "--note", "x").code == 0
    assert records.get("stuck-1").operator_unverified


@pytest.mark.parametrize(("doubt", "stage"), [(True, Stage.IN_DOUBT), (False, Stage.WAITING)])
def test_a_resend_is_looked_for_first_wherever_there_was_doubt(
    cli: Cli, records: Records, *, doubt: bool, stage: Stage
) -> None:
    records.in_review("stuck-1", doubt=doubt)
    ran = cli("review", "resolve", "stuck-1", "--resend", "--note", "never arrived")
    assert (ran.code, "a worker takes this refund next" in ran.err) == (0, True)
    assert records.get("stuck-1").stage is stage


def test_only_a_refund_in_review_can_be_decided(cli: Cli, records: Records) -> None:
    records.queued("order-1")
    ran = cli("review", "resolve", "order-1", "--resend", "--note", "x")
    assert (ran.code, ran.out) == (6, "")
    assert ran.err.startswith("error: refund order-1 is queued, not in review, and was not changed")
    assert cli("review", "resolve", "nobody", "--resend", "--note", "x").code == 3


def test_a_decision_about_what_was_shown_does_not_count_for_a_later_review(
    cli: Cli, records: Records
) -> None:
    """Another person's decision had it sent again, and it came back with another doubt."""
    shown = records.in_review("stuck-1", doubt=False)
    command = cli("review", "show", "stuck-1").out.splitlines()[-1]
    assert f" --version {shown.version} " in command
    decided = ("review", "resolve", "stuck-1", "--resend", "--note", "never arrived")
    of_shown = (*decided, "--version", str(shown.version))
    assert cli(*of_shown).code == 0
    again = records.claimed("stuck-1")
    changes = {"doubt_since": again.updated_at}
    step = proofs.to_review(changes, "inconclusive", "it cannot be told")
    assert records.store.run(saves.save(again, step)).result == "saved"
    later = records.get("stuck-1")
    ran = cli(*of_shown, "--unverified")
    assert (ran.code, "read it again and decide on what it shows" in ran.err) == (6, True)
    assert records.get("stuck-1") == later
    ran = cli(*decided, "--version", "99")
    assert (ran.code, f"is at version {later.version}, not 99, and" in ran.err) == (6, True)
    assert cli(*decided, "--version", str(later.version)).code == 0


def test_a_provider_refund_that_is_another_ones_is_refused(cli: Cli, records: Records) -> None:
    records.succeeded("sibling-1", "re_sibling")
    records.in_review("stuck-1")
    ran = cli("review", "resolve", "stuck-1", "--succeeded", "re_sibling", "--note", "x")
    assert (ran.code, "already belongs to refund sibling-1" in ran.err) == (6, True)
    assert records.get("stuck-1").stage is Stage.REVIEW


@pytest.mark.parametrize(
    "choice",
    [
        (),
        ("--resend", "--failed", "gone"),
        ("--succeeded", "re_1", "--failed", "gone"),
        ("--resend",),
    ],
)
def test_a_decision_is_exactly_one_and_has_a_note(
    cli: Cli, records: Records, choice: tuple[str, ...]
) -> None:
    records.in_review("stuck-1")
    note = () if choice == ("--resend",) else ("--note", "x")
    assert cli("review", "resolve", "stuck-1", *choice, *note).code == 2
    assert records.get("stuck-1").stage is Stage.REVIEW


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--resend", "--note", "a\x1b[2J"), "note"),
        (("--resend", "--note", "x" * 501), "note"),
        (("--resend", "--note", "  "), "note"),
        (("--failed", "Not A Code", "--note", "x"), "code"),
        (("--succeeded", "re_/..", "--note", "x"), "provider_refund_id"),
    ],
)
def test_a_note_code_or_id_that_cannot_be_kept_is_rejected(
    cli: Cli, records: Records, options: tuple[str, ...], named: str
) -> None:
    records.in_review("stuck-1", payment_intent=PAYMENT)
    ran = cli("review", "resolve", "stuck-1", *options)
    assert (ran.code, ran.err.startswith(f"error: {named} '")) == (3, True)
    assert "\x1b" not in ran.err
    assert records.get("stuck-1").stage is Stage.REVIEW


def contradicted(records: Records, refund: Refund) -> Refund:
    """The record once the provider has shown another refund for it."""
    proof = proofs.done(
        refund, ProviderRefund(id="re_late", status="succeeded"), "reply", refund.updated_at
    )
    step = contradictions.contradicted(refund, proof, refund.updated_at)
    assert step is not None
    assert records.store.run(saves.save(refund, step, {"alarm": step.alarm})).result == "saved"
    return records.get(refund.refund_id)


def test_a_settled_refund_that_the_provider_contradicts_is_listed_first_until_it_is_ended(
    cli: Cli, records: Records, sync_redis: redis.Redis
) -> None:
    records.in_review("stuck-1")
    contradicted(records, records.failed("order-1", payment_intent="pi_other"))
    assert [shown["refund_id"] for shown in cli("review", "list", "--json").objects] == [
        "order-1",
        "stuck-1",
    ]
    assert "contradicted by re_late" in cli("review").out
    assert "by re_late, which the provider shows" in cli("status", "order-1").out
    assert cli("status", "order-1", "--json").object["contradicted_by"] == "re_late"
    shown = cli("review", "show", "order-1")
    assert "it is recorded as failed, but the provider shows re_late for it" in shown.out
    assert ("--succeeded RE_ID" in shown.out, "--failed" in shown.out, "--resend" in shown.out) == (
        True,
        False,
        False,
    )
    refused = cli("review", "resolve", "order-1", "--failed", "gone", "--unverified", "--note", "x")
    assert (refused.code, "--succeeded" in refused.err) == (6, True)
    assert cli("review", "resolve", "order-1", "--succeeded", "re_1", "--note", "x").code == 3
    ran = cli(
        "review",
        "resolve",
        "order-1",
        "--succeeded",
        "re_late",
        "--note",
        "it was made",
        REFUNDS_ACTOR="ann",
    )
    assert (ran.code, records.get("order-1").stage) == (0, Stage.PROCESSING)
    assert messages(sync_redis, Lane.SINGLE) == 1
    refund = records.get("order-1")
    found = ProviderRefund(id="re_late", status="succeeded", amount=500, refund_id="order-1")
    records.store.run(saves.save(refund, proofs.done(refund, found, "lookup", refund.updated_at)))
    refund = records.get("order-1")
    assert (refund.status, refund.contradicted_by, refund.provider_refund_id) == (
        Status.SUCCEEDED,
        None,
        "re_late",
    )
    assert [shown["refund_id"] for shown in cli("review", "list", "--json").objects] == ["stuck-1"]


def test_the_one_of_two_that_is_recorded_may_be_kept(cli: Cli, records: Records) -> None:
    contradicted(records, records.succeeded("order-1"))
    before = records.get("order-1")
    assert before.retriable is None
    ran = cli(
        "review", "resolve", "order-1", "--succeeded", "re_1", "--note", "the other was paid back"
    )
    assert (ran.code, "a worker takes" in ran.err) == (0, False)
    after = records.get("order-1")
    assert (after.status, after.provider_refund_id, after.contradicted_by) == (
        Status.SUCCEEDED,
        "re_1",
        None,
    )
    assert cli("review").err == "no refunds need review\n"
