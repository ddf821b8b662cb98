"""The state machine of refunds: every allowed move between stages, and the reason for it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from worker.errors import IllegalMove
from worker.model.refund import Stage

TRANSITIONS: Final[Mapping[Stage, Mapping[Stage, str]]] = MappingProxyType(
    {
        Stage.QUEUED: {
            Stage.SENDING: "claimed",
            Stage.SETTLED: (
                "canceled by the caller, refused unsent by a guard, or the provider shows it done"
            ),
            Stage.PROCESSING: "the provider shows it pending: an earlier claim or attempt sent it",
            Stage.IN_DOUBT: (
                "the server was restored, or the first read-back finds a possible match"
            ),
            Stage.REVIEW: "not sent, since it is unconfirmed or a proof contradicts it",
        },
        Stage.SENDING: {
            Stage.SETTLED: "done, or refused and never in doubt",
            Stage.PROCESSING: "the provider reports it pending, or a late proof",
            Stage.WAITING: "provably not done",
            Stage.IN_DOUBT: "it may have happened, or the lease lapsed",
            Stage.REVIEW: "nothing may be read back or sent again",
        },
        Stage.WAITING: {
            Stage.SENDING: "claimed again",
            Stage.SETTLED: "budget spent, canceled by the caller, or a late proof",
            Stage.PROCESSING: "a late proof: the provider reports it pending, or it must be reread",
            Stage.IN_DOUBT: (
                "the server was restored, or the first read-back finds a possible match"
            ),
            Stage.REVIEW: "not sent, since it is unconfirmed or a proof contradicts it",
        },
        Stage.IN_DOUBT: {
            Stage.SETTLED: "found, final; or absent, in a canceled batch or given up by a person",
            Stage.PROCESSING: "found, pending, or a late proof",
            Stage.SENDING: "proven absent, or a safe replay",
            Stage.IN_DOUBT: "absent in the first of two read-backs",
            Stage.REVIEW: "cannot be decided",
        },
        Stage.PROCESSING: {
            Stage.SETTLED: "the provider reports it final",
            Stage.PROCESSING: "a late proof replaces the refund that a person named",
            Stage.REVIEW: "gone, contradictory, or pending for too long",
        },
        Stage.REVIEW: {
            Stage.PROCESSING: "a person names the provider's refund, or a late proof",
            Stage.IN_DOUBT: "a person says it never happened, to be verified",
            Stage.SETTLED: "a person fails a refund that was never in doubt, or a late proof",
            Stage.WAITING: "a person sends a refund again that was never in doubt",
            Stage.REVIEW: "a proof contradicts the record, or the server was restored",
        },
        Stage.SETTLED: {
            Stage.SETTLED: "changed by the provider, identified, or contradicted by a proof",
            Stage.PROCESSING: (
                "a person names the provider's refund that contradicts it, to be verified"
            ),
            Stage.QUEUED: "an explicit retry of a failed refund: a new generation",
        },
    }
)
"""All allowed moves. An illegal move raises `IllegalMove` and changes nothing."""


def check_move(refund_id: str, source: Stage, target: Stage) -> None:
    """Raise `IllegalMove` unless the move is in `TRANSITIONS`."""
    if target not in TRANSITIONS[source]:
        raise IllegalMove(refund_id, source, target)


def sources_of(target: Stage) -> tuple[Stage, ...]:
    """Return the stages from which a refund may move to `target`."""
    return tuple(source for source, targets in TRANSITIONS.items() if target in targets)
