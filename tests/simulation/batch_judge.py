"""What must hold of batches: their counts are their refunds', and what is paused or canceled sends
nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from tests.simulation.known import Known

Broken = Callable[[str, str, str], None]
Move = tuple[str, Mapping[str, Any]]

SNAPSHOT: Final = """
for _ = 1, tonumber(ARGV[4]) do
  out[#out + 1] = redis.call('HGETALL', P .. 'batch:' .. ARGV[i])
  out[#out + 1] = redis.call('LRANGE', P .. 'batch-refunds:' .. ARGV[i], 0, -1)
  i = i + 1
end
"""
_COUNTS: Final = ("status:", "stage:", "amount:")


class BatchJudge:
    """Judges the batches of one world."""

    def __init__(self, broken: Broken) -> None:
        self.ids: list[str] = []
        self._broken = broken
        self._stored: dict[str, dict[str, str]] = {}
        self._imported: dict[str, list[str]] = {}
        self._told: dict[str, str] = {}

    def watch(self, batch_id: str) -> None:
        """Look at a batch from now on."""
        self.ids.append(batch_id)
        self._stored[batch_id] = {}

    def told(self, batch_id: str, state: str) -> None:
        """Note the state in which a person was told that a batch is, if it is in that state."""
        self._told[batch_id] = state

    def power_was_cut(self, before: Mapping[str, str | None]) -> None:
        """Judge that no state that somebody was told of is forgotten; `before` is what they
        were.
        """
        for batch_id, state in self._told.items():
            after = self._stored[batch_id].get("state")
            if before[batch_id] == state != after:
                self._broken(
                    "told", batch_id, f"a person was told that it is {state}, and now it is {after}"
                )

    def states(self) -> dict[str, str | None]:
        """Return each batch's state as last seen."""
        return {batch_id: stored.get("state") for batch_id, stored in self._stored.items()}

    def imported(self, batch_id: str, rows: Sequence[str]) -> None:
        """Note that a person was told that every row of a file was handed in."""
        self._imported[batch_id] = list(rows)

    def look(
        self, rows: Sequence[Any], moves: Iterable[Move], refunds: Mapping[str, Known]
    ) -> None:
        """Judge the batches as they lie now; `moves` have come since they were looked at last."""
        for refund_id, entry in moves:
            batch_id = refunds[refund_id].record.get("batch_id")
            if batch_id is not None and entry["to"] == "sending":
                self._judge_claim(refund_id, entry, self._stored[batch_id])
        for place, batch_id in enumerate(self.ids):
            stored, ids = _pairs(rows[2 * place]), rows[2 * place + 1]
            self._stored[batch_id] = stored
            here = {
                name: known
                for name, known in refunds.items()
                if known.record.get("batch_id") == batch_id
            }
            if sorted(ids) != sorted(here):
                self._broken(
                    "batch", batch_id, f"it lists {ids}, and the records say {sorted(here)}"
                )
            self._judge_counts(batch_id, stored, here)

    def _judge_claim(
        self, refund_id: str, entry: Mapping[str, Any], before: Mapping[str, str]
    ) -> None:
        state = before.get("state")
        if state == "paused":
            self._broken(
                "batch", refund_id, f"claimed as {entry['label']} while its batch is paused"
            )
        elif state == "canceled" and entry["label"] != "replay":
            self._broken(
                "batch", refund_id, f"claimed as {entry['label']} although its batch is canceled"
            )
        if entry["label"] == "send" and entry["at"] < int(before.get("not_before", 0)):
            self._broken("batch", refund_id, "claimed before anything of its batch may be sent")

    def _judge_counts(
        self, batch_id: str, stored: Mapping[str, str], here: Mapping[str, Known]
    ) -> None:
        told = {
            name: int(text)
            for name, text in stored.items()
            if name.startswith(_COUNTS) and int(text)
        }
        counted: Counter[str] = Counter()
        for known in here.values():
            record = known.record
            counted[f"status:{record['status']}"] += 1
            counted[f"stage:{record['stage']}"] += 1
            if record["stage"] == "settled" and record["amount"] is not None:
                counted[f"amount:{record['status']}:{record['currency'] or 'unknown'}"] += int(
                    record["amount"]
                )
        if told != counted:
            self._broken(
                "batch", batch_id, f"it counts {told}, and its refunds are {dict(counted)}"
            )

    def finish(self, refunds: Mapping[str, Known]) -> None:
        """Judge what is left when all is over."""
        for batch_id, rows in self._imported.items():
            for refund_id in rows:
                if refund_id not in refunds or not refunds[refund_id].record:
                    self._broken(
                        "lost", refund_id, f"handed in with {batch_id}, and no record stands"
                    )
            stored, made = (
                self._stored[batch_id],
                len(rows) - self._created(batch_id, rows, refunds),
            )
            # A row whose id stands with other contents, such as another stated currency, is left
            # out and counted apart.
            known = int(stored["known"]) + int(stored["conflicting"])
            if known != made:
                self._broken(
                    "batch", batch_id, f"{known} rows are said to have stood before, and {made} did"
                )

    @staticmethod
    def _created(batch_id: str, rows: Sequence[str], refunds: Mapping[str, Known]) -> int:
        return sum(
            refunds[name].record.get("batch_id") == batch_id for name in rows if name in refunds
        )


def _pairs(flat: Sequence[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))
