"""Words for the moves of a refund: what was sent, what was read, what followed, who decided."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, Final

from worker.model.answers import TryVerdict
from worker.model.refund import Stage
from worker.model.times import from_ms, rfc3339
from worker.wording.values import plain

_OWN_WORDS: Final = frozenset(
    {"version", "at", "from", "to", "status", "label", "attempt", "by", "note", "source"}
)
_SEEN: Final = {
    TryVerdict.DONE.value: "the provider made it",
    TryVerdict.MAYBE.value: "it may have happened",
    TryVerdict.NOT_SENT.value: "nothing was sent",
    TryVerdict.NOT_DONE.value: "provably not done",
    TryVerdict.MISMATCH.value: "the key was used with other contents",
    "lease_lapsed": "its worker stopped before it saved a result",
    "http_200": "read at the provider",
}
"""The words for what a history entry saw; any other value is shown by its name."""
_SOURCES: Final = {
    "list": "the payment's list",
    "totals": "the payment's totals",
    "lookup": "the refund itself",
}
"""The words for what was read, by the source of a history entry."""
_DECIDED: Final = {
    "operator_says_failed": "decided as failed",
    "operator_says_absent": "decided to send it again",
    "operator_says_succeeded": "decided which provider refund it is",
    "contradicted": "the provider shows otherwise",
}
_UNITS: Final = (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1000))


def clock(at: object) -> str:
    """Return a time in milliseconds as a person reads it."""
    return rfc3339(from_ms(at)).replace("T", " ") if isinstance(at, int) else ""


def lasting(ms: int) -> str:
    """Return a length of time in its one or two largest units."""
    if ms < _UNITS[-1][1]:
        return f"{ms} ms"
    for (unit, length), (smaller, part) in pairwise(_UNITS):
        if ms >= length:
            rest = ms % length // part
            return f"{ms // length} {unit} {rest} {smaller}" if rest else f"{ms // length} {unit}"
    return f"{ms / 1000:.1f} s"


def sentence(entry: Mapping[str, Any]) -> str:
    """Return a move as a sentence: what was seen, what follows, and who decided it."""
    label, to = str(entry.get("label", "")), entry.get("to")
    shown = {
        name: value for name, value in entry.items() if name not in _OWN_WORDS and value is not None
    }
    if "left_out" in entry:
        return f"{entry['left_out']:,} moves are not shown here"
    if to == Stage.SENDING and "attempt" in entry:
        return f"attempt {entry['attempt']}{_again(entry)}"
    if label in _DECIDED and "look" not in shown:
        parts = [_DECIDED[label]]
    elif "seen" in shown:
        # An error code is shown unchanged, so that it can be searched for.
        seen = str(shown.pop("seen"))
        word = _SEEN.get(seen, seen.replace("_", " "))
        parts = [word if label in {seen, to, entry.get("status")} else f"{word}: {label}"]
    elif "look" in shown:
        parts = [_read_back(entry, str(shown.pop("look")).replace("_", " "))]
    else:
        parts = [label.replace("_", " ")]
    if (status := shown.pop("http_status", None)) is not None:
        parts.append(f"HTTP {status}")
    if (ms := shown.pop("ms", None)) is not None:
        parts.append(f"after {lasting(ms)}" if isinstance(ms, int) else f"after {ms} ms")
    if (tries := shown.pop("tries", None)) is not None:
        parts.append(f"in {tries} tries")
    reason, alarm = shown.pop("reason", None), shown.pop("alarm", None)
    parts += [f"{name}={value}" for name, value in shown.items()]
    words = ", ".join(parts)
    words += f" ({reason})" if reason else ""
    if alarm:
        is_review = entry.get("to") == Stage.REVIEW
        words += f"; needs review: {alarm}" if is_review else f"; alarm: {alarm}"
    words += f", by {entry['by']}" if entry.get("by") else ""
    return f"{words} “{entry['note']}”" if entry.get("note") else words


def _read_back(entry: Mapping[str, Any], word: str) -> str:
    """Return what a read-back showed and what followed."""
    source = _SOURCES.get(str(entry.get("source")))
    shown = f"read {source}: {word}" if source else f"read back: {word}"
    label = str(entry.get("label", ""))
    move = _DECIDED.get(label, label.replace("_", " "))
    return (
        shown
        if label in {entry.get("to"), entry.get("status")} or move == word
        else f"{shown}, {move}"
    )


def _again(entry: Mapping[str, Any]) -> str:
    """Return why a refund was sent again: who decided it, or what was read."""
    match entry.get("label"), entry.get("source"):
        case "replay", _:
            return ", the same key and bytes again"
        case "resend", "operator":
            return f", because {entry.get('by') or 'a person'} said that it never happened"
        case "resend", str(source):
            return f", because {_SOURCES.get(source, source)} showed that it never happened"
        case "resend", _:
            return ", because it was considered absent"
    return ""


def sent(entries: Iterable[Mapping[str, Any]]) -> list[tuple[int | None, str]]:
    """Return when each attempt was sent and its result, in words.

    An attempt without a result is still in flight.
    """
    attempts: list[tuple[int | None, str]] = []
    for entry in entries:
        if entry.get("to") == Stage.SENDING:
            attempts.append((entry.get("at"), plain(sentence(entry))))
        elif entry.get("from") == Stage.SENDING and attempts:
            at, words = attempts[-1]
            attempts[-1] = (at, f"{words}: {plain(sentence(entry))}")
    return attempts


def read(entries: Iterable[Mapping[str, Any]]) -> list[tuple[int | None, str]]:
    """Return when the provider was read, with or without a result, and what it showed, in words."""
    return [
        (entry.get("at"), plain(sentence(entry)))
        for entry in entries
        if "look" in entry or (entry.get("from") == Stage.PROCESSING and "seen" in entry)
    ]
