"""How much of everything a run of the bench does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ops.lab.bench.machine import Cores
from ops.lab.bench.rig import Mode

TRUST: Final = (Mode(latency_ms=50, idempotency="trust"), Mode(latency_ms=200, idempotency="trust"))
LIST: Final = (Mode(latency_ms=50), Mode(latency_ms=200))
TOTALS: Final = (Mode(latency_ms=50, readback="totals"), Mode(latency_ms=200, readback="totals"))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Counts and rounds; a smaller plan gives the same table with less to trust in it."""

    cores: Cores
    rounds: int
    modes: Sequence[Mode]
    bulk: int
    single: int
    idle: int
    file_rows: int
    accepted: int
    handed_in: int
    held: int
    on_payment: int
    watched: int
    reconciled: int
    season: int
    reconciled_rows: int
    posted: int
    posted_held: int
    uploaded: int
    limited: int
    backlogs: Sequence[int]
    backlog_window: int
    shown: int
    beside: int
    beside_files: int
    beside_in_flight: int


def usual(cores: Cores, rounds: int) -> Plan:
    """Return the plan whose table `ops/docs/results.md` carries: about half an hour."""
    return Plan(
        cores=cores,
        rounds=rounds,
        modes=(*TRUST, *LIST, *TOTALS),
        bulk=6_000,
        single=3_000,
        idle=300,
        file_rows=40_000,
        accepted=100_000,
        handed_in=8_000,
        held=50_000,
        on_payment=4_000,
        watched=1_000_000,
        reconciled=3_000,
        season=100_000,
        reconciled_rows=1_000_000,
        posted=8_000,
        posted_held=100_000,
        uploaded=1_000_000,
        limited=4_500,
        backlogs=(1_000, 100_000),
        backlog_window=6_000,
        shown=1_000_000,
        beside=3_000,
        beside_files=6_000,
        beside_in_flight=128,
    )


def full(cores: Cores, rounds: int) -> Plan:
    """Return the plan with the sizes of the promise.

    A file of 100,000 rows, 200,000 refunds, a million queued.
    """
    small = usual(cores, rounds)
    return Plan(
        cores=cores,
        rounds=rounds,
        modes=small.modes,
        bulk=10_000,
        single=5_000,
        idle=500,
        file_rows=100_000,
        accepted=200_000,
        handed_in=20_000,
        held=200_000,
        on_payment=10_000,
        watched=1_000_000,
        reconciled=100_000,
        season=100_000,
        reconciled_rows=1_000_000,
        posted=8_000,
        posted_held=100_000,
        uploaded=1_000_000,
        limited=9_000,
        backlogs=(1_000, 100_000, 1_000_000),
        backlog_window=10_000,
        shown=1_000_000,
        beside=5_000,
        beside_files=10_000,
        beside_in_flight=128,
    )


def quick(cores: Cores) -> Plan:
    """Return the plan that only shows that all of it works, inside a minute."""
    return Plan(
        cores=cores,
        rounds=1,
        modes=(Mode(latency_ms=50),),
        bulk=600,
        single=200,
        idle=12,
        file_rows=400,
        accepted=1_000,
        handed_in=800,
        held=1_000,
        on_payment=400,
        watched=8_000,
        reconciled=250,
        season=1_000,
        reconciled_rows=2_000,
        posted=300,
        posted_held=600,
        uploaded=1_000,
        limited=450,
        backlogs=(300, 2_000),
        backlog_window=500,
        shown=5_000,
        beside=160,
        beside_files=320,
        beside_in_flight=16,
    )
