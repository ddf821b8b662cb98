"""What a callback says: the event, and the present state of a refund or batch as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from worker.batches.record import decoded
from worker.callbacks.signing import message_id
from worker.model.refund import Refund, Stage, Status
from worker.model.times import rfc3339, to_ms
from worker.store.callbacks import BATCH, Taken
from worker.store.records import decode

_METADATA: Final = "metadata"


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """The callback about one version of a member.

    While the member is under way, `event` is one that no endpoint may want. `state` is its version,
    and of a refund also when that was written.
    """

    event: str
    version: str
    state: str
    identity: str
    body: bytes


def message_of(prefix: str, member: str, taken: Taken, *, metadata: bool) -> Message | None:
    """Return the callback about a member as it was taken, None if its record has expired.

    Raises `ValueError` if the record cannot be read.
    """
    if taken.stored is None:
        return None
    if member.startswith(BATCH):
        return _of_batch(prefix, member, taken, taken.stored)
    refund = decode(taken.stored)
    version = str(refund.version)
    # A restored server counts the versions after its snapshot once more. Its time goes on.
    state = f"{version} {to_ms(refund.updated_at)}"
    identity = message_id(prefix, member, state)
    event = event_of(refund)
    data = refund.as_dict() | {"previous_status": taken.status_before}
    if not metadata:
        del data[_METADATA]
    body = _body(event, rfc3339(refund.updated_at), data)
    return Message(event=event, version=version, state=state, identity=identity, body=body)


def event_of(refund: Refund) -> str:
    """Return the event that a refund's state is, `refund.pending` while it is under way."""
    if refund.stage is Stage.REVIEW:
        return "refund.in_review"
    if refund.status is Status.FAILED and refund.reversed_at is not None:
        return "refund.reversed"
    return f"refund.{refund.status.value}"


def _of_batch(prefix: str, member: str, taken: Taken, stored: Mapping[str, str]) -> Message:
    version = stored.get("finishes", "0")
    identity = message_id(prefix, member, version)
    batch = decoded(member.removeprefix(BATCH), stored)
    data = batch.as_dict() | {"version": int(version)}
    event = "batch.finished" if batch.finished else "batch.unfinished"
    body = _body(event, rfc3339(taken.now), data)
    return Message(event=event, version=version, state=version, identity=identity, body=body)


def _body(event: str, timestamp: str, data: Mapping[str, Any]) -> bytes:
    whole = {"type": event, "timestamp": timestamp, "data": data}
    return json.dumps(whole, separators=(",", ":")).encode("ascii")
