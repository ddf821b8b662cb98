"""The sandbox's ledger: every effect on money, appended before its reply is sent."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

STANDING = frozenset({"pending", "succeeded"})


@dataclass(kw_only=True)
class Ledger:
    """An append-only list of entries, also a file of JSON lines if a path is given.

    An `effect` entry is a refund that moved or reserved money, a `status` entry a later change of
    one. An effect with `was` is a refund that was made failed and has succeeded since. `refund` is
    the provider's id, `refund_id` the caller's id from the metadata, null if there is none. `time`
    is in epoch seconds.
    """

    path: Path | None = None
    entries: list[dict[str, Any]] = field(default_factory=list)
    _file: IO[str] | None = None

    def open(self) -> None:
        """Open the file, if there is one, for appending."""
        if self.path is not None:
            self._file = self.path.open("a", encoding="utf-8")

    def close(self) -> None:
        """Close the file; entries stay readable."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def append(self, event: str, **facts: object) -> None:
        """Add one entry, and write it to the file, if there is one, before this returns."""
        entry = {
            "seq": len(self.entries) + 1,
            "time": round(time.time(), 6),
            "event": event,
            **facts,
        }
        self.entries.append(entry)
        if self._file is not None:
            self._file.write(json.dumps(entry, separators=(",", ":")) + "\n")
            self._file.flush()

    def summary(self) -> dict[str, Any]:
        """Return counts and totals, and every `refund_id` with more than one effect.

        `repeated` counts all effects of an id, `moved_twice` only those that are pending or
        succeeded. An explicit retry of a failed refund is in the first, a refund paid twice is in
        both.
        """
        status: dict[str, str] = {}
        effects = [entry for entry in self.entries if entry["event"] == "effect"]
        for entry in self.entries:
            status[entry["refund"]] = entry["status"]
        standing = [entry for entry in effects if status[entry["refund"]] in STANDING]
        totals: Counter[str] = Counter()
        for entry in standing:
            totals[entry["currency"]] += entry["amount"]
        return {
            "entries": len(self.entries),
            "effects": len(effects),
            "by_status": dict(Counter(status.values())),
            "totals": dict(totals),
            "repeated": _more_than_once(effects),
            "moved_twice": _more_than_once(standing),
            "without_refund_id": sum(entry["refund_id"] is None for entry in effects),
        }


def _more_than_once(effects: list[dict[str, Any]]) -> dict[str, int]:
    counts = Counter(entry["refund_id"] for entry in effects if entry["refund_id"] is not None)
    return {refund_id: count for refund_id, count in counts.items() if count > 1}
