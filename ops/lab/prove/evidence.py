"""What a run left behind, gathered from the provider, from Redis and from the logs.

All that the judge goes by.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from ops.lab.prove import naive_worker
from ops.lab.prove.leaks import leaks
from ops.lab.prove.rig import CANARY, Rig
from ops.lab.prove.violation import CLOCK_SLACK
from worker.model.request import RefundRequest
from worker.rules.attempts import Rules
from worker.store.records import Moves

_REFUNDS: Final = "/v1/refunds"
_SOON: Final = 30.0
_NOT_GIVEN: Final = frozenset({"failed", "canceled"})
_WINDOW_HOURS: Final = Rules().key_window.total_seconds() / 3600
_FINAL: Final = frozenset({"succeeded", "failed", "canceled"})


@dataclass(frozen=True, kw_only=True)
class Post:
    """One POST as the provider received it.

    `at` in epoch seconds, `answered` None where no answer left.
    """

    at: float
    refund_id: str | None
    generation: str | None
    key: str | None
    body: str
    fault: str | None
    answered: int | None


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything about one run. `histories` is None where the subject keeps none."""

    accepted: Mapping[str, RefundRequest]
    records: Mapping[str, Mapping[str, str]]
    histories: Mapping[str, Sequence[Mapping[str, Any]]] | None
    events: Sequence[Mapping[str, str]] = ()
    due: frozenset[str] = frozenset()
    ledger: Sequence[Mapping[str, Any]] = ()
    posts: Sequence[Post] = ()
    captured: Mapping[str, int] = field(default_factory=dict)
    leaks: Sequence[str] = ()
    failed_there: frozenset[str] = frozenset()
    """Of those that ended failed or canceled, the ones of which the provider itself says so."""
    refused: Sequence[tuple[float, float]] = ()
    """From when to when the provider refused the key, in epoch seconds."""
    alarmed: bool = True
    """Whether the breaker was open soon after the key was first refused."""
    held: Sequence[tuple[float, float]] = ()
    """From when to when nothing may be claimed or sent: between a recovery and `refunds resume`."""
    max_attempts: int = 12
    verify: bool = True
    key_window: float = 0.0
    """Where keys are trusted, for how many seconds after its first POST one may be sent again
    unproven.
    """
    history_lost: bool = False
    started: float = 0.0
    ended: float = 0.0
    kills: Sequence[float] = ()
    clock_off: float = 0.0
    """By how many seconds the records' time may differ from this process's by design."""

    @property
    def slack(self) -> float:
        """Return the seconds by which two moments may differ and still be the same one."""
        return CLOCK_SLACK + self.clock_off

    def about(self, refund_id: str) -> dict[str, Any]:
        """Return all that is known of one refund, for a person to read."""
        return {
            "refund_id": refund_id,
            "record": self.records.get(refund_id),
            "history": None if self.histories is None else self.histories.get(refund_id),
            "ledger": [entry for entry in self.ledger if entry["refund_id"] == refund_id],
            "posts": [vars(post) for post in self.posts if post.refund_id == refund_id],
        }


def gathered(rig: Rig) -> Evidence:
    """Return the evidence of a run that is over; the workers may still run."""
    ids = list(rig.accepted)
    ours = rig.subject.is_ours
    records = _records(rig, ids, "refunds:refund:{}" if ours else naive_worker.KEY)
    ledger = rig.sandbox.ledger()
    return Evidence(
        accepted=dict(rig.accepted),
        records=(
            records
            if ours
            else {refund_id: _as_record(found) for refund_id, found in records.items()}
        ),
        histories=_histories(rig, ids) if ours else None,
        events=[fields for _, fields in _asked(rig, "xrange", "refunds:events")] if ours else (),
        due=frozenset(_asked(rig, "zrange", "refunds:due", 0, -1)) if ours else frozenset(),
        ledger=ledger,
        posts=list(_posts(rig)),
        captured=_captured(ledger),
        leaks=list(leaks(rig)),
        failed_there=_failed_there(rig, records) if ours else frozenset(),
        refused=tuple(rig.key_refused),
        alarmed=rig.alarmed,
        held=tuple(rig.held),
        max_attempts=int(rig.environment.get("REFUNDS_MAX_ATTEMPTS", Rules().max_attempts)),
        verify=rig.mode.idempotency == "verify",
        key_window=3600 * float(rig.environment.get("REFUNDS_KEY_WINDOW_HOURS", _WINDOW_HOURS)),
        history_lost=rig.history_lost,
        started=rig.started,
        ended=time.time(),
        kills=tuple(rig.kills),
        clock_off=rig.clock_off,
    )


