"""What must hold of money beside one record's own end.

Whose a provider's refund is, how much, and since when.

It knows what is outside the promise (`ops/docs/design.md`), and lets exactly that pass: under
`totals`, what others did to a payment may be taken for ours if it was first seen within two settle
times of the attempt's end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from tests.simulation.clock import EPOCH
from worker.rules.proofs import LATE_SUCCESS
from worker.sandbox.judging import FALSE_FAILED, Made, false_amount, false_failed
from worker.sandbox.ledger import STANDING

if TYPE_CHECKING:
    from tests.simulation.known import Known
    from worker.rules.attempts import Rules
    from worker.sandbox.bank import Bank, SandboxRefund

Broken = Callable[[str, str, str], None]
Record = Mapping[str, str | None]

SLOW_READ: Final = 150.0
"""Seconds that the reads of one look, or between a read and its claim, may take."""
SLOW_SAVE: Final = 1500.0
"""Seconds that may lie between what was read at the provider and the record.

A frozen worker, a Redis that is away. A reply to a send counts for less: see `LATE_SUCCESS`.
"""


@dataclass(slots=True)
class _Moved:
    """One change of what a payment shows as given back."""

    at: float
    by: int
    refund: str
    ours: str | None


@dataclass(kw_only=True)
class MoneyJudge:
    """Follows the provider's ledger; times are seconds since the world began."""

    broken: Broken
    bank: Bank
    rules: Rules
    pending_in_totals: bool
    lag: float
    oddly_shown: bool = False
    _moved: dict[str, list[_Moved]] = field(default_factory=dict)
    """Payment → changes of its total, oldest first."""
    _fell: dict[str, float] = field(default_factory=dict)
    """Provider's refund → when it fell back after it had succeeded."""
    confirmed: set[str] = field(default_factory=set)
    """Payments whose currency somebody was shown as it is, in a world in which not each is."""
    _shown: dict[str, list[float]] = field(default_factory=dict)
    """Payment → when its totals were read."""
    _unnamed: set[str] = field(default_factory=set)
    """Provider's refunds that were last shown by themselves without saying whose they are."""

    def totals_shown(self, payment: str) -> None:
        """Note that somebody reads a payment's totals in this moment."""
        self._shown.setdefault(payment, []).append(self.bank.clock())

    def entered(self, entry: Mapping[str, Any]) -> None:
        """Note one entry of the ledger."""
        at = float(entry["time"]) - EPOCH.timestamp()
        was = "" if entry["event"] == "effect" else entry["was"]
        by = (self._counts(entry["status"]) - self._counts(was)) * entry["amount"]
        if by:
            moved = _Moved(at=at, by=by, refund=entry["refund"], ours=entry["refund_id"])
            self._moved.setdefault(entry["payment_intent"], []).append(moved)
        if entry["status"] in STANDING:
            self._fell.pop(entry["refund"], None)
        if was == "succeeded":
            self._fell[entry["refund"]] = at

    def _counts(self, status: str) -> bool:
        return status == "succeeded" or (self.pending_in_totals and status == "pending")

    def is_mismatch(self, known: Known) -> bool:
        """Tell whether a refund states another currency than its payment's."""
        payment, stated = self.bank.payment(known.payment), known.record["asked_currency"]
        return stated is not None and payment is not None and payment.currency != stated

    def payment_shown(self, shape: Mapping[str, Any]) -> None:
        """Note what a payment, or its charge, confirms as it reached a worker.

        An odd one may hide what contradicts.
        """
        is_charge = shape.get("object") == "charge"
        identity = shape.get("payment_intent" if is_charge else "id")
        payment = self.bank.payments.get(identity) if isinstance(identity, str) else None
        if payment is None:
            return
        charges, latest = shape.get("charges"), shape.get("latest_charge")
        entries = charges.get("data") if isinstance(charges, dict) else None
        shown = (
            [entry for entry in entries if isinstance(entry, dict)]
            if isinstance(entries, list)
            else []
        )
        said = {
            str(each["currency"]) for each in (shape, *shown) if each.get("currency") is not None
        }
        # A charge that is only named is read next, and without a currency it has its payment's.
        if (said == {payment.currency} and (shown or not isinstance(latest, str))) or (
            is_charge and not said
        ):
            self.confirmed.add(payment.id)

    def sends(self, refund_id: str, payment_id: str, stated: str | None) -> None:
        """Judge a request as it leaves, by the currency that its refund states."""
        payment = self.bank.payment(payment_id)
        if stated is None or payment is None:
            return
        if payment.currency != stated:
            self.broken(
                "currency",
                refund_id,
                f"stated as {stated}, sent to a payment in {payment.currency}",
            )
        elif self.oddly_shown and payment_id not in self.confirmed:
            self.broken(
                "currency", refund_id, f"stated as {stated}, sent with nothing that confirms it"
            )

    # Whose

    def refund_shown(self, shape: Mapping[str, Any]) -> None:
        """Note whether a refund says whose it is as it reached a worker.

        What it leaves out contradicts no person.
        """
        if shape.get("object") != "refund":
            return
        identity, metadata = str(shape.get("id")), shape.get("metadata")
        if isinstance(metadata, dict) and "refund_id" in metadata:
            self._unnamed.discard(identity)
        else:
            self._unnamed.add(identity)

    def owners(self, refunds: Mapping[str, Known]) -> None:
        """Judge that no refund of the provider is two records'.

        What a person only claims is not owned yet.
        """
        owner: dict[str, str] = {}
        for refund_id, known in refunds.items():
            if not known.is_owner:
                continue
            identity = known.record["provider_refund_id"] or ""
            other = owner.setdefault(identity, refund_id)
            if other != refund_id:
                self.broken("adopted", refund_id, f"{identity} is {other}'s already")

    def missing(self, refund_id: str, known: Known) -> None:
        """Judge that a person is asked for a refund that is not found.

        It may be found an hour later.
        """
        made = self.bank.refunds.get(known.record["provider_refund_id"] or "")
        hour_ago = self.bank.clock() + EPOCH.timestamp() - 3600
        if made is not None and made.created > hour_ago:
            self.broken(
                "hasty",
                refund_id,
                f"given up, and {made.id} is there: it was made less than an hour ago",
            )

    def misled(self, refund_id: str, record: Record, made: list[SandboxRefund]) -> None:
        """Judge the end of a refund of which a person has insisted on what is not so, and that
        cannot be read well.

        The word counts, and only the word: a refusal is no end once it may be the echo of what was
        done, and a refund that somebody names is to be on the payment, and not another of ours as
        far as the provider shows.
        """
        if record["status"] != "succeeded":
            if self.is_fallen(record):
                return
            fact = false_failed(record["status"] or "", as_made(made))
            if fact is not None and record["evidence"] != "operator":
                self.broken(FALSE_FAILED, refund_id, f"{fact}, by {record['evidence']}")
            return
        named = self.bank.refunds.get(record["provider_refund_id"] or "")
        if named is None or named in made:
            return
        is_anothers = "refund_id" in named.metadata and named.id not in self._unnamed
        if is_anothers or named.payment.id != record["payment_intent"]:
            self.broken("adopted", refund_id, f"a person named {named.id}, which is not its")

    def is_fallen(self, record: Record) -> bool:
        """Tell whether a record failed with the very refund that it names.

        Of others only the person has spoken.
        """
        named = self.bank.refunds.get(record.get("provider_refund_id") or "")
        return named is not None and named.status not in STANDING

    def untold(self, refund_id: str, known: Known, made: list[SandboxRefund]) -> None:
        """Judge that what a worker was shown against a settled record is kept with it, for a
        person.
        """
        record = known.record
        if (
            record["stage"] != "settled"
            or record["status"] == "succeeded"
            or record["contradicted_by"] is not None
        ):
            return
        # Of one that was killed it cannot be asked.
        came = any(worker.alive for worker in known.late_proofs)
        if came and any(refund.status in STANDING for refund in made):
            self.broken(
                "untold",
                refund_id,
                f"{record['status']}, and {made[-1].id}, shown since, is kept nowhere",
            )

    # How much

    def amount(self, refund_id: str, record: Record, succeeded: list[SandboxRefund]) -> None:
        """Judge a settled amount: the ledger's, or unknown if none was asked for."""
        is_unknown = record["all_remaining"] == "1"
        fact = false_amount(record["amount"], as_made(succeeded), is_unknown=is_unknown)
        if fact is not None:
            self.broken("amount", refund_id, fact)

    # Since when

    def stands(self, refund_id: str, known: Known, succeeded: list[SandboxRefund]) -> None:
        """Judge that what is said to have succeeded has not fallen back long before it was said."""
        now, slow = self.bank.clock(), SLOW_SAVE
        if known.record["evidence"] == "reply":
            slow = (self.rules.lease + LATE_SUCCESS).total_seconds()
        if any(now - self._fell.get(refund.id, now) <= slow + self.lag for refund in succeeded):
            return
        if not self.may_be_others(known):
            self.broken(
                "false succeeded",
                refund_id,
                f"{[refund.id for refund in succeeded]} fell back long ago",
            )

    def absence(self, refund_id: str, made: list[SandboxRefund], generation: int) -> None:
        """Judge a conclusion that a refund was never made, at the moment at which it is drawn."""
        for refund in made:
            if refund.status in STANDING and refund.metadata.get("refund_generation") == str(
                generation
            ):
                self.broken(
                    "absence", refund_id, f"said to be absent, and {refund.id} is {refund.status}"
                )

    # What is outside the promise

    def may_be_others(self, known: Known) -> bool:
        """Tell whether a rise that was believed to be ours is excused.

        Others moved the total by exactly as much.

        It must have been first seen within two settle times of the attempt's end, and lie after the
        baseline's read.
        """
        record = known.record
        if (
            record["evidence"] != "totals"
            or known.first_attempt_at is None
            or known.found_at is None
        ):
            return False
        seen = known.found_at / 1000 - EPOCH.timestamp()
        late = (2 * self.rules.settle + timedelta(seconds=SLOW_READ)) / timedelta(milliseconds=1)
        if known.found_at > known.quiet_at + late:
            return False
        # A worker that died between its claim and the bytes has sent nothing: its doubt is one all
        # the same.
        claimed = known.first_attempt_at / 1000 - EPOCH.timestamp()
        payment, first = known.payment, known.posts[0].left_at if known.posts else claimed
        begins = [at for at in self._shown.get(payment, ()) if first - SLOW_READ <= at <= first]
        others = [moved for moved in self._moved.get(payment, ()) if moved.ours is None]
        for begin in begins:
            later = [moved for moved in others if begin - self.lag < moved.at <= seen + SLOW_READ]
            if any(self._is_the_rise(known, later[start:], begin) for start in range(len(later))):
                return True
        return False

    def _is_the_rise(self, known: Known, moved: list[_Moved], begin: float) -> bool:
        asked = known.asked_amount
        wanted = {asked} if asked is not None else self._left_at(known.payment, begin)
        total = 0
        for one in moved:
            total += one.by
            if total in wanted:
                return True
        return False

    def _left_at(self, payment: str, begin: float) -> set[int]:
        """Return what may have been left to refund when the totals were read, as late as they may
        be shown.
        """
        captured = self.bank.payments[payment].amount
        moved = self._moved.get(payment, ())
        times = [begin, *(one.at for one in moved if begin - self.lag <= one.at <= begin)]
        return {
            captured - sum(one.by for one in moved if one.at <= at)
            for at in [*times, begin - self.lag]
        }


def as_made(refunds: Sequence[SandboxRefund]) -> list[Made]:
    """Return the provider's refunds as the shared rules read them."""
    return [Made(id=one.id, amount=one.amount, status=one.status) for one in refunds]
