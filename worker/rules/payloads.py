"""Parses the provider's JSON, which happens only here.

The result is typed, bounded and without secrets.

A field that is present and cannot be read becomes '', or -1 for an amount. Such a value agrees with
nothing, so it counts as a contradiction and is not ignored. Texts are shown to people and kept for
years. A code has the alphabet of `CODE`. Any other text is one line of at most `LONGEST_TEXT`
characters. It leaves out the values of the caller's metadata, and whatever may be a request's body.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from itertools import islice
from types import MappingProxyType
from typing import Any, Final

from worker.model.answers import (
    NO_TOTAL,
    PENDING_WORDS,
    SEVERAL_CHARGES,
    Page,
    Payload,
    PaymentView,
    ProviderError,
    ProviderRefund,
)
from worker.model.redaction import holds_key, without_secrets
from worker.model.request import (
    MAX_AMOUNT,
    RESERVED_METADATA,
    is_currency,
    is_provider_id,
    is_refund_id,
    scrubbed,
)
from worker.rules.codes import CODES

LONGEST_TEXT: Final = 200
CODE: Final = re.compile(r"[A-Za-z0-9_.-]{1,60}")
STATUSES: Final = frozenset({*PENDING_WORDS, "succeeded", "failed", "canceled"})
"""The known statuses of a refund.

Other spellings are read as one of them; any other word is unknown.
"""

_SPELLINGS: Final = MappingProxyType({"cancelled": "canceled"})
_AMOUNT: Final = re.compile(rf"[0-9]{{1,{len(str(MAX_AMOUNT))}}}")
_MILLISECONDS_FROM: Final = 10**11
_LATEST: Final = 10**14
_LONGEST_WORD: Final = 60
_GENERATION: Final = re.compile(r"[0-9]{1,9}")
_LONGEST_NUMBER: Final = 18
_SHORTEST_HIDDEN: Final = 4
"""Metadata values shorter than this are not redacted, because they match ordinary words."""
_MOST_WORDS: Final = 5
_MESSAGES: Final = ("message", "msg", "detail", "error_description", "title")
"""Fields that may hold an error's message, the preferred one first."""
_TWO_CURRENCIES: Final = "payment and charge differ in currency"
_NAME: Final = re.compile(r"[A-Za-z0-9_]{1,40}")
_DEEPEST: Final = 6
_MOST_NUMBERS: Final = 2000

_MOST_HIDDEN: Final = 60
"""Maximum number of a refund's metadata values that are redacted in its texts.

More than a caller may have.
"""


def read(value: object, hide: Collection[str] = (), *, numbers: bool = False) -> Payload | None:
    """Return the parsed payload of a decoded JSON value, None if the value is not an object.

    `hide` holds the values of the caller's metadata, because a careless provider may repeat a
    request. With `numbers` every number is read too, by its path; only a probe needs them.
    """
    if not isinstance(value, dict):
        return None
    refund = _refund(value, hide)
    return Payload(
        kind=_kind(value.get("object")),
        id=_id(value.get("id")) if refund is None else refund.id,
        payment_intent=(
            _id(value.get("payment_intent")) if refund is None else refund.payment_intent
        ),
        refund=refund,
        error=None if _is_refund(value, refund) else _error(value, hide),
        payment=_payment(value),
        latest_charge=_id(value.get("latest_charge")),
        page=_page(value, hide),
        numbers=dict(islice(_numbers(value, "", 0), _MOST_NUMBERS)) if numbers else {},
    )


# Values


def read_amount(value: Any) -> int | None:
    """Return an amount in minor units, None if it is absent, -1 if it is not an amount.

    `500.0` is 500, because JSON has one kind of number. No amount exceeds the largest that a refund
    may have.
    """
    if value is None:
        return None
    whole = (
        value.is_integer()
        if isinstance(value, float)
        else isinstance(value, str) and _AMOUNT.fullmatch(value)
    )
    number = int(value) if whole else value
    return number if type(number) is int and 0 <= number <= MAX_AMOUNT else -1


