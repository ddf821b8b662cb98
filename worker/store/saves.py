"""The command that saves a decided step, by compare-and-set on the record's version."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from worker.model.refund import Refund, Stage
from worker.model.request import idempotency_key, request_body
from worker.model.steps import Step
from worker.model.times import from_ms, to_ms
from worker.rules.transitions import sources_of
from worker.store import scripts
from worker.store.creations import MOST_FIELDS
from worker.store.records import text
from worker.store.scripts import Argument, Command
from worker.store.sweeps import NUDGE_GRACE

_ms = timedelta(milliseconds=1)
_as_json: Final = json.JSONEncoder(separators=(",", ":")).encode
_SOURCES: Final = {
    target: f",{','.join(source.value for source in sources_of(target))}," for target in Stage
}
"""The stages from which a refund may move to each stage, between commas."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """A save's result: `saved`, or the reason why nothing changed.

    `woken` is a refund that waited for the payment and is due now. `rows` are refunds that waited
    for room in the batch and are due now.
    """

    result: Literal[
        "saved",
        "missing",
        "stale",
        "illegal",
        "already",
        "owned",
        "contradicts",
        "attempted",
        "repeated",
        "late",
    ]
    now: datetime
    woken: str | None = None
    rows: tuple[str, ...] = ()
    other: str | None = None

    @property
    def due_now(self) -> tuple[str, ...]:
        """Return the ids of all refunds that are due because of this save."""
        return self.rows if self.woken is None else (self.woken, *self.rows)


def save(
    refund: Refund, step: Step, detail: Mapping[str, Any] | None = None, *, durable: bool = True
) -> Command[Saved]:
    """Apply a step decided on `refund`, by compare-and-set on its version.

    A step that is a proof of done applies to any version, but not one of a failure once the refund
    was sent again, and not after its `settles_until` (`late`). `detail` is added to the history
    entry unchanged, so it holds JSON values only. A save need not be `durable` if it is not
    reported before a later write is on disk. The append-only file is in order, so that write keeps
    this one too.
    """
    noted = _noted(step, detail or {})
    fragment = f",{_as_json(noted)[1:-1]}" if noted else ""
    body: bytes | str = ""
    changes = dict(step.changes)
    retried = step.to is Stage.QUEUED and not step.quiet
    if retried:
        generation = int(changes["generation"])
        body = request_body(refund.as_request(), generation)
        changes["idempotency_key"] = idempotency_key(refund.refund_id, generation)
    if _must_keep_fingerprint(refund, step):
        changes["fingerprint"] = refund.fingerprint
    # Most steps remove many fields, which need no text.
    texts = {name: "" if value is None else text(name, value) for name, value in changes.items()}
    delay = step.delay or (NUDGE_GRACE if retried else timedelta(0))
    arguments: list[Argument] = [
        refund.refund_id,
        str(refund.version),
        str(refund.resends) if step.proof else "",
        str(refund.generation),
        step.to.value,
        step.status.value,
        max(0, delay // _ms),
        "1" if step.quiet else "",
        json.dumps(step.label),
        fragment,
        _SOURCES[step.to],
        body,
        refund.stage.value,
        # As one argument, the removed fields cost the client and the server less.
        " ".join([name for name, value in texts.items() if not value]),
    ]
    for name, value in texts.items():
        if value:
            arguments += (name, value)
    if step.settles_until is not None:
        arguments += ("settles_until", str(to_ms(step.settles_until)))
    if retried:
        arguments += ("most_fields", MOST_FIELDS)

    def read(reply: Any) -> Saved:
        result, now = reply[0], from_ms(int(reply[1]))
        if result == "saved":
            return Saved(result="saved", now=now, woken=reply[2] or None, rows=tuple(reply[3:]))
        return Saved(result=result, now=now, other=reply[2] or None)

    return Command(script=scripts.SAVE, arguments=arguments, read=read, durable=durable)


def _must_keep_fingerprint(refund: Refund, step: Step) -> bool:
    """Return whether what was asked for would be lost without the fingerprint.

    A settled record drops it, since its fields imply it. They do no longer if it settles another
    time with another amount, so it is stored again with the move out of `settled`, and kept by the
    next one into it.
    """
    if refund.stage is Stage.SETTLED:
        return step.to is not Stage.SETTLED
    # What is sent has the amount that was asked.
    return (
        step.to is Stage.SETTLED
        and refund.stage is not Stage.SENDING
        and not refund.can_be_made_again
    )


def _noted(step: Step, detail: Mapping[str, Any]) -> dict[str, Any]:
    """Return the extra fields of a history entry.

    `detail`, and the source and person that the step is based on.
    """
    noted = dict(detail)
    # An HTTP status implies the source `reply`. Most entries have one, and records are kept for
    # long, so omit it.
    if step.source is not None and not (step.source == "reply" and "http_status" in noted):
        noted["source"] = step.source
    if step.by is not None:
        noted["by"] = step.by
    return noted
