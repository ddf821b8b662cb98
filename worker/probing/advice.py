"""Recommends settings from the findings of a probe."""

from __future__ import annotations

from dataclasses import dataclass

from worker.probing.questions import Findings, Question, Verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class Advice:
    """A recommended setting, and the reason."""

    variable: str
    value: str
    why: str


def _verdict(findings: Findings, question: Question) -> Verdict:
    found = findings.get(question)
    return Verdict.NOT_SEEN if found is None else found.verdict


def advise(findings: Findings) -> tuple[Advice, ...]:
    """Return the recommended settings; without a finding, the cautious one."""
    verdicts = {question: _verdict(findings, question) for question in Question}
    keyed = verdicts[Question.KEY] is Verdict.YES and verdicts[Question.GUARD] is Verdict.YES
    if keyed:
        trust = "the key made one refund of two requests, and other bytes under it were refused"
    elif verdicts[Question.KEY] is Verdict.NO:
        trust = "the same key moved money twice: a resend is a second refund"
    else:
        trust = "no finding shows that a key makes one refund at most"
    if verdicts[Question.LIST] is Verdict.YES:
        readback, seen = "list", "a refund is found by its metadata.refund_id"
    elif verdicts[Question.TOTALS] is Verdict.NO:
        readback, seen = (
            "none",
            "neither a list nor a total shows a refund: a person decides every doubt",
        )
    else:
        readback, seen = "totals", "the list cannot be used, so the payment's total has to do"
    counted = verdicts[Question.PENDING] is Verdict.YES and verdicts[Question.TOTALS] is Verdict.YES
    if counted:
        proof = "a pending refund was in the total at once: an unchanged total proves absence"
    elif verdicts[Question.PENDING] is Verdict.NO:
        proof = "a pending refund was not in the total: an unchanged total proves nothing"
    else:
        proof = "no finding shows whether pending refunds are in the total"
    return (
        Advice(variable="REFUNDS_IDEMPOTENCY", value="trust" if keyed else "verify", why=trust),
        Advice(variable="REFUNDS_READBACK", value=readback, why=seen),
        Advice(variable="REFUNDS_TOTALS", value="proof" if counted else "hint", why=proof),
        Advice(
            variable="REFUNDS_KEY_WINDOW_HOURS",
            value="23",
            why=(
                "not measured, since that takes a day: 23 suits keys that are kept for 24 h; ask"
                " the provider"
            ),
        ),
    )
