"""Whether `refunds reconcile` finds what was planted, and what memory it takes.

Refunds are settled by a worker at the sandbox, and the rest of a season is written into both books
as it stands a day later. Differences of each class are planted among the settled ones. The command
is given as a person gives it: once, once more with `--look`, and again after the worker has read
what differed. Its memory is measured on a million rows.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Final

from ops.lab.bench.books import PLANTED, Planted, old_rows, plant, sandbox_rows, write
from ops.lab.bench.plan import Plan
from ops.lab.bench.rig import IN_FLIGHT, ROOT, Mode, Rig, WrongCountError
from ops.lab.bench.table import Row, number
from ops.lab.bench.watch import settle
from worker.model.refund import Lane
from worker.model.times import rfc3339
from worker.store.flags import now

MOST_MB: Final = 150
LEFT: Final = frozenset({"missing_here", "twice", "ambiguous"})
"""The classes that no read at the provider can settle."""
AGREE: Final = frozenset({"matched", "other_window"})
_DAY: Final = timedelta(days=1)
_STEP: Final = 10_000
_DIFFERS: Final = 4
_MATCHED: Final = 0


def reconcile(plan: Plan, _wanted: frozenset[str]) -> Iterator[Row]:
    """Yield what was found of a season's differences, and the memory of a long file."""
    yield from _season(plan)
    yield _memory(plan)


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What a run of the command left behind; `peak_mb` is the most memory that it held."""

    code: int
    facts: dict[str, Any]
    found: dict[str, set[str]]
    """By class the payments of its differences."""
    peak_mb: float
    seconds: float


def _run(rig: Rig, rows: Path, *options: str) -> Ran:
    target = rig.folder / "differences.csv"
    out = rig.folder / "reconcile.json"
    at = now(rig.refunds.store)
    window = ("--from", rfc3339(at - timedelta(days=3)), "--to", rfc3339(at + timedelta(days=2)))
    command = [
        *(sys.executable, "-m", "worker", "reconcile", str(rows), *window),
        *("--json", "--output", str(target), *options),
    ]
    with out.open("wb") as file, (rig.folder / "reconcile.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 - ours
            command, cwd=ROOT, env=rig.environment, stdout=file, stderr=log
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = code = os.waitstatus_to_exitcode(status)
    if code not in {_MATCHED, _DIFFERS}:
        raise WrongCountError(f"reconcile ended with {code}:\n{rig.said()}")
    found: dict[str, set[str]] = {}
    with target.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["class"], set()).add(row["payment_intent"])
    return Ran(
        code=code,
        facts=json.loads(out.read_text("utf-8")),
        found=found,
        peak_mb=used.ru_maxrss * 1024 / 1e6,
        seconds=used.ru_utime + used.ru_stime,
    )


def _season(plan: Plan) -> Iterator[Row]:
    mode = Mode(latency_ms=5, idempotency="trust", readback="list")
    with Rig(plan.cores, mode, concurrency=IN_FLIGHT, settings={"REFUNDS_WATCH": "off"}) as rig:
        _settle_all(rig, plan.reconciled)
        planted = plant(rig, plan.reconciled)
        older = plan.season - plan.reconciled
        settle(rig.refunds.store, older)
        old = old_rows(older, now(rig.refunds.store) - _DAY)
        rows = rig.folder / "export.csv"
        write(rows, chain(planted.in_the_file(sandbox_rows(rig.sandbox)), old))
        first = _run(rig, rows)
        _require(first, planted.classes, "the first run")
        _run(rig, rows, "--look")
        store: Any = rig.refunds.store.redis
        rig.until(lambda: not store.zcard("refunds:rechecks"), "what differed was read again")
        old = old_rows(older, now(rig.refunds.store) - _DAY)
        write(rows, chain(planted.in_the_books(sandbox_rows(rig.sandbox)), old))
        second = _run(rig, rows)
        left = {name: planted.classes[name] for name in (*LEFT, "other_window")}
        _require(second, left, "the run after the look")
    wanted = sum(len(payments) for payments in planted.classes.values())
    yield Row(
        figure="reconcile: differences found in their class",
        setting=(
            f"{plan.season:,} refunds, {plan.reconciled:,} of them settled by a worker;"
            f" {PLANTED} of each class, {Planted.foreign} foreign"
        ),
        measured=f"{sum(map(len, first.found.values()))} of {wanted}, no other",
        to_reach="all, no other",
        reached=first.found == planted.classes,
    )
    yield Row(
        figure="reconcile: left after a look",
        setting="the same",
        measured=", ".join(sorted(set(second.found) - AGREE)),
        to_reach=", ".join(sorted(LEFT)),
        reached=second.found == left,
    )


def _settle_all(rig: Rig, count: int) -> None:
    rig.fill(count, Lane.BULK, name="tour")
    rig.start_worker()
    # In steps, so that a long season is waited for as long as it makes progress.
    for step in range(_STEP, count + _STEP, _STEP):
        rig.until(partial(_reached, rig, min(step, count)), "the season is settled")
    rig.count(count)


def _reached(rig: Rig, count: int) -> bool:
    return rig.settled() >= count


def _require(ran: Ran, classes: dict[str, set[str]], name: str) -> None:
    """Raise `WrongCountError` unless exactly these differences were found, and the sums hold."""
    if ran.found != classes:
        wrong = {
            kind: f"{len(ran.found.get(kind, set()))} of {len(classes.get(kind, set()))}"
            for kind in sorted({*ran.found, *classes})
            if ran.found.get(kind) != classes.get(kind)
        }
        raise WrongCountError(f"{name} found other differences than were planted: {wrong}")
    if not all(balance["holds"] for balance in ran.facts["balance"]):
        raise WrongCountError(f"{name}: a balance does not hold: {ran.facts['balance']}")


def _memory(plan: Plan) -> Row:
    with Rig(plan.cores) as rig:
        store = rig.refunds.store
        settle(store, plan.reconciled_rows)
        rows = rig.folder / "long.csv"
        write(rows, old_rows(plan.reconciled_rows, now(store) - _DAY))
        ran = _run(rig, rows)
    if ran.code != _MATCHED or ran.facts["classes"] != {"matched": plan.reconciled_rows}:
        raise WrongCountError(f"a long file that agrees was found to differ: {ran.facts}")
    return Row(
        figure="reconcile: memory",
        setting=f"{plan.reconciled_rows:,} rows, {number(ran.seconds)} s of processor",
        measured=f"{number(ran.peak_mb)} MB",
        to_reach=f"under {MOST_MB} MB",
        reached=ran.peak_mb < MOST_MB,
    )
