"""What becomes of a status: another spelling is that status, and a word that nobody knows reaches a
person as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from tests.simulation.known import Known
    from worker.sandbox.bank import Bank

Broken = Callable[[str, str, str], None]

OF_A_STATUS: Final = frozenset({"conflict", "contradictory_reply", "unknown_status"})
"""Labels under which a refund goes to a person for what a refund of the provider showed."""
_UNKNOWN = re.compile(r"an unknown status: '([a-z_]+)'")
_LETTERS: Final = re.compile(r"[A-Za-z_]{3,}")


class WordsJudge:
    """Remembers the last word that a worker was shown of each refund of the provider."""

    def __init__(self, broken: Broken, bank: Bank) -> None:
        self._broken = broken
        self._bank = bank
        self._last: dict[str, tuple[str, bool]] = {}
        """Provider's refund → the odd word for its status, and whether that is another spelling of
        a known one.
        """

    def shown(
        self, items: Iterable[Mapping[str, Any]], spellings: Mapping[str, Iterable[str]]
    ) -> None:
        """Note what a whole reply shows of refunds.

        Only one that is odd in nothing but its status is remembered.
        """
        for item in items:
            refund = self._bank.refunds.get(str(item.get("id")))
            if refund is None:
                continue
            self._last.pop(refund.id, None)
            word, metadata = item.get("status"), item.get("metadata")
            named = metadata.get("refund_id") if isinstance(metadata, dict) else None
            true = {
                "object": "refund",
                "amount": refund.amount,
                "payment_intent": refund.payment.id,
            }
            true["currency"] = refund.payment.currency
            if any(item.get(name) != value for name, value in true.items()) or not isinstance(
                word, str
            ):
                continue
            if named in {None, refund.metadata.get("refund_id")} and word not in spellings:
                self._last[refund.id] = word, any(word in words for words in spellings.values())

    def review(
        self, refund_id: str, known: Known, entry: Mapping[str, Any], made: Iterable[str]
    ) -> None:
        """Judge a move to a person by what was last shown of the refund."""
        if entry["label"] not in OF_A_STATUS or known.misled:
            return
        # A retried refund is not asked about for what its earlier generation has become.
        now = str(known.generations)
        ours = [
            one for one in made if self._bank.refunds[one].metadata.get("refund_generation") == now
        ]
        shown = [self._last[identity] for identity in ours if identity in self._last]
        if not shown:
            return
        word, is_spelling = shown[-1]
        told = f"{known.record['error_message']} {known.record['provider_status']} {entry}"
        # Of two read-backs at once each may be shown its own word. The one that is named counts.
        asked_about = _UNKNOWN.search(told)
        if is_spelling and asked_about and asked_about[1].lower() != word.lower():
            return
        if is_spelling:
            self._broken(
                "word",
                refund_id,
                f"a person is asked, and {word!r} is a status in another spelling",
            )
        elif any(part not in told for part in _LETTERS.findall(word)):
            self._broken(
                "word", refund_id, f"a person is asked, and is not told that the status is {word!r}"
            )
