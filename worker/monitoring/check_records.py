"""Checks of the records: provider and account, what stops sending, workers, what needs a person."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from celery import Celery

from worker.batches import interrupted_imports
from worker.broker import queues as broker
from worker.model.refund import Lane, Refund, Stage
from worker.model.times import from_ms, rfc3339, to_ms
from worker.monitoring.check_settled import after_the_end
from worker.monitoring.checks import Check, Trouble, fail, lasting, ok, warn
from worker.settings import Settings
from worker.store import flags
from worker.store.connection import redis_errors
from worker.store.records import SCHEMA_VERSION
from worker.store.store import Store
from worker.wording.batches import command_to_continue, progress_of_import

FRESH: Final = timedelta(seconds=30)
"""Age of the oldest heartbeat that counts: a worker sends one every five seconds."""
LATE: Final = timedelta(minutes=2)
"""How late the sweep may be before the check warns."""
OLD: Final = timedelta(hours=1)
"""How long a refund may wait to be sent before the check warns."""
OLD_DOUBT: Final = timedelta(minutes=15)
LATEST_BATCHES: Final = 200
SAMPLE: Final = 25
"""Refunds read from each end of an index to find its oldest."""
_TO_BE_SENT: Final = ("queued", "queued.bulk", "sending", "waiting")
_REST: Final = frozenset({"succeeded", "failed", "canceled", "review"})


def under_way(settings: Settings, store: Store) -> Iterator[Check]:
    """Yield the checks that read the records; raises `StoreUnavailable`."""
    state, now = flags.read(store), flags.now(store)
    yield _pinned(settings, state)
    yield from _account(settings, state)
    if state.schema is not None:
        yield _schema(state.schema)
    yield from _held_back(store, state, now)
    counts = store.counts()
    moving = sum(count for name, count in counts.items() if name not in _REST)
    yield _workers(store, now, moving)
    yield from _late(store, now)
    doubt = (
        f"{counts['in_doubt']} in doubt, read back automatically"
        if counts["in_doubt"]
        else "none in doubt"
    )
    yield ok("refunds", f"{moving} in progress, {doubt}")
    yield from _old(settings, store, now)
    if counts["review"]:
        yield warn(
            "review", f"refunds that need a person: {counts['review']}", "refunds review list"
        )
    if contradicted := len(store.ids_contradicted()):
        text = f"records that contradict the provider: {contradicted}"
        yield warn("contradicted", text, "refunds review list")
    yield from _batches(store)
    yield from _interrupted(store, now)
    yield from after_the_end(settings, store, now)
    with redis_errors(store.address):
        rejected: Any = store.redis.llen(store.key("rejected"))
    if rejected:
        yield warn(
            "messages", f"invalid messages that were rejected: {rejected}", "refunds rejected list"
        )
    yield _webhooks(settings, store)


def _webhooks(settings: Settings, store: Store) -> Check:
    """Return whether webhooks are on. They are an offer, so without them nothing is wrong."""
    if known := flags.webhook_endpoints(store):
        return ok("webhooks", f"on: registered for {', '.join(known)}")
    if settings.webhook_keys:
        return ok("webhooks", "on: a secret is set, and no endpoint was registered from here")
    return ok(
        "webhooks",
        "off: with them, a refund in doubt that the provider does not list needs no person (see"
        " ops/docs/webhooks.md)",
    )


def _pinned(settings: Settings, state: flags.Switches) -> Check:
    if state.provider_host is None:
        return ok("records", "no worker has sent anything yet: they belong to no provider so far")
    if (state.provider_host, state.mode) == (settings.provider_host, settings.mode):
        return ok("records", f"belong to {state.provider_host} in {state.mode} mode")
    text = (
        f"belong to {state.provider_host} in {state.mode} mode, but the settings say"
        f" {settings.provider_host} in {settings.mode} mode"
    )
    return fail(
        "records",
        text,
        "use another REFUNDS_PREFIX or database, or set REFUNDS_API_URL back",
        Trouble.GUARD,
    )


def _account(settings: Settings, state: flags.Switches) -> Iterator[Check]:
    """Check that the key belongs to the account of the records."""
    if state.account_lost_at is not None:
        text = (
            f"nothing has been sent since {rfc3339(state.account_lost_at)}: the provider showed the"
            f" payment {state.account_lost_payment} before and no longer does, so the key may"
            " belong to another account"
        )
        fix = (
            "export REFUNDS_API_KEY=… of the records' own account and restart the workers, which"
            " then resume; if that payment is really gone: refunds resume --account"
        )
        yield fail("account", text, fix, Trouble.SETTINGS)
        return
    known = None if settings.api_key is None else state.knows(settings.api_key.get_secret_value())
    if known is None:
        return
    if known:
        yield ok("account", "this key is known to belong to the records' account")
        return
    text = (
        "the records do not know this key yet: a starting worker checks that it belongs to the same"
        " account"
    )
    yield warn("account", text, "refunds worker")


def _schema(found: str) -> Check:
    if found == SCHEMA_VERSION:
        return ok("schema", f"version {found}")
    text = f"the records have version {found}, and this program supports {SCHEMA_VERSION}"
    return fail(
        "schema",
        text,
        "run the version that wrote them: pip install refund-worker==…",
        Trouble.GUARD,
    )


def _held_back(store: Store, state: flags.Switches, now: datetime) -> Iterator[Check]:
    """Yield a check for each thing that stops refunds from being sent."""
    if state.paused_at is not None:
        who = f" by {state.paused_by}" if state.paused_by else ""
        yield warn(
            "pause",
            f"everything has been paused since {rfc3339(state.paused_at)}{who}",
            "refunds resume",
        )
    if state.behind_since is not None:
        text = (
            f"nothing has been sent since {rfc3339(state.behind_since)}: this Redis has forgotten"
            " claims that were confirmed, after a failover or from a snapshot"
        )
        # Noticed only by a claim, which may come hours later.
        fix = "refunds recover --since TIME, shortly before the failover or the snapshot"
        yield fail("positions", text, fix, Trouble.GUARD)
    if state.credentials_refused_at is not None:
        text = (
            f"the provider has refused the key since {rfc3339(state.credentials_refused_at)}: all"
            " refunds wait"
        )
        yield fail(
            "breaker", text, "export REFUNDS_API_KEY=… and restart the workers", Trouble.SETTINGS
        )
    with redis_errors(store.address), store.redis.pipeline(transaction=False) as pipeline:
        pipeline.zrange(store.key("outages"), to_ms(now - FRESH), "+inf", byscore=True)
        pipeline.hget(store.key("gate"), "blocked_until")
        pipeline.hget(store.key("meta"), "suspect_until")
        away, blocked, suspect = pipeline.execute()
    if away:
        text = (
            f"the provider does not answer {', '.join(sorted(away))}: they send nothing and retry"
            " from time to time"
        )
        yield warn(
            "outage",
            text,
            "none needed, it ends by itself; refunds pause, to send nothing until you resume",
        )
    if blocked is not None and float(blocked) > to_ms(now):
        text = (
            f"the provider asked all workers to wait until {rfc3339(from_ms(int(float(blocked))))}"
        )
        yield warn(
            "rate",
            text,
            "export REFUNDS_RATE_LIMIT=N, a little below its limit, and restart the workers",
        )
    if suspect is not None and int(suspect) > to_ms(now):
        until = rfc3339(from_ms(int(suspect)))
        text = (
            f"restored from a snapshot: until {until} each new refund is read back before it is"
            " sent"
        )
        yield warn(
            "recovery",
            text,
            "none needed, it ends by itself; refunds review list shows what needs a person",
        )


def _workers(store: Store, now: datetime, moving: int) -> Check:
    with redis_errors(store.address):
        beats: Any = store.redis.zrange(store.key("workers"), 0, -1, withscores=True)
    fresh = [name for name, beat in beats if to_ms(now) - beat < FRESH // timedelta(milliseconds=1)]
    if fresh:
        return ok("workers", f"{len(fresh)} running: {', '.join(sorted(fresh))}")
    waiting = f", and refunds wait: {moving}" if moving else ""
    return warn("workers", f"none seen in the last {FRESH.seconds} s{waiting}", "refunds worker")


def _late(store: Store, now: datetime) -> Iterator[Check]:
    with redis_errors(store.address):
        first: Any = store.redis.zrange(store.key("due"), 0, 0, withscores=True)
    lag = timedelta(milliseconds=to_ms(now) - first[0][1]) if first else timedelta(0)
    if lag > LATE:
        text = f"the most overdue refund has been due for {lasting(lag.total_seconds())}"
        yield warn("sweep", text, "refunds worker, or see the workers' logs")


def _old(settings: Settings, store: Store, now: datetime) -> Iterator[Check]:
    """Report the oldest refunds. Of an index longer than the sample, both ends are read."""
    waiting = min(_sampled(store, _TO_BE_SENT), key=lambda refund: refund.created_at, default=None)
    if waiting is not None:
        age = now - waiting.created_at
        sentence = (
            f"the oldest refund to send, {waiting.refund_id}, was accepted"
            f" {lasting(age.total_seconds())} ago"
        )
        fix = f"refunds status {waiting.refund_id} --history"
        yield (
            warn("oldest", f"{sentence} and is {waiting.stage}", fix)
            if age > OLD
            else ok("oldest", sentence)
        )
    doubted = [
        refund for refund in _sampled(store, ("in_doubt",)) if refund.stage is Stage.IN_DOUBT
    ]
    oldest = min(doubted, key=_doubted_at, default=None)
    if oldest is None:
        return
    lasted = now - _doubted_at(oldest)
    # The two read-backs that prove absence are a settle time apart.
    if lasted > max(OLD_DOUBT, 3 * settings.rules.settle):
        text = f"{oldest.refund_id} has been in doubt for {lasting(lasted.total_seconds())}"
        yield warn("doubt", text, f"refunds status {oldest.refund_id} --history")


def _doubted_at(refund: Refund) -> datetime:
    return refund.doubt_since or refund.updated_at


def _sampled(store: Store, buckets: Sequence[str]) -> list[Refund]:
    with redis_errors(store.address), store.redis.pipeline(transaction=False) as pipeline:
        for bucket in buckets:
            pipeline.zrange(store.key(f"index:{bucket}"), 0, SAMPLE - 1)
            pipeline.zrange(store.key(f"index:{bucket}"), 0, SAMPLE - 1, desc=True)
        ids = dict.fromkeys(refund_id for page in pipeline.execute() for refund_id in page)
    return [refund for refund in store.get_many([*ids]) if refund is not None]


def _batches(store: Store) -> Iterator[Check]:
    """Report the latest batches that are paused, first those that paused themselves."""
    with redis_errors(store.address):
        names: Any = store.redis.zrange(store.key("batches"), 0, LATEST_BATCHES - 1, desc=True)
        with store.redis.pipeline(transaction=False) as pipeline:
            for name in names:
                pipeline.hmget(store.key(f"batch:{name}"), "state", "paused_reason")
            states = pipeline.execute()
    paused = [
        (name, reason)
        for name, (state, reason) in zip(names, states, strict=True)
        if state == "paused"
    ]
    for name, reason in paused:
        if reason is not None:
            text = f"{name} paused itself: its refunds kept failing with {reason}"
            yield warn(f"batch {name}", text, f"fix the cause, then refunds batch resume {name}")
    by_hand = [name for name, reason in paused if reason is None]
    if by_hand:
        text = f"paused by a person: {', '.join(by_hand)}"
        yield warn("batches", text, f"refunds batch resume {by_hand[0]}")


def _interrupted(store: Store, now: datetime) -> Iterator[Check]:
    """Report the imports that stopped part way."""
    for batch in interrupted_imports(store, now):
        text = f"{batch.batch_id} was imported only in part: {progress_of_import(batch)}"
        fix = (
            f"{command_to_continue(batch)}, with the options of its import; to give up the rest,"
            f" and what was not sent: refunds batch cancel {batch.batch_id}"
        )
        yield warn(f"import {batch.batch_id}", text, fix)


def queues(app: Celery, address: str) -> Iterator[Check]:
    """Yield the depth of each queue, or one failure if the broker is unavailable."""
    try:
        # It also reports at once that a broker is away.
        depths = {lane: broker.queue_depth(app, lane) for lane in Lane}
        broker.offer(app)
    except broker.PUBLISH_ERRORS as error:
        wrong, remedy = broker.trouble(error)
        yield fail("queues", f"the broker at {address} {wrong}", remedy, Trouble.AWAY)
        return
    for lane, depth in depths.items():
        yield ok(f"queue {lane.value}", f"messages waiting: {depth}" if depth else "empty")
