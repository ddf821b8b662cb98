"""Runs `refunds serve`: opens the records and the broker, and serves the chosen parts."""

from __future__ import annotations

import asyncio
import signal
import ssl
from collections.abc import Awaitable, Callable, Collection, Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.util import find_spec
from typing import Any, Final

import structlog

from worker.broker import queues
from worker.client import Refunds
from worker.errors import NotDurable, RefundError, SettingsError, StoreUnavailable
from worker.http.api import Api
from worker.http.app import GRACE_SECONDS, Part, Readiness, serve
from worker.http.auth import Auth, NoTokens, Rates, Tokens
from worker.http.bodies import BODY_SECONDS
from worker.http.context import Context
from worker.http.nudges import Nudges
from worker.http.spool import Spool
from worker.http.uploads import Uploads
from worker.http.waiters import MOST_WAITING, POLL_SECONDS, POSITION_SECONDS, Waiters
from worker.http.webhooks import NOTE_SECONDS, Webhooks
from worker.model.hints import Hint
from worker.settings import Settings, lists
from worker.store import moves, rechecks, scripts, sweeps, tokens
from worker.store.async_store import AsyncStore
from worker.store.connection import address_of, connect_async
from worker.store.counters import Counters
from worker.store.rechecks import Hinted
from worker.store.sweeps import Due

log = structlog.get_logger(__name__)

SCRIPTS: Final = (
    scripts.CREATE,
    scripts.LOAD,
    scripts.CONFIRM,
    scripts.GIVE_BACK,
    scripts.CLOCK,
    rechecks.HINT,
)
BLOCK_MS: Final = 2000
"""How long one read of the moves waits for the next one: so long its end takes at most."""
TICK_SECONDS: Final = 5.0
"""How often counts are added to Redis, and the server's settings are checked."""


