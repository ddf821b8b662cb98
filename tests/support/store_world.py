"""A set of records with a clock of its own, the everyday operations in one word each, and what must
always hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import redis

from tests.factories import BLIND, MAYBE, NOT_DONE, NOW, VERIFY, a_request, done_as
from worker.model.answers import Outcome
from worker.model.currencies import KNOWN
from worker.model.refund import Lane, Refund, Stage
from worker.model.request import RefundRequest
from worker.model.steps import Step
from worker.model.times import from_ms, to_ms
from worker.rules import attempts, transitions
from worker.rules.attempts import Rules
from worker.store import claims, creations, reads, saves, sweeps
from worker.store.claims import Claim, ClaimKind
from worker.store.creations import Created
from worker.store.records import Moves, decode
from worker.store.saves import Saved
from worker.store.store import Store
from worker.store.sweeps import Due

LEASE = timedelta(seconds=45)
ID = "order-1001-1"
P = "refunds:"

Dump = dict[str, tuple[bool, Any]]
"""By key: whether it expires, and what it holds."""


class World:
    """Records behind a blocking store; `now` is the time that every script sees."""

    def __init__(self, client: redis.Redis, *, retention: timedelta = timedelta(days=400)) -> None:
        self.redis = client
        self.store = Store(client, durable=False, retention=retention)
        self.store.now = NOW
        self._tokens = 0

    @property
    def now(self) -> datetime:
        assert self.store.now is not None
        return self.store.now

    def pass_time(self, span: timedelta) -> None:
        self.store.now = self.now + span

    # Operations

    def accept(
        self,
        request: RefundRequest | str = ID,
        *,
        lane: Lane = Lane.SINGLE,
        batch: str | None = None,
        **fields: Any,
    ) -> Created:
        request = a_request(request, **fields) if isinstance(request, str) else request
        return self.store.run(creations.create(request, lane, batch))

    def claim(self, refund_id: str = ID, kind: ClaimKind = "send", **options: Any) -> Claim:
        self._tokens += 1
        usual: dict[str, Any] = {
            "token": f"token-{self._tokens}",
            "lease": LEASE,
            "replay_window": timedelta(hours=23),
        }
        loaded = self.store.run(reads.load(refund_id))
        # As a worker does that has just read the payment.
        if kind == "send":
            usual["seq"] = loaded.seq
        if loaded.refund is not None and loaded.refund.asked_currency is not None:
            usual["currency_checked"] = True
        if loaded.refund is not None and loaded.refund.prior_ids:
            usual["prior_read_at"] = loaded.now
        return self.store.run(claims.claim(refund_id, kind, **(usual | options)))

    def save(self, refund: Refund, step: Step, detail: Mapping[str, Any] | None = None) -> Saved:
        return self.store.run(saves.save(refund, step, detail))

    def attempt(
        self, outcome: Outcome, refund_id: str = ID, rules: Rules = VERIFY, **options: Any
    ) -> Refund:
        """Claim, let the attempt end in `outcome`, save what the rules say, and return the
        record.
        """
        claim = self.claim(refund_id, **options)
        assert claim.claimed, claim.result
        self.end(claim, outcome, rules)
        return self.get(refund_id)

    def end(self, claim: Claim, outcome: Outcome, rules: Rules = VERIFY) -> Saved:
        """Save what the rules say of an outcome for the record as it was claimed."""
        assert claim.refund is not None
        return self.save(
            claim.refund, attempts.after_attempt(claim.refund, outcome, rules, self.now, 0)
        )

    def lapse(self, refund_id: str = ID, rules: Rules = VERIFY) -> Refund:
        """Let a claim's lease run out and save what the rules say."""
        refund = self.get(refund_id)
        assert refund.next_check_at is not None
        self.store.now = max(self.now, refund.next_check_at)
        assert self.save(refund, attempts.after_lapse(refund, rules, self.now, 0)).result == "saved"
        return self.get(refund_id)

    def sweep(self, limit: int = 100, *, dry: frozenset[Lane] = frozenset()) -> tuple[Due, ...]:
        return self.store.run(sweeps.sweep(limit, dry=dry))

    def swept(self, limit: int = 100, *, dry: frozenset[Lane] = frozenset()) -> list[str]:
        return [due.refund_id for due in self.sweep(limit, dry=dry)]

    # Sight

    def get(self, refund_id: str = ID) -> Refund:
        refund = self.store.get(refund_id)
        assert refund is not None
        return refund

    def hash(self, name: str) -> dict[str, str]:
        stored: dict[str, str] = self.redis.hgetall(P + name)  # type: ignore[assignment]
        return stored

    def score(self, name: str, member: str) -> datetime | None:
        score: Any = self.redis.zscore(P + name, member)
        return None if score is None else from_ms(int(score))

    def indexes_of(self, refund_id: str) -> list[str]:
        """The names of all indexes in which a refund stands, `due` among them."""
        names = ["due", *(key.removeprefix(P) for key in self.keys("index:*"))]
        return sorted(name for name in names if self.score(name, refund_id) is not None)

    def keys(self, pattern: str = "*") -> list[str]:
        keys: Any = self.redis.keys(P + pattern)
        return sorted(keys)

    def expires(self, name: str) -> bool:
        left: Any = self.redis.pttl(P + name)
        assert left != -2, f"{name} does not exist"
        return int(left) > 0

    def dump(self) -> Dump:
        """Everything there is, by key, but for the time itself: comparable with `==`."""
        keys = [key for key in self.keys() if key != f"{P}clock"]
        with self.redis.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.type(key)
                pipeline.pttl(key)
            replies: Any = pipeline.execute()
            for key, kind in zip(keys, replies[::2], strict=True):
                match kind:
                    case "hash":
                        pipeline.hgetall(key)
                    case "zset":
                        pipeline.zrange(key, 0, -1, withscores=True)
                    case "list":
                        pipeline.lrange(key, 0, -1)
                    case "stream":
                        pipeline.xrange(key)
                    case _:
                        pipeline.get(key)
            values: Any = pipeline.execute()
        return {
            key.removeprefix(P): (left > 0, value)
            for key, left, value in zip(keys, replies[1::2], values, strict=True)
        }

    def restore(self, dump: Dump) -> None:
        """Make everything as it was, as a server does that begins from an old snapshot."""
        for key in self.keys():
            self.redis.delete(key)
        for name, (expires, value) in dump.items():
            _write(self.redis, P + name, value)
            if expires:
                self.redis.pexpire(P + name, self.store.retention_ms)

    # What must always hold

    def check(self) -> dict[str, Refund]:
        """Assert that records, indexes, history, events, counters, locks, bodies and expiries tell
        one story; return the records by id.
        """
        dump = self.dump()
        flat = {name: value for name, (_, value) in dump.items()}
        expiring = {name for name, (expires, _) in dump.items() if expires}
        refunds = {
            name.removeprefix("refund:"): decode(value)
            for name, value in flat.items()
            if name.startswith("refund:")
        }
        for refund_id, refund in refunds.items():
            assert refund.refund_id == refund_id
            _check_indexes(refund, flat)
            # Only a refund of which nothing was sent yet is held back on purpose.
            assert refund.stage is Stage.QUEUED or "held" not in flat[f"refund:{refund_id}"]
            _check_history(refund, Moves().read(flat[f"history:{refund_id}"]))
            # One that a person takes up again after it had settled has nothing to send, and cannot
            # be sent.
            if refund.contradicted_by is None:
                assert (f"body:{refund_id}" in flat) is not refund.settled
            assert {f"refund:{refund_id}" in expiring, f"history:{refund_id}" in expiring} == {
                refund.settled
            }
        for name, members in flat.items():
            if name == "due" or name.startswith("index:"):
                assert {member for member, _ in members} <= set(refunds), (
                    f"{name} holds what has no record"
                )
        _check_payments(refunds, flat, expiring)
        _check_counters(refunds, flat)
        moves = sum(refund.version for refund in refunds.values())
        assert len(flat.get("events", [])) == moves
        return refunds


