"""Planted bugs of what a server that forgot claims is told by."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Final

from tests.simulation.bugs.planting import Bug, rescript

_BOTH: Final = ("CLAIM", "POSITION")


def marks_not_compared(stack: ExitStack) -> None:
    """A server whose counter has caught up is trusted, whatever it had counted."""
    rescript(stack, _BOTH, "return place == int(counter) and kept ~= mark", "return false")


def stop_ends_when_caught_up(stack: ExitStack) -> None:
    """Stopped workers claim again once a worker finds that the server is not behind."""
    rescript(
        stack,
        _BOTH,
        "if not is_behind(remembered) then return false end",
        "if not is_behind(remembered) then redis.call('HDEL', P .. 'meta', 'behind_since')"
        " return false end",
    )


def claim_asks_nothing(stack: ExitStack) -> None:
    """Positions are compared every few seconds, and not by the claim itself."""
    rescript(stack, ("CLAIM",), "stop_if_behind(remembered)", "")


def own_server_trusted(stack: ExitStack) -> None:
    """Only the worker that remembers more sends nothing, and the others go on."""
    rescript(stack, _BOTH, "redis.call('HSETNX', P .. 'meta', 'behind_since', int(NOW))", "")


OF_FORGETTING: Final[tuple[Bug, ...]] = (
    marks_not_compared,
    stop_ends_when_caught_up,
    claim_asks_nothing,
    own_server_trusted,
)
