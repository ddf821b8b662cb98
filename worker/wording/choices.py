"""What a person can decide on the page about a refund, and words for what each decision does."""

from __future__ import annotations

from dataclasses import dataclass

from worker.model.refund import Refund
from worker.rules import contradictions, decisions, preflight
from worker.wording.decisions import shown_for


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A decision that a person can make, and what it does."""

    decision: str
    label: str
    effect: str


def may_retry(refund: Refund) -> bool:
    """Return whether a person can have a failed refund sent again."""
    return decisions.retry_failed(refund) is not None


def choices(refund: Refund) -> list[Choice]:
    """Return the decisions about a refund in review or one that the provider contradicts."""
    named = " and ".join((*refund.prior_ids, *refund.candidates))
    look, absent = "", "It"
    if refund.may_have_happened:
        look, absent = "A worker first looks for it at the provider. ", "If it is not there, it"
    elif named:
        look, absent = f"A worker first reads {named} at the provider. ", "Otherwise it"
    shown = "If that shows that it happened, it settles as it is shown there. " if look else ""
    again = f"{look}{shown}{absent} is sent again, with the same key and contents."
    if preflight.wants_currency(refund):
        again += (
            " The payment is read first, and nothing is sent unless it is in"
            f" {(refund.asked_currency or '').upper()}."
        )
    failed = Choice(
        decision="failed",
        label="It did not happen and must not: end it as failed",
        effect=f"{look}{shown}{absent} ends as failed. Nothing is sent.",
    )
    resend = Choice(decision="resend", label="It did not happen: send it again", effect=again)
    possible = contradictions.possible_decisions(refund)
    return [each for each in (_happened(refund), failed, resend) if each.decision in possible]


def _happened(refund: Refund) -> Choice:
    effect = (
        "The provider shows a refund with this id. A worker reads it, and this refund settles as"
        " it is shown there. Nothing is sent."
    )
    if refund.contradicted_by is None:
        effect += " If its payment or amount differs, it returns to review."
    elif len(names := shown_for(refund)) > 1:
        effect += f" It is {' or '.join(names)}."
    return Choice(
        decision="succeeded", label="It happened: the provider shows its refund", effect=effect
    )
