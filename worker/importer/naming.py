"""Guesses the meaning of a column's name, for suggestions in messages; no guess is ever applied."""

from __future__ import annotations

import difflib
import re
import shlex
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_WORDS: Final = re.compile(r"[^\W_]+")
_CAMEL: Final = re.compile(r"(?<=[a-z])(?=[A-Z])")
_SHELL: Final = re.compile(r'["$`\\!]')
_CLOSE: Final = 0.85

# Names of amounts in exports of shops, banks and payment providers.
_AMOUNT_WORDS: Final = (
    "amount amounts amt sum total subtotal value price cost gross net money betrag beträge betraege"
    " summe wert preis brutto netto montant montants somme prix importe importes monto valor precio"
    " importo somma totale prezzo valore bedrag belopp beløb beloeb beloep kwota suma summa сумма"
    " eur euro usd gbp chf jpy cny rmb hkd sgd aud cad"
)
_AMOUNTS: Final = frozenset(_AMOUNT_WORDS.split())
_AMOUNT_SIGNS: Final = re.compile(r"[€$£¥₹]|金额|金額|总额|總額")
_CURRENCIES: Final = frozenset(
    {"currency", "ccy", "cur", "währung", "waehrung", "devise", "moneda", "valuta"}
)
_REASONS: Final = frozenset({"reason", "grund", "motif", "motivo"})
_PAYMENTS: Final = frozenset(
    {
        "payment",
        "paymentintent",
        "intent",
        "transaction",
        "txn",
        "zahlung",
        "zahlungs",
        "paiement",
        "pago",
        "psp",
    }
)
_REFUNDS: Final = frozenset({"refund", "erstattung", "erstattungs", "remboursement", "reembolso"})
_IDS: Final = frozenset(
    {"id", "ids", "no", "nr", "number", "reference", "ref", "key", "token", "intent"}
)
_LIKE: Final = {
    "payment_intent": ("payment_intent", "payment_intent_id", "payment_id"),
    "refund_id": ("refund_id",),
    "amount": ("amount",),
    "currency": ("currency", "currency_code"),
    "reason": ("reason", "refund_reason"),
}


def words_of(name: str) -> list[str]:
    """Return the words of a name in lower case, also of `paymentId` or `Amount (EUR)`."""
    return [word.lower() for word in _WORDS.findall(_CAMEL.sub(" ", name))]


def looks_like_amount(name: str) -> bool:
    """Return whether a column's name says that the column holds amounts of money."""
    words = words_of(name)
    return (
        not _AMOUNTS.isdisjoint(words) or bool(_AMOUNT_SIGNS.search(name)) or _near(words, "amount")
    )


def field_like(name: str) -> str | None:
    """Return the field that a column's name resembles, None if it resembles none."""
    words = words_of(name)
    found, only = set(words), len(words) == 1
    if found & _PAYMENTS and (only or found & _IDS):
        return "payment_intent"
    if looks_like_amount(name):
        return "amount"
    if found & _CURRENCIES:
        return "currency"
    if found & _REASONS:
        return "reason"
    if found & _REFUNDS and (only or found & _IDS):
        return "refund_id"
    return next(
        (field for field, like in _LIKE.items() if any(_near(words, one) for one in like)), None
    )


def column_option(field: str, header: str) -> str:
    """Return the option that names the column of a field, quoted for a shell."""
    header = header.strip()
    quoted = shlex.quote(header) if _SHELL.search(header) else f'"{header}"'
    return f"--column {field}={quoted}"


def candidates(field: str, headers: Iterable[str]) -> list[str]:
    """Return the headers that resemble a field."""
    return [header for header in headers if field_like(header) == field]


def _near(words: list[str], name: str) -> bool:
    return bool(difflib.get_close_matches("_".join(words), [name], n=1, cutoff=_CLOSE))
