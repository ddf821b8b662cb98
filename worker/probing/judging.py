"""Turns the answers to a probe into findings, as pure functions.

Anything short of proof is `unclear`.
"""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus

from worker.model.answers import Answer, Outcome, PaymentView, ProviderRefund, Reply, TryVerdict
from worker.probing.questions import Finding, Problem, Verdict


def rise(before: PaymentView | None, after: PaymentView | None) -> int | None:
    """Return by how much the refunded total rose between two reads, None if either shows none."""
    if before is None or after is None or before.refunded is None or after.refunded is None:
        return None
    return after.refunded - before.refunded


def total(
    found: ProviderRefund,
    before: PaymentView,
    after: PaymentView | None,
    amount: int,
    also_moved: str,
) -> Finding:
    """Judge whether the total moved with one refund.

    `also_moved` is a clause that names what else moved.
    """
    rose = rise(before, after)
    if rose is None:
        reason = (after and after.problem) or before.problem or "the payment could not be read"
        return Finding(verdict=Verdict.NO, evidence=f"{reason}{also_moved}")
    if rose == amount:
        return Finding(verdict=Verdict.YES, evidence=f"it rose by exactly {rose}{also_moved}")
    if found.is_pending and rose == 0:
        text = "the refund is still pending, and the total has not moved"
    else:
        text = f"it moved by {rose}, not by {amount}; the refund is {found.status}"
    return Finding(verdict=Verdict.UNCLEAR, evidence=f"{text}{also_moved}")


def pending(before: PaymentView, after: PaymentView | None, amount: int, *, still: bool) -> Finding:
    """Judge a total that was read while a refund was pending.

    `still` is whether it was pending after the read too.
    """
    rose = rise(before, after)
    if rose is None:
        return Finding(
            verdict=Verdict.UNCLEAR, evidence="the refund is pending, and no total can be read"
        )
    if rose == amount and still:
        return Finding(
            verdict=Verdict.YES, evidence=f"the total rose by {rose} while the refund was pending"
        )
    if rose == 0 and still:
        return Finding(
            verdict=Verdict.NO, evidence="the total had not moved while the refund was pending"
        )
    when = "while the refund was pending" if still else "and the refund settled meanwhile"
    return Finding(verdict=Verdict.UNCLEAR, evidence=f"the total moved by {rose}, {when}")


def reading(read: ProviderRefund | None, provider_refund_id: str, refund_id: str) -> Finding:
    """Judge what `GET /v1/refunds/{id}` showed of a refund that was just made."""
    if read is None:
        return Finding(
            verdict=Verdict.NO, evidence=f"GET /v1/refunds/{provider_refund_id} did not show it"
        )
    shown = "with our id" if read.refund_id == refund_id else "without our id"
    return Finding(verdict=Verdict.YES, evidence=f"{read.id} is {read.status}, {shown}")


def no_list(answer: Answer) -> Finding:
    """Judge an answer that is not a list."""
    if not isinstance(answer, Reply):
        return Finding(
            verdict=Verdict.UNCLEAR, evidence=f"GET /v1/refunds?payment_intent=: {answer.reason}"
        )
    sure = (
        answer.http_status < HTTPStatus.INTERNAL_SERVER_ERROR
        and answer.http_status != HTTPStatus.TOO_MANY_REQUESTS
    )
    text = f"GET /v1/refunds?payment_intent= answered HTTP {answer.http_status} and no list"
    return Finding(verdict=Verdict.NO if sure else Verdict.UNCLEAR, evidence=text)


def listed(
    entries: Sequence[ProviderRefund],
    *,
    complete: bool,
    found: ProviderRefund,
    refund_id: str,
    payment_intent: str,
) -> Finding | None:
    """Judge a payment's list after a refund was made; None while it does not show the refund."""
    entry = next((each for each in entries if each.id == found.id), None)
    if entry is None:
        return None
    if entry.refund_id != refund_id:
        return Finding(
            verdict=Verdict.NO, evidence=f"it shows {found.id} without our metadata.refund_id"
        )
    if any(each.payment_intent != payment_intent for each in entries):
        return Finding(
            verdict=Verdict.NO,
            evidence="it holds refunds of other payments, or does not name their payments",
        )
    if not complete:
        return Finding(
            verdict=Verdict.NO, evidence="it could not be read to its stated end (has_more: false)"
        )
    return Finding(
        verdict=Verdict.YES, evidence=f"it shows {found.id} with metadata.refund_id {refund_id}"
    )


