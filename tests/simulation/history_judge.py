"""What each record and its history say: every move is in the table, and leads to the record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from tests.simulation.bounds_judge import TEXTS
from tests.simulation.failing_judge import VERDICTS
from worker.model.refund import Stage
from worker.rules.transitions import TRANSITIONS

if TYPE_CHECKING:
    from tests.simulation.batch_judge import Move
    from tests.simulation.bounds_judge import BoundsJudge
    from tests.simulation.effects_judge import EffectsJudge
    from tests.simulation.known import Known
    from tests.simulation.money_judge import MoneyJudge
    from tests.simulation.webhooks_judge import WebhooksJudge
    from tests.simulation.words_judge import WordsJudge
    from worker.rules.attempts import Rules

Broken = Callable[[str, str, str], None]

STIRRED: Final = frozenset({"operator_says_absent", "operator_says_failed", "first_look"})
"""What puts a refund in doubt beside others of its payment."""


@dataclass(kw_only=True)
class HistoryJudge:
    """Follows the histories of one world."""

    broken: Broken
    tells_no_secret: Callable[[str, str, str], None]
    rules: Rules
    now_ms: Callable[[], int]
    """The time as the records see it."""
    bounds: BoundsJudge
    effects: EffectsJudge
    money: MoneyJudge
    webhooks: WebhooksJudge
    words: WordsJudge
    after_a_cut: bool = False
    """Whether histories are read from their beginning once more, so that their moves are not
    news.
    """
    moves: list[Move] = field(default_factory=list)
    """The moves of the present look."""
    past_window: set[str] = field(default_factory=set)
    """Refunds that were not settled when their key's window had passed."""

    def look(
        self, refund_id: str, known: Known, record: dict[str, str | None], entries: Sequence[str]
    ) -> None:
        """Judge a record as it lies now, and the entries that its history has gained."""
        if record["stage"] is None:
            if known.record:
                self.broken("lost", refund_id, "its record is gone")
            return
        before = known.record
        known.record = record
        for text in entries:
            self.tells_no_secret("history", refund_id, text)
        for name in TEXTS:
            self.tells_no_secret(name, refund_id, record[name] or "")
        self.bounds.record(refund_id, record, entries)
        for entry in known.told.read(entries):
            self._replay(refund_id, known, entry)
            self._note_prior(known, before)
        self._judge_replay(refund_id, known)
        if before and before["generation"] == record["generation"]:
            # A settled record may drop both: nothing of its generation is sent again, and it tells
            # what was asked.
            settled = record["stage"] == "settled"
            dropped = settled and record["idempotency_key"] is None
            if before["idempotency_key"] != record["idempotency_key"] and not dropped:
                self.broken("key", refund_id, "the key of a generation changed")
            self._judge_contents(refund_id, known, before)
        if (
            not self.after_a_cut
            and record["stage"] == "settled"
            and (not before or before["version"] != record["version"])
        ):
            self.effects.settled(refund_id, record)
            self.effects.failed(refund_id, known)

    def _note_prior(self, known: Known, before: Mapping[str, str | None]) -> None:
        """Note which refunds of the provider are to be read before a retry is sent."""
        if known.label == "retried" and before:
            known.priors += [before["provider_refund_id"] or ""]
            self.webhooks.forget(known.priors)
        elif known.by_person and known.record["prior_refund_ids"] is None:
            # A person has insisted that they moved nothing.
            known.priors.clear()

    def _judge_contents(
        self, refund_id: str, known: Known, before: Mapping[str, str | None]
    ) -> None:
        """Judge that a record still tells what was asked for, also once its metadata are erased."""
        record = known.record
        known.fingerprint = known.fingerprint or before["fingerprint"]
        erased = record["metadata_erased_at"] is not None
        # A settled record may drop it, because its other fields tell the same, but not without its
        # metadata.
        told = record["fingerprint"]
        dropped = record["stage"] == "settled" or before["fingerprint"] is None
        if told != known.fingerprint and (told is not None or erased or not dropped):
            self.broken("body", refund_id, "what was asked for changed")
        # A person who ends a contradiction lets a settled record be read again, and sends nothing.
        if erased and (record["metadata"] is not None or record["stage"] in {"queued", "sending"}):
            self.broken("erased", refund_id, f"erased, and it is {record['stage']} again")

    def _judge_replay(self, refund_id: str, known: Known) -> None:
        """Judge whether the history leads to the record."""
        record = known.record
        told = (
            str(known.moves),
            known.stage,
            known.status,
            str(known.attempts),
            str(known.generations),
        )
        stands = (record["version"], record["stage"], record["status"])
        if told != (*stands, record["attempts"] or "0", record["generation"] or "1"):
            self.broken("history", refund_id, f"history ends in {told}, the record says {record}")
        if record["first_attempt_at"] is not None:
            known.first_attempt_at = int(record["first_attempt_at"])
            if self.now_ms() - known.first_attempt_at > self.rules.key_window / timedelta(
                milliseconds=1
            ):
                self.past_window.add(refund_id)

    def _replay(self, refund_id: str, known: Known, entry: Mapping[str, Any]) -> None:
        source, target = entry["from"], entry["to"]
        if entry["version"] != known.moves + 1 or source != known.stage:
            self.broken(
                "history", refund_id, f"{entry} follows version {known.moves} in {known.stage}"
            )
        legal = source is None or Stage(target) in TRANSITIONS[Stage(source)]
        if not legal:
            self.broken("transition", refund_id, f"{source} to {target} is not a move of the table")
        known.moves, known.stage, known.status = known.moves + 1, target, entry["status"]
        known.label = entry["label"]
        known.attempts += target == "sending"
        known.verdicts += source == "sending" and entry.get("seen") in VERDICTS
        if known.label == "retried":
            known.generations, known.verdicts = known.generations + 1, 0
        if known.last:
            self.webhooks.repeated(refund_id, known.last, entry)
        known.by_person, known.last = entry.get("by") == "person", entry
        known.path.append(f"{known.moves} {target} {known.status}")
        self._judge_move(refund_id, known, entry)
        if target == "sending":
            known.lease_end = entry["at"] + self.rules.lease // timedelta(milliseconds=1)
        elif target not in {"processing", "settled"}:
            known.lease_end = None
        elif source == "sending":
            known.proven_at = entry["at"]
        self.moves.append((refund_id, entry))
        known.stirred = known.stirred or known.label in STIRRED
        if known.label == "resend":
            for post in known.posts:
                post.cleared = True

    def _judge_move(self, refund_id: str, known: Known, entry: Mapping[str, Any]) -> None:
        """Judge what a move concludes from what was read."""
        if not self.after_a_cut:
            self.webhooks.move(refund_id, known, entry)
        if entry["to"] == "in_doubt":
            self._judge_doubt(refund_id, known, entry)
        elif entry["to"] == "review" and not self.after_a_cut:
            self.words.review(refund_id, known, entry, self.effects.made_for.get(refund_id, ()))
            if entry["label"] == "refund_missing":
                self.money.missing(refund_id, known)

    def _judge_doubt(self, refund_id: str, known: Known, entry: Mapping[str, Any]) -> None:
        """Note when a doubt began and what was found of it.

        Judge the conclusion that there is nothing to be found.
        """
        if entry["from"] == "sending":
            lapsed = known.lease_end if entry["label"] == "lease_lapsed" else None
            known.quiet_at = min(entry["at"], lapsed or entry["at"])
        elif entry["label"] == "found_in_totals":
            known.found_at = entry["at"]
        elif entry["label"] == "absence_proven" and not self.after_a_cut:
            self.money.absence(refund_id, self.effects.made(refund_id), known.generations)
