"""Opens the batch of a file once, and resumes it until every row is imported.

After that, the file is recognized by its digest.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from worker.batches.record import Batch, decoded, state_of_batch
from worker.errors import GuardRefused, KnownFile
from worker.model.times import from_ms
from worker.store.connection import redis_errors
from worker.store.scripts import Argument, Command, Script
from worker.store.store import Store

OPEN: Final = Script("batch_open")
CLOSE: Final = Script("batch_close")
_KNOWN: Final = frozenset({"imported", "imported_canceled", "canceled"})
_BEGUN: Final = frozenset({"named", "options"})
_ms = timedelta(milliseconds=1)


class BegunFile(GuardRefused):
    """The file was begun as the batch `batch_id`, which would not be continued so."""

    def __init__(self, sentence: str, batch_id: str) -> None:
        super().__init__(sentence)
        self.batch_id = batch_id


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchDraft:
    """Parameters of a new batch: how its file is read, its totals, and how long sending waits."""

    options: str = ""
    invalid: int = 0
    duplicates: int = 0
    all_remaining: int = 0
    totals: Mapping[str, int] = field(default_factory=dict)
    delay: timedelta = timedelta(0)
    allow_repeat: bool = False
    again: bool = False
    """Begin a new batch although the file was imported, or canceled, before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenedBatch:
    """The batch of a file, and whether this call began it."""

    batch_id: str
    fresh: bool


_DEFAULT: Final = BatchDraft()


def earlier_batch(store: Store, digest: str) -> Batch | None:
    """Return the batch of the same file, None if it was never imported; writes nothing."""
    with redis_errors(store.address):
        batch_id: Any = store.redis.hget(store.key("digests"), digest)
        stored: Any = store.redis.hgetall(store.key(f"batch:{batch_id}")) if batch_id else None
    return decoded(batch_id, stored) if stored else None


def open_batch(
    store: Store,
    batch_id: str | None,
    *,
    file: str,
    digest: str,
    rows: int,
    opening: BatchDraft = _DEFAULT,
) -> OpenedBatch:
    """Begin a batch, or resume the unfinished one of the same file.

    Without an id, the file's digest finds it. Raises `GuardRefused` if the id belongs to another
    file, and, unless it is to be imported `again`, if the file was imported as a whole, was
    canceled, or was begun in another way.
    """
    facts: list[Argument] = [
        *("file", file, "rows", rows, "invalid", opening.invalid, "duplicates", opening.duplicates),
        *("all_remaining", opening.all_remaining, "allow_repeat", int(opening.allow_repeat)),
        *(
            part
            for currency, amount in opening.totals.items()
            for part in (f"total:{currency}", amount)
        ),
    ]
    return _opened(store, batch_id, digest, opening, facts)


def foresee_batch(
    store: Store, batch_id: str | None, digest: str, opening: BatchDraft = _DEFAULT
) -> OpenedBatch:
    """Return or raise what `open_batch` would at this moment; writes nothing.

    If it would begin a batch, the id is the requested one, or a generated one that will not be
    used.
    """
    return _opened(store, batch_id, digest, opening, [])


def _opened(
    store: Store, batch_id: str | None, digest: str, opening: BatchDraft, facts: list[Argument]
) -> OpenedBatch:
    chosen = batch_id or f"b-{datetime.now(UTC):%Y%m%d}-{secrets.token_hex(3)}"
    arguments: list[Argument] = [
        *(chosen, digest, "1" if batch_id else "", "1" if opening.again else "", opening.options),
        *(opening.delay // _ms, *facts),
    ]
    command: Command[list[str]] = Command(
        script=OPEN, arguments=arguments, read=list, durable=bool(facts)
    )
    result, _, opened, *more = store.run(command)
    if result in {"opened", "known"}:
        return OpenedBatch(batch_id=opened, fresh=result == "opened")
    if result == "imported" and state_of_batch(store, opened) == "canceled":
        result = "imported_canceled"
    sentence = _refusal(result, opened, more[0] if more else "")
    if result in _KNOWN:
        raise KnownFile(sentence, opened)
    if result in _BEGUN:
        raise BegunFile(sentence, opened)
    raise GuardRefused(sentence)


def _refusal(result: str, batch_id: str, fact: str) -> str:
    if result == "other":
        return (
            f"batch {batch_id} belongs to another file, {fact!r}: name this one with another"
            " --batch"
        )
    if result == "taken":
        return (
            f"batch {batch_id} is the earlier import of this file: name this one with another"
            " --batch"
        )
    if result == "imported":
        return (
            f"this file was imported as batch {batch_id} on {from_ms(int(fact)):%Y-%m-%d %H:%M}Z,"
            f" and nothing was imported: see it with 'refunds batch show {batch_id}', or import"
            " only new rows with --again"
        )
    if result == "imported_canceled":
        return (
            f"this file was imported as batch {batch_id} on {from_ms(int(fact)):%Y-%m-%d %H:%M}Z,"
            " which was canceled: nothing was imported; canceled refunds stay canceled, so import"
            " those still wanted under new ids, in another file"
        )
    if result == "canceled":
        return (
            f"this file is batch {batch_id}, which was canceled: nothing was imported; --again"
            " imports the rows that were never accepted, and the canceled ones need new ids"
        )
    if result == "named":
        return (
            f"this file is already batch {batch_id}, not completely imported: leave out --batch to"
            " continue it"
        )
    return (
        f"batch {batch_id} of this file was started with other options ({fact}): its rows would get"
        " other ids or contents; continue with the same options, or start a new batch with --again"
    )


def close_batch(store: Store, batch_id: str, *, handed_in: int, conflicting: int) -> None:
    """Record that every row was imported: from now on the same file is refused.

    `handed_in` counts rows that exist in the records now; those that the batch did not create are
    its known ones.
    """
    command: Command[Any] = Command(
        script=CLOSE, arguments=[batch_id, handed_in, conflicting], read=lambda reply: reply
    )
    store.run(command)
