"""Planted bugs about a server that forgot: what stops claims there, and what a recovery does."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from tests.simulation.bugs.planting import Bug, put, rescript
from worker.rules import decisions
from worker.store import recovery

if TYPE_CHECKING:
    from worker.store.store import Store

_BOTH: Final = ("CLAIM", "POSITION")


def marks_not_compared(stack: ExitStack) -> None:
    """A server whose counter has caught up is trusted, whatever it has counted."""
    rescript(stack, _BOTH, "return place == int(counter) and kept ~= mark", "return false")


def stop_ends_when_caught_up(stack: ExitStack) -> None:
    """Claims go on once a worker asks that remembers nothing the server lacks."""
    rescript(
        stack,
        _BOTH,
        "if not is_behind(remembered) then\n",
        "if not is_behind(remembered) then redis.call('HDEL', P .. 'meta', 'behind_since')"
        " flags = nil\n",
    )


def claim_asks_nothing(stack: ExitStack) -> None:
    """Positions are compared every few seconds, and not by the claim itself."""
    asks = "stop_if_behind(remembered)\n  local reason"
    rescript(stack, ("CLAIM",), asks, "local reason")


def stop_not_kept(stack: ExitStack) -> None:
    """Only the worker that asks learns that the server has forgotten, and the others go on."""
    rescript(stack, _BOTH, "redis.call('HSETNX', P .. 'meta', 'behind_since', int(NOW))", "")


def memory_outlives_recovery(stack: ExitStack) -> None:
    """A recovery ends the stop, and workers that remember a lost claim bring it back."""

    def trust(store: Store, _: int) -> None:
        with store.redis.pipeline(transaction=True) as pipeline:
            pipeline.hdel(store.key("meta"), "behind_since")
            pipeline.execute()

    put(stack, recovery, "_trust", trust)


def recovered_as_they_are(stack: ExitStack) -> None:
    """A recovery takes the records that are left for what has happened."""
    put(stack, decisions, "recovered", lambda *_: None)


def resubmitted_as_new(stack: ExitStack) -> None:
    """What is submitted again after a recovery is taken for a refund that was never sent."""
    rescript(
        stack, ("CREATE",), "if in_doubt then accept_in_doubt(", "if false then accept_in_doubt("
    )


OF_FORGETTING: Final[tuple[Bug, ...]] = (
    marks_not_compared,
    stop_ends_when_caught_up,
    claim_asks_nothing,
    stop_not_kept,
    memory_outlives_recovery,
    recovered_as_they_are,
    resubmitted_as_new,
)
