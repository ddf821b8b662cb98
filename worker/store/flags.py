"""The pause switch and the other flags stored beside the records; every claim reads them."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from worker.errors import NotDurable, SettingsError, StoreUnavailable
from worker.model.times import from_ms
from worker.store import account_facts, meta
from worker.store.connection import redis_errors
from worker.store.store import Store

WEBHOOK_ENDPOINTS: Final = "webhook_endpoints"
"""The field of `meta` with the registered webhook endpoints: a JSON object, id by URL."""
_FIELDS: Final = (
    "paused",
    "paused_by",
    "credentials_refused_at",
    "account_lost_at",
    "account_lost_payment",
    "behind_since",
    "provider_host",
    "mode",
    "schema",
    "key_salt",
    "key_prints",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Switches:
    """The flags that hold back every refund, and the provider that the records are pinned to."""

    paused_at: datetime | None = None
    paused_by: str | None = None
    credentials_refused_at: datetime | None = None
    account_lost_at: datetime | None = None
    account_lost_payment: str | None = None
    """The payment that the provider showed once and that is missing now."""
    behind_since: datetime | None = None
    """Since when claims are stopped because the server has forgotten some."""
    provider_host: str | None = None
    mode: str | None = None
    schema: str | None = None
    key_salt: str | None = None
    key_prints: frozenset[str] = frozenset()
    """Fingerprints of API keys that are known to belong to the records' account."""

    @property
    def stopped(self) -> bool:
        """Return whether something that is not a person's pause stops all sending."""
        found = (self.credentials_refused_at, self.account_lost_at, self.behind_since)
        return any(at is not None for at in found)

    def knows(self, key: str) -> bool | None:
        """Return whether an API key is known to belong to the records' account.

        None if no key is known yet.
        """
        return (
            key_print(key, self.key_salt) in self.key_prints
            if self.key_salt and self.key_prints
            else None
        )


def key_print(key: str, salt: str) -> str:
    """Return a salted fingerprint of an API key.

    It distinguishes two keys and does not reveal either.
    """
    return hmac.new(salt.encode(), key.encode(), hashlib.sha256).hexdigest()[:16]


def read(store: Store) -> Switches:
    """Return the current flags; raises `StoreUnavailable`."""
    with redis_errors(store.address):
        values: Any = store.redis.hmget(store.key("meta"), *_FIELDS)
    return _switches(dict(zip(_FIELDS, values, strict=True)))


def _switches(values: Mapping[str, str | None]) -> Switches:
    return Switches(
        paused_at=_time(values["paused"]),
        paused_by=values["paused_by"],
        credentials_refused_at=_time(values["credentials_refused_at"]),
        account_lost_at=_time(values["account_lost_at"]),
        account_lost_payment=values["account_lost_payment"],
        behind_since=_time(values["behind_since"]),
        provider_host=values["provider_host"],
        mode=values["mode"],
        schema=values["schema"],
        key_salt=values["key_salt"],
        key_prints=frozenset((values["key_prints"] or "").split()),
    )


def _time(text: str | None) -> datetime | None:
    return from_ms(int(text)) if text and text.isdigit() else None


def now(store: Store) -> datetime:
    """Return the records' time; raises `StoreUnavailable`."""
    return store.time()


def pause(store: Store, by: str) -> tuple[bool, Switches]:
    """Stop every claim; return whether that changed anything, and the current flags.

    An existing pause keeps its time and its author. Raises `StoreUnavailable` if the pause could
    not be written to disk. It holds even then, because the switch must work on a server whose disk
    or memory is failing.
    """
    begun = store.run(meta.flag("paused", once=True, by=by))
    try:
        store.confirm()
    except (NotDurable, SettingsError, StoreUnavailable) as error:
        raise StoreUnavailable(
            "everything is paused now, but the pause may not be on disk yet, and a crash of the"
            f" server would undo it ({error}): run 'refunds pause' again"
        ) from error
    return begun, read(store)


def resume(store: Store) -> tuple[bool, Switches]:
    """Allow claims again; return whether that changed anything, and the flags as they were before.

    Raises `NotDurable`, `StoreUnavailable`.
    """
    key = store.key("meta")
    # No transaction: a server before 7.2 whose memory is full refuses every command in one.
    with redis_errors(store.address), store.redis.pipeline(transaction=False) as pipeline:
        pipeline.hmget(key, *_FIELDS)
        pipeline.hdel(key, "paused", "paused_by")
        before, _ = pipeline.execute()
    store.confirm()
    switches = _switches(dict(zip(_FIELDS, before, strict=True)))
    return switches.paused_at is not None, switches


def webhook_endpoints(store: Store) -> dict[str, str]:
    """Return the webhook endpoints registered with `refunds webhooks setup`, id by URL."""
    with redis_errors(store.address):
        text: Any = store.redis.hget(store.key("meta"), WEBHOOK_ENDPOINTS)
    known: dict[str, str] = json.loads(text or "{}")
    return known


def keep_webhook_endpoint(store: Store, url: str, endpoint_id: str) -> None:
    """Remember a webhook endpoint; raises `NotDurable`, `StoreUnavailable`."""
    known = webhook_endpoints(store) | {url: endpoint_id}
    with redis_errors(store.address):
        store.redis.hset(store.key("meta"), WEBHOOK_ENDPOINTS, json.dumps(known))
    store.confirm()


def vouch_for_account(store: Store) -> Switches:
    """Accept a person's statement that the API key belongs to the records' account.

    Return the previous flags.

    The missing payment counts as gone from now on. The next key with which a worker starts within
    an hour is trusted. Raises `NotDurable`, `StoreUnavailable`.
    """
    before = read(store)
    if before.account_lost_payment is not None:
        store.run(account_facts.payment(before.account_lost_payment, "gone"))
    with redis_errors(store.address):
        store.redis.hdel(
            store.key("meta"), "account_lost_at", "account_lost_payment", "account", "key_prints"
        )
    store.run(meta.flag("account_vouched", once=False))
    store.confirm()
    return before
