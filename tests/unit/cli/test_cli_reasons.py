"""What `status` and `review show` say of a refund in review.

Its reason, how its attempts ended, and older doubts.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

from tests.support.cli_runner import Cli, Records
from worker.model.answers import Outcome, Readback, ReadbackVerdict, TryVerdict
from worker.model.refund import Refund, Stage
from worker.rules import attempts, decisions, readback
from worker.rules.attempts import Rules
from worker.store import claims, reads, saves
from worker.wording import reasons

RULES = Rules(readback="list")
CUT = Outcome(verdict=TryVerdict.MAYBE, code="no_reply", message="the reply was cut", doubt=True)


def _attempted(records: Records, refund: Refund, outcome: Outcome, rules: Rules = RULES) -> Refund:
    """The record after an attempt with this outcome."""
    step = attempts.after_attempt(refund, outcome, rules, refund.updated_at, 0)
    detail: dict[str, Any] = {"attempt": refund.attempts, "seen": outcome.verdict.value}
    if outcome.http_status is not None:
        detail["http_status"] = outcome.http_status
    if step.alarm:
        detail["alarm"] = step.alarm
    assert records.store.run(saves.save(refund, step, detail)).result == "saved"
    return records.get(refund.refund_id)


def _sent_again_unverified(records: Records, refund: Refund) -> Refund:
    """The record once a person, against which nothing speaks, had it sent again."""
    step = decisions.resolve_resend(refund, by="ann", unverified=True)
    assert records.store.run(saves.save(refund, step, {"note": "x"})).result == "saved"
    refund = records.get(refund.refund_id)
    look = Readback(verdict=ReadbackVerdict.INCONCLUSIVE, reason="nothing may be read")
    step = readback.after_readback(refund, look, RULES, refund.updated_at + timedelta(days=1), 0)
    step = replace(
        step,
        changes={
            **step.changes,
            "absent_at": refund.updated_at,
            "proven_absent_at": refund.updated_at,
        },
    )
    assert records.store.run(saves.save(refund, step, {"look": "inconclusive"})).result == "saved"
    loaded = records.store.run(reads.load(refund.refund_id))
    lease = timedelta(seconds=45)
    claim = records.store.run(
        claims.claim(refund.refund_id, "resend", token="t-2", lease=lease, seq=loaded.seq)
    )
    assert claim.claimed, claim.result
    return records.get(refund.refund_id)


def test_refund_in_review_shows_its_reason_apart_from_what_the_last_attempt_said(
    cli: Cli, records: Records
) -> None:
    records.in_review("stuck-1")
    ran = cli("status", "stuck-1")
    assert "why         inconclusive: it cannot be told" in ran.out
    assert "last seen   no_reply: the reply was cut" in ran.out
    assert "\n  error " not in ran.out
    assert "'refunds review show stuck-1'" in ran.err
    assert "after no_reply" in cli("review").out
    assert cli("status", "stuck-1", "--json").object["error_code"] == "no_reply"


def test_refund_that_is_not_in_review_shows_its_error_as_before(cli: Cli, records: Records) -> None:
    records.failed("order-1")
    ran = cli("status", "order-1")
    assert "error     card_gone" in ran.out
    assert ran.err == ""


def test_older_doubt_is_shown_beside_the_new_one_with_the_person_who_ended_it(
    cli: Cli, records: Records
) -> None:
    refund = _attempted(records, records.sending("stuck-1"), CUT, Rules(readback="none"))
    first = refund.doubt_since
    refund = _attempted(
        records, _sent_again_unverified(records, refund), CUT, Rules(readback="none")
    )
    assert (refund.stage, refund.doubted) == (Stage.REVIEW, True)
    assert refund.doubt_since is not None
    assert first is not None
    assert refund.doubt_since > first
    evidence = cli("review", "show", "stuck-1", "--json").object["evidence"]
    assert [doubt["absent_by"] for doubt in evidence["earlier_doubts"]] == ["operator"]
    assert evidence["earlier_doubts"][0]["since"] < evidence["doubt_since"]
    for command in (("review", "show"), ("status",)):
        assert "still open: only ann said that it never happened" in cli(*command, "stuck-1").out


def test_attempts_are_counted_by_how_they_ended_also_once_the_record_has_forgotten(
    cli: Cli, records: Records
) -> None:
    refund = records.sending("stuck-1")
    lapse = attempts.after_lapse(refund, Rules(readback="none"), refund.updated_at, 0)
    records.store.run(saves.save(refund, lapse, {"seen": "lease_lapsed", "alarm": lapse.alarm}))
    refund = _sent_again_unverified(records, records.get("stuck-1"))
    assert refund.lapses == 0
    refused = Outcome(verdict=TryVerdict.REFUSED, code="charge_already_refunded", http_status=400)
    refund = _attempted(records, refund, refused)
    evidence = cli("review", "show", "stuck-1", "--json").object["evidence"]
    assert (
        evidence["attempts"],
        evidence["attempts_with_an_answer"],
        evidence["lapsed_leases"],
    ) == (2, 1, 1)


def test_attempt_that_settled_the_refund_counts_as_answered(cli: Cli, records: Records) -> None:
    refund = records.sending("order-1")
    _attempted(
        records, refund, Outcome(verdict=TryVerdict.REFUSED, code="card_declined", http_status=402)
    )
    assert (
        cli("review", "show", "order-1", "--json").object["evidence"]["attempts_with_an_answer"]
        == 1
    )


def test_doubt_that_a_read_back_has_ended_is_not_called_open() -> None:
    moves: list[dict[str, Any]] = [
        {"at": 1000, "from": "queued", "to": "sending", "label": "send"},
        {"at": 2000, "from": "sending", "to": "in_doubt", "label": "no_reply"},
        {
            "at": 3000,
            "from": "in_doubt",
            "to": "in_doubt",
            "label": "absence_proven",
            "source": "list",
        },
        {"at": 4000, "from": "in_doubt", "to": "sending", "label": "resend", "source": "list"},
    ]
    doubts = reasons.earlier_doubts(moves)
    assert doubts == [{"since": "1970-01-01T00:00:02.000Z", "absent_by": "list", "by": None}]
    assert "still open" not in reasons.in_words(doubts)
    assert reasons.earlier_doubts([*moves, {"at": 9000, "to": "queued", "label": "retried"}]) == []
    assert reasons.shortened([{"left_out": 7}]) is True