def _write(client: redis.Redis, key: str, value: Any) -> None:
    match value:
        case str():
            client.set(key, value)
        case dict():
            client.hset(key, mapping=value)
        case [(str(), dict()), *_]:
            for entry, fields in value:
                client.xadd(key, fields, id=entry)
        case [(str(), float()), *_]:
            client.zadd(key, dict(value))
        case _:
            client.rpush(key, *value)


def only_time_moved(before: Dump, after: Dump) -> bool:
    """Tell whether two dumps differ in nothing but when, and why then, a refund is looked at
    again.
    """
    return _without_times(before) == _without_times(after)


_TIMING = frozenset({"next_check_at", "held"})


def _without_times(dump: Dump) -> Dump:
    kept: Dump = {}
    for name, (expires, value) in dump.items():
        if name.startswith("waiters:"):
            continue
        if name.startswith("refund:"):
            kept[name] = (
                expires,
                {field: text for field, text in value.items() if field not in _TIMING},
            )
        elif name == "due" or name.startswith("index:"):
            kept[name] = (expires, sorted(member for member, _ in value))
        else:
            kept[name] = (expires, value)
    return kept


def bucket_of(refund: Refund) -> str:
    """The one index in which a refund belongs."""
    if refund.settled:
        return refund.status.value
    if refund.stage is Stage.QUEUED and refund.lane is Lane.BULK:
        return "queued.bulk"
    return refund.stage.value


def _check_indexes(refund: Refund, flat: Mapping[str, Any]) -> None:
    standing = {
        name.removeprefix("index:"): score
        for name, members in flat.items()
        if name.startswith("index:")
        for member, score in members
        if member == refund.refund_id
    }
    assert list(standing) == [bucket_of(refund)], (
        f"{refund.refund_id} is {refund.stage} and stands in {standing}"
    )
    due = dict(flat.get("due", [])).get(refund.refund_id)
    if refund.settled:
        assert due is None
        assert refund.next_check_at is None
        assert standing[bucket_of(refund)] == to_ms(refund.updated_at)
    else:
        assert due == standing[bucket_of(refund)]
        assert refund.next_check_at is not None
        # A sweep holds a refund back in the index alone: the record says when it was due.
        assert to_ms(refund.next_check_at) <= due


