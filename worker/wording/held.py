"""Why a batch is held back, and the commands that continue it."""

from __future__ import annotations

from worker.batches import Batch
from worker.model.refund import Retriable
from worker.rules import codes
from worker.wording.values import moment


def pauses_itself(batch: Batch) -> bool:
    """Return whether a batch has paused itself: many refunds in a row failed with one code."""
    return batch.state == "paused" and batch.paused_reason is not None


def paused(batch: Batch) -> str:
    """Return why a paused batch is paused, since when, and what to do."""
    since = f"since {moment(batch.paused_at)} " if batch.paused_at else ""
    if batch.paused_reason is None:
        return (
            f"{since}by {batch.paused_by or 'a person'}: resume it with 'refunds batch resume"
            f" {batch.batch_id}'"
        )
    return (
        f"{since}automatically, because many refunds in a row failed with {batch.paused_reason}:"
        f" fix the cause, then 'refunds batch resume {batch.batch_id}' sends the rest, and"
        f" {_again(batch.batch_id, batch.paused_reason)}"
    )


def _again(batch_id: str, code: str) -> str:
    """Return how the refunds that failed with a code are sent again."""
    match codes.retriable(code):
        case Retriable.YES:
            return f"'refunds batch retry {batch_id}' sends the failed ones again"
        case Retriable.UNKNOWN:
            return f"'refunds batch retry {batch_id} --unknown' sends the failed ones again"
        case Retriable.NO:
            return "the failed ones need new refund ids, since sending them again cannot help"
