"""Rules for contradictions: the provider shows a refund, and the record says otherwise.

Such a proof changes no final status, because somebody may have acted on that status. The proof is
stored, and a person decides. Pure functions, as in `attempts`.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from worker.errors import FieldError, GuardRefused, InvalidRequest
from worker.model.refund import Refund, Retriable, Stage, Status
from worker.model.request import shown
from worker.model.steps import Step
from worker.rules.proofs import NO_WORD, to_review


def contradicted(refund: Refund, proof: Step, now: datetime) -> Step | None:
    """Return the step that stores a proof which contradicts the record.

    Returns None if the proof is stored already or is not new. `proof` is the step that
    `proofs.done` returned for the proof.
    """
    identity = proof.changes.get("provider_refund_id")
    if identity is None or identity in {refund.contradicted_by, refund.provider_refund_id}:
        return None
    if proof.status in {Status.FAILED, Status.CANCELED}:
        # It moved no money.
        return None
    if identity in refund.ids_reported:
        return None
    changes: dict[str, Any] = {"contradicted_by": identity}
    if refund.contradicted_by is not None:
        # A further one. The first is kept, or each recheck would replace one by the other.
        changes = {"set_aside_ids": _joined(refund.ids_set_aside, identity)}
    if refund.stage is not Stage.SETTLED:
        alarm = (
            f"the provider shows {identity} for it, beside {_known(refund)}: money may move twice"
        )
        if refund.operator_says in {"absent", "failed"}:
            # A person who decided that it did not happen has not named the refund that counts.
            changes |= NO_WORD
        return to_review(
            {**changes, "doubt_since": refund.doubt_since or now}, "contradicted", alarm
        )
    alarm = f"it is recorded as {refund.status}, but the provider shows {identity} for it"
    if refund.status is Status.SUCCEEDED:
        alarm = (
            f"the provider shows {identity} for it beside {_known(refund)}: money may have moved"
            " twice"
        )
    else:
        # A retry would move the money once more.
        changes["retriable"] = Retriable.NO
    return Step(
        to=Stage.SETTLED,
        status=refund.status,
        label="contradicted",
        changes=changes,
        alarm=alarm,
        source=proof.source,
    )


def _known(refund: Refund) -> str:
    return refund.provider_refund_id or f"the refund that generation {refund.generation} may make"


def ended(refund: Refund, provider_refund_id: str, now: datetime, by: str) -> Step:
    """Return the step by which a person resolves a contradiction.

    The named refund of the provider is this one.

    A settled refund that did not succeed is read by that id, and settles as the provider shows it.
    Raises `InvalidRequest` if the id is not one of those that contradict each other.
    """
    known = {refund.contradicted_by, *refund.ids_set_aside}
    if refund.status is Status.SUCCEEDED:
        known.add(refund.provider_refund_id)
    names = sorted(name for name in known if name is not None)
    if provider_refund_id not in names:
        rule = f"must be {' or '.join(names)}, which the provider shows for this refund"
        value = shown(provider_refund_id)
        raise InvalidRequest(
            [
                FieldError(
                    field="provider_refund_id", code="provider_refund_id", value=value, rule=rule
                )
            ]
        )
    if provider_refund_id == refund.provider_refund_id:
        return Step(
            to=Stage.SETTLED,
            status=refund.status,
            label="operator_says_succeeded",
            changes={**set_aside(refund, provider_refund_id), "contradicted_by": None},
            source="operator",
            by=by,
        )
    changes = {
        "provider_refund_id": provider_refund_id,
        "processing_since": now,
        "operator_says": "succeeded",
        "operator_by": by,
        **set_aside(refund, provider_refund_id),
    }
    return Step(
        to=Stage.PROCESSING,
        status=Status.PENDING,
        label="operator_says_succeeded",
        changes=changes,
        delay=timedelta(0),
        source="operator",
        by=by,
    )


def set_aside(refund: Refund, named: str) -> dict[str, Any]:
    """Return the changes that keep what the provider shows beside the refund that a person named.

    The record forgets its own refund, or the one that contradicts it, and a retry must not move
    the money once more beside that.
    """
    if refund.contradicted_by is None:
        return {}
    own = refund.provider_refund_id
    changes: dict[str, Any] = {}
    others = [*refund.ids_set_aside]
    if own is not None and refund.status in {Status.FAILED, Status.CANCELED}:
        # Its own moved nothing. Like that of an earlier generation it is read before a retry.
        changes["prior_refund_ids"] = refund.prior_ids_with(own)
    elif own is not None:
        others.append(own)
    others.append(refund.contradicted_by)
    joined = _joined(each for each in others if each != named)
    if joined or refund.set_aside_ids is not None:
        changes["set_aside_ids"] = joined
    if named in refund.ids_set_aside:
        # It is one of several that contradict the record, and the one that is read.
        changes["contradicted_by"] = named
    return changes


def own_kept(refund: Refund, *unread: str) -> dict[str, Any]:
    """Return the change that keeps the refund that the provider reported.

    A record forgets it once a person names another one, or has it sent again although it cannot be
    read. If the person names the same one, the record forgets it if that is not confirmed. It may
    move money yet. So it is read again, and before anything is sent, like that of an earlier
    generation. One that is gone cannot be read. `unread` are others that are kept like it.
    """
    own = refund.provider_refund_id
    is_gone = refund.error_code == "refund_missing"
    if own is None or is_gone or refund.contradicted_by is not None:
        kept = unread
    else:
        kept = (own, *unread)
    return kept_as_earlier(refund, *kept)


def kept_as_earlier(refund: Refund, *names: str) -> dict[str, Any]:
    """Return the change by which these are read before a send, as if of an earlier generation."""
    return {"prior_refund_ids": refund.prior_ids_with(*names)} if names else {}


def _joined(known: Iterable[str], *more: str) -> str | None:
    return " ".join(dict.fromkeys((*known, *more))) or None


def possible_decisions(refund: Refund) -> tuple[str, ...]:
    """Return what a person may decide about a refund in review or one that is contradicted."""
    if refund.contradicted_by is not None:
        return ("succeeded",)
    if refund.set_aside_ids is not None:
        # The other one that the provider showed may have moved the money.
        return ("succeeded", "failed")
    return ("succeeded", "failed", "resend")


def forbid_other_ends(refund: Refund) -> None:
    """Raise `GuardRefused` if the provider shows this refund.

    Such a refund can neither be given up nor sent again.
    """
    if "failed" not in possible_decisions(refund):
        raise GuardRefused(
            f"the provider shows {refund.contradicted_by} for refund {refund.refund_id}, so it can"
            " neither be failed nor sent again: name the provider's refund that counts with"
            " --succeeded"
        )


def forbid_resend(refund: Refund) -> None:
    """Raise `GuardRefused` if the provider showed another refund that a person set aside."""
    if "resend" not in possible_decisions(refund):
        raise GuardRefused(
            f"the provider also showed {' and '.join(refund.ids_set_aside)} for refund"
            f" {refund.refund_id}, which may have moved the money, so it cannot be sent again: name"
            " the provider's refund that counts with --succeeded, or end it with --failed"
        )
