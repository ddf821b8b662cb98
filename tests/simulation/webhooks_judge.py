"""What a webhook may do: make a refund be read, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from tests.simulation.known import Known
    from worker.sandbox.bank import SandboxRefund
    from worker.sandbox.shapes import Answer

Broken = Callable[[str, str, str], None]
Record = Mapping[str, str | None]

NOTED: Final = frozenset({"hinted", "hints_used", "next_check_at"})
"""The fields of a record that a webhook may change."""
BY_READ: Final = frozenset({"webhook", "recheck"})
"""How the history says that a refund was seen when it was read outside its own schedule."""
OK: Final = 200
_PATH: Final = "/v1/refunds/"


class WebhooksJudge:
    """Judges what webhooks lead to in one world."""

    def __init__(self, broken: Broken) -> None:
        self._broken = broken
        self._named: set[str] = set()
        self._read: dict[str, str] = {}

    def noted(self, before: Mapping[str, Record], after: Mapping[str, Known]) -> None:
        """Judge the records right after an event was noted: it changes nothing that is recorded."""
        for refund_id, record in before.items():
            now = after[refund_id].record
            changed = {name for name in record if record[name] != now.get(name)} - NOTED
            if not changed:
                continue
            was = f"{record['stage']} {record['status']}"
            fact = f"{was} is {now['stage']} {now['status']} by a webhook alone: {sorted(changed)}"
            self._broken("reverted" if record["stage"] == "settled" else "event", refund_id, fact)

    def named(self, provider_refund_id: str) -> None:
        """Note that an event with our metadata was received for a provider's refund."""
        self._named.add(provider_refund_id)

    def shown(self, path: str, answer: Answer) -> None:
        """Note a whole reply to a read of one refund."""
        if path.startswith(_PATH) and answer.status == OK:
            try:
                status = json.loads(answer.body)["status"]
            except (ValueError, KeyError, TypeError, RecursionError):
                status = None
            self._read[path.removeprefix(_PATH)] = str(status)

    def forget(self, provider_refund_ids: Iterable[str]) -> None:
        """Forget what was read of these: they are to be read again."""
        for identity in provider_refund_ids:
            self._read.pop(identity, None)

    def move(self, refund_id: str, known: Known, entry: Mapping[str, Any]) -> None:
        """Judge a move that a read outside the refund's own schedule led to."""
        if entry.get("seen") not in BY_READ or entry["label"] == "conflict":
            return
        # One that failed, and may not be all that was made, is kept as an earlier one.
        priors = (known.record["prior_refund_ids"] or "").split()
        identity = known.record["provider_refund_id"] or (priors[-1] if priors else "")
        if entry.get("source") != "lookup" or identity not in self._read:
            self._broken("unread", refund_id, f"{entry}, and nobody has read {identity}")

    def repeated(self, refund_id: str, before: Mapping[str, Any], entry: Mapping[str, Any]) -> None:
        """Judge that one effect is recorded once."""
        same = before.get("to") == entry["to"] == "settled" and before["status"] == entry["status"]
        if same and entry["label"] not in {"contradicted", "identified"}:
            self._broken("twice", refund_id, f"{entry} follows {before}")

    def claimed(self, refund_id: str, record: Record) -> None:
        """Judge that what a webhook named is read before anything is sent."""
        if record.get("hinted"):
            fact = f"to be sent, and a webhook named {record['hinted']}, which nobody has read"
            self._broken("hinted", refund_id, fact)

    def sent(self, refund_id: str, known: Known) -> None:
        """Judge that a retry is sent only if its earlier refunds are read, and have failed.

        A person may insist on the send if the provider does not know them any more.
        """
        if known.label == "replay":
            return
        for prior in filter(None, known.priors):
            shown = self._read.get(prior, "nothing")
            if shown == "nothing" and known.insisted:
                continue
            if shown.lower() in {"nothing", "succeeded", "pending"}:
                fact = f"sent again, and {prior} of an earlier generation was last read as {shown}"
                self._broken("guard", refund_id, fact)

    def unidentified(self, refund_id: str, known: Known, made: list[SandboxRefund]) -> None:
        """Judge that a person is not asked about what an event has named."""
        if known.record["stage"] != "review" or known.misled:
            return
        ours = [
            refund
            for refund in made
            if refund.metadata.get("refund_generation") == str(known.generations)
        ]
        # One that failed and is known says nothing of a send that only a person calls absent.
        known_failed = (known.record["prior_refund_ids"] or "").split()
        if len(ours) == 1 and ours[0].id in self._named and ours[0].id not in known_failed:
            fact = f"in review as {known.label}, and a webhook named {ours[0].id} for it"
            self._broken("unidentified", refund_id, fact)
