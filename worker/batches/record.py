"""The current record of a batch: its counts, its state and its pace."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from worker.errors import FieldError, GuardRefused, InvalidRequest, NotFound
from worker.model.request import shown
from worker.model.times import from_ms, rfc3339
from worker.store.connection import redis_errors
from worker.store.records import pairs_of
from worker.store.scripts import Argument, Command, Script
from worker.store.store import Store

BatchState = Literal["running", "paused", "canceled"]

STATE: Final = Script("batch_state")
SHOW: Final = Script("batch_show")
RATE_WINDOW: Final = timedelta(seconds=60)
"""Period over which the pace of a batch is measured."""
RATE_SAMPLE: Final = 100
"""Number of latest settled refunds sampled for their batch: more would cost more and add little."""
NAME_RULE: Final = "must be 1 to 100 of A-Z a-z 0-9 . _ : - and neither . nor .."
_PAGE: Final = 100
_DONE_TO: Final[Mapping[BatchState, str]] = {
    "running": "resumed",
    "paused": "paused",
    "canceled": "canceled",
}
_BATCH_ID: Final = re.compile(r"[A-Za-z0-9._:\-]{1,100}")
_second = timedelta(seconds=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """A batch's current record; moves of its refunds update the counts, the import the rest."""

    batch_id: str
    file: str
    digest: str
    rows: int
    created_at: datetime | None
    state: str
    statuses: Mapping[str, int] = field(default_factory=dict)
    stages: Mapping[str, int] = field(default_factory=dict)
    amounts: Mapping[str, int] = field(default_factory=dict)
    """Minor units by `status:currency`, of settled refunds."""
    totals: Mapping[str, int] = field(default_factory=dict)
    """Minor units by currency that the file's valid rows state."""
    invalid: int = 0
    """Rows that were refused and left out."""
    duplicates: int = 0
    all_remaining: int = 0
    """Valid rows that request all that is left of their payments, and so are not in any total."""
    known: int | None = None
    """Rows whose refunds existed in the records before; None until every row was imported."""
    conflicting: int = 0
    """Rows left out because of a refund that was accepted while the import ran.

    It took their id, or has their payment and amount.
    """
    imported_at: datetime | None = None
    """The time when every row was imported; None while the import is unfinished."""
    not_before: datetime | None = None
    """Nothing is sent before this time."""
    paused_at: datetime | None = None
    paused_by: str | None = None
    paused_reason: str | None = None
    """The code of the consecutive failures, if the batch paused itself."""
    canceled_at: datetime | None = None
    canceled_by: str | None = None
    options: str = ""
    """How the file is read, as the import stored it."""
    allow_repeat: bool = True
    """Whether a row is accepted although another refund has its payment and amount.

    True also if an older version began the batch, which stored nothing of it.
    """

    @property
    def accepted(self) -> int:
        """Return how many refunds this batch created."""
        return sum(self.statuses.values())

    @property
    def moving(self) -> int:
        """Return how many are neither settled nor in review."""
        return self.statuses.get("pending", 0) - self.stages.get("review", 0)

    @property
    def finished(self) -> bool:
        """Return whether no refund is moving and none is to come.

        None comes once every row was imported, or the batch was canceled.
        """
        is_whole = self.imported_at is not None or self.state == "canceled"
        return is_whole and self.moving == 0

    @property
    def is_over(self) -> bool:
        """Return whether nothing is left to stop: it is finished, and no refund is in review.

        A person may still decide to send a refund in review.
        """
        return self.finished and not self.stages.get("review")

    def as_dict(self) -> dict[str, Any]:
        """Return the batch for JSON: times as RFC 3339 UTC, absent values as None."""
        return {
            "batch_id": self.batch_id,
            "file": self.file,
            "digest": self.digest,
            "state": self.state,
            "finished": self.finished,
            "rows": self.rows,
            "invalid": self.invalid,
            "duplicates": self.duplicates,
            "all_remaining": self.all_remaining,
            "known": self.known,
            "conflicting": self.conflicting,
            "accepted": self.accepted,
            "moving": self.moving,
            "statuses": dict(self.statuses),
            "stages": dict(self.stages),
            "amounts": dict(self.amounts),
            "totals": dict(self.totals),
            "created_at": _text(self.created_at),
            "imported_at": _text(self.imported_at),
            "not_before": _text(self.not_before),
            "paused_at": _text(self.paused_at),
            "paused_by": self.paused_by,
            "paused_reason": self.paused_reason,
            "canceled_at": _text(self.canceled_at),
            "canceled_by": self.canceled_by,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchProgress:
    """A batch at the server's `now`, with its recent pace in settled refunds per second."""

    batch: Batch
    now: datetime
    rate: float

    @property
    def eta(self) -> datetime | None:
        """Return when the last refund will have settled at this pace; None if it is unknown."""
        batch = self.batch
        if batch.state != "running" or batch.moving == 0 or self.rate <= 0:
            return None
        return self.now + timedelta(seconds=batch.moving / self.rate)

    def as_dict(self) -> dict[str, Any]:
        """Return the batch and its pace for JSON."""
        return self.batch.as_dict() | {
            "refunds_a_second": round(self.rate, 3),
            "eta": _text(self.eta),
        }


def is_batch_id(text: str) -> bool:
    """Return whether a text can be the id of a batch."""
    return _BATCH_ID.fullmatch(text) is not None


def is_batch_name(text: str) -> bool:
    """Return whether a new batch may have this id.

    Programs and browsers take `.` and `..` out of an address, so such a batch could not be reached.
    """
    return is_batch_id(text) and text not in {".", ".."}


def checked_batch_id(text: str) -> str:
    """Return the text if a new batch may have this id; raises `InvalidRequest`."""
    if is_batch_name(text):
        return text
    error = FieldError(field="batch", code="batch_id", value=shown(text), rule=NAME_RULE)
    raise InvalidRequest([error])


def read_batch(store: Store, batch_id: str) -> Batch:
    """Return the current record of a batch; raises `NotFound`."""
    with redis_errors(store.address):
        stored: Any = store.redis.hgetall(store.key(f"batch:{batch_id}"))
    if not stored:
        raise unknown(batch_id)
    return decoded(batch_id, stored)


def look_at_batch(store: Store, batch_id: str) -> BatchProgress:
    """Return a batch with its pace, on disk; the cost does not grow with the batch.

    Raises `NotFound`.
    """

    def read(reply: Any) -> BatchProgress:
        stored = pairs_of(reply[1])
        if not stored:
            raise unknown(batch_id)
        now, batch = from_ms(int(reply[0])), decoded(batch_id, stored)
        began = max(batch.created_at or now, batch.not_before or batch.created_at or now)
        elapsed = min(max(now - began, _second), RATE_WINDOW)
        return BatchProgress(batch=batch, now=now, rate=float(reply[2]) / elapsed.total_seconds())

    arguments: list[Argument] = [batch_id, RATE_WINDOW // timedelta(milliseconds=1), RATE_SAMPLE]
    seen = store.run(Command(script=SHOW, arguments=arguments, read=read, durable=False))
    store.confirm()
    return seen


def list_batches(store: Store, after: str | None = None) -> Iterator[Batch]:
    """Yield the batches, newest first, page by page; one whose record has expired is left out.

    `after` is the batch before the first one. Raises `NotFound` if it does not exist.
    """
    start = 0
    if after is not None:
        with redis_errors(store.address):
            rank: Any = store.redis.zrevrank(store.key("batches"), after)
        if rank is None:
            raise unknown(after)
        start = int(rank) + 1
    while True:
        with redis_errors(store.address):
            page: Any = store.redis.zrange(
                store.key("batches"), start, start + _PAGE - 1, desc=True
            )
            with store.redis.pipeline(transaction=False) as pipeline:
                for batch_id in page:
                    pipeline.hgetall(store.key(f"batch:{batch_id}"))
                found = pipeline.execute()
        if page:
            store.confirm()
        yield from (
            decoded(batch_id, stored)
            for batch_id, stored in zip(page, found, strict=True)
            if stored
        )
        if len(page) < _PAGE:
            return
        start += _PAGE


def decoded(batch_id: str, stored: Mapping[str, str]) -> Batch:
    """Return the batch stored in a hash."""
    return Batch(
        batch_id=batch_id,
        file=stored.get("file", ""),
        digest=stored.get("digest", ""),
        rows=int(stored.get("rows", 0)),
        created_at=_time(stored, "created_at"),
        state=stored.get("state", "running"),
        statuses=_counts(stored, "status:"),
        stages=_counts(stored, "stage:"),
        amounts=_counts(stored, "amount:"),
        totals=_counts(stored, "total:"),
        invalid=int(stored.get("invalid", 0)),
        duplicates=int(stored.get("duplicates", 0)),
        all_remaining=int(stored.get("all_remaining", 0)),
        known=int(stored["known"]) if "known" in stored else None,
        conflicting=int(stored.get("conflicting", 0)),
        imported_at=_time(stored, "imported_at"),
        not_before=_time(stored, "not_before"),
        paused_at=_time(stored, "paused_at"),
        paused_by=stored.get("paused_by"),
        paused_reason=stored.get("paused_reason"),
        canceled_at=_time(stored, "canceled_at"),
        canceled_by=stored.get("canceled_by"),
        options=stored.get("options", ""),
        allow_repeat=stored.get("allow_repeat") != "0",
    )


def _time(stored: Mapping[str, str], name: str) -> datetime | None:
    return from_ms(int(stored[name])) if name in stored else None


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else rfc3339(moment)


def _counts(stored: Mapping[str, str], prefix: str) -> dict[str, int]:
    return {
        name.removeprefix(prefix): int(value)
        for name, value in stored.items()
        if name.startswith(prefix) and int(value) != 0
    }


def unknown(batch_id: str) -> NotFound:
    """Return the error for a batch that does not exist."""
    return NotFound(f"no batch {shown(batch_id)} exists here: see 'refunds batch list'")


def state_of_batch(store: Store, batch_id: str) -> str | None:
    """Return only the state of a batch, None if it does not exist."""
    with redis_errors(store.address):
        state: Any = store.redis.hget(store.key(f"batch:{batch_id}"), "state")
    return None if state is None else str(state)


def pause_batch(store: Store, batch_id: str, by: str = "") -> bool:
    """Stop a batch's claims; return whether that changed anything.

    A batch that is over has none. Raises `NotFound`, `GuardRefused`.
    """
    before = read_batch(store, batch_id)
    if before.state == "running" and before.is_over:
        store.confirm()
        return False
    return set_state(store, batch_id, "paused", sources=("running",), by=by)


def resume_batch(store: Store, batch_id: str) -> bool:
    """Allow a batch's claims again; return whether that changed anything.

    Raises `NotFound`, `GuardRefused`.
    """
    return set_state(store, batch_id, "running", sources=("paused",))


def set_state(
    store: Store, batch_id: str, to: BatchState, *, sources: tuple[BatchState, ...], by: str = ""
) -> bool:
    """Change a batch's state and note when and by whom; return whether that changed anything.

    Raises `NotFound`, and `GuardRefused` if its state is neither in `sources` nor `to` already.
    """
    command: Command[list[str]] = Command(
        script=STATE, arguments=[batch_id, to, f",{','.join(sources)},", by], read=list
    )
    result, before = store.run(command)
    if result == "missing":
        raise unknown(batch_id)
    if result == "refused":
        raise GuardRefused(
            f"batch {batch_id} is {before} and cannot be {_DONE_TO[to]}: nothing was changed"
        )
    return result == "set"