async def run(
    settings: Settings,
    *,
    parts: Collection[str],
    host: str,
    port: int,
    tls: ssl.SSLContext | None = None,
    grace_seconds: float = GRACE_SECONDS,
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve until SIGTERM or SIGINT; a second signal ends the grace period.

    Raises `OSError` if the port is taken, `NotDurable` if the server may forget what it
    acknowledged, `StoreUnavailable` if Redis is away, and `SettingsError` if the address of the
    broker cannot be used.
    """
    url = settings.redis_url.get_secret_value()
    store = AsyncStore(
        connect_async(url),
        prefix=settings.prefix,
        retention=timedelta(days=settings.retention_days),
        durable=settings.durability == "disk",
        replicas=settings.replicas,
        address=address_of(url),
    )
    counters, refunds = Counters(), Refunds(settings=settings)
    # Made before anything is accepted, because the settings of the broker may be wrong.
    celery = refunds.celery
    nudges = Nudges(
        lambda ids, lane: queues.nudge(celery, ids, lane),
        lambda ids: store.run(sweeps.give_back(ids)),
    )
    ended, ticking = asyncio.Event(), None
    try:
        await store.require_durable()
        await store.load_scripts(SCRIPTS)
        ticking = asyncio.create_task(_repeat(partial(_tick, store, counters), ended))
        chosen: list[Part] = []
        uploads: Uploads | None = None
        if "webhooks" in parts:
            chosen.append(_webhooks(settings, store, counters, nudges))
        if "api" in parts:
            uploads = uploads or uploads_part(settings, refunds)
            chosen.append(api_part(settings, store, refunds, nudges.add, counters.request, uploads))
        if "page" in parts:
            uploads = uploads or uploads_part(settings, refunds)
            chosen.append(page_part(settings, store, refunds, nudges.add, uploads))
        chosen += [uploads] if uploads else []
        needs_tokens = settings.http_auth == "on" and not {"api", "page"}.isdisjoint(parts)
        if needs_tokens and not await tokens.exist(store):
            say("no token exists: create one with 'refunds tokens create NAME --scope submit'")
        await _until_signalled(
            chosen,
            ready=Readiness(partial(_require_ready, store)),
            host=host,
            port=port,
            tls=tls,
            grace_seconds=grace_seconds,
            say=say,
        )
    finally:
        ended.set()
        await nudges.close()
        if ticking is not None:
            await ticking
        await store.close()
        refunds.close()


def _webhooks(settings: Settings, store: AsyncStore, counters: Counters, nudges: Nudges) -> Part:
    async def hint(found: Hint) -> Hinted:
        return await store.run(rechecks.hint(found))

    return Webhooks(
        secrets=settings.webhook_keys,
        max_age=settings.webhook_max_age,
        hint=hint,
        nudge=nudges.add,
        count=counters.webhook,
        wall=lambda: datetime.now(UTC),
        body_seconds=BODY_SECONDS,
        note_seconds=NOTE_SECONDS,
    )


def api_part(
    settings: Settings,
    store: AsyncStore,
    refunds: Refunds,
    nudge: Callable[[Iterable[Due]], None],
    count: Callable[[str, int], None],
    uploads: Uploads,
) -> Api:
    """Return the API over these records, with tokens unless REFUNDS_HTTP_AUTH is off."""
    auth: Auth = NoTokens() if settings.http_auth == "off" else _tokens(store)
    return Api(
        Context(
            store=store,
            refunds=refunds,
            nudge=nudge,
            count=count,
            auth=auth,
            rates=Rates(settings.http_rate),
            waiters=Waiters(
                partial(moves.latest, store),
                partial(moves.follow, store, block_ms=BLOCK_MS),
                poll_seconds=POLL_SECONDS,
                position_seconds=POSITION_SECONDS,
                most=MOST_WAITING,
            ),
        ),
        uploads,
        settings,
    )


def uploads_part(settings: Settings, refunds: Refunds) -> Uploads:
    """Return what reads the files that are received.

    Raises `SettingsError` if REFUNDS_SPOOL_DIR cannot be used.
    """
    spool = Spool(settings.spool_dir)
    spool.require_usable()
    return Uploads(refunds, spool)


def _tokens(store: AsyncStore) -> Tokens:
    return Tokens(
        partial(tokens.digest_of, store),
        partial(tokens.read, store),
        used=partial(tokens.note_use, store),
        wall=lambda: datetime.now(UTC),
    )


def page_part(
    settings: Settings,
    store: AsyncStore,
    refunds: Refunds,
    nudge: Callable[[Iterable[Due]], None],
    uploads: Uploads,
) -> Part:
    """Return the operator's page over these records. Raises `SettingsError`."""
    if find_spec("jinja2") is None:
        raise SettingsError(
            "the part page needs Jinja2, which is not installed: pip install 'refund-worker[page]'"
        )
    from worker.http.page.part import Page  # noqa: PLC0415 - Jinja2 is needed by this part only
    from worker.http.page.proxies import TrustedProxy  # noqa: PLC0415 - see above

    proxy = TrustedProxy(
        settings.http_user_header,
        lists.networks_in(settings.http_proxies or ""),
        lists.names_in(settings.http_operators or ""),
    )
    return Page(
        store,
        refunds,
        _tokens(store),
        Rates(settings.http_rate),
        nudge,
        uploads=uploads,
        settings=settings,
        proxy=proxy,
    )


async def _until_signalled(parts: list[Part], **how: Any) -> None:
    """Serve until a signal arrives; a second one ends the grace period."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    serving = asyncio.create_task(serve(parts, stop=stop, **how))

    def signalled() -> None:
        if stop.is_set():
            serving.cancel()
        stop.set()

    # Until the loop is closed: a further signal must not end the work that remains.
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled)
    try:
        await serving
    except asyncio.CancelledError:
        if not stop.is_set():
            raise


async def _require_ready(store: AsyncStore) -> None:
    """Raise a `RefundError` if Redis is away, or if its latest check found it not safe."""
    if store.at_fault:
        raise NotDurable("the latest check found that this Redis may forget what it acknowledges")
    if store.lacks_replicas:
        raise StoreUnavailable("fewer replicas than REFUNDS_REPLICAS confirmed the latest write")
    if await store.flagged("behind_since"):
        raise NotDurable("this Redis has forgotten claims: run 'refunds recover'")


async def _tick(store: AsyncStore, counters: Counters) -> None:
    try:
        await store.require_durable()
    finally:
        # A server that is not durable still shows what was refused meanwhile.
        await counters.flush_counts(store)


async def _repeat(work: Callable[[], Awaitable[None]], ended: asyncio.Event) -> None:
    """Work every few seconds, and a last time at the end.

    It is not cancelled: redis-py may swallow a cancellation, and the task would never end.
    """
    while not ended.is_set():
        with suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), TICK_SECONDS)
        await _logged(work)


async def _logged(work: Callable[[], Awaitable[None]]) -> None:
    try:
        await work()
    except RefundError as error:
        log.warning("background_deferred", error=str(error))
    except Exception:
        # The outermost loop: a task that ends silently is worse than any error.
        log.exception("background_failed")