def _asked(rig: Rig, method: str, *arguments: Any) -> Any:
    return rig.asking(lambda: getattr(rig.redis, method)(*arguments))


def _records(rig: Rig, ids: Sequence[str], key: str) -> dict[str, dict[str, str]]:
    def ask() -> list[Any]:
        with rig.redis.pipeline(transaction=False) as pipeline:
            for refund_id in ids:
                pipeline.hgetall(key.format(refund_id))
            return list(pipeline.execute())

    return {
        refund_id: found for refund_id, found in zip(ids, rig.asking(ask), strict=True) if found
    }


def _as_record(found: Mapping[str, str]) -> dict[str, str]:
    """Return the control's status in the words of a record."""
    status = found.get("status", "pending")
    return {**found, "stage": "settled" if status in _FINAL else "queued", "status": status}


def _histories(rig: Rig, ids: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    def ask() -> list[Any]:
        with rig.redis.pipeline(transaction=False) as pipeline:
            for refund_id in ids:
                pipeline.lrange(f"refunds:history:{refund_id}", 0, -1)
            return list(pipeline.execute())

    return {
        refund_id: Moves().read(entries)
        for refund_id, entries in zip(ids, rig.asking(ask), strict=True)
    }


def _failed_there(rig: Rig, records: Mapping[str, Mapping[str, str]]) -> frozenset[str]:
    """Return which of the refunds that ended failed or canceled the provider itself shows as
    such.
    """
    found = set()
    with httpx.Client(base_url=rig.sandbox.url, auth=(CANARY, ""), timeout=_SOON) as client:
        for refund_id, record in records.items():
            if record["status"] not in _NOT_GIVEN:
                continue
            # By its payment and not by its id, which may be one of the provider's lies.
            asked = {"payment_intent": record["payment_intent"], "limit": "100"}
            listed = client.get(_REFUNDS, params=asked).json().get("data", [])
            if any(
                one["metadata"].get("refund_id") == refund_id and one["status"] in _NOT_GIVEN
                for one in listed
            ):
                found.add(refund_id)
    return frozenset(found)


def _posts(rig: Rig) -> Iterator[Post]:
    # One machine, so one monotonic clock: the journal's times and Redis's are brought together by
    # today's offset.
    offset = time.time() - time.monotonic()
    for entry in rig.sandbox.requests():
        if entry["method"] != "POST" or not entry["path"].startswith(_REFUNDS):
            continue
        try:
            metadata = json.loads(entry["body"]).get("metadata", {})
        except ValueError:
            metadata = {}
        yield Post(
            at=entry["monotonic"] + offset,
            refund_id=metadata.get("refund_id"),
            generation=metadata.get("refund_generation"),
            key=entry["headers"].get("idempotency-key"),
            body=entry["body"],
            fault=entry["fault"],
            answered=entry["status"],
        )


def _captured(ledger: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return what was captured of each payment that was refunded more than once.

    Of one effect the provider sees to.
    """
    counts: dict[str, int] = {}
    for entry in ledger:
        if entry["event"] == "effect":
            counts[entry["payment_intent"]] = counts.get(entry["payment_intent"], 0) + 1
    return dict.fromkeys((payment for payment, count in counts.items() if count > 1), CAPTURED)


CAPTURED: Final = 100_000
"""What the sandbox says was captured of a payment that nobody made otherwise."""
