"""Store of malformed messages (`refunds:rejected`): keep, find and drop them.

Newest first, bounded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final

from worker.broker.kept import RejectedMessage, without_secrets
from worker.errors import NotFound
from worker.model.request import scrubbed
from worker.model.times import from_ms, rfc3339
from worker.store.connection import redis_errors
from worker.store.scripts import Command, Script
from worker.store.store import PAGE, Store

MOST: Final = 10_000
"""Maximum number of stored messages."""
SCRIPT: Final = Script("rejected")
_IDS: Final = "rejected-ids"
_LONGEST_REASON: Final = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejection:
    """One malformed message, without secrets; `entry_id` names it for `refunds rejected`."""

    entry_id: str
    rejected_at: datetime
    reason: str
    message: str
    refund_ids: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form; times are RFC 3339."""
        return asdict(self) | {
            "rejected_at": rfc3339(self.rejected_at),
            "refund_ids": list(self.refund_ids),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """The rejection of the latest message that names a refund: entry, time and reason."""

    entry_id: str
    rejected_at: datetime
    reason: str


def keep(kept: RejectedMessage) -> Command[int]:
    """Store a message, indexed by each refund id that it names.

    Beyond `MOST` messages the oldest are dropped.
    """
    entry = {
        "id": kept.entry_id,
        "reason": kept.reason,
        "refund_ids": list(kept.refund_ids),
        "message": kept.message,
    }
    short = {"id": kept.entry_id, "reason": kept.reason[:_LONGEST_REASON]}
    texts = (json.dumps(each, ensure_ascii=False) for each in (entry, short))
    # The message is removed from its broker next, and that may be another server.
    return Command(script=SCRIPT, arguments=["keep", MOST, *texts, *kept.refund_ids], read=int)


def listed(store: Store, limit: int | None = None) -> Iterator[Rejection]:
    """Yield the stored messages, newest first, at most `limit`; raises `StoreUnavailable`."""
    for entry in _entries(store, limit):
        yield _read(entry)


def find(store: Store, entry_id: str) -> Rejection:
    """Return a stored message; raises `NotFound`."""
    return _read(_entry(store, entry_id))


def of_refund(store: Store, refund_id: str) -> Refusal | None:
    """Return why the latest message that names a refund was refused, None if none did."""
    with redis_errors(store.address):
        text: Any = store.redis.hget(store.key(_IDS), refund_id)
    if text is None:
        return None
    found = _loaded(text)
    return Refusal(
        entry_id=str(found.get("id", "")),
        rejected_at=_at(found),
        reason=scrubbed(str(found.get("reason", ""))),
    )


def drop(store: Store, entry_id: str) -> None:
    """Delete one message; raises `NotFound`."""
    if store.run(_dropping(_entry(store, entry_id))) == 0:
        raise _not_found(entry_id)


def drop_all(store: Store) -> int:
    """Delete every message; return their number."""
    return store.run(_dropping(""))


def _dropping(entry: str) -> Command[int]:
    return Command(script=SCRIPT, arguments=["drop", entry], read=int, durable=True)


def _entry(store: Store, entry_id: str) -> str:
    for entry in _entries(store, None):
        if _id_of(entry, _loaded(entry)) == entry_id:
            return entry
    raise _not_found(entry_id)


def _not_found(entry_id: str) -> NotFound:
    return NotFound(
        f"no rejected message has the id {scrubbed(entry_id)}: see them with 'refunds rejected"
        " list'"
    )


def _entries(store: Store, limit: int | None) -> Iterator[str]:
    start = 0
    while limit is None or start < limit:
        size = PAGE if limit is None else min(PAGE, limit - start)
        with redis_errors(store.address):
            page: Any = store.redis.lrange(store.key("rejected"), start, start + size - 1)
        yield from page
        if len(page) < size:
            return
        start += size


def _read(entry: str) -> Rejection:
    found = _loaded(entry)
    named = found.get("refund_ids")
    return Rejection(
        entry_id=_id_of(entry, found),
        rejected_at=_at(found),
        reason=scrubbed(str(found.get("reason", ""))),
        message=without_secrets(str(found.get("message", ""))),
        refund_ids=tuple(str(each) for each in named) if isinstance(named, list) else (),
    )


def _loaded(text: str) -> dict[str, Any]:
    """Return an entry's fields; earlier versions wrote fewer, and other programs may write here."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {"message": text}
    return value if isinstance(value, dict) else {"message": text}


def _id_of(entry: str, found: dict[str, Any]) -> str:
    given = found.get("id")
    # An entry of an earlier version has no id: a digest of its contents serves as one.
    return (
        given
        if isinstance(given, str)
        else hashlib.sha256(entry.encode("utf-8", "replace")).hexdigest()[:10]
    )


def _at(found: dict[str, Any]) -> datetime:
    at = found.get("at")
    try:
        return from_ms(at if isinstance(at, int) else 0)
    except (OverflowError, ValueError):
        return from_ms(0)
