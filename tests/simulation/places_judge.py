"""Where refunds are kept beside their records: indexes, locks, counters.

All must say what the records say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from tests.simulation.known import Known

Broken = Callable[[str, str, str], None]

HOLDS_LOCK: Final = frozenset({"sending", "in_doubt"})
COUNTED: Final = ("settled:", "amount:", "open:")
"""Counters that a worker's own figures have no part in."""


class PlacesJudge:
    """Judges the places of one world's refunds."""

    def __init__(self, broken: Broken, refunds: Mapping[str, Known]) -> None:
        self._broken = broken
        self._refunds = refunds

    def indexes(self, due: Mapping[str, float], buckets: Mapping[str, Mapping[str, float]]) -> None:
        """Judge that each refund is in one index, and due at one time unless it has settled."""
        for refund_id, known in self._refunds.items():
            record = known.record
            if not record:
                continue
            settled = record["stage"] == "settled"
            wanted = record["status"] if settled else record["stage"]
            here = [name.removesuffix(".bulk") for name, ids in buckets.items() if refund_id in ids]
            if here != [wanted]:
                self._broken("index", refund_id, f"it is {wanted} and stands in {here}")
            elif settled == (refund_id in due):
                self._broken(
                    "index", refund_id, f"it is {wanted} and {'is' if settled else 'is not'} due"
                )
            elif not settled and all(
                due[refund_id] != ids.get(refund_id) for ids in buckets.values()
            ):
                self._broken("index", refund_id, "due at two times")

    def payment(self, payment: str, rows: Sequence[Any], claimed: Sequence[str]) -> None:
        """Judge a payment's lock, and its count of open refunds; `claimed` have just been
        claimed.
        """
        row, _, beside = rows
        here = {
            identity: known.record
            for identity, known in self._refunds.items()
            if known.payment == payment
        }
        holders = [
            identity
            for identity, record in here.items()
            if record and record["stage"] in HOLDS_LOCK
        ]
        if any(
            identity in claimed and self._is_in_the_way(identity, holders) for identity in holders
        ):
            self._broken("lock", payment, f"{holders} are in flight together")
        elif row[0] not in holders and (holders or row[0] is not None):
            self._broken("lock", payment, f"held by {row[0]}, in flight is {holders}")
        elif stray := set(beside) - set(holders):
            self._broken(
                "lock", payment, f"{sorted(stray)} wait for it in doubt, and are in flight no more"
            )
        unsettled = sum(1 for record in here.values() if record and record["stage"] != "settled")
        if int(row[1] or 0) != unsettled:
            self._broken(
                "open", payment, f"{row[1]} open by its own count, {unsettled} by the records"
            )

    def _is_in_the_way(self, claimed: str, holders: Sequence[str]) -> bool:
        """Tell whether another refund's flight or doubt forbids a claim.

        A person, or a look before its first send, may put a second refund of a payment in doubt;
        the first that goes on is then sent again beside it.
        """
        others = [self._refunds[identity] for identity in holders if identity != claimed]
        own = self._refunds[claimed]
        stirred = own.label != "send" and any(known.stirred for known in (own, *others))
        return any(not stirred or known.record["stage"] == "sending" for known in others)

    def counters(self, stored: Mapping[str, str]) -> None:
        """Judge that the numbers and the money in the counters are the records'."""
        told = {
            name: int(text)
            for name, text in stored.items()
            if name.startswith(COUNTED) and int(text)
        }
        counted: Counter[str] = Counter()
        for known in self._refunds.values():
            record = known.record
            if not record:
                continue
            settled = record["stage"] == "settled"
            if settled:
                counted[f"settled:{record['status']}"] += 1
            if record["amount"] is not None:
                place = f"amount:{record['status']}" if settled else f"open:{record['stage']}"
                counted[f"{place}:{record['currency'] or 'unknown'}"] += int(record["amount"])
        if told != counted:
            self._broken("counters", "-", f"they say {told}, and the records {dict(counted)}")
