"""What the views show of refunds, batches and callbacks, read in a thread."""

from __future__ import annotations

from datetime import datetime
from itertools import islice
from typing import Any, Final

from worker.batches import list_batches, look_at_batch
from worker.callbacks import endpoints
from worker.client import Refunds
from worker.errors import SettingsError
from worker.http.page import pagewords
from worker.http.page.refusals import Refusal, move_of
from worker.http.spool import Spool
from worker.model.refund import Refund, Stage
from worker.store import audit, callback_state, flags, reads
from worker.store.listing import Filter, matching, page
from worker.wording import history, reasons
from worker.wording.batches import facts_of_batch, state_of_batch
from worker.wording.choices import choices, may_retry
from worker.wording.decisions import evidence
from worker.wording.refunds import facts_of
from worker.wording.upcoming import next_of

LISTED: Final = 50
MOST_IN_QUEUE: Final = 200
"""The most refunds in review that one page shows."""
MOST_SORTED: Final = 1000
"""The most refunds in review that are read to find the oldest."""
MOST_LETTERS: Final = 100


_COUNTS: Final = frozenset(
    {
        "quiet_at",
        "absent_at",
        "found_at",
        "processing_since",
        "attempts",
        "attempts_with_an_answer",
        "lapsed_leases",
        "server_errors_in_a_row",
        "inconclusive_looks",
        "resends",
        "operator_says",
        "operator_by",
    }
)
"""Evidence that a person does not need to find a refund at the provider."""


def listed(refunds: Refunds, wanted: Filter, after: str | None) -> dict[str, Any]:
    """Return a page of refunds that match."""
    found = page(refunds.store, wanted, after=after, limit=LISTED)
    return {"refunds": found.refunds, "next": found.cursor}


def one(refunds: Refunds, refund_id: str, refusal: Refusal | None = None) -> dict[str, Any]:
    """Return everything about one refund. Raises `NotFound`."""
    refund = refunds.get(refund_id)
    entries = [pagewords.entry_on_page(entry) for entry in refunds.history(refund_id)]
    siblings = refunds.store.run(reads.siblings(refund.payment_intent, refund_id))
    refunds.store.confirm_final(each.updated_at for each in siblings or () if each.settled)
    batch_state = None if refund.batch_id is None else refunds.store.batch_state(refund.batch_id)
    switches = flags.read(refunds.store)
    paused, stopped = switches.paused_at is not None, switches.stopped
    return {
        "refund": refund,
        "rows": _rows(refund, entries, batch_state, paused=paused or stopped),
        "next": next_of(refund, paused=paused, batch_state=batch_state, stopped=stopped),
        "why": _reason(entries) if refund.stage is Stage.REVIEW else None,
        "moves": [move_of(entry) for entry in entries],
        "callbacks": callback_state.of_refund(refunds.store, refund_id),
        "since": [] if refusal is None else refusal.moves_since(entries),
        "sent": _timed(history.sent(entries)),
        "read": _timed(history.read(entries)),
        **_evidence(refund, entries),
        "siblings": siblings,
        "can_cancel": (
            refund.stage in {Stage.QUEUED, Stage.WAITING}
            and refund.doubt_since is None
            and refund.processing_since is None
            and not refund.is_only_said_absent
        ),
        "can_retry": may_retry(refund),
        "can_recheck": refund.stage is Stage.IN_DOUBT or refund.provider_refund_id is not None,
        "choices": choices(refund) if needs_person(refund) else [],
    }


def _rows(
    refund: Refund, entries: reasons.Entries, batch_state: str | None, *, paused: bool
) -> list[tuple[str, str]]:
    """Return the facts of a refund that no other part of its page shows."""
    held = refund.stage in {Stage.QUEUED, Stage.WAITING} and (paused or batch_state == "paused")
    elsewhere = {"why", "next check"} if held else {"why"}
    found = facts_of(refund, entries)
    return pagewords.facts(refund, [row for row in found if row[0] not in elsewhere])


def _reason(entries: reasons.Entries) -> str | None:
    """Return the sentence of the last move that requested a review, None if none did."""
    why = reasons.review_reason(entries)
    return None if why is None else pagewords.on_page(why[1])


def _evidence(refund: Refund, entries: reasons.Entries) -> dict[str, list[tuple[str, str]]]:
    """Return how to find a refund at the provider, and what the worker counted about it."""
    found = evidence(refund, entries)
    if refund.baseline is not None:
        found["baseline"] = pagewords.baseline_of(refund.baseline)
    return {
        "evidence": _marks({name: each for name, each in found.items() if name not in _COUNTS}),
        "counted": _marks({name: each for name, each in found.items() if name in _COUNTS}),
    }