def _check_history(refund: Refund, history: list[dict[str, Any]]) -> None:
    assert [entry["version"] for entry in history] == list(range(1, refund.version + 1))
    stage: str | None = None
    for entry in history:
        assert entry["from"] == stage
        if stage is not None:
            assert Stage(entry["to"]) in transitions.TRANSITIONS[Stage(stage)]
        stage = entry["to"]
    assert (stage, history[-1]["status"]) == (refund.stage.value, refund.status.value)
    assert history[0]["at"] == to_ms(refund.created_at)
    assert history[-1]["at"] == to_ms(refund.updated_at)
    assert sum(entry["to"] == "sending" for entry in history) == refund.attempts
    assert 1 + sum(entry["label"] == "retried" for entry in history) == refund.generation


def _check_payments(
    refunds: Mapping[str, Refund], flat: Mapping[str, Any], expiring: set[str]
) -> None:
    for payment in {refund.payment_intent for refund in refunds.values()}:
        stored = flat[f"payment:{payment}"]
        ours = [refund for refund in refunds.values() if refund.payment_intent == payment]
        # A person's decision or a recovery may put several in doubt, and the lock names one of
        # them.
        in_flight = {
            refund.refund_id for refund in ours if refund.stage in {Stage.SENDING, Stage.IN_DOUBT}
        }
        assert sum(refund.stage is Stage.SENDING for refund in ours) <= 1, (
            f"two refunds are being sent on {payment}"
        )
        beside = [member for member, _ in flat.get(f"doubts:{payment}", [])]
        assert {*beside, *([stored["lock"]] if "lock" in stored else [])} == in_flight
        assert len(beside) == max(0, len(in_flight) - 1)
        still_open = sum(not refund.settled for refund in ours)
        assert int(stored.get("open", 0)) == still_open
        assert (f"payment:{payment}" in expiring) is (still_open == 0)
        assert {name.removeprefix("refund:") for name in stored if name.startswith("refund:")} == {
            refund.refund_id for refund in ours
        }
        for refund in ours:
            # What a person only claims to be ours is owned once the provider has confirmed it.
            if refund.provider_refund_id is not None and refund.operator_says is None:
                assert stored[f"owner:{refund.provider_refund_id}"] == refund.refund_id
                assert flat[f"owner:{refund.provider_refund_id}"] == refund.refund_id
            for named in (
                refund.provider_refund_id,
                refund.contradicted_by,
                *refund.prior_ids,
                *refund.ids_set_aside,
            ):
                # An earlier refund of the provider is this record's for as long as the record is.
                if flat.get(f"owner:{named}") == refund.refund_id:
                    assert (f"owner:{named}" in expiring) is refund.settled, named
        assert {member for member, _ in flat.get(f"waiters:{payment}", [])} <= {
            refund.refund_id
            for refund in ours
            if refund.stage not in {Stage.SENDING, Stage.SETTLED}
        }


def _check_counters(refunds: Mapping[str, Refund], flat: Mapping[str, Any]) -> None:
    overall: Counter[str] = Counter()
    batches: dict[str, Counter[str]] = {}
    for refund in refunds.values():
        counts = batches.setdefault(refund.batch_id or "", Counter())
        counts[f"stage:{refund.stage}"] += 1
        counts[f"status:{refund.status}"] += 1
        if refund.settled:
            overall[f"settled:{refund.status}"] += 1
            if refund.amount is not None:
                currency = refund.currency or "unknown"
                currency = currency if currency in {*KNOWN, "unknown"} else "other"
                name = f"amount:{refund.status}:{currency}"
                overall[name] += refund.amount
                counts[name] += refund.amount
    assert _numbers(flat.get("counters", {}), "settled:", "amount:") == +overall
    for batch, counts in batches.items():
        if batch:
            assert _numbers(flat[f"batch:{batch}"], "stage:", "status:", "amount:") == +counts


def _numbers(stored: Mapping[str, str], *prefixes: str) -> Counter[str]:
    """The counters that are not zero; one below zero fails."""
    found = Counter(
        {name: int(value) for name, value in stored.items() if name.startswith(prefixes)}
    )
    assert all(value >= 0 for value in found.values())
    return +found


def at_stage(world: World, stage: Stage, refund_id: str = ID, **fields: Any) -> Refund:
    """A record brought to a stage by ordinary moves, without time passing."""
    world.accept(refund_id, **fields)
    ends = {
        Stage.WAITING: NOT_DONE,
        Stage.IN_DOUBT: MAYBE,
        Stage.PROCESSING: done_as("pending", id=f"re_{refund_id}"),
        Stage.SETTLED: done_as("succeeded", id=f"re_{refund_id}"),
    }
    if stage is Stage.QUEUED:
        return world.get(refund_id)
    if stage is Stage.SENDING:
        world.claim(refund_id)
    elif stage is Stage.REVIEW:
        world.attempt(MAYBE, refund_id, rules=BLIND)
    else:
        world.attempt(ends[stage], refund_id)
    refund = world.get(refund_id)
    assert refund.stage is stage
    return refund
