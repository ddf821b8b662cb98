"""What a refund's history shows beyond its record.

Why it needs review, how its attempts ended, and earlier doubts.

The record counts only what the rules need, and drops the counts once they no longer matter. Pure
functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from worker.model.refund import Stage
from worker.model.times import from_ms, rfc3339

Entries = Sequence[Mapping[str, Any]]

LAPSED: Final = "lease_lapsed"
"""What a move says was seen if the lease of an attempt lapsed."""
_DOUBTED: Final = frozenset({Stage.IN_DOUBT.value, Stage.REVIEW.value})


def review_reason(entries: Entries) -> tuple[str, str] | None:
    """Return the label and sentence of the last move that requested a review, None if none did."""
    last = next((entry for entry in reversed(entries) if entry.get("alarm")), None)
    return None if last is None else (str(last.get("label", "")), str(last["alarm"]))


def answered(entries: Entries) -> int:
    """Return how many attempts got an HTTP answer."""
    return sum(entry.get("from") == Stage.SENDING and "http_status" in entry for entry in entries)


def lapsed(entries: Entries) -> int:
    """Return how many attempts ended with a lapsed lease."""
    return sum(
        entry.get("from") == Stage.SENDING and entry.get("seen") == LAPSED for entry in entries
    )


def shortened(entries: Entries) -> bool:
    """Return whether a long history misses moves in the middle, so that counts are lower bounds."""
    return any("left_out" in entry for entry in entries)


def earlier_doubts(entries: Entries) -> list[dict[str, Any]]:
    """Return the doubts of this generation after which the refund was sent again as absent.

    Since when, and why.

    `absent_by` is what showed the absence: `list` or `totals`, or `operator` if only a person
    stated it. `by` names the person who decided, if there was one.
    """
    doubts: list[dict[str, Any]] = []
    since: int | None = None
    for entry in entries:
        label, to = entry.get("label"), entry.get("to")
        if label == "retried":
            doubts, since = [], None
        elif to == Stage.SENDING and label == "resend" and since is not None:
            doubts.append(
                {
                    "since": rfc3339(from_ms(since)),
                    "absent_by": entry.get("source"),
                    "by": entry.get("by"),
                }
            )
            since = None
        elif to in _DOUBTED and since is None:
            since = entry.get("at")
    return doubts


def in_words(doubts: Iterable[Mapping[str, Any]]) -> str:
    """Return earlier doubts for a person; empty without any."""
    return "; ".join(f"since {doubt['since']}, {_ended(doubt)}" for doubt in doubts)


def _ended(doubt: Mapping[str, Any]) -> str:
    match doubt["absent_by"]:
        case "operator":
            return (
                f"still open: only {doubt['by'] or 'a person'} said that it never happened, and"
                " nothing showed it"
            )
        case None:
            return "then considered absent"
        case source:
            return f"then absent in the payment's {source}"
