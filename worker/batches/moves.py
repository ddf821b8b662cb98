"""What is done to a whole batch: what was not sent is canceled, what failed is sent again. Page by page, resumable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

from worker.batches.record import Batch, read_batch, set_state
from worker.errors import GuardRefused, NotCancelable
from worker.model.refund import Refund, Retriable, Stage, Status
from worker.model.steps import Step
from worker.rules import decisions
from worker.store import scripts
from worker.store.connection import redis_errors
from worker.store.store import PAGE, Store

_ROUNDS: Final = 5
"""How often a refund that moves while it is decided on is read and decided on again."""
_NAMED: Final = 20
_UNSENT: Final = frozenset({Stage.QUEUED.value, Stage.WAITING.value})

Decide = Callable[[Refund], Step | None]
Progress = Callable[[int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Canceled:
    """How many refunds a cancel stopped, and the batch as it then stood: what is in it was sent, or settled before.

    A claim that meets the canceled batch stops its refund too: that counts.
    """

    canceled: int
    batch: Batch


@dataclass(kw_only=True)
class Retried:
    """How many failed refunds go again, and how many were left by whether a retry can help.

    `moved` are those that somebody else moved, or the provider contradicted, before they could go again.
    `attempted` are those whose row was handed in again, and that attempt is on its way or done: `first_attempted` holds
    twenty of them, each with that other refund.
    """

    retried: int = 0
    moved: int = 0
    attempted: int = 0
    first_attempted: list[tuple[str, str]] = field(default_factory=list)
    left: Counter[str] = field(default_factory=Counter)


def cancel_batch(store: Store, batch_id: str, by: str, on_progress: Progress | None = None) -> Canceled:
    """Stop a batch: no claim of it succeeds any more, and what was not sent is settled as canceled.

    Killed half way it is finished by the same call. A batch of which nothing is left to stop stays as it is, so that
    what failed in it can still be retried. Raises `NotFound`.
    """
    before = read_batch(store, batch_id)
    if before.state != "canceled" and before.finished:
        store.confirm()
        return Canceled(canceled=0, batch=before)
    set_state(store, batch_id, "canceled", sources=("running", "paused"), by=by)
    done = 0
    for page in _pages(store, batch_id):
        unsent = [
            refund_id
            for refund_id, (stage, _) in zip(page, _read(store, page, "stage", "status"), strict=True)
            if stage in _UNSENT
        ]
        _apply(store, unsent, _cancelable, {"by": by, "batch": batch_id})
        done += len(page)
        if on_progress is not None:
            on_progress(done)
    after = read_batch(store, batch_id)
    store.confirm()
    counted = [batch.statuses.get(Status.CANCELED.value, 0) for batch in (before, after)]
    return Canceled(canceled=counted[1] - counted[0], batch=after)


def retry_batch(
    store: Store,
    batch_id: str,
    by: str,
    *,
    kinds: frozenset[Retriable],
    nudge: Callable[[Sequence[str]], None],
    on_progress: Progress | None = None,
) -> Retried:
    """Send again what failed and is `retriable` in one of these ways: a new generation of the same ids, its own key.

    What is in doubt has not failed, and is never sent again here. Each page is recorded before it is nudged for. Raises
    `NotFound`, and `GuardRefused` where the batch was canceled.
    """
    if read_batch(store, batch_id).state == "canceled":
        raise GuardRefused(f"batch {batch_id} was canceled: nothing of it is sent again")
    store.require_durable()
    retried = Retried()
    done = 0
    for page in _pages(store, batch_id):
        failed: list[str] = []
        for refund_id, (status, kind) in zip(page, _read(store, page, "status", "retriable"), strict=True):
            if status != Status.FAILED.value:
                continue
            retriable = Retriable(kind or Retriable.UNKNOWN)
            if retriable in kinds:
                failed.append(refund_id)
            else:
                retried.left[retriable.value] += 1
        again, attempted = _apply(store, failed, lambda refund: _retriable(refund, kinds), {"by": by})
        if again:
            nudge(again)
        retried.retried += len(again)
        retried.attempted += len(attempted)
        retried.first_attempted += attempted[: _NAMED - len(retried.first_attempted)]
        retried.moved += len(failed) - len(again) - len(attempted)
        done += len(page)
        if on_progress is not None:
            on_progress(done)
    store.confirm()
    return retried


def _cancelable(refund: Refund) -> Step | None:
    try:
        return decisions.cancel(refund)
    except NotCancelable:
        return None


def _retriable(refund: Refund, kinds: frozenset[Retriable]) -> Step | None:
    return decisions.retry_failed(refund) if (refund.retriable or Retriable.UNKNOWN) in kinds else None


def _apply(
    store: Store, refund_ids: Sequence[str], decide: Decide, detail: dict[str, Any]
) -> tuple[list[str], list[tuple[str, str]]]:
    """Decide and save a step for each refund.

    Returns the ids for which it was saved, and those of which another attempt is on its way or done, with that one.
    """
    saved: list[str] = []
    attempted: list[tuple[str, str]] = []
    left = list(refund_ids)
    for _ in range(_ROUNDS):
        if not left:
            break
        found = [refund for refund in store.get_many(left) if refund is not None]
        steps = [(refund, step) for refund in found if (step := decide(refund)) is not None]
        # Not durable page by page: whoever calls this confirms all of it before anybody is told.
        results = store.run_many([scripts.save(refund, step, detail, durable=False) for refund, step in steps])
        left = []
        for (refund, _), result in zip(steps, results, strict=True):
            if result.result == "saved":
                saved.append(refund.refund_id)
            elif result.result == "stale":
                left.append(refund.refund_id)
            elif result.result == "attempted":
                attempted.append((refund.refund_id, result.other or ""))
    return saved, attempted


def _pages(store: Store, batch_id: str) -> Iterator[list[str]]:
    ids = store.ids_in_batch(batch_id)
    while page := list(islice(ids, PAGE)):
        yield page


def _read(store: Store, refund_ids: Sequence[str], *names: str) -> list[list[str | None]]:
    """Return a few fields of many records: most of a batch needs no whole record to be passed over."""
    with redis_errors(store.place), store.redis.pipeline(transaction=False) as pipeline:
        for refund_id in refund_ids:
            pipeline.hmget(store.key(f"refund:{refund_id}"), list(names))
        found: list[list[str | None]] = pipeline.execute()
    return found
