"""One sentence on what happens to a refund next, if no person does anything."""

from __future__ import annotations

from typing import Final

from worker.model.refund import Refund, Retriable, Stage, Status
from worker.wording.values import moment

_SENDS: Final = frozenset({Stage.QUEUED, Stage.WAITING})
_VERIFIED: Final = frozenset({Stage.WAITING, Stage.IN_DOUBT, Stage.PROCESSING})
"""The stages in which a worker verifies what a person decided."""


def next_of(refund: Refund, *, paused: bool, batch_state: str | None, stopped: bool = False) -> str:
    """Return what happens next; `paused` is whether a person paused everything.

    `stopped`: something else stops all sending, such as an API key that is refused.
    """
    if refund.settled:
        return _settled(refund)
    if refund.stage is Stage.REVIEW:
        return _reviewed(refund)
    if refund.operator_says == "failed":
        # It is read and then ended, whatever holds sends back.
        return _moving(refund)
    if refund.stage in _SENDS and batch_state == "canceled":
        if refund.is_only_said_absent:
            return "It goes to review unsent, because its batch was canceled."
        return "It is canceled unsent, because its batch was canceled."
    if refund.stage in _SENDS and paused:
        return "It is sent once everything is resumed: sending is paused now."
    if refund.stage in _SENDS and stopped:
        return "It waits: nothing is sent now, and the overview says why."
    if refund.stage in _SENDS and batch_state == "paused":
        return "It is sent once its batch is resumed: the batch is paused now."
    return _moving(refund)


def _reviewed(refund: Refund) -> str:
    if not refund.may_have_happened:
        return "Nothing, until a person decides."
    return "Nothing, until a person decides: the worker cannot find out whether the money moved."


def _settled(refund: Refund) -> str:
    if refund.contradicted_by is not None:
        return "Nothing, until a person decides: the provider shows otherwise than this record."
    if refund.status is Status.SUCCEEDED:
        return (
            "Nothing: the money moved. The customer's bank decides when it shows the money, often"
            " some days later. If the provider reverses it later, this becomes failed."
        )
    if refund.set_aside_ids is not None:
        named = " and ".join(refund.ids_set_aside)
        return (
            f"Nothing: it is {refund.status}, but the provider also showed {named} for it, which"
            " may have moved the money. Its dashboard shows that, and nothing is sent."
        )
    if refund.status is Status.CANCELED:
        # The provider may have canceled it, or an attempt before have been refused.
        was_sent = refund.attempts or refund.generation > 1 or refund.provider_refund_id
        how = ", and no money moved" if was_sent else " before anything was sent"
        return f"Nothing: it was canceled{how}."
    if refund.retry_may_be_lost:
        return (
            "Nothing: it failed, but a retry of it may have been lost when the server was restored,"
            " and may have moved the money. The provider's dashboard shows that, and nothing is"
            " sent."
        )
    if refund.reversed_at is not None:
        return (
            "Nothing: it had succeeded, and the provider reversed it;"
            f" {_again(refund)}. The customer does not have the money."
        )
    if refund.evidence == "operator":
        return "Nothing: a person decided that it failed, and nothing is sent."
    return f"Nothing: it failed, and no money moved; {_again(refund)}."


def _again(refund: Refund) -> str:
    match refund.retriable:
        case Retriable.YES:
            return "to send it again can help"
        case Retriable.NO:
            return "to send it again cannot help"
        case _:
            return "it is not known whether sending it again can help"


def _moving(refund: Refund) -> str:
    at = f"at {moment(refund.next_check_at)}" if refund.next_check_at else "soon"
    if refund.operator_says is not None and refund.stage in _VERIFIED:
        return _decided(refund, at)
    match refund.stage:
        case Stage.SENDING:
            return (
                "It is being sent now. If its worker stops, another one first finds out what"
                f" became of it, {at}."
            )
        case Stage.WAITING:
            return f"It is sent again {at}: the last attempt moved no money."
        case Stage.IN_DOUBT:
            return (
                f"It may have happened: a worker looks for it at the provider {at}, and sends it"
                " again only if that cannot move money twice."
            )
        case Stage.PROCESSING:
            if refund.provider_status == Status.SUCCEEDED:
                return (
                    "The provider had reported it as succeeded long before that was saved: a worker"
                    f" reads whether it still is {at}."
                )
            return f"The provider has it and has not finished: a worker reads it again {at}."
        case _:
            return "A worker sends it as soon as one is free."


def _decided(refund: Refund, at: str) -> str:
    """Return what follows a person's decision, until a worker has verified it."""
    by = refund.operator_by or "a person"
    if refund.operator_says == "succeeded":
        named = refund.provider_refund_id or "the provider's refund"
        return f"{by} decided that it is {named}: a worker reads that {at}, and nothing is sent."
    is_again = refund.operator_says == "absent"
    end = "is sent again" if is_again else "ends as failed"
    what = "to send it again" if is_again else "that it failed, so nothing is sent"
    open_end = f"{end} too" if refund.operator_unverified else "returns to review"
    return (
        f"{by} decided {what}: a worker first looks for it at the provider {at}. If it is not"
        f" there, it {end}; if nothing shows whether it is, it {open_end}."
    )
