"""Reads and changes what the records hold about callback endpoints: pauses, waiting, dead letters.

The endpoints themselves are in `REFUNDS_CALLBACKS_FILE`; see `lua/outbox.lua` for the keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from worker.model.times import from_ms, to_ms
from worker.store import callbacks, meta
from worker.store.connection import redis_errors
from worker.store.store import SETTLED, Store

UNSERVED: Final = timedelta(hours=1)
"""How long no worker must have served an endpoint before it may be forgotten."""
_FLAG: Final = "callbacks"
_LOG_PAGE: Final = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class EndpointState:
    """What the records hold about one endpoint."""

    name: str
    served_at: datetime | None
    """When a worker that has the endpoint last looked for what is due."""
    waiting: int
    """Refunds and batches that the endpoint does not hold in their present version."""
    waiting_since: datetime | None
    """Since when the oldest of them has been waiting."""
    dead: int
    paused_at: datetime | None
    paused_by: str | None
    failures: int
    """Failed tries in a row."""
    failing_since: datetime | None
    delivered_at: datetime | None
    """When a callback last arrived."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CallbackState:
    """Whether callbacks are on, what is not shared out yet, and every endpoint known here."""

    on_since: datetime | None
    on_by: str | None
    unshared: int
    unshared_since: datetime | None
    endpoints: tuple[EndpointState, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class DeadLetter:
    """A refund or batch that is not sent to an endpoint any more; `last` is its last try."""

    member: str
    died_at: datetime
    last: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class RefundCallback:
    """An endpoint that does not hold a refund in its present version; None: not shared out yet."""

    name: str | None
    waiting_since: datetime | None = None
    tries: int = 0
    died_at: datetime | None = None


def of_refund(store: Store, refund_id: str) -> list[RefundCallback]:
    """Return what is still to be sent for a refund, and what is not sent any more, by endpoint.

    Raises `StoreUnavailable`.
    """
    with redis_errors(store.address), store.redis.pipeline(transaction=False) as pipeline:
        pipeline.zscore(store.key("callbacks"), refund_id)
        pipeline.zrange(store.key("callback-endpoints"), 0, -1)
        unshared, served = pipeline.execute()
    names = sorted(served)
    with redis_errors(store.address), store.redis.pipeline(transaction=False) as pipeline:
        for name in names:
            pipeline.zscore(store.key(f"callback-since:{name}"), refund_id)
            pipeline.zscore(store.key(f"callback-dead:{name}"), refund_id)
            pipeline.hget(store.key(f"callback-tries:{name}"), refund_id)
        replies: Any = pipeline.execute() if names else []
    found = [] if unshared is None else [RefundCallback(name=None)]
    for name, start in zip(names, range(0, len(replies), 3), strict=True):
        since, died, tries = replies[start : start + 3]
        if since is not None or died is not None:
            found.append(
                RefundCallback(
                    name=name,
                    waiting_since=None if since is None else from_ms(int(since)),
                    tries=_tries_in(tries),
                    died_at=None if died is None else from_ms(int(died)),
                )
            )
    return found


def _tries_in(text: str | None) -> int:
    """Return the failed tries that a field of `callback-tries` counts; the first of its words."""
    first = (text or "").partition(" ")[0]
    return int(first) if first.isdigit() else 0


def read_callbacks(store: Store, names: Iterable[str] = ()) -> CallbackState:
    """Read the state of these endpoints, and of all that workers have served.

    Raises `StoreUnavailable`.
    """
    with redis_errors(store.address), store.redis.pipeline(transaction=False) as pipeline:
        pipeline.hmget(store.key("meta"), _FLAG, f"{_FLAG}_by")
        pipeline.zcard(store.key("callbacks"))
        pipeline.zrange(store.key("callbacks"), 0, 0, withscores=True)
        pipeline.zrange(store.key("callback-endpoints"), 0, -1, withscores=True)
        switch, unshared, first, served = pipeline.execute()
    seen = {name: from_ms(int(score)) for name, score in served}
    every = list(dict.fromkeys((*names, *seen)))
    with redis_errors(store.address), store.redis.pipeline(transaction=False) as pipeline:
        for name in every:
            pipeline.zcard(store.key(f"callbacks:{name}"))
            pipeline.zrange(store.key(f"callback-since:{name}"), 0, 0, withscores=True)
            pipeline.zcard(store.key(f"callback-dead:{name}"))
            pipeline.hgetall(store.key(f"callback-endpoint:{name}"))
        replies: Any = pipeline.execute() if every else []
    return CallbackState(
        on_since=_time(switch[0]),
        on_by=switch[1],
        unshared=unshared,
        unshared_since=_first(first),
        endpoints=tuple(
            _endpoint(name, seen.get(name), *replies[start : start + 4])
            for name, start in zip(every, range(0, len(replies), 4), strict=True)
        ),
    )


def _endpoint(
    name: str,
    served_at: datetime | None,
    waiting: int,
    first: Any,
    dead: int,
    stored: Mapping[str, str],
) -> EndpointState:
    return EndpointState(
        name=name,
        served_at=served_at,
        waiting=waiting,
        waiting_since=_first(first),
        dead=dead,
        paused_at=_time(stored.get("paused_at")),
        paused_by=stored.get("paused_by"),
        failures=int(stored.get("failures", 0)),
        failing_since=_time(stored.get("failing_since")),
        delivered_at=_time(stored.get("delivered_at")),
    )


def _time(text: str | None) -> datetime | None:
    return from_ms(int(text)) if text and text.isdigit() else None


def _first(rows: Sequence[tuple[str, float]]) -> datetime | None:
    return from_ms(int(rows[0][1])) if rows else None


def turn_on(store: Store, by: str) -> bool:
    """Let endpoints learn of refunds from now on; return whether that changed anything.

    Raises `NotDurable`, `StoreUnavailable`.
    """
    changed = store.run(meta.flag(_FLAG, once=True, by=by))
    store.confirm()
    return changed


def turn_off(store: Store) -> bool:
    """Note nothing more for endpoints; return whether that changed anything.

    What was noted before is still sent. Raises `NotDurable`, `StoreUnavailable`.
    """
    with redis_errors(store.address):
        changed: Any = store.redis.hdel(store.key("meta"), _FLAG, f"{_FLAG}_by")
    store.confirm()
    return bool(changed)


def pause(store: Store, name: str, by: str) -> bool:
    """Send nothing more to an endpoint; return whether that changed anything."""
    fields = {"paused_at": str(to_ms(store.time())), "paused_by": by}
    changed = store.run(meta.once(f"callback-endpoint:{name}", fields))
    store.confirm()
    return changed


def resume(store: Store, name: str) -> bool:
    """Send to an endpoint again, as if it had never failed; return whether it was paused."""
    key = store.key(f"callback-endpoint:{name}")
    circuit = ("failures", "failing_since", "probe", "probes", "probe_at")
    with redis_errors(store.address), store.redis.pipeline(transaction=False) as pipeline:
        pipeline.hdel(key, "paused_at")
        pipeline.hdel(key, "paused_by", *circuit)
        changed, _ = pipeline.execute()
    store.confirm()
    return bool(changed)


def forget(store: Store, name: str) -> bool:
    """Delete all that the records hold about an endpoint; return whether that changed anything.

    If a worker still serves the endpoint, its next callback starts a new state. Raises
    `NotDurable`, `StoreUnavailable`.
    """
    kinds = ("callbacks", *(f"callback-{each}" for each in ("since", "tries", "dead", "log")))
    keys = [store.key(f"{kind}:{name}") for kind in (*kinds, "callback-endpoint")]
    with redis_errors(store.address), store.redis.pipeline(transaction=True) as pipeline:
        pipeline.delete(*keys)
        pipeline.zrem(store.key("callback-endpoints"), name)
        deleted, removed = pipeline.execute()
    store.confirm()
    return bool(deleted or removed)


def dead_letters(store: Store, name: str) -> list[DeadLetter]:
    """Return the dead letters of an endpoint, oldest first, each with its last logged try."""
    with redis_errors(store.address):
        rows: Any = store.redis.zrange(store.key(f"callback-dead:{name}"), 0, -1, withscores=True)
    wanted = {member for member, _ in rows}
    last: dict[str, Mapping[str, str]] = {}
    for fields in _tries(store, name) if wanted else ():
        if fields.get("member") in wanted:
            last.setdefault(fields["member"], fields)
        if len(last) == len(wanted):
            break
    return [
        DeadLetter(member=member, died_at=from_ms(int(score)), last=last.get(member, {}))
        for member, score in rows
    ]


def _tries(store: Store, name: str) -> Iterator[Mapping[str, str]]:
    """Yield the logged tries of an endpoint, latest first."""
    end = "+"
    while True:
        with redis_errors(store.address):
            page: Any = store.redis.xrevrange(
                store.key(f"callback-log:{name}"), max=end, count=_LOG_PAGE
            )
        yield from (fields for _, fields in page)
        if len(page) < _LOG_PAGE:
            return
        end = f"({page[-1][0]}"


def replay(store: Store, name: str, members: Iterable[str], *, only_dead: bool = False) -> int:
    """Make members due for an endpoint again; return how many. Raises `StoreUnavailable`."""
    count, page = 0, []
    for member in members:
        page.append(member)
        if len(page) == callbacks.REPLAYED:
            count += store.run(callbacks.replay(name, page, only_dead=only_dead))
            page = []
    if page:
        count += store.run(callbacks.replay(name, page, only_dead=only_dead))
    return count


def ended_since(store: Store, since: datetime) -> Iterator[str]:
    """Yield the refunds that settled since then, and those that need review now, page by page."""
    begins = {f"index:{index}": to_ms(since) for index in sorted(SETTLED)} | {"index:review": 0}
    for name, first in begins.items():
        for _, refund_id in store.members_of(name, newest_first=False, after=(first, "")):
            yield refund_id
