"""The sessions of the operator's page as they are stored: by the SHA-256 of their cookie."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from worker.model.times import from_ms, to_ms
from worker.store.async_store import AsyncStore
from worker.store.connection import redis_errors
from worker.store.scripts import Argument, Command, Script

SESSION: Final = Script("session")


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredSession:
    """A session without its secret: the token that opened it, and when it did."""

    token_id: str
    opened_at: datetime


async def open_session(
    store: AsyncStore, sha256: str, token_id: str, *, now: datetime, idle: timedelta
) -> None:
    """Store a new session, which ends after `idle` without use."""
    text = json.dumps({"token_id": token_id, "opened_at": to_ms(now)})
    await store.run(_keep(f"session:{sha256}", text, idle))


async def read_session(store: AsyncStore, sha256: str) -> StoredSession | None:
    """Return a session, None if it does not exist or was not used for too long."""
    with redis_errors(store.address):
        async with store.direct:
            text: Any = await store.redis.get(_key(store, sha256))
    if text is None:
        return None
    stored = json.loads(text)
    return StoredSession(token_id=stored["token_id"], opened_at=from_ms(stored["opened_at"]))


async def prolong_session(store: AsyncStore, sha256: str, *, idle: timedelta) -> None:
    """Note that a session was used."""
    with redis_errors(store.address):
        async with store.direct:
            await store.redis.pexpire(_key(store, sha256), idle)


async def end_session(store: AsyncStore, sha256: str) -> None:
    """Forget a session."""
    with redis_errors(store.address):
        async with store.direct:
            await store.redis.delete(_key(store, sha256))


async def secret_of_person(
    store: AsyncStore, sha256: str, fresh: str, *, longest: timedelta
) -> str:
    """Return the secret of a person whom a proxy signs in: `fresh` if there is none.

    It only ties forms to the person. What signs them in is the proxy.
    """
    return await store.run(_keep(f"person:{sha256}", fresh, longest))


async def forget_person(store: AsyncStore, sha256: str) -> None:
    """Forget the secret of a person, and with it the forms that they were shown."""
    with redis_errors(store.address):
        async with store.direct:
            await store.redis.delete(store.key(f"person:{sha256}"))


def _keep(name: str, text: str, life: timedelta) -> Command[str]:
    """Keep a text, even if memory is full, and return it, or the one that was kept before."""
    # If a crash undoes it, the person signs in again.
    arguments: list[Argument] = [name, text, life // timedelta(milliseconds=1)]
    return Command(script=SESSION, arguments=arguments, read=str, durable=False)


def _key(store: AsyncStore, sha256: str) -> str:
    return store.key(f"session:{sha256}")
