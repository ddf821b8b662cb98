"""What the watch of settled refunds costs: the server's memory and time, and a file's rate.

A great number of settled refunds is in the records. The server's memory is measured with as many
rechecks waiting as the watch ever adds. The rate of a file is measured with the watch off, on, on
and off, in turns on one installation: a machine that becomes slower meanwhile slows both alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, Final

from ops.lab.bench.plan import Plan
from ops.lab.bench.rig import IN_FLIGHT, Mode, Rig, Window, WrongCountError
from ops.lab.bench.table import Row, at_least, number, spread
from worker.model.refund import Lane
from worker.store import rechecks
from worker.store.flags import now
from worker.store.store import Store

MOST_MB: Final = 2.0
LEAST_RATE: Final = 0.97
RUNG: Final = timedelta(days=1)
OFF: Final = "off"
ON: Final = "1d"
_FIRST: Final = 10
_CHUNK: Final = 2_000
_MB: Final = 1_000_000


def watch(plan: Plan, _wanted: frozenset[str]) -> Iterator[Row]:
    """Yield what the watch costs the server, and what it leaves of a file's rate."""
    grown, cost, found, offs, ons = 0.0, 0.0, 0, [], []
    for round_ in range(plan.rounds):
        with Rig(plan.cores, Mode(), concurrency=IN_FLIGHT) as rig:
            _introduce(rig)
            settle(rig.refunds.store, plan.watched)
            if round_ == 0:
                grown, cost, found = _walked(rig.refunds.store)
            turns = (OFF, ON, ON, OFF) if round_ % 2 == 0 else (ON, OFF, OFF, ON)
            rows = plan.file_rows // 2
            windows = [_file(rig, rows, turn, str(place)) for place, turn in enumerate(turns)]
            _count(rig, _FIRST + len(turns) * (rows + rows // 4))
        offs.append(_together(windows, turns, OFF))
        ons.append(_together(windows, turns, ON))
    yield Row(
        figure="watch: memory of the server",
        setting=f"{plan.watched:,} settled, {found:,} rechecks waiting",
        measured=f"{number(grown)} MB more",
        to_reach=f"under {MOST_MB:g} MB",
        reached=grown < MOST_MB,
    )
    yield Row(
        figure="watch: the server's time a refund and rung",
        setting=f"{plan.watched:,} settled",
        measured=f"{number(cost)} µs",
    )
    rates = [on.rate / off.rate for on, off in zip(ons, offs, strict=True)]
    yield Row(
        figure="watch: refunds a second of a file",
        setting=f"{plan.watched:,} settled; {Mode().shown}, {IN_FLIGHT} in flight",
        measured=spread([window.rate for window in ons]),
        floor=spread([window.rate for window in offs]) + " without the watch",
        ratio=spread(rates),
        to_reach=f"at least {LEAST_RATE}",
        reached=at_least(rates, LEAST_RATE),
    )
    costs = [on.cpu_ms / off.cpu_ms for on, off in zip(ons, offs, strict=True)]
    yield Row(
        figure="watch: CPU a refund of a file",
        setting="the same",
        measured=spread([window.cpu_ms for window in ons], "ms"),
        floor=spread([window.cpu_ms for window in offs], "ms") + " without the watch",
        ratio=spread(costs),
    )


def _together(windows: Sequence[Window], turns: Sequence[str], wanted: str) -> Window:
    """Return the windows of the turns with the watch off, or of those with it on, as one."""
    parts = [window for window, turn in zip(windows, turns, strict=True) if turn == wanted]
    return Window(
        refunds=sum(part.refunds for part in parts),
        seconds=sum(part.seconds for part in parts),
        worker_cpu=sum(part.worker_cpu for part in parts),
        server_cpu=sum(part.server_cpu for part in parts),
        sandbox_cpu=sum(part.sandbox_cpu for part in parts),
    )


def _count(rig: Rig, expected: int) -> None:
    """Count the ledger: each refund that was handed in moved money once."""
    summary = rig.sandbox.summary()
    if summary["effects"] != expected or summary["repeated"] or rig.settled() != expected:
        ledger = {name: summary[name] for name in ("effects", "repeated")}
        raise WrongCountError(
            f"expected {expected} refunds; {rig.settled()} are settled, the ledger has {ledger}"
        )


def _introduce(rig: Rig) -> None:
    """Let a worker learn that the key is of the records' account.

    The provider does not know the refunds that are written next.
    """
    rig.fill(_FIRST, Lane.BULK, name="first")
    rig.start_worker()
    rig.until(lambda: rig.settled() >= _FIRST, "the first are settled")
    rig.stop()
    rig.workers.clear()


def settle(store: Store, count: int) -> None:
    """Write so many settled refunds as they stand a day later.

    Only what the watch and a recheck read: thousands of them settled in the same second.
    """
    client: Any = store.redis
    day_ago = int((now(store) - RUNG).timestamp() * 1000)
    for start in range(0, count, _CHUNK):
        with client.pipeline(transaction=False) as pipeline:
            scores = {}
            for one in range(start, min(start + _CHUNK, count)):
                fields = {
                    "refund_id": f"old-{one}",
                    "stage": "settled",
                    "status": "succeeded",
                    "payment_intent": f"pi_old{one}",
                    "provider_refund_id": f"re_old{one}",
                    "provider_status": "succeeded",
                    "amount": "500",
                    "currency": "usd",
                    "created_at": str(day_ago),
                    "updated_at": str(day_ago),
                    "version": "3",
                }
                pipeline.hset(store.key(f"refund:old-{one}"), mapping=fields)
                scores[f"old-{one}"] = day_ago - count + one
            pipeline.zadd(store.key("index:succeeded"), scores)
            pipeline.execute()


def _walked(store: Store) -> tuple[float, float, int]:
    """Walk until the watch adds no more.

    Return the memory that the server took for it in MB, its time in µs for each refund, and how
    many rechecks wait then. They are removed again.
    """
    client: Any = store.redis
    rung = int(RUNG.total_seconds() * 1000)
    first = int(client.zrange(store.key("index:succeeded"), 0, 0, withscores=True)[0][1])
    call = rechecks.watch([RUNG], rate=1e9, most=1_000)
    store.run(call)
    client.delete(store.key("rechecks"))
    client.hset(store.key("watch"), f"succeeded:{rung}", first - 1)
    before, used = _memory(client), _cpu(client)
    added = 0
    while some := store.run(call):
        added += some
    grown, cost = _memory(client) - before, _cpu(client) - used
    waiting = client.zcard(store.key("rechecks"))
    if waiting != added:
        raise WrongCountError(f"{added} rechecks were added, and {waiting} wait")
    client.delete(store.key("rechecks"))
    return grown / _MB, cost / added * 1e6, added


def _memory(client: Any) -> int:
    return int(client.info("memory")["used_memory"])


def _cpu(client: Any) -> float:
    facts = client.info("cpu")
    return float(facts["used_cpu_user"]) + float(facts["used_cpu_sys"])


def _file(rig: Rig, count: int, rungs: str, place: str) -> Window:
    """Measure a file with the watch off or on; the refunds watched are real ones, a day old."""
    rig.settings["REFUNDS_WATCH"] = rungs
    watched = "watched" + place
    confirmed = _confirmed(rig)
    done = rig.settled()
    # These are settled and moved a day back, so that the provider knows what the watch reads.
    rig.fill(count // 4, Lane.BULK, name=watched)
    rig.fill(count, Lane.BULK, name="file" + place)
    rig.rest()
    rig.start_worker()
    rig.until(lambda: rig.settled() >= done + count // 4, "the refunds to be watched are settled")
    _move_back(rig.refunds.store, watched, count // 4)
    window = rig.window(
        max(rig.settled(), done + count // 4 + count // 10), done + count // 4 + int(count * 0.95)
    )
    rig.until(lambda: rig.settled() >= done + count // 4 + count, "all are settled")
    if rungs != OFF:
        # Counted at a heartbeat. Without it the figure would show a watch that did nothing.
        rig.until(
            lambda: _confirmed(rig) > confirmed,
            "the watch has read refunds again",
        )
    rig.stop()
    rig.workers.clear()
    return window


def _confirmed(rig: Rig) -> int:
    """Return how many rechecks have confirmed a status."""
    store = rig.refunds.store
    client: Any = store.redis
    return int(client.hget(store.key("counters"), "recheck:confirmed") or 0)


def _move_back(store: Store, name: str, count: int) -> None:
    client: Any = store.redis
    rung = int(RUNG.total_seconds() * 1000)
    began = int(now(store).timestamp() * 1000) - rung
    # The provider knows only refunds that it has made, so the watch begins with these.
    client.hset(store.key("watch"), f"succeeded:{rung}", began - 1)
    client.zadd(
        store.key("index:succeeded"),
        {f"{name}-{one}-1": began + one for one in range(count)},
        xx=True,
    )
