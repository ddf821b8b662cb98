"""Classifies the provider's answers, as parsed by `payloads`.

The classification is an allow-list: if an answer is not listed here, the refund may have happened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from http import HTTPStatus
from types import MappingProxyType
from typing import Final

from worker.model.answers import (
    Answer,
    NoReply,
    NotSent,
    Outcome,
    ProviderError,
    ProviderRefund,
    Reply,
    TryVerdict,
)
from worker.model.refund import Refund, Status
from worker.model.request import shown
from worker.rules.codes import is_of_one_payment
from worker.rules.payloads import LONGEST_TEXT, STATUSES

FINAL_STATUSES: Final = MappingProxyType(
    {"succeeded": Status.SUCCEEDED, "failed": Status.FAILED, "canceled": Status.CANCELED}
)
REFUSALS: Final = frozenset({400, 402, 403, 404, 422})
_OF_THE_KEY: Final = "idempoten"


def contradiction(found: ProviderRefund, refund: Refund) -> str | None:
    """Return the name of the first present field that contradicts our refund, None if all agree.

    An absent field contradicts nothing, because the provider documents each field as optional. That
    is safe only if something else ties the refund to ours. A reply came on the connection of our
    own request. A list entry has our id in its metadata. A poll shows the id that was requested.
    Also, one provider refund belongs to only one record.
    """
    asked = refund.asked_amount
    if is_elsewhere(found, refund):
        return "payment_intent"
    if found.amount is not None and (
        found.amount <= 0 or (asked is not None and found.amount != asked)
    ):
        return "amount"
    if (
        found.currency is not None
        and refund.currency is not None
        and found.currency != refund.currency
    ):
        return "currency"
    if found.refund_id is not None and found.refund_id != refund.refund_id:
        return "metadata.refund_id"
    if (
        found.generation is not None
        and found.generation != str(refund.generation)
        and found.id not in refund.prior_ids
        and not (found.id == refund.provider_refund_id and is_later(found, refund))
    ):
        return "metadata.refund_generation"
    return None


def is_elsewhere(found: ProviderRefund, refund: Refund) -> bool:
    """Return whether a provider's refund is of another payment than ours."""
    return found.payment_intent not in {None, refund.payment_intent}


def is_anothers(found: ProviderRefund, refund: Refund) -> bool:
    """Return whether a provider's refund is of another payment, or carries another refund's id."""
    return is_elsewhere(found, refund) or found.refund_id not in {None, refund.refund_id}


def is_not_ours(found: ProviderRefund, refund: Refund, owner: str | None) -> bool:
    """Return whether a provider's refund that was named for ours says nothing of it.

    It is another's. Or it carries no refund's id, and another record has it, or none has it and it
    differs from ours. `owner` is the refund whose record has it: our own was proven to be ours, and
    stays that whatever it shows later.
    """
    if owner == refund.refund_id:
        return False
    if is_anothers(found, refund):
        return True
    is_unknown = found.refund_id is None
    return is_unknown and (owner is not None or contradiction(found, refund) is not None)


def is_later(found: ProviderRefund, refund: Refund) -> bool:
    """Return whether a provider's refund of ours is of a later generation than the record.

    A record that a restored server lost had sent it. A person may have named it as the one that
    counts.
    """
    generation = found.generation or ""
    return (
        found.refund_id == refund.refund_id
        and generation.isdigit()
        and int(generation) > refund.generation
    )


def says_nothing(found: ProviderRefund, refund: Refund) -> bool:
    """Return whether a provider's refund of ours moved nothing, and says nothing of the record.

    It is known already, or the provider has reported another one, which counts. An id that a person
    named does not count before it is read. A later generation shows that a later record was lost.
    """
    is_beside = (
        refund.provider_refund_id not in {None, found.id}
        and refund.operator_says != "succeeded"
        and not is_later(found, refund)
    )
    return moved_nothing(found) and (is_beside or found.id in refund.prior_ids)


def moved_nothing(found: ProviderRefund) -> bool:
    """Return whether the provider shows a refund as failed or canceled."""
    return FINAL_STATUSES.get(found.status or "") in {Status.FAILED, Status.CANCELED}


def classify(answer: Answer, refund: Refund) -> Outcome:
    """Return what one try proves about the refund.

    An answer that is not listed here means it may have happened.
    """
    if isinstance(answer, NotSent):
        return Outcome(verdict=TryVerdict.NOT_SENT, code="not_sent", message=answer.reason)
    if isinstance(answer, NoReply):
        return _maybe("no_reply", answer.reason)
    status = answer.http_status
    if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        return _classify_success(answer, refund)
    error = answer.payload.error if answer.payload is not None else None
    message = error.message if error is not None else None
    code = _name_of(error, status)
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return Outcome(
            verdict=TryVerdict.NOT_DONE,
            code=code if is_of_one_payment(code) else "rate_limited",
            message=message,
            http_status=status,
            retry_after=answer.retry_after,
        )
    if status == HTTPStatus.UNAUTHORIZED:
        return Outcome(
            verdict=TryVerdict.NOT_DONE,
            code="credentials_refused",
            message=message,
            http_status=status,
            credentials=True,
        )
    if status in REFUSALS and error is not None:
        if _is_of_the_key(error):
            return Outcome(
                verdict=TryVerdict.MISMATCH,
                code="idempotency_error",
                message=message or code,
                http_status=status,
            )
        return Outcome(
            verdict=TryVerdict.REFUSED,
            code=code,
            message=message,
            http_status=status,
            credentials=status == HTTPStatus.FORBIDDEN,
        )
    # Everything else, 408, 409 and 5xx among it, whatever the error says: it may have happened.
    return replace(
        _maybe(code, message),
        http_status=status,
        server_error=status >= HTTPStatus.INTERNAL_SERVER_ERROR,
        retry_after=answer.retry_after,
    )