def needs_person(refund: Refund) -> bool:
    """Return whether a person can decide about a refund."""
    return refund.stage is Stage.REVIEW or (refund.settled and refund.contradicted_by is not None)


def _timed(rows: list[tuple[int | None, str]]) -> list[tuple[str, str]]:
    return [(history.clock(at), words) for at, words in rows]


def _marks(marks: dict[str, Any]) -> list[tuple[str, str]]:
    shown: list[tuple[str, str]] = []
    for name, value in marks.items():
        if isinstance(value, list):
            text = reasons.in_words(value)
        elif isinstance(value, dict):
            text = ", ".join(f"{key} {inner}" for key, inner in value.items() if inner is not None)
        else:
            text = "" if value is None else str(value)
        if text:
            shown.append((name.replace("_", " "), text))
    return shown


def queue(refunds: Refunds) -> dict[str, Any]:
    """Return the refunds that need a person: contradicted ones first, each by its age."""
    store = refunds.store
    contradicted = [
        each for each in refunds.get_many(store.ids_contradicted()) if each and each.settled
    ]
    # The index is by when a refund is due next, not by how long it has waited.
    waiting = list(islice(matching(store, Filter(stage=Stage.REVIEW)), MOST_SORTED))
    found = [*sorted(contradicted, key=_changed), *sorted(waiting, key=_changed)]
    return {
        "total": store.counts()["review"] + len(contradicted),
        "sorted": MOST_SORTED,
        "is_partly_sorted": len(waiting) == MOST_SORTED,
        "queue": [(each, _why(refunds, each)) for each in found[:MOST_IN_QUEUE]],
    }


def _changed(refund: Refund) -> tuple[datetime, str]:
    return refund.updated_at, refund.refund_id


def _why(refunds: Refunds, refund: Refund) -> str:
    if refund.contradicted_by is not None:
        return f"the provider shows {refund.contradicted_by}, which contradicts this record"
    return _reason(refunds.history(refund.refund_id)) or "no review was requested"


def batches(refunds: Refunds, after: str | None) -> dict[str, Any]:
    """Return a page of batches, newest first. Raises `NotFound` if `after` does not exist."""
    found = list(islice(list_batches(refunds.store, after), LISTED + 1))
    more = found[LISTED - 1].batch_id if len(found) > LISTED else None
    return {"batches": found[:LISTED], "next": more}


def batch(refunds: Refunds, batch_id: str, spool: Spool) -> dict[str, Any]:
    """Return one batch with its progress. Raises `NotFound`."""
    seen = look_at_batch(refunds.store, batch_id)
    return {
        "seen": seen,
        "batch": seen.batch,
        "is_kept": spool.has_batch(seen.batch.batch_id),
        "rows": pagewords.batch_facts(
            [("state", state_of_batch(seen.batch)), *facts_of_batch(seen, unit="major")]
        ),
    }


def audited(
    refunds: Refunds,
    *,
    by: str | None,
    target: str | None,
    action: str | None,
    before: str | None,
) -> dict[str, Any]:
    """Return a page of what people did, newest first; `before` is the last one shown before."""
    every = audit.entries(refunds.store)
    if before is not None:
        # From the newest on, because the result of an action may be noted long after it.
        every = (each for each in every if audit.position(each.entry_id) < audit.position(before))
    found = list(islice(audit.selected(every, by=by, target=target, action=action), LISTED + 1))
    more = found[LISTED - 1].entry_id if len(found) > LISTED else None
    return {"entries": found[:LISTED], "next": more}


def callbacks(refunds: Refunds) -> dict[str, Any]:
    """Return the state of the callbacks, with the dead letters of each endpoint."""
    state = callback_state.read_callbacks(refunds.store)
    return {
        "state": state,
        "addresses": _addresses(refunds),
        "letters": {
            each.name: callback_state.dead_letters(refunds.store, each.name)[:MOST_LETTERS]
            for each in state.endpoints
            if each.dead
        },
    }


def _addresses(refunds: Refunds) -> dict[str, str]:
    """Return where callbacks are sent, as far as this server knows it."""
    try:
        return {each.name: each.shown_url for each in endpoints.load(refunds.settings)}
    except SettingsError:
        # Workers have the file and the secrets; this server need not.
        return {}
