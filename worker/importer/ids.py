"""Ids made from a row's columns.

An id is `f-` and the first 32 hex digits of the SHA-256 of the JSON list of `[column, value]` pairs
of the `id_from` columns, sorted by column: field names for the fields that are sent (values as they
are sent, amounts in minor units), lower-case names with underscores for the others; ASCII, no
spaces. The second attempt at the same columns has `-a2` appended, the third `-a3`. Of rows that are
equal in every sent field the second then gets `-2`, the third `-3`. This format never changes: a
file that is imported again must find its own refunds.

Columns that only make the id are sent along as metadata. An earlier version did not send them, and
a result file may be imported without naming the columns of its ids. `SameRefund` recognizes the
refund in both cases.
"""

from __future__ import annotations

import hashlib
import json
import re
from itertools import chain, combinations, islice
from typing import TYPE_CHECKING, Final, NamedTuple

from worker.model.request import RefundRequest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MOST_ATTEMPTS: Final = 99
METADATA: Final = "metadata."
_MADE: Final = re.compile(r"(f-[0-9a-f]{32})(?:-a([2-9]|[1-9][0-9]))?(?:-([2-9]|[1-9][0-9]{1,8}))?")
_MOST_TRIES: Final = 2_000_000
_MOST_TRIES_A_ROW: Final = 200_000

ColumnValue = tuple[str, str]


class MadeId(NamedTuple):
    """The parts of a made id: its columns' digest, the attempt, and the number among equal rows."""

    base: str
    attempt: int = 1
    occurrence: int = 1

    @property
    def text(self) -> str:
        """Return the id."""
        return numbered(
            f"{self.base}-a{self.attempt}" if self.attempt > 1 else self.base, self.occurrence
        )


def made_id(refund_id: str) -> MadeId | None:
    """Return the parts of an id, None if it was not made from columns."""
    if not refund_id.startswith("f-"):
        return None
    match = _MADE.fullmatch(refund_id)
    return None if match is None else MadeId(match[1], int(match[2] or 1), int(match[3] or 1))


def numbered(refund_id: str, occurrence: int) -> str:
    """Return the id of the n-th row among rows that are equal in every sent field."""
    return refund_id if occurrence <= 1 else f"{refund_id}-{occurrence}"


def base_of(pairs: Iterable[ColumnValue]) -> str:
    """Return the beginning of an id: the digest of sorted pairs of column and value."""
    text = json.dumps([*pairs], ensure_ascii=True, separators=(",", ":"))
    return f"f-{hashlib.sha256(text.encode('ascii')).hexdigest()[:32]}"


def sent_fields(
    payment_intent: str, amount: int | None, currency: str | None, reason: str | None
) -> dict[str, str]:
    """Return the fields that are sent, in the form from which an id is made."""
    return {
        "payment_intent": payment_intent,
        "amount": str(amount or ""),
        "currency": (currency or "").lower(),
        "reason": reason or "",
    }


class SameRefund:
    """Checks whether two requests with one made id differ only in metadata that made the id.

    The proof is the id itself, which is made again from that metadata. The other columns of the id
    are unknown, so combinations are tried; one that matched for an earlier row is tried first.
    """

    def __init__(self) -> None:
        self._known: list[frozenset[str]] = []
        self._left = _MOST_TRIES

    def __call__(self, row: RefundRequest, recorded: RefundRequest) -> bool:
        """Return whether a row's request is the same refund as the recorded one with its id."""
        made = made_id(row.refund_id)
        if made is None or row.refund_id != recorded.refund_id:
            return False
        sent = sent_fields(row.payment_intent, row.amount, row.currency, row.reason)
        if sent != sent_fields(
            recorded.payment_intent, recorded.amount, recorded.currency, recorded.reason
        ):
            return False
        fewer, more = sorted((row.metadata, recorded.metadata), key=len)
        if not fewer.items() <= more.items():
            return False
        added = [(key, value) for key, value in more.items() if key not in fewer]
        # A column may have been sent along under a key that the file's own metadata has, too.
        others = sent | {METADATA + key: value for key, value in fewer.items()} | dict(fewer)
        return not added or self._makes(made.base, added, others)

    def _makes(self, base: str, added: list[ColumnValue], others: Mapping[str, str]) -> bool:
        """Return whether an id can be made from all of `added` and any of the others."""
        names = [name for name, value in others.items() if value]
        known = [shape for shape in self._known if shape <= others.keys()]
        searched = (
            frozenset(some) for size in range(len(names) + 1) for some in combinations(names, size)
        )
        for shape in chain(known, islice(searched, max(0, min(_MOST_TRIES_A_ROW, self._left)))):
            if base_of(sorted([*added, *((name, others[name]) for name in shape)])) == base:
                if shape not in self._known:
                    self._known.append(shape)
                return True
            self._left -= 1
        return False
