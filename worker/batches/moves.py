"""Cancels and retries whole batches: unsent refunds are canceled, failed ones sent again.

Paged and resumable.
"""

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
from worker.store import saves
from worker.store.connection import redis_errors
from worker.store.store import PAGE, Store

_ROUNDS: Final = 5
"""Maximum number of decisions on a refund that changes while it is decided on."""
_NAMED: Final = 20
_SENT: Final = ("sending", "in_doubt", "processing", "review")
_NOT_SENT: Final = (Stage.QUEUED.value, Stage.WAITING.value)
_UNSENT: Final = frozenset(_NOT_SENT)
_STANDING: Final = frozenset({"attempted", "repeated"})
"""Why a failed refund is not sent again beside another one."""

Decide = Callable[[Refund], Step | None]
Progress = Callable[[int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Canceled:
    """The number of refunds that a cancel stopped, and the batch after it.

    The rest was sent, or settled before.

    Refunds that a claim stopped because their batch is canceled count, too.
    """

    canceled: int
    batch: Batch
    changed: bool
    """Whether the batch was not canceled before."""

    @property
    def audited(self) -> bool | int:
        """Return what the audit says of it: how many, else whether anything was changed."""
        return self.canceled or self.changed

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON.

        All counts of refunds come from one reading, so that they add up: a row may have moved since
        the cancel, or a worker's claim may have canceled it.
        """
        after = self.batch
        settled = {name: after.statuses.get(name, 0) for name in ("succeeded", "failed")}
        return {
            "batch_id": after.batch_id,
            "refunds": after.accepted,
            "canceled": after.statuses.get("canceled", 0),
            "canceled_now": self.canceled,
            "sent": settled | {name: after.stages.get(name, 0) for name in _SENT},
            "to_be_canceled": {name: after.stages.get(name, 0) for name in _NOT_SENT},
        }


@dataclass(kw_only=True)
class Retried:
    """The number of failed refunds sent again, and of those left, by whether a retry can help.

    `moved` are those that another caller moved, or the provider contradicted, before they could be
    sent again. `attempted` are those that seem to be submitted again: another attempt at the row,
    or another refund of the payment and amount, is active or done. `first_attempted` holds twenty
    of them, each with that other refund.
    """

    retried: int = 0
    moved: int = 0
    attempted: int = 0
    first_attempted: list[tuple[str, str]] = field(default_factory=list)
    left: Counter[str] = field(default_factory=Counter)

    @property
    def audited(self) -> int:
        """Return what the audit says of it: how many were sent again."""
        return self.retried

    def as_dict(self) -> dict[str, Any]:
        """Return the counts for JSON."""
        return {
            "retried": self.retried,
            "left": dict(self.left),
            "moved": self.moved,
            "handed_in_again": self.attempted,
        }


def cancel_batch(
    store: Store, batch_id: str, by: str, on_progress: Progress | None = None
) -> Canceled:
    """Cancel a batch: claims of its refunds fail from now on, unsent refunds settle as canceled.

    If it is interrupted, the same call finishes it. A batch with nothing left to stop is unchanged,
    so that its failed refunds can still be retried. Raises `NotFound`.
    """
    before = read_batch(store, batch_id)
    if before.state != "canceled" and before.is_over:
        store.confirm()
        return Canceled(canceled=0, batch=before, changed=False)
    changed = set_state(store, batch_id, "canceled", sources=("running", "paused"), by=by)
    done = 0
    for page in _pages(store, batch_id):
        unsent = [
            refund_id
            for refund_id, (stage, _) in zip(
                page, _read(store, page, "stage", "status"), strict=True
            )
            if stage in _UNSENT
        ]
        _apply(store, unsent, _cancelable, {"by": by, "batch": batch_id})
        done += len(page)
        if on_progress is not None:
            on_progress(done)
    after = read_batch(store, batch_id)
    store.confirm()
    counted = [batch.statuses.get(Status.CANCELED.value, 0) for batch in (before, after)]
    return Canceled(canceled=counted[1] - counted[0], batch=after, changed=changed)


def retry_batch(
    store: Store,
    batch_id: str,
    by: str,
    *,
    kinds: frozenset[Retriable],
    nudge: Callable[[Sequence[str]], None],
    on_progress: Progress | None = None,
) -> Retried:
    """Send failed refunds again if they are `retriable` in one of these ways.

    Same ids, new generation, new key.

    A refund in doubt has not failed, and is never sent again here. Each page is recorded before its
    nudges. Raises `NotFound`, and `GuardRefused` if the batch was canceled.
    """
    if read_batch(store, batch_id).state == "canceled":
        raise GuardRefused(
            f"batch {batch_id} was canceled: none of its refunds is sent again; import them under"
            " new ids"
        )
    store.require_durable()
    retried = Retried()
    done = 0
    for page in _pages(store, batch_id):
        failed: list[str] = []
        for refund_id, (status, kind) in zip(
            page, _read(store, page, "status", "retriable"), strict=True
        ):
            if status != Status.FAILED.value:
                continue
            retriable = Retriable(kind or Retriable.UNKNOWN)
            if retriable in kinds:
                failed.append(refund_id)
            else:
                retried.left[retriable.value] += 1
        again, attempted = _apply(
            store, failed, lambda refund: _retriable(refund, kinds), {"by": by}
        )
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
    return (
        decisions.retry_failed(refund) if (refund.retriable or Retriable.UNKNOWN) in kinds else None
    )


def _apply(
    store: Store, refund_ids: Sequence[str], decide: Decide, detail: dict[str, Any]
) -> tuple[list[str], list[tuple[str, str]]]:
    """Decide and save a step for each refund.

    Returns the saved ids, and the ids beside which another refund stands, with that refund.
    """
    saved: list[str] = []
    attempted: list[tuple[str, str]] = []
    left = list(refund_ids)
    for _ in range(_ROUNDS):
        if not left:
            break
        found = [refund for refund in store.get_many(left) if refund is not None]
        steps = [(refund, step) for refund in found if (step := decide(refund)) is not None]
        # Pages are not durable one by one: the caller confirms all of them before it reports
        # anything.
        results = store.run_many(
            [saves.save(refund, step, detail, durable=False) for refund, step in steps]
        )
        left = []
        for (refund, _), result in zip(steps, results, strict=True):
            if result.result == "saved":
                saved.append(refund.refund_id)
            elif result.result == "stale":
                left.append(refund.refund_id)
            elif result.result in _STANDING:
                attempted.append((refund.refund_id, result.other or ""))
    return saved, attempted


def _pages(store: Store, batch_id: str) -> Iterator[list[str]]:
    ids = store.ids_in_batch(batch_id)
    while page := list(islice(ids, PAGE)):
        yield page


def _read(store: Store, refund_ids: Sequence[str], *names: str) -> list[list[str | None]]:
    """Return a few fields of many records.

    Most refunds of a batch can be skipped without the whole record.
    """
    with redis_errors(store.address), store.redis.pipeline(transaction=False) as pipeline:
        for refund_id in refund_ids:
            pipeline.hmget(store.key(f"refund:{refund_id}"), list(names))
        found: list[list[str | None]] = pipeline.execute()
    return found
