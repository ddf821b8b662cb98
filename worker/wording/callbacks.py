"""Words for what an endpoint does not know of a refund yet."""

from __future__ import annotations

from worker.model.words import counted
from worker.store.callback_state import RefundCallback
from worker.wording.values import moment


def callback_in_words(each: RefundCallback) -> str:
    """Return a sentence about one endpoint that does not hold the refund's present version."""
    if each.name is None:
        return "It will be handed to the endpoints in a moment."
    if each.died_at is not None:
        return f"{each.name}: given up on {moment(each.died_at)}."
    tried = f", after {counted(each.tries, 'failed try', 'failed tries')}" if each.tries else ""
    return f"{each.name}: waiting since {moment(each.waiting_since)}{tried}."