def read_time(value: Any) -> datetime | None:
    """Return a provider's time, given in seconds or milliseconds; None if it is neither."""
    if type(value) is not int or not 0 < value <= _LATEST:
        return None
    seconds = value / 1000 if value >= _MILLISECONDS_FROM else value
    return datetime.fromtimestamp(seconds, UTC)


def _currency(value: Any) -> str | None:
    """Return a currency as three lowercase letters, '' if a present value is not a currency."""
    if value is None:
        return None
    text = value.lower() if isinstance(value, str) else ""
    return text if is_currency(text) else ""


def _id(value: Any) -> str | None:
    """Return a provider's id, given as text or inside an expanded object."""
    if value is None:
        return None
    identity = value.get("id") if isinstance(value, dict) else value
    return identity if isinstance(identity, str) and _is_id(identity) else ""


def _is_id(text: str) -> bool:
    """Return whether a text can be a provider's id.

    An id is stored unchanged, so it must not contain our API key.
    """
    return is_provider_id(text) and not holds_key(text)


def _kind(value: Any) -> str | None:
    if value is None:
        return None
    return (
        value if isinstance(value, str) and _NAME.fullmatch(value) and not holds_key(value) else ""
    )


def _clean(text: str, hide: Collection[str]) -> str:
    """Return a foreign text in a form that is safe to store and show."""
    # Redact secrets first, because the later steps could remove parts of them. A request's body
    # begins with a brace.
    line = without_secrets(text).partition("{")[0]
    # The longest value first, because it may contain another one.
    for value in sorted(hide, key=len, reverse=True):
        if len(value) >= _SHORTEST_HIDDEN:
            line = line.replace(value, "***")
    return scrubbed(line, LONGEST_TEXT)


