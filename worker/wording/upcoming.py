"""One sentence on what happens to a refund next, if no person does anything."""

from __future__ import annotations

from typing import Final

from worker.model.refund import Refund, Retriable, Stage, Status
from worker.wording.values import moment

_SENDS: Final = frozenset({Stage.QUEUED, Stage.WAITING})


def next_of(refund: Refund, *, paused: bool, batch_state: str | None) -> str:
    """Return what happens next; `paused` is whether everything is."""
    if refund.settled:
        return _settled(refund)
    if refund.stage is Stage.REVIEW:
        return (
            "Nothing, until a person decides: the worker cannot find out whether the money moved."
        )
    if refund.stage in _SENDS and batch_state == "canceled":
        return "It is canceled unsent, because its batch was canceled."
    if refund.stage in _SENDS and paused:
        return "It is sent once everything is resumed: sending is paused now."
    if refund.stage in _SENDS and batch_state == "paused":
        return "It is sent once its batch is resumed: the batch is paused now."
    return _moving(refund)


def _settled(refund: Refund) -> str:
    if refund.contradicted_by is not None:
        return "Nothing, until a person decides: the provider shows otherwise than this record."
    if refund.status is Status.SUCCEEDED:
        return "Nothing: the money moved. If the provider reverses it later, this becomes failed."
    if refund.status is Status.CANCELED:
        return "Nothing: it was canceled before anything was sent."
    match refund.retriable:
        case Retriable.YES:
            again = "to send it again can help"
        case Retriable.NO:
            again = "to send it again cannot help"
        case _:
            again = "it is not known whether sending it again can help"
    return f"Nothing: it failed, and no money moved; {again}."


def _moving(refund: Refund) -> str:
    at = f"at {moment(refund.next_check_at)}" if refund.next_check_at else "soon"
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
            return f"The provider has it and has not finished: a worker reads it again {at}."
        case _:
            return "A worker sends it as soon as one is free."
