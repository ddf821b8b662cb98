"""Is all well? Checks over settings, Redis, the provider and the workers, as data; nothing is moved or spent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum
from typing import Any, Final

import kombu.exceptions
import redis.exceptions
from celery import Celery

from worker import broker, switches
from worker.connections import place_of, redis_errors
from worker.errors import GuardRefused, NotDurable, SettingsError, StoreUnavailable
from worker.gateway import Gateway
from worker.model import Lane, rfc3339, to_ms
from worker.settings import LIVE_HOST, Settings
from worker.store import Store
from worker.transport import build_client

OLDEST_VERSION: Final = (6, 2)
"""Celery's transport uses commands that came with it."""
WAITAOF_VERSION: Final = (7, 2)
FRESH: Final = timedelta(seconds=30)
"""A worker beats every five seconds."""
LATE: Final = timedelta(minutes=2)
"""How far the sweep may lag behind what is due before someone should look."""
_FULL: Final = 0.9
_PROBE: Final = timedelta(seconds=10)
_TEST_KEYS: Final = ("sk_test_", "rk_test_")
_BROKER_ERRORS: Final = (kombu.exceptions.KombuError, redis.exceptions.RedisError, OSError)


class State(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Trouble(StrEnum):
    """Whose trouble a failed check is."""

    SETTINGS = "settings"
    GUARD = "guard"
    AWAY = "away"


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One thing looked at: how it is, in words, and the command or setting that mends it."""

    name: str
    state: State
    text: str
    fix: str | None = None
    trouble: Trouble | None = None


def ok(name: str, text: str) -> Check:
    """Return a check that found nothing wrong."""
    return Check(name=name, state=State.OK, text=text)


def warn(name: str, text: str, fix: str) -> Check:
    """Return a check that found something a person should know."""
    return Check(name=name, state=State.WARN, text=text, fix=fix)


def fail(name: str, text: str, fix: str, trouble: Trouble) -> Check:
    """Return a check that found what stops refunds."""
    return Check(name=name, state=State.FAIL, text=text, fix=fix, trouble=trouble)


def examine(settings: Settings, store: Store, app: Celery) -> Iterator[Check]:
    """Yield every check as it is made; where Redis is away, those that need it are left out."""
    yield ok("settings", "valid")
    provider = _provider_settings(settings)
    yield provider
    redis_is_there = False
    for check in _redis(settings, store):
        redis_is_there = redis_is_there or (check.name == "redis" and check.state is not State.FAIL)
        yield check
    if provider.state is not State.FAIL:
        yield _provider(settings)
    if redis_is_there:
        yield from _guarded("records", lambda: _work(settings, store))
    yield from _queues(app, place_of(settings.broker))


def _guarded(name: str, checks: Callable[[], Iterable[Check]]) -> Iterator[Check]:
    """Yield checks; a server that goes away under them is one more failed check, not the end of all."""
    try:
        yield from checks()
    except StoreUnavailable as error:
        yield fail(name, str(error), "redis-cli ping", Trouble.AWAY)
    except redis.exceptions.ResponseError as error:
        yield fail(name, f"Redis answered with an error: {error}", "redis-cli info", Trouble.AWAY)


def _provider_settings(settings: Settings) -> Check:
    name = "key and address"
    try:
        key = settings.require_provider()
    except SettingsError as error:
        return fail(name, str(error), "export REFUNDS_API_KEY=sk_test_…", Trouble.SETTINGS)
    except GuardRefused as error:
        return fail(name, str(error), "export REFUNDS_LIVE=true, or change the key or REFUNDS_API_URL", Trouble.GUARD)
    if settings.provider_host == LIVE_HOST and key.startswith(_TEST_KEYS):
        return fail(
            name,
            f"a test key for the live address {settings.provider_host}",
            "export REFUNDS_API_URL=https://apitest.wooshpay.com, or use the live key",
            Trouble.SETTINGS,
        )
    if settings.is_live and settings.provider_host != LIVE_HOST:
        return warn(
            name,
            f"a live key for {settings.provider_host}, which is not the provider's live address",
            f"export REFUNDS_API_URL=https://{LIVE_HOST}, or use a test key",
        )
    return ok(name, f"{settings.mode} mode at {settings.provider_host}")


def _redis(settings: Settings, store: Store) -> Iterator[Check]:
    try:
        with redis_errors(store.place):
            store.redis.ping()
            info: Any = store.redis.info()
    except StoreUnavailable as error:
        yield fail("redis", str(error), "redis-cli ping, or set REFUNDS_REDIS_URL", Trouble.AWAY)
        return
    yield ok("redis", f"{store.place} answers")
    yield _version(info)
    yield _eviction(info)
    yield from _guarded("disk", lambda: [_disk(settings, store)])
    most, used = int(info.get("maxmemory", 0)), int(info.get("used_memory", 0))
    if most and used > most * _FULL:
        fix = "redis-cli config set maxmemory …, or shorten REFUNDS_RETENTION_DAYS"
        yield warn("memory", f"{used * 100 // most} % of its limit is used; at the limit nothing is accepted", fix)
    if info.get("role") not in {None, "master"}:
        fix = "point REFUNDS_REDIS_URL at the primary, or use sentinel://"
        yield fail("role", f"this server is a {info['role']} and takes no writes", fix, Trouble.AWAY)


def _version(info: Any) -> Check:
    product = "Valkey" if "valkey_version" in info else "Redis"
    shown = str(info.get("valkey_version") or info.get("redis_version", "0"))
    # Valkey states the version of Redis that it stands in for.
    digits = str(info.get("redis_version", "0")).split(".")[:2]
    version = tuple(int(part) for part in digits if part.isdigit())
    if version < OLDEST_VERSION:
        fix = "upgrade the server to Redis 7.2, Valkey 8 or later"
        return fail("version", f"{product} {shown} is older than 6.2 and lacks what is needed", fix, Trouble.GUARD)
    if version < WAITAOF_VERSION:
        text = f"{product} {shown} has no WAITAOF: only 'appendfsync always' makes an accepted refund safe"
        return warn("version", text, "upgrade the server to Redis 7.2, Valkey 8 or later")
    return ok("version", f"{product} {shown}")


def _eviction(info: Any) -> Check:
    policy = str(info.get("maxmemory_policy", "unknown"))
    if policy == "noeviction":
        return ok("eviction", "noeviction")
    fix = "redis-cli config set maxmemory-policy noeviction, and in its redis.conf"
    if int(info.get("maxmemory", 0)):
        return fail("eviction", f"maxmemory-policy {policy} may throw refunds away when full", fix, Trouble.GUARD)
    return warn("eviction", f"maxmemory-policy is {policy}: harmless only while there is no maxmemory", fix)


def _disk(settings: Settings, store: Store) -> Check:
    if settings.durability == "memory":
        text = "REFUNDS_DURABILITY=memory: a crash of the server may forget accepted refunds"
        return warn("disk", text, "unset REFUNDS_DURABILITY for anything but a trial")
    try:
        store.require_durable()
    except NotDurable as error:
        fix = "redis-cli config set appendonly yes && redis-cli config set appendfsync always"
        return fail("disk", str(error), fix, Trouble.GUARD)
    how = "each send waits for the disk (WAITAOF)" if store.wait_for_disk else "appendfsync always"
    return ok("disk", f"append-only file on, {how}")


def _provider(settings: Settings) -> Check:
    accepted = asyncio.run(_ask_provider(settings))
    host = settings.provider_host
    if accepted is None:
        fix = f"curl -sS -o /dev/null -w '%{{http_code}}' {settings.api_url}/v1/refunds/x"
        return fail("provider", f"{host} gives no answer that tells whether the key is accepted", fix, Trouble.AWAY)
    if not accepted:
        return fail("provider", f"{host} refuses the key", "export REFUNDS_API_KEY=…", Trouble.SETTINGS)
    return ok("provider", f"{host} answers and accepts the key; nothing was spent")


async def _ask_provider(settings: Settings) -> bool | None:
    async with build_client(settings) as client:
        rules = replace(settings.rules, request_timeout=min(settings.rules.request_timeout, _PROBE))
        return await Gateway(client, rules).key_is_accepted()


def _work(settings: Settings, store: Store) -> Iterator[Check]:
    flags, now = switches.read(store), switches.now(store)
    yield _pinned(settings, flags)
    yield from _flags(flags)
    with redis_errors(store.place), store.redis.pipeline(transaction=False) as pipeline:
        pipeline.zrange(store.key("workers"), 0, -1, withscores=True)
        pipeline.zrange(store.key("due"), 0, 0, withscores=True)
        pipeline.llen(store.key("rejected"))
        workers, oldest, rejected = pipeline.execute()
    counts = store.counts()
    moving = sum(count for name, count in counts.items() if name not in {"succeeded", "failed", "canceled", "review"})
    fresh = [name for name, beat in workers if to_ms(now) - beat < FRESH // timedelta(milliseconds=1)]
    if fresh:
        yield ok("workers", f"{len(fresh)} seen: {', '.join(sorted(fresh))}")
    elif moving:
        yield warn("workers", f"none seen in the last {FRESH.seconds} s, and refunds wait: {moving}", "refunds worker")
    else:
        yield warn("workers", f"none seen in the last {FRESH.seconds} s", "refunds worker")
    lag = timedelta(milliseconds=to_ms(now) - oldest[0][1]) if oldest else timedelta(0)
    if lag > LATE:
        text = f"the refund that is due longest has been so for {int(lag.total_seconds())} s"
        yield warn("sweep", text, "refunds worker, or look into the workers' logs")
    doubt = f"{counts['in_doubt']} in doubt, looked at by themselves" if counts["in_doubt"] else "none in doubt"
    yield ok("refunds", f"{moving} on their way, {doubt}")
    if counts["review"]:
        yield warn("review", f"{counts['review']} need a person", "refunds review list")
    if rejected:
        fix = f"redis-cli lrange {store.key('rejected')} 0 9"
        yield warn("messages", f"{rejected} could not be understood and were kept", fix)


def _pinned(settings: Settings, flags: switches.Switches) -> Check:
    if flags.provider_host is None:
        return ok("records", "no worker has sent anything yet: they belong to no provider")
    if (flags.provider_host, flags.mode) == (settings.provider_host, settings.mode):
        return ok("records", f"belong to {flags.provider_host} in {flags.mode} mode")
    text = (
        f"belong to {flags.provider_host} in {flags.mode} mode, but the settings say {settings.provider_host} in "
        f"{settings.mode} mode"
    )
    return fail("records", text, "use another REFUNDS_PREFIX or database, or set REFUNDS_API_URL back", Trouble.GUARD)


def _flags(flags: switches.Switches) -> Iterator[Check]:
    if flags.paused_at is not None:
        who = f" by {flags.paused_by}" if flags.paused_by else ""
        yield warn("pause", f"everything is paused since {rfc3339(flags.paused_at)}{who}", "refunds resume")
    if flags.credentials_refused_at is not None:
        text = f"the provider has refused the key since {rfc3339(flags.credentials_refused_at)}: all refunds wait"
        yield fail("breaker", text, "export REFUNDS_API_KEY=… and restart the workers", Trouble.SETTINGS)


def _queues(app: Celery, place: str) -> Iterator[Check]:
    try:
        # Asked once and told at once: what asks for a depth would insist for seconds.
        with app.connection_for_read() as connection:
            connection.connect()
        depths = {lane: broker.queue_depth(app, lane) for lane in Lane}
    except _BROKER_ERRORS as error:
        text = f"the broker at {place} cannot be reached ({type(error).__name__})"
        yield fail("queues", text, "start it, or set REFUNDS_BROKER_URL", Trouble.AWAY)
        return
    for lane, depth in depths.items():
        yield ok(f"queue {lane.value}", f"{depth} messages wait" if depth else "empty")
