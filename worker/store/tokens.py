"""The tokens of the HTTP API as they are stored: their digests, names and rights.

`refunds tokens` writes them; a server compares the digest of one by its id, reads it if they are
equal, and notes the hour of its latest use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from worker.errors import GuardRefused, NotFound
from worker.model.callers import Caller, Scope, digest, new_token, token_id
from worker.model.times import from_ms, to_ms
from worker.store import meta, scripts
from worker.store.async_store import AsyncStore
from worker.store.connection import redis_errors
from worker.store.scripts import Command
from worker.store.store import Store

NAMES: Final = "tokens"
"""The hash that maps the name of a token to its id."""
_HOUR: Final = timedelta(hours=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Token:
    """A token without its secret."""

    token_id: str
    name: str
    sha256: str
    scopes: frozenset[Scope]
    ids_prefix: str
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    revoked_at: datetime | None
    used_at: datetime | None
    """The hour of its latest use."""

    def is_valid(self, now: datetime) -> bool:
        """Return whether it allows anything now."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)

    @property
    def caller(self) -> Caller:
        """Return who calls with this token."""
        return Caller(name=self.name, scopes=self.scopes, ids_prefix=self.ids_prefix)


def create(
    store: Store,
    name: str,
    *,
    scopes: frozenset[Scope],
    ids_prefix: str,
    expires_at: datetime | None,
    by: str,
) -> str:
    """Create a token and return it; only its digest is stored.

    Raises `GuardRefused` if the name is that of a token that is not revoked.
    """
    token = new_token()
    new_id = token_id(token) or ""
    fields: dict[bytes | bytearray | memoryview | str | int | float, Any] = {
        "name": name,
        "sha256": digest(token),
        "scopes": " ".join(sorted(scopes)),
        "ids": ids_prefix,
        "created_at": str(to_ms(datetime.now(UTC))),
        "created_by": by,
        "expires_at": "" if expires_at is None else str(to_ms(expires_at)),
    }
    old = _named(store, name)
    if old is not None and old.revoked_at is None:
        raise GuardRefused(
            f"a token named {name} exists already, and nothing was created: use another name, or"
            f" revoke it first with 'refunds tokens revoke {name}'"
        )
    with redis_errors(store.address):
        store.redis.hset(_key(store, new_id), mapping=fields)
        if not _take_name(store, name, new_id, old):
            store.redis.delete(_key(store, new_id))
            raise GuardRefused(
                f"a token named {name} was created a moment ago: see it with 'refunds tokens list'"
            )
    store.confirm()
    return token


def _take_name(store: Store, name: str, new_id: str, old: Token | None) -> bool:
    """Give a name to a token instead of `old`; return False if another token has it meanwhile."""
    arguments = [name, new_id, "" if old is None else old.token_id]
    return store.run(
        Command(script=scripts.TOKEN_NAME, arguments=arguments, read=bool, durable=False)
    )


def listed(store: Store) -> list[Token]:
    """Return all tokens by name, the revoked ones too."""
    with redis_errors(store.address):
        names: Any = store.redis.hgetall(store.key(NAMES))
    found = [_read(store, token_id) for _, token_id in sorted(names.items())]
    return [token for token in found if token is not None]


def revoke(store: Store, name: str) -> bool:
    """Revoke a token; return False if it was revoked before. Raises `NotFound`."""
    token = _named(store, name)
    if token is None:
        raise NotFound(f"no token is named {name}: see them with 'refunds tokens list'")
    changed = False
    if token.revoked_at is None:
        now = str(to_ms(datetime.now(UTC)))
        changed = store.run(meta.once(f"token:{token.token_id}", {"revoked_at": now}))
    store.confirm()
    return changed


async def exist(store: AsyncStore) -> bool:
    """Return whether any token was created."""
    with redis_errors(store.address):
        return bool(await store.redis.exists(store.key(NAMES)))


async def digest_of(store: AsyncStore, token_id: str) -> str | None:
    """Return the SHA-256 of a token by its id, None if it does not exist."""
    with redis_errors(store.address):
        async with store.direct:
            found: Any = await store.redis.hget(_key(store, token_id), "sha256")
    return None if found is None else str(found)


async def read(store: AsyncStore, token_id: str) -> Token | None:
    """Return a token by its id, None if it does not exist."""
    with redis_errors(store.address):
        async with store.direct:
            stored: Any = await store.redis.hgetall(_key(store, token_id))
    return _token(token_id, stored)


async def note_use(store: AsyncStore, token: Token, now: datetime) -> None:
    """Note the hour of a token's use, unless it is noted."""
    if token.used_at is None or now - token.used_at >= _HOUR:
        hour = now.replace(minute=0, second=0, microsecond=0)
        with redis_errors(store.address):
            await store.redis.hset(_key(store, token.token_id), "used_at", str(to_ms(hour)))


def _key(store: Store | AsyncStore, token_id: str) -> str:
    return store.key(f"token:{token_id}")


def _named(store: Store, name: str) -> Token | None:
    with redis_errors(store.address):
        found: Any = store.redis.hget(store.key(NAMES), name)
    return None if found is None else _read(store, found)


def _read(store: Store, token_id: str) -> Token | None:
    with redis_errors(store.address):
        stored: Any = store.redis.hgetall(_key(store, token_id))
    return _token(token_id, stored)


def _token(token_id: str, stored: Mapping[str, str]) -> Token | None:
    if "sha256" not in stored:
        return None
    known = {scope.value for scope in Scope}
    return Token(
        token_id=token_id,
        name=stored["name"],
        sha256=stored["sha256"],
        # A scope of a later version allows nothing here.
        scopes=frozenset(Scope(word) for word in stored["scopes"].split() if word in known),
        ids_prefix=stored["ids"],
        created_at=from_ms(int(stored["created_at"])),
        created_by=stored["created_by"],
        expires_at=_time(stored.get("expires_at")),
        revoked_at=_time(stored.get("revoked_at")),
        used_at=_time(stored.get("used_at")),
    )


def _time(text: str | None) -> datetime | None:
    return from_ms(int(text)) if text else None
