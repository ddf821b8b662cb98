"""Rules that compare a settled record with the provider's ledger.

The demo, the proof with real processes and the simulation share them. Each adds what only it knows.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from worker.sandbox.ledger import STANDING

FALSE_FAILED: Final = "false failed"
FALSE_SUCCEEDED: Final = "false succeeded"


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """One refund that the provider made: its id, its amount in minor units, and its last status."""

    id: str
    amount: int
    status: str


def made_by(ledger: Sequence[Mapping[str, Any]]) -> dict[str, list[Made]]:
    """Return what the provider made for each of the caller's refund ids, oldest first."""
    last = {entry["refund"]: entry["status"] for entry in ledger}
    made: dict[str, list[Made]] = defaultdict(list)
    for entry in ledger:
        if entry["event"] == "effect" and entry["refund_id"] is not None:
            identity = entry["refund"]
            one = Made(id=identity, amount=int(entry["amount"]), status=last[identity])
            made[entry["refund_id"]].append(one)
    return dict(made)


def made_beside_another(ledger: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield the refund id and a sentence for each effect beside one that stood at that moment.

    It counts whatever became of either later. A refund whose status came back to standing was made
    earlier, so it does not count.
    """
    now: dict[str, str] = {}
    made: dict[str, list[str]] = defaultdict(list)
    for entry in ledger:
        if entry["event"] == "effect" and entry["refund_id"] is not None:
            earlier = [one for one in made[entry["refund_id"]] if now[one] in STANDING]
            if earlier and "was" not in entry:
                yield (
                    entry["refund_id"],
                    f"{entry['refund']} was made while {', '.join(earlier)} stood",
                )
            made[entry["refund_id"]].append(entry["refund"])
        now[entry["refund"]] = entry["status"]


def as_of(ledger: Sequence[Mapping[str, Any]], seconds: float) -> list[Mapping[str, Any]]:
    """Return the ledger as it was at that moment, in epoch seconds.

    A record can agree with the provider only up to the last time it was read again.
    """
    return [entry for entry in ledger if entry["time"] <= seconds]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reversal:
    """A refund of the provider that had settled and became something else, at `seconds`."""

    id: str
    refund_id: str | None
    was: str
    status: str
    seconds: float


def reversals(ledger: Sequence[Mapping[str, Any]]) -> Iterator[Reversal]:
    """Yield each reversal, in either direction, oldest first."""
    for entry in ledger:
        if entry.get("was", "pending") != "pending":
            yield Reversal(
                id=entry["refund"],
                refund_id=entry["refund_id"],
                was=entry["was"],
                status=entry["status"],
                seconds=entry["time"],
            )


def false_failed(status: str, made: Sequence[Made]) -> str | None:
    """Return what is wrong if a record has failed or was canceled, and its money is gone."""
    if status != "succeeded" and any(one.status in STANDING for one in made):
        return f"{status}, and the ledger shows the money gone"
    return None


def false_succeeded(made: Sequence[Made], succeeded: Sequence[Made]) -> str | None:
    """Return what is wrong if a record has succeeded, and none of what was made has."""
    if not succeeded:
        return f"the ledger shows {[one.status for one in made] or 'nothing'}"
    return None


def false_id(identity: str | None, succeeded: Sequence[Made]) -> str | None:
    """Return what is wrong if a record names a refund of the provider that is not its own."""
    if identity is not None and identity not in {one.id for one in succeeded}:
        return f"{identity} is not its refund"
    return None


def false_amount(
    amount: str | None, succeeded: Sequence[Made], *, is_unknown: bool = False
) -> str | None:
    """Return what is wrong if a record states another amount than what moved.

    `is_unknown`: nobody can know the amount, because a total does not say how much of its rise one
    refund has taken.
    """
    if (is_unknown and amount is None) or amount in {str(one.amount) for one in succeeded}:
        return None
    return f"recorded {amount}, moved {succeeded[-1].amount}"


def false_request(body: str | bytes, payment_intent: str, amount: int | None) -> str | None:
    """Return what is wrong if a request asks the provider for other money than the caller did.

    Without `amount` the caller asked for all that is left, so the request states none.
    """
    sent = json.loads(body)
    said = (sent.get("payment_intent"), sent.get("amount"))
    asked = (payment_intent, None if amount is None else str(amount))
    return None if said == asked else f"{said} was sent, and {asked} was asked for"