def _code(value: Any, hide: Collection[str]) -> str | None:
    """Return a code, given as text or as a number; None if the value is not a code."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is int and abs(value) < 10**_LONGEST_NUMBER:
        value = str(value)
    if not isinstance(value, str) or CODE.fullmatch(value) is None:
        return None
    return value if value in CODES or _clean(value, hide) == value else None


def _status(value: Any, hide: Collection[str]) -> str | None:
    """Return a status in its usual spelling, other words as clean text, '' if it is not a word."""
    if value is None:
        return None
    if not isinstance(value, str):
        return ""
    if value in STATUSES:
        return value
    usual = re.sub(r"[ -]", "_", value.strip()[:_LONGEST_WORD].lower())
    usual = _SPELLINGS.get(usual, usual)
    return usual if usual in STATUSES else _clean(value, hide)[:_LONGEST_WORD]


# Refunds


def _refund(value: Mapping[str, Any], hide: Collection[str]) -> ProviderRefund | None:
    """Return the refund in an object, None if it has no usable id."""
    identity = value.get("id")
    if not isinstance(identity, str) or not _is_id(identity):
        return None
    shown = value.get("metadata")
    metadata: dict[str, Any] = shown if isinstance(shown, dict) else {}
    reason = value.get("failure_reason")
    hide = (*hide, *_values(metadata))
    code = _code(reason, hide)
    generation = metadata.get("refund_generation")
    return ProviderRefund(
        id=identity,
        status=_status(value.get("status"), hide),
        amount=read_amount(value.get("amount")),
        currency=_currency(value.get("currency")),
        payment_intent=_id(value.get("payment_intent")),
        failure_reason=code,
        failure_words=(
            _clean(reason, hide) or None if isinstance(reason, str) and code is None else None
        ),
        refund_id=_own(metadata.get("refund_id")),
        generation=None if generation is None else _generation(generation),
        created=read_time(value.get("created")),
    )


def _values(metadata: Mapping[str, Any]) -> Iterator[str]:
    texts = (
        value
        for name, value in metadata.items()
        if isinstance(value, str) and name not in RESERVED_METADATA
    )
    return islice(texts, _MOST_HIDDEN)


def _own(value: Any) -> str | None:
    if value is None:
        return None
    return value if isinstance(value, str) and is_refund_id(value) else ""


def _generation(value: Any) -> str:
    # The provider may show our number as text or as a number.
    text = str(value)
    return text if _GENERATION.fullmatch(text) else ""


def _is_refund(value: Mapping[str, Any], refund: ProviderRefund | None) -> bool:
    """Return whether an object shows a refund.

    Such an object is not a refusal, whatever else it says.
    """
    return value.get("object") == "refund" or (refund is not None and refund.status in STATUSES)


# Errors


def _error(value: Mapping[str, Any], hide: Collection[str]) -> ProviderError | None:
    """Return an object's error in any of the usual shapes, None if nothing could be an error.

    The shapes are `{"error": {…}}`, the same fields flat, `{"error": "text"}`, and `{"errors": …}`
    as a list or by field.
    """
    inside = value.get("error") or value.get("errors")
    body = inside if isinstance(inside, dict) else value
    entries = inside if isinstance(inside, list) else []
    codes = [
        body.get("code"),
        *(each.get("code") for each in entries if isinstance(each, dict)),
        inside,
    ]
    code = next((read for each in codes if (read := _code(each, hide)) is not None), None)
    words = [*_told(inside, code), _message(body)]
    if code is None and isinstance(body.get("code"), str):
        words = [": ".join(word for word in (body["code"], "; ".join(filter(None, words))) if word)]
    kind = _code(body["type"], hide) if isinstance(body.get("type"), str) else None
    message = _clean("; ".join(filter(None, words)), hide) or None
    if code is None and kind is None and message is None:
        return None
    return ProviderError(kind=kind, code=code, message=message)


def _message(body: Mapping[str, Any]) -> str | None:
    found = (body.get(name) for name in _MESSAGES)
    return next((text for text in found if isinstance(text, str) and text), None)


def _told(inside: Any, code: str | None) -> list[str | None]:
    """Return the texts in an `error` or `errors` that is not an object with its own message."""
    match inside:
        case str():
            return [] if inside == code else [inside]
        case list():
            return [
                _message(each) if isinstance(each, dict) else _text(each)
                for each in inside[:_MOST_WORDS]
            ]
        case dict():
            fields = [
                (name, _text(values)) for name, values in inside.items() if isinstance(values, list)
            ]
            return [f"{name}: {text}" for name, text in fields[:_MOST_WORDS] if text]
        case _:
            return []


def _text(value: Any) -> str | None:
    if isinstance(value, list):
        return ", ".join(each for each in value[:_MOST_WORDS] if isinstance(each, str))
    return value if isinstance(value, str) else None


# Payments and lists


_HOLD_TOTALS: Final = frozenset({"amount_refunded", "charges", "latest_charge"})
_CAPTURED: Final = ("amount_captured", "amount_received", "amount")


def _payment(value: Mapping[str, Any]) -> PaymentView:
    """Read a payment intent's or a charge's totals by Stripe's field names.

    Several charges are inconclusive.
    """
    currency = _currency(value.get("currency"))
    if currency == "":
        return PaymentView(currency="", problem="the currency cannot be read")
    if _HOLD_TOTALS.isdisjoint(value):
        # As almost every object that is not a payment, such as the refund of a reply.
        return PaymentView(currency=currency, problem=NO_TOTAL)
    return _charged(value, currency)


def _charged(value: Mapping[str, Any], currency: str | None) -> PaymentView:
    charges, latest = value.get("charges"), value.get("latest_charge")
    listed_in = charges.get("data") if isinstance(charges, dict) else None
    listed = listed_in if isinstance(listed_in, list) else []
    several = len(listed) > 1 or bool(
        listed and isinstance(charges, dict) and charges.get("has_more")
    )
    entries = [entry for entry in listed if isinstance(entry, dict)]
    if _contradicted(currency, *entries, latest):
        return PaymentView(currency="", problem=_TWO_CURRENCIES)
    inside = entries or ([latest] if isinstance(latest, dict) else [])
    if not all(_is_of(value.get("id"), charge) for charge in inside):
        return PaymentView(
            currency=currency, problem="the payment shows a charge of another payment"
        )
    # A total that is null is left to the charge, if there is one.
    is_empty = value.get("amount_refunded") is None and bool(inside or latest)
    if "amount_refunded" in value and not is_empty:
        whole = not several and inside and "amount_refunded" in inside[0]
        if whole and read_amount(inside[0]["amount_refunded"]) != read_amount(
            value["amount_refunded"]
        ):
            return PaymentView(
                currency=currency, problem="payment and charge differ in the refunded total"
            )
        return _totals(value, currency)
    if several:
        return PaymentView(currency=currency, problem=SEVERAL_CHARGES)
    if inside:
        return _totals(inside[0], currency)
    if charge := _id(latest):
        return PaymentView(currency=currency, charge=charge)
    if (charges is not None and not isinstance(listed_in, list)) or latest is not None:
        return PaymentView(currency=currency, problem="the payment's charges cannot be read")
    return PaymentView(currency=currency, problem=NO_TOTAL)


def _is_of(payment: Any, charge: Mapping[str, Any]) -> bool:
    """Return whether a charge that a payment shows can be the payment's own."""
    shown = charge.get("payment_intent")
    return shown is None or _id(shown) == payment


