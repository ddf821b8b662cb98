"""The commands of the rate gate: all workers' schedule of calls to the provider."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from worker.model.refund import Lane
from worker.store import scripts
from worker.store.scripts import Command

_ms = timedelta(milliseconds=1)
_us = timedelta(microseconds=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Permits:
    """Reserved send times per lane from now, and the delay until it is useful to request more."""

    moments: Sequence[tuple[Lane, timedelta]]
    wait: timedelta


def permits(
    wanted: Mapping[Lane, int], *, rate: float, ahead: timedelta, bulk_share: float
) -> Command[Permits]:
    """Reserve up to `wanted` send times in all workers' schedule, at most `ahead` in advance."""

    def read(reply: Any) -> Permits:
        moments = [(Lane(reply[i]), int(reply[i + 1]) * _us) for i in range(1, len(reply), 2)]
        return Permits(moments=moments, wait=int(reply[0]) * _ms)

    arguments = [
        rate,
        ahead // _ms,
        wanted.get(Lane.SINGLE, 0),
        wanted.get(Lane.BULK, 0),
        bulk_share,
    ]
    # These are send times within the next fraction of a second, and a crash lasts longer.
    return Command(script=scripts.GATE, arguments=arguments, read=read, durable=False)


def block_gate(wait: timedelta) -> Command[timedelta]:
    """Close the rate gate for all workers, as a 429 demands.

    Afterwards the rate is lower for a while.
    """
    # If a crash undoes this, it costs one more 429.
    return Command(
        script=scripts.BLOCK_GATE,
        arguments=[wait // _ms],
        read=lambda reply: int(reply) * _ms,
        durable=False,
    )