def _name_of(error: ProviderError | None, http_status: int) -> str:
    """Return the name of an error: its code, else its type, else the HTTP status."""
    return (error and (error.code or error.kind)) or f"http_{http_status}"


def _is_of_the_key(error: ProviderError) -> bool:
    """Return whether an error is about the idempotency key.

    It was used before, so something may have happened.
    """
    return any(
        _OF_THE_KEY in (word or "").lower() for word in (error.kind, error.code, error.message)
    )


def _maybe(code: str, message: str | None) -> Outcome:
    return Outcome(verdict=TryVerdict.MAYBE, code=code, message=message, doubt=True)


def owned_elsewhere(outcome: Outcome, owner: str) -> Outcome:
    """Return a success as a doubt, because its refund belongs to another record, `owner`."""
    identity = outcome.found.id if outcome.found is not None else "?"
    doubt = _maybe("owned_elsewhere", f"the reply's refund {identity} belongs to refund {owner}")
    return replace(doubt, http_status=outcome.http_status, tries=outcome.tries)


def _classify_success(answer: Reply, refund: Refund) -> Outcome:
    payload = answer.payload
    found = payload.refund if payload is not None else None
    if payload is None or found is None:
        error = payload.error if payload is not None else None
        detail = ": ".join(
            word for word in ((error.code, error.message) if error is not None else ()) if word
        )
        message = "the provider reported success without a refund" + (
            f": {detail}" if detail else ""
        )
        return replace(
            _maybe("unreadable_success", message[:LONGEST_TEXT]), http_status=answer.http_status
        )
    wrong = "object" if payload.kind not in {None, "refund"} else contradiction(found, refund)
    if wrong is None and found.status is None:
        wrong = "status"
    if wrong is not None:
        # Nothing else may show it to the person who decides.
        message = f"the reply shows {found.id}, whose {wrong} does not belong to this refund"
        may_be_ours = payload.kind in {None, "refund"} and not is_anothers(found, refund)
        return replace(
            _maybe("contradictory_reply", message[:LONGEST_TEXT]),
            http_status=answer.http_status,
            odd=found.id if may_be_ours else None,
            is_unnamed=may_be_ours and found.refund_id is None and wrong != "status",
        )
    if found.status not in STATUSES:
        return replace(
            _maybe("unknown_status", odd_status(found)), http_status=answer.http_status, found=found
        )
    return Outcome(
        verdict=TryVerdict.DONE, code="done", http_status=answer.http_status, found=found
    )


def odd_status(found: ProviderRefund) -> str:
    """Return a sentence, for a person, about a provider's refund with an unknown status."""
    return f"the provider shows an unknown status: {shown(found.status)}"


def key_refused(outcome: Outcome) -> Outcome:
    """Return a 403 as a refusal of the API key, after a harmless GET was refused too.

    Such a refusal concerns every refund.
    """
    return replace(
        outcome, verdict=TryVerdict.NOT_DONE, code="credentials_refused", credentials=True
    )


def key_accepted(outcome: Outcome) -> Outcome:
    """Return a 403 as a refusal of this refund alone, after a harmless GET was answered."""
    return replace(outcome, credentials=False)


_STRENGTH: Final = {seen: rank for rank, seen in enumerate(TryVerdict)}


def fold(outcomes: Sequence[Outcome]) -> Outcome:
    """Return an attempt's outcome: its strongest try (the latest of equals).

    A doubt remains, whatever follows it.
    """
    if len(outcomes) == 1 and not outcomes[0].server_error:
        # Most attempts need one try.
        only_unsent = outcomes[0].verdict is TryVerdict.NOT_SENT
        return replace(outcomes[0], only_server_errors=True) if only_unsent else outcomes[0]
    strongest = max(enumerate(outcomes), key=lambda pair: (_STRENGTH[pair[1].verdict], pair[0]))[1]
    # A try that was never sent has no answer, so it does not interrupt consecutive 5xx answers.
    answered = [outcome for outcome in outcomes if outcome.verdict is not TryVerdict.NOT_SENT]
    errors = 0
    for outcome in reversed(answered):
        if not outcome.server_error:
            break
        errors += 1
    return replace(
        strongest,
        doubt=any(outcome.doubt for outcome in outcomes),
        odd=next((outcome.odd for outcome in outcomes if outcome.odd is not None), None),
        is_unnamed=any(outcome.is_unnamed for outcome in outcomes),
        credentials=any(outcome.credentials for outcome in outcomes),
        tries=len(outcomes),
        server_errors=errors,
        only_server_errors=errors == len(answered),
    )
