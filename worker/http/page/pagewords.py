"""The page's own words: for amounts, and for what others say to people with a command line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from worker.model.refund import Baseline, Refund
from worker.model.words import money

UNVERIFIED: Final = "My word counts if the provider shows nothing either way"
"""The label of the box that makes a decision count without a proof."""
_TICK: Final = f"tick “{UNVERIFIED}”"
_INCOMPLETE: Final = (
    "not every row yet: either the import runs, or it was interrupted. If the number of refunds"
    " does not rise for a minute, import the same file again: no refund is made twice"
)
_IN_WORDS: Final = tuple(
    (re.compile(pattern), words)
    for pattern, words in (
        (r" under REFUNDS_TOTALS=hint", " at this provider"),
        (r" \(REFUNDS_METADATA_DAYS\)", ""),
        (r"check the id, REFUNDS_REDIS_URL and REFUNDS_PREFIX", "check the id"),
        (r"decide again with --unverified if", f"decide again, and {_TICK}, if"),
        (r"with --succeeded", "under “It happened”"),
        (r"end it with --failed", "end it as failed"),
        (r"resume it with 'refunds batch resume [^']+'", "“Resume this batch” continues it"),
        (r"'refunds batch resume [^']+'", "“Resume this batch”"),
        (
            r"'refunds batch retry [^']+ --unknown'",
            "“Send its failed refunds again”, with its box ticked,",
        ),
        (r"'refunds batch retry [^']+'", "“Send its failed refunds again”"),
        (r"run 'refunds retry [^']+'", "choose “Send it again”"),
        (r"see it with 'refunds batch show [^']+'", "look at it under Batches"),
        (r"see 'refunds batch (?:list|show [^']+)'", "look under Batches"),
        (r": see them with 'refunds (?:tokens|rejected) list'", ""),
        (r" with 'refunds tokens revoke [^']+'", ""),
        (r",? or see 'refunds status [^']+'", ""),
        (r"; see the other with 'refunds status [^']+'", ""),
        (r", or see the message with 'refunds rejected show [^']+'", ""),
        (r"(?:follow|see) it with 'refunds status [^']+'", "follow it here"),
        (r", which 'refunds status[^']*' shows", ", which its page shows"),
        (r"incomplete: import the file again", _INCOMPLETE),
        (
            r"only those in 'refunds review list' can be resolved",
            "only those under Review can be decided",
        ),
        (r"used as amount, in major units with a decimal comma", "used: amounts written as 12,50"),
        (r"used as amount, in major units", "used: amounts written as 12.50"),
        (r"used as amount, in minor units", "used: amounts in cents (minor units)"),
    )
)
_LABELS: Final = {
    "retriable": "sending it again helps",
    "evidence": "known from",
    "next check": "looked at next",
    "duplicates": "repeated rows",
}
_EVIDENCE: Final = {
    "reply": "the provider's answer",
    "lookup": "the provider's refund, which was read",
    "list": "the payment's refunds, which were read",
    "totals": "the payment's totals, which were read",
    "webhook": "the provider's webhook",
    "operator": "a person's decision",
}
_SUM: Final = re.compile(r"([a-z]+) ([a-z]{3})")
_SUMMED: Final = frozenset({"total", "succeeded", "failed", "canceled", "pending"})


def on_page(text: object) -> str:
    """Return a text with the page's buttons and boxes instead of commands and settings."""
    said = str(text)
    for pattern, words in _IN_WORDS:
        said = pattern.sub(words, said)
    return said


def entry_on_page(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry of a history with its own sentences in the page's words.

    What a person wrote stays as it is.
    """
    return {
        name: on_page(value) if name in {"alarm", "reason"} and value else value
        for name, value in entry.items()
    }


def amount_of(refund: Refund) -> str:
    """Return an amount as people write it, `10.40 USD`.

    The currency is the refund's, or else the one in which the payment was read.
    """
    if refund.amount is None:
        return "all that is left"
    seen = None if refund.baseline is None else refund.baseline.currency
    currency = refund.currency or refund.asked_currency or seen
    return money(refund.amount, currency, "major")


def baseline_of(seen: Baseline) -> str:
    """Return what a payment's totals showed before the refund was sent."""
    found = (
        f"{money(amount, seen.currency, 'major')} {name}"
        for name, amount in (("refunded", seen.refunded), ("left", seen.remaining))
        if amount is not None
    )
    return ", ".join(found)


def facts(refund: Refund, rows: Iterable[tuple[str, object]]) -> list[tuple[str, str]]:
    """Return the named facts of a refund in the page's words, without those that are None."""
    own: dict[str, Any] = {
        "amount": amount_of(refund),
        "evidence": _EVIDENCE.get(refund.evidence or "", refund.evidence),
    }
    shown = ((name, own.get(name, value)) for name, value in rows)
    return [(_LABELS.get(name, name), on_page(value)) for name, value in shown if value]


def batch_facts(rows: Iterable[tuple[str, object]]) -> list[tuple[str, str]]:
    """Return the named facts of a file or a batch in the page's words, without those of None."""
    return [(_label(name), on_page(value)) for name, value in rows if value]


def _label(name: str) -> str:
    found = _SUM.fullmatch(name)
    if found is not None and found[1] in _SUMMED:
        return f"{found[1]} {found[2].upper()}"
    return _LABELS.get(name, name)
