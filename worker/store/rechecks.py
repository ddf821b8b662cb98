"""The atomic operations for rechecks: a refund is read again outside its own schedule.

Commands that a store runs. Webhooks and the watch of settled refunds cause rechecks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Literal

from worker.model.hints import Hint
from worker.model.refund import Lane, Stage
from worker.rules.rechecks import WAITS
from worker.store.scripts import Argument, Command, Script
from worker.store.sweeps import Due

MOST_CANDIDATES: Final = 3
"""Maximum provider refunds that webhooks may name for one generation of a refund.

Each is read before the refund is sent. So a stolen webhook secret cannot hold it back for ever.
"""
REST: Final = timedelta(seconds=30)
"""Least time between two reads of one refund because of webhooks."""
MOST_OF_PAYMENT: Final = 200
"""Maximum refunds of one payment that a webhook without our refund id is compared with."""
MOST_QUEUED: Final = 5000
"""Waiting rechecks from which the watch adds no more."""
FAILED_RUNGS: Final = 2
"""Rungs, from the shortest, on which failed refunds are read again too."""

HINT: Final = Script("hint")
RECHECKED: Final = Script("rechecked")
WATCH: Final = Script("watch")
EVERY: Final = (HINT, RECHECKED, WATCH)

_ms = timedelta(milliseconds=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Hinted:
    """What a webhook concerned, and the refunds that are due because of it.

    `hinted` if the refund is known, `payment` if only its payment is, else `unknown`. `left_out`
    are refunds for which the named one is not read, because too many were named before.
    """

    result: Literal["hinted", "payment", "unknown"]
    due: tuple[Due, ...] = ()
    left_out: tuple[str, ...] = ()


def hint(hint: Hint, *, is_kept: bool = False) -> Command[Hinted]:
    """Note the provider's refund that a webhook named, and make ours due to be read again.

    Durable, because the provider does not send an event again that was answered with 200. With
    `is_kept` it is read before each send from then on, like that of an earlier generation.
    """

    def read(reply: Any) -> Hinted:
        rows = reply[3:]
        due = tuple(
            Due(refund_id=rows[i], lane=Lane(rows[i + 1]), stage=Stage(rows[i + 2]))
            for i in range(0, len(rows), 3)
        )
        return Hinted(result=reply[0], due=due, left_out=tuple(reply[2].split()))

    arguments: list[Argument] = [
        hint.provider_refund_id or "",
        hint.refund_id or "",
        hint.payment_intent or "",
        MOST_CANDIDATES,
        REST // _ms,
        MOST_OF_PAYMENT,
        hint.status or "",
        *(["1"] if is_kept else []),
    ]
    return Command(script=HINT, arguments=arguments, read=read)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rechecked:
    """What follows a recheck: `done`, `again` after `wait`, or `given_up`."""

    result: Literal["done", "again", "given_up"]
    wait: timedelta


def rechecked(
    refund_id: str,
    *,
    answered: bool,
    recheck: str = "",
    read: Iterable[str] = (),
    possible: str | None = None,
    again: Iterable[str] = (),
) -> Command[Rechecked]:
    """End a recheck, or schedule the next one if it was not `answered`.

    `recheck` is as loaded. The candidates in `read` are not read again. `possible` is one of them
    that agrees with the refund and carries no id of ours. Those in `again` moved nothing so far:
    they are read again if an event says otherwise.
    """
    arguments: list[Argument] = [
        refund_id,
        "done" if answered else "again",
        recheck,
        " ".join(read),
        possible or "",
        " ".join(again),
        *(wait // _ms for wait in WAITS),
    ]
    # If a crash undoes it, the refund is read once more.
    return Command(
        script=RECHECKED,
        arguments=arguments,
        read=lambda reply: Rechecked(result=reply[0], wait=int(reply[1]) * _ms),
        durable=False,
    )


def watch(rungs: Sequence[timedelta], *, rate: float, most: int) -> Command[int]:
    """Let settled refunds be read again, each once a rung; return how many were added.

    `rungs` are ascending times since settling. All workers together add at most `rate` a second,
    and one call at most `most`.
    """
    arguments: list[Argument] = [rate, most, MOST_QUEUED, FAILED_RUNGS]
    arguments += [rung // _ms for rung in rungs]
    return Command(script=WATCH, arguments=arguments, read=int, durable=False)
