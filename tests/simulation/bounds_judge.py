"""What must stay bounded whatever the provider says.

Texts of records, names of counters, scripts that never fail.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from redis import exceptions

Broken = Callable[[str, str, str], None]

TEXTS: Final[Mapping[str, int]] = {
    "error_code": 200,
    "error_message": 600,
    "failure_reason": 200,
    "provider_status": 200,
    "provider_refund_id": 200,
    "currency": 3,
}
"""Fields in which a provider's words are kept, with the characters that they may have.

Ours may stand around them.
"""
LONGEST_ENTRY: Final = 2000
CONTROL: Final = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_CURRENCY: Final = re.compile(r"[a-z]{3}|unknown")
_CODE: Final = re.compile(r"[a-z0-9_]{1,48}")
_STAGES: Final = frozenset(
    {"new", "queued", "sending", "waiting", "in_doubt", "processing", "review", "settled"}
)
_FINAL: Final = frozenset({"succeeded", "failed", "canceled"})
MADE_UP: Final = "made_up_"
"""How the made-up codes of a simulated provider begin."""
MOST_CODES: Final = 100
"""Names that the codes of one kind of counter may have in all."""
_AWAY: Final = ("OOM", "NOSCRIPT")


class BoundsJudge:
    """Judges what grows, and every script's reply."""

    def __init__(self, broken: Broken) -> None:
        self._broken = broken

    def ran(self, commands: Sequence[Sequence[Any]], results: Sequence[Any]) -> None:
        """Judge the replies of one trip: no script may fail, since what it wrote before stays."""
        for command, result in zip(commands, results, strict=True):
            if command[0] == "EVALSHA" and isinstance(result, exceptions.ResponseError):
                if isinstance(result, exceptions.NoScriptError) or str(result).startswith(_AWAY):
                    continue
                self._broken(
                    "script", str(command[6]) if len(command) > 6 else "-", f"{result}"[:300]
                )

    def record(
        self, refund_id: str, record: Mapping[str, str | None], entries: Sequence[str]
    ) -> None:
        """Judge the texts of a record and of what its history has gained."""
        for name, most in TEXTS.items():
            text = record[name]
            if text is None:
                continue
            if len(text) > most:
                self._broken("bounds", refund_id, f"{name} has {len(text)} characters")
            elif CONTROL.search(text):
                self._broken("bounds", refund_id, f"{name} has control characters: {text[:80]!r}")
        for entry in entries:
            if len(entry) > LONGEST_ENTRY:
                self._broken("bounds", refund_id, f"a history entry has {len(entry)} characters")

    def counters(self, stored: Iterable[str]) -> None:
        """Judge the names of all counters: each from a bounded set."""
        codes: Counter[str] = Counter()
        for name in stored:
            kind, _, rest = name.partition(":")
            if not _is_bounded(kind, rest):
                self._broken("bounds", "counters", f"a counter is called {name[:120]!r}")
            if MADE_UP in name:
                self._broken("bounds", "counters", f"{name} is named by what the provider made up")
            codes[kind] += 1
        for kind, count in codes.items():
            if count > MOST_CODES:
                self._broken("bounds", "counters", f"there are {count} counters of {kind}")


def _is_bounded(kind: str, rest: str) -> bool:
    first, _, last = rest.partition(":")
    match kind:
        case "move":
            return first in _STAGES and last in _STAGES
        case "open":
            return first in _STAGES and _CURRENCY.fullmatch(last) is not None
        case "settled":
            return rest in _FINAL
        case "amount":
            return first in _FINAL and _CURRENCY.fullmatch(last) is not None
        case _:
            return _CODE.fullmatch(kind) is not None and all(
                _CODE.fullmatch(part) for part in rest.split(":") if rest
            )
