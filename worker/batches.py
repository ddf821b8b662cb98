"""Files of refunds as things of their own: begun, paused, read."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal

from worker.calls import Argument, Call, Script
from worker.connections import redis_errors
from worker.errors import FieldError, GuardRefused, InvalidRequest, NotFound
from worker.model import from_ms, shown
from worker.store import Store

BatchState = Literal["running", "paused", "canceled"]

OPEN: Final = Script("batch_open")
STATE: Final = Script("batch_state")
_BATCH_ID: Final = re.compile(r"[A-Za-z0-9._:\-]{1,100}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """A batch as it stands; the counts are kept by the moves of its refunds."""

    batch_id: str
    file: str
    digest: str
    rows: int
    created_at: datetime | None
    state: str
    statuses: Mapping[str, int] = field(default_factory=dict)
    stages: Mapping[str, int] = field(default_factory=dict)
    amounts: Mapping[str, int] = field(default_factory=dict)
    """Minor units by `status:currency`."""

    @property
    def accepted(self) -> int:
        """Return how many refunds this batch created."""
        return sum(self.statuses.values())

    @property
    def moving(self) -> int:
        """Return how many are neither settled nor wait for a person."""
        return self.statuses.get("pending", 0) - self.stages.get("review", 0)


def checked_batch_id(text: str) -> str:
    """Return an id that a batch may have; raises `InvalidRequest`."""
    if _BATCH_ID.fullmatch(text):
        return text
    rule = "must be 1 to 100 of A-Z a-z 0-9 . _ : -"
    raise InvalidRequest([FieldError(field="batch", code="batch_id", value=shown(text), rule=rule)])


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """Which batch a file goes into, and whether it was begun only now."""

    batch_id: str
    fresh: bool


def open_batch(store: Store, batch_id: str | None, *, file: str, digest: str, rows: int) -> Opened:
    """Begin a batch, or go on with the one of the same file: without an id, the file's digest finds it.

    Raises `GuardRefused` where the id stands for another file.
    """
    chosen = batch_id or f"b-{datetime.now(UTC):%Y%m%d}-{secrets.token_hex(3)}"
    arguments: list[Argument] = [chosen, digest, file, rows, "1" if batch_id else ""]
    call: Call[list[str]] = Call(script=OPEN, arguments=arguments, read=list, durable=True)
    result, _, opened, *other = store.run(call)
    if result == "other":
        raise GuardRefused(
            f"batch {opened} is of another file, {other[0]!r}: give this one a name of its own with --batch"
        )
    return Opened(batch_id=opened, fresh=result == "opened")


def fingerprints(store: Store, refund_ids: Sequence[str]) -> list[str | None]:
    """Return what the records under these ids hold, None for each that was never accepted."""
    with redis_errors(store.place), store.redis.pipeline(transaction=False) as pipeline:
        for refund_id in refund_ids:
            pipeline.hget(store.key(f"refund:{refund_id}"), "fingerprint")
        found: list[str | None] = pipeline.execute()
    return found


def read_batch(store: Store, batch_id: str) -> Batch:
    """Return a batch as it stands; raises `NotFound`."""
    with redis_errors(store.place):
        stored: Any = store.redis.hgetall(store.key(f"batch:{batch_id}"))
    if not stored:
        raise NotFound(f"no batch {shown(batch_id)} was imported here: check the name")
    return Batch(
        batch_id=batch_id,
        file=stored.get("file", ""),
        digest=stored.get("digest", ""),
        rows=int(stored.get("rows", 0)),
        created_at=from_ms(int(stored["created_at"])) if "created_at" in stored else None,
        state=stored.get("state", "running"),
        statuses=_counts(stored, "status:"),
        stages=_counts(stored, "stage:"),
        amounts=_counts(stored, "amount:"),
    )


def _counts(stored: Mapping[str, str], prefix: str) -> dict[str, int]:
    return {
        name.removeprefix(prefix): int(value)
        for name, value in stored.items()
        if name.startswith(prefix) and int(value) != 0
    }


def batch_size(store: Store, batch_id: str) -> int:
    """Return how many refunds a batch created, 0 where there is none."""
    with redis_errors(store.place):
        size: Any = store.redis.llen(store.key(f"batch-refunds:{batch_id}"))
    return int(size)


def pause_batch(store: Store, batch_id: str) -> bool:
    """Stop a batch's claims; return whether that changed anything. Raises `NotFound`, `GuardRefused`."""
    return _set_state(store, batch_id, "paused", sources=("running",))


def resume_batch(store: Store, batch_id: str) -> bool:
    """Let a batch's claims go on; return whether that changed anything. Raises `NotFound`, `GuardRefused`."""
    return _set_state(store, batch_id, "running", sources=("paused",))


def _set_state(store: Store, batch_id: str, to: BatchState, *, sources: tuple[BatchState, ...]) -> bool:
    call: Call[list[str]] = Call(script=STATE, arguments=[batch_id, to, f",{','.join(sources)},"], read=list)
    result, before = store.run(call)
    if result == "missing":
        raise NotFound(f"no batch {shown(batch_id)} was imported here: check the name")
    if result == "refused":
        raise GuardRefused(f"batch {batch_id} is {before} and cannot be {to}: nothing was changed")
    return result == "set"
