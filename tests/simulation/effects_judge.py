"""What the provider has done by its own ledger, and whether each end that is recorded agrees with
it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.simulation.failing_judge import why_it_may_not_fail
from tests.simulation.money_judge import as_made
from worker.sandbox.judging import (
    FALSE_FAILED,
    FALSE_SUCCEEDED,
    false_failed,
    false_id,
    false_succeeded,
)
from worker.sandbox.ledger import STANDING

if TYPE_CHECKING:
    from tests.simulation.known import Known
    from tests.simulation.money_judge import MoneyJudge
    from worker.rules.attempts import Rules
    from worker.sandbox.bank import Bank, SandboxRefund

Broken = Callable[[str, str, str], None]


@dataclass(kw_only=True)
class EffectsJudge:
    """Follows the provider's ledger in one world."""

    broken: Broken
    bank: Bank
    rules: Rules
    now_ms: Callable[[], int]
    """The time as the records see it."""
    money: MoneyJudge
    refunds: Mapping[str, Known]
    reads_well: bool
    """Whether every read-back shows what the provider has made, so that no word of a person
    outweighs it.
    """
    made_for: dict[str, list[str]] = field(default_factory=dict)
    """Our id → the provider's refunds made for it."""
    _seen_entries: int = 0
    _statuses: dict[str, set[str]] = field(default_factory=dict)

    def made(self, refund_id: str) -> list[SandboxRefund]:
        """Return what the provider has made for a refund, oldest first."""
        return [self.bank.refunds[identity] for identity in self.made_for.get(refund_id, ())]

    def settled(self, refund_id: str, record: Mapping[str, str | None]) -> None:
        """Judge a status that is said to be final, at the moment at which it is said."""
        made, known = self.made(refund_id), self.refunds[refund_id]
        if known.misled and not self.reads_well:
            self.money.misled(refund_id, record, made)
            return
        if record["status"] in {"failed", "canceled"}:
            if record["contradicted_by"] in known.priors:
                # An earlier refund succeeded since, and the record names it for a person.
                return
            if (fact := false_failed(str(record["status"]), as_made(made))) is not None:
                self.broken(FALSE_FAILED, refund_id, fact)
            return
        succeeded = [refund for refund in made if "succeeded" in self._statuses[refund.id]]
        if (fact := false_succeeded(as_made(made), as_made(succeeded))) is not None:
            if not self.money.may_be_others(known):
                self.broken(FALSE_SUCCEEDED, refund_id, fact)
            return
        self.money.stands(refund_id, known, succeeded)
        if (fact := false_id(record["provider_refund_id"], as_made(succeeded))) is not None:
            self.broken(FALSE_SUCCEEDED, refund_id, fact)
        self.money.amount(refund_id, record, succeeded)
        if record["currency"] is not None and record["currency"] != succeeded[-1].payment.currency:
            self.broken("currency", refund_id, f"recorded {record['currency']}")

    def failed(self, refund_id: str, known: Known) -> None:
        """Judge a refund that is said to have failed: somebody who can know has said so."""
        # A proof that comes later is kept with the record, which has ended already.
        if known.status != "failed" or known.by_person or known.last["label"] == "contradicted":
            return
        # A refund that failed at once moved nothing, so it is not an effect. The provider still
        # lists it.
        made = [
            refund
            for refund in self.bank.refunds.values()
            if refund.metadata.get("refund_id") == refund_id
        ]
        if known.misled and self.money.is_fallen(known.record):
            return
        posts = [post for post in known.posts if post.generation == str(known.generations)]
        age_ms = None if known.first_attempt_at is None else self.now_ms() - known.first_attempt_at
        answered, statuses = [post.answered for post in posts], [refund.status for refund in made]
        mismatch = self.money.is_mismatch(known)
        fact = why_it_may_not_fail(
            known.last, answered, statuses, known.verdicts, age_ms, self.rules, mismatch=mismatch
        )
        if fact is not None:
            self.broken("false failed", refund_id, fact)

    def read_ledger(self) -> None:
        """Judge what the provider has done since the last time."""
        self.bank.settle_due()
        entries = self.bank.ledger.entries
        for entry in entries[self._seen_entries :]:
            self._statuses.setdefault(entry["refund"], set()).add(entry["status"])
            self.money.entered(entry)
            if entry["event"] == "effect" and entry["refund_id"] is not None:
                self._effect(
                    entry["refund_id"],
                    entry["refund"],
                    entry["payment_intent"],
                    turned="was" in entry,
                )
        self._seen_entries = len(entries)

    def _effect(self, refund_id: str, identity: str, payment_id: str, *, turned: bool) -> None:
        """Judge an effect; `turned` is one that the provider made of a failed refund by itself."""
        made = self.made_for.setdefault(refund_id, [])
        if turned:
            made.append(identity)
            return
        known = self.refunds.get(refund_id)
        stands = any(self.bank.refunds[one].status in STANDING for one in made)
        if stands and (known is None or not known.misled or self.reads_well):
            self.broken("money twice", refund_id, f"{identity} was made while {made[-1]} stands")
        made.append(identity)
        payment = self.bank.payments[payment_id]
        if payment.succeeded + payment.pending > payment.amount:
            self.broken("over", refund_id, f"{payment_id} gave back more than was captured")
        record = known.record if known is not None else {}
        if record.get("stage") == "settled" and record.get("status") in {"failed", "canceled"}:
            self.broken("false failed", refund_id, f"{record['status']} before {identity} was made")