def _contradicted(currency: str | None, *charges: Any) -> bool:
    """Return whether a payment and its charges show several currencies, or an unreadable one."""
    said = {_currency(charge.get("currency")) for charge in charges if isinstance(charge, dict)}
    return "" in said or len({currency, *said} - {None}) > 1


def _totals(charge: Mapping[str, Any], currency: str | None) -> PaymentView:
    refunded = read_amount(charge.get("amount_refunded"))
    own = _currency(charge.get("currency")) or currency
    if refunded is None or refunded < 0:
        return PaymentView(currency=own, problem="the charge shows no readable refunded total")
    captured = next(
        (amount for name in _CAPTURED if (amount := read_amount(charge.get(name))) is not None),
        None,
    )
    captured = None if captured == -1 else captured
    if _is_uncaptured(charge):
        return PaymentView(currency=own, problem="the charge was not captured")
    if not _agree(charge.get("refunded"), refunded, captured):
        return PaymentView(
            currency=own, problem="the charge's refunded total contradicts its other figures"
        )
    return PaymentView(
        refunded=refunded, captured=captured, currency=own, shown_by=_id(charge.get("id")) or None
    )


def _is_uncaptured(charge: Mapping[str, Any]) -> bool:
    return (
        charge.get("captured") is False
        or charge.get("paid") is False
        or charge.get("status") == "failed"
    )


def _agree(is_refunded: Any, refunded: int, captured: int | None) -> bool:
    """Return whether a refunded total can be true.

    Not above the captured amount, and as the flag `refunded` says.
    """
    if captured is None:
        return True
    if refunded > captured:
        return False
    return not isinstance(is_refunded, bool) or is_refunded == (
        refunded == captured and refunded > 0
    )


def _page(value: Mapping[str, Any], hide: Collection[str]) -> Page | None:
    entries = value.get("data")
    if not isinstance(entries, list):
        return None
    more = value.get("has_more")
    return Page(
        entries=tuple(
            _refund(entry, hide) if isinstance(entry, dict) else None for entry in entries
        ),
        more=more if isinstance(more, bool) else None,
    )


def _numbers(value: Any, path: str, depth: int) -> Iterator[tuple[str, int]]:
    """Yield the numbers and booleans in an object by path, for names that are safe to show."""
    if depth > _DEEPEST:
        return
    if isinstance(value, dict):
        for name, inner in value.items():
            if _NAME.fullmatch(name) and not holds_key(name):
                yield from _numbers(inner, f"{path}.{name}" if path else name, depth + 1)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _numbers(inner, f"{path}[{index}]", depth + 1)
    elif isinstance(value, bool):
        yield path, value
    elif (amount := read_amount(value)) is not None and amount >= 0:
        yield path, amount