def is_guarded(outcome: Outcome) -> bool:
    """Return whether a request was refused because its key was used for another request."""
    return outcome.verdict is TryVerdict.MISMATCH or (
        outcome.http_status == HTTPStatus.CONFLICT and "idempoten" in outcome.code.lower()
    )


def other_bytes(other: Outcome, found: ProviderRefund) -> Finding:
    """Judge the outcome of other bytes under a used key."""
    if is_guarded(other):
        return Finding(
            verdict=Verdict.YES, evidence=f"refused with {other.code} (HTTP {other.http_status})"
        )
    if other.found is not None and other.found.id != found.id:
        return Finding(verdict=Verdict.NO, evidence=f"they made another refund, {other.found.id}")
    if other.found is not None or other.code == "contradictory_reply":
        text = "they were answered with the first refund: the provider ignored the difference"
        return Finding(verdict=Verdict.NO, evidence=text)
    return Finding(verdict=Verdict.UNCLEAR, evidence=words(other))


def key(
    again: Outcome, other: Outcome, found: ProviderRefund, *, rose: int | None, count: int | None
) -> Finding:
    """Judge whether a key makes one refund at most.

    By ids, the change of the total since, and the list's entries.
    """
    seen = [] if rose is None else [f"the total moved by {rose} after the first"]
    seen += [] if count is None else [f"the list shows {count} under our id"]
    counted = "".join(f"; {each}" for each in seen)
    if again.found is None:
        return Finding(
            verdict=Verdict.UNCLEAR, evidence=f"the same request again: {words(again)}{counted}"
        )
    if again.found.id != found.id:
        text = f"the same request gave {found.id}, then {again.found.id}{counted}"
        return Finding(verdict=Verdict.NO, evidence=text)
    if other.found is not None and other.found.id != found.id:
        text = (
            f"{found.id} came twice, but other bytes under the key gave {other.found.id}: bodies"
            " count, not keys"
        )
        return Finding(verdict=Verdict.NO, evidence=text)
    if (count is not None and count > 1) or (rose is not None and rose > 0):
        return Finding(
            verdict=Verdict.NO,
            evidence=f"{found.id} came twice, and yet money moved twice{counted}",
        )
    if count == 1 or rose == 0:
        return Finding(verdict=Verdict.YES, evidence=f"{found.id} came both times{counted}")
    text = (
        f"{found.id} came both times, but neither a total nor a list shows that it moved"
        f" once{counted}"
    )
    return Finding(verdict=Verdict.UNCLEAR, evidence=text)


def is_no_answer(outcome: Outcome) -> bool:
    """Return whether an outcome shows nothing about keys.

    The provider was unavailable, failing or too busy.
    """
    return (
        outcome.server_error
        or outcome.code == "no_reply"
        or outcome.verdict in {TryVerdict.NOT_SENT, TryVerdict.NOT_DONE}
    )


def words(outcome: Outcome) -> str:
    """Return an outcome in a few words."""
    status = "" if outcome.http_status is None else f"HTTP {outcome.http_status}, "
    return (
        f"{status}{outcome.code}: {outcome.message}"
        if outcome.message
        else f"{status}{outcome.code}"
    )


def problem(outcome: Outcome) -> Problem:
    """Return why a probe ends after a test refund whose answer cannot be judged."""
    if outcome.credentials:
        return Problem(sort="key", text=f"the key is refused ({words(outcome)})")
    if outcome.verdict in {TryVerdict.REFUSED, TryVerdict.MISMATCH}:
        return Problem(
            sort="refused", text=f"the provider refuses the test refund ({words(outcome)})"
        )
    if outcome.verdict is TryVerdict.NOT_SENT:
        return Problem(sort="away", text=f"the provider is unavailable: {outcome.message}")
    if outcome.verdict is TryVerdict.NOT_DONE:
        return Problem(
            sort="away", text=f"the provider does not accept the test refund now ({words(outcome)})"
        )
    return Problem(sort="away", text=f"the outcome of a test refund is unknown ({words(outcome)})")
