"""The error codes of refunds in one table: what each means, who acts, and what a caller does.

The rules, the counters and `ops/docs/error-codes.md` are based on it. A provider may send a code
that is not in the table. It is stored on the refund as received, is retriable `unknown`, and counts
as `other`.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from enum import StrEnum
from functools import partial
from types import MappingProxyType
from typing import Final, Literal

from worker.model.refund import Retriable

Section = Literal["refused", "ended", "going", "review"]
"""Part of the table: refused by the provider, ended or continued by the worker, or for review."""

DONE: Final = "done"
"""The code of an answer that is not an error."""
OTHER: Final = "other"
"""The name under which codes outside the table are counted."""


class Actor(StrEnum):
    """Who must act on a code."""

    NOBODY = "nobody"
    CALLER = "caller"
    OPERATOR = "operator"
    SHOP = "customer service"


_OTHER_WAY: Final = "Refund the customer in another way: sending it again does not help."
_NEW_ID: Final = "Submit a valid amount under a new refund id."
_UNKNOWN: Final = "Find the cause, then `refunds retry ID --unknown`."
_FIX: Final = (
    "Report it: the request that was sent is wrong. Once that is fixed, `refunds retry ID"
    " --unknown`."
)
_WAIT: Final = "Wait: the worker continues by itself."
_DECIDE: Final = "Wait for a person's decision: see `refunds review show ID`."


@dataclass(frozen=True, slots=True)
class Code:
    """An error code. `retriable` is None if no refund ends as failed with this code."""

    name: str
    meaning: str
    actor: Actor
    advice: str = _DECIDE
    retriable: Retriable | None = None
    _: KW_ONLY
    section: Section
    is_stored: bool = True
    """Whether a record keeps it as its `error_code`.

    The other reasons for review are only labels of the history.
    """
    never_an_echo: bool = False
    """Whether this refusal cannot have been caused by an earlier attempt of the same refund.

    After a doubt, any other refusal may be an echo of that attempt, such as
    `charge_already_refunded`. It then settles nothing, even if absence was proven or stated by a
    person.
    """
    is_of_the_request: bool = False
    """Whether every attempt with the same contents is refused so, whenever it is sent."""
    of_one_payment: bool = False
    """Whether a 429 with this code concerns one payment and its refund, and not the rate limit."""


_refused: Final = partial(Code, section="refused")
_ended: Final = partial(Code, section="ended")
_going: Final = partial(Code, section="going")
_reason: Final = partial(Code, section="review", actor=Actor.OPERATOR)
_label: Final = partial(_reason, is_stored=False)

_TABLE: Final = (
    # Refusals by the provider: the refund has failed.
    _refused(
        "charge_already_refunded",
        "The payment is already fully refunded.",
        Actor.CALLER,
        "Nothing is left to refund. See earlier refunds with `refunds list --payment-intent PI`.",
        Retriable.NO,
    ),
    _refused(
        "amount_too_large",
        "The amount is more than is left to refund.",
        Actor.CALLER,
        _NEW_ID,
        Retriable.NO,
    ),
    _refused(
        "amount_too_small",
        "The amount is below the provider's minimum.",
        Actor.CALLER,
        _NEW_ID,
        Retriable.NO,
        never_an_echo=True,
        is_of_the_request=True,
    ),
    _refused(
        "resource_missing",
        "The provider does not know the payment.",
        Actor.CALLER,
        "Check the payment's id and that the key belongs to its account, then use a new refund id.",
        Retriable.NO,
    ),
    _refused(
        "parameter_invalid_integer",
        "The provider does not accept the amount as a whole number.",
        Actor.CALLER,
        _NEW_ID,
        Retriable.NO,
        never_an_echo=True,
        is_of_the_request=True,
    ),
    _refused(
        "parameter_missing",
        "A field that the provider requires is missing.",
        Actor.OPERATOR,
        _FIX,
        Retriable.UNKNOWN,
    ),
    _refused(
        "parameter_unknown",
        "The provider does not know a field.",
        Actor.OPERATOR,
        _FIX,
        Retriable.UNKNOWN,
    ),
    _refused(
        "parameter_invalid_empty",
        "A field that the provider requires is empty.",
        Actor.OPERATOR,
        _FIX,
        Retriable.UNKNOWN,
    ),
    _refused(
        "invalid_request_error",
        "The provider refuses the request as invalid.",
        Actor.OPERATOR,
        _FIX,
        Retriable.UNKNOWN,
    ),
    _refused(
        "card_declined",
        "The card's bank declined the refund.",
        Actor.SHOP,
        _UNKNOWN,
        Retriable.UNKNOWN,
    ),
    _refused(
        "card_error", "The card's bank refused the refund.", Actor.SHOP, _UNKNOWN, Retriable.UNKNOWN
    ),
    _refused("declined", "The refund was declined.", Actor.SHOP, _UNKNOWN, Retriable.UNKNOWN),
    _refused(
        "expired_or_canceled_card",
        "The card has expired or was canceled.",
        Actor.SHOP,
        _OTHER_WAY,
        Retriable.NO,
        never_an_echo=True,
    ),
    _refused(
        "lost_or_stolen_card",
        "The card was reported lost or stolen.",
        Actor.SHOP,
        _OTHER_WAY,
        Retriable.NO,
        never_an_echo=True,
    ),
    _refused(
        "charge_disputed",
        "The customer disputes the payment.",
        Actor.SHOP,
        "Answer the dispute instead.",
        Retriable.UNKNOWN,
    ),
    _refused(
        "charge_not_refundable",
        "This payment cannot be refunded.",
        Actor.SHOP,
        _UNKNOWN,
        Retriable.UNKNOWN,
    ),
    _refused(
        "unknown",
        "The provider reports that it failed, without a reason.",
        Actor.SHOP,
        _UNKNOWN,
        Retriable.UNKNOWN,
    ),
    _refused(
        "balance_insufficient",
        "The account's balance does not cover the refund.",
        Actor.OPERATOR,
        "Top up the account, then `refunds retry ID`.",
        Retriable.YES,
    ),
    _refused(
        "insufficient_funds",
        "The account's balance does not cover the refund.",
        Actor.OPERATOR,
        "Top up the account, then `refunds retry ID`.",
        Retriable.YES,
    ),
    _refused(
        "lock_timeout",
        "The provider is busy with this payment.",
        Actor.NOBODY,
        "Wait: the worker tries again. If the refund has failed with this code, `refunds retry"
        " ID`.",
        Retriable.YES,
        of_one_payment=True,
    ),
    _refused(
        "processing_error",
        "The provider could not process it.",
        Actor.SHOP,
        _UNKNOWN,
        Retriable.UNKNOWN,
    ),
    _refused(
        "api_error",
        "The provider had an internal error.",
        Actor.OPERATOR,
        _UNKNOWN,
        Retriable.UNKNOWN,
    ),
    _refused(
        "forbidden",
        "The key lacks the permission for this.",
        Actor.OPERATOR,
        _UNKNOWN,
        Retriable.UNKNOWN,
    ),
    *(
        _refused(
            f"http_{status}",
            f"Refused with HTTP {status}, without a code.",
            Actor.OPERATOR,
            _UNKNOWN,
            Retriable.UNKNOWN,
        )
        for status in (400, 402, 403, 404, 422)
    ),
    # Refunds that the worker itself ends.
    _ended(
        "budget_spent",
        "No attempt got through within the allowed attempts and age. It was provably never done.",
        Actor.OPERATOR,
        "Find out why no attempt got through, then `refunds retry ID`.",
        Retriable.YES,
    ),
    _ended(
        "currency_mismatch",
        "The payment is in another currency than the refund states. Nothing was sent.",
        Actor.CALLER,
        "Use a new refund id with the payment's currency.",
        Retriable.NO,
        never_an_echo=True,
        is_of_the_request=True,
    ),
    _ended(
        "canceled",
        "The provider canceled the refund.",
        Actor.SHOP,
        "It is not sent again under this id: ask why, then use a new refund id.",
    ),
    # Waiting: nothing was done, and the refund is tried again.
    _going("not_sent", "The provider could not be reached. Nothing was sent.", Actor.NOBODY, _WAIT),
    _going(
        "rate_limited", "The provider accepts no more calls for now (429).", Actor.NOBODY, _WAIT
    ),
    _going(
        "credentials_refused",
        "The provider refuses the key.",
        Actor.OPERATOR,
        "Set a key that the provider accepts.",
    ),
    _going(
        "payment_unreadable",
        "The provider does not show the payment. Nothing was sent.",
        Actor.NOBODY,
        _WAIT,
    ),
    _going(
        "currency_unconfirmed",
        "The payment does not confirm the stated currency. Nothing was sent.",
        Actor.OPERATOR,
        "Let the key read payments. After an hour a person decides: see `refunds review show ID`.",
    ),
    # In doubt: the refund may have happened, and is read back from the provider.
    _going("no_reply", "The request was sent, and no complete reply came.", Actor.NOBODY, _WAIT),
    _going(
        "lease_lapsed",
        "The worker that sent it stopped without recording an answer.",
        Actor.NOBODY,
        _WAIT,
    ),
    _going(
        "unreadable_success",
        "The provider reported success and showed no refund.",
        Actor.NOBODY,
        _WAIT,
    ),
    _going(
        "contradictory_reply",
        "The provider's reply does not match this refund.",
        Actor.NOBODY,
        _WAIT,
    ),
    *(
        _going(f"http_{status}", f"The provider answered HTTP {status}.", Actor.NOBODY, _WAIT)
        for status in (408, 409, 500, 502, 503, 504)
    ),
    # Reasons for review by a person.
    _reason("unknown_status", "The provider shows an unknown status, which the message names."),
    _reason("idempotency_error", "The key was used with other contents."),
    _reason("conflict", "A read-back does not match this refund."),
    _reason("owned_elsewhere", "The provider's refund belongs to another refund id."),
    _reason(
        "found_late",
        "The payment's total rose by this amount, but too late to know which refund did it.",
    ),
    _reason("refund_missing", "The provider no longer knows the refund that it had made."),
    _reason("pending_too_long", "The provider has reported it as pending for 30 days."),
    _reason(
        "hint_unreadable",
        "A webhook named a provider refund for it, which could not be read. It was not sent.",
    ),
    _reason(
        "prior_missing",
        "It was to be sent again, and the provider no longer knows its earlier refund.",
    ),
    _reason(
        "prior_contradicts",
        "It was to be sent again, and its earlier provider refund, or one that a webhook named,"
        " shows other contents.",
    ),
    _label("inconclusive", "The read-backs could not show whether it happened."),
    _label(
        "unreadable",
        "The payment could not be read within the allowed age, or after a person's decision.",
    ),
    _label("resends_spent", "It was sent several times and never found."),
    _label("no_readback", "It may have happened, and nothing may be read back."),
    _label("contradicted", "The provider shows another refund for it, which the message names."),
    _label(
        "was_pending",
        "The provider had reported it as pending, and an older version was to send it again.",
    ),
    _label("no_provider_id", "It is pending, but without a provider refund id."),
    _label(
        "batch_canceled",
        "Its batch was canceled, and only a person says that an earlier attempt did not happen.",
    ),
    _label("no_body", "The stored request is missing."),
)

CODES: Final = MappingProxyType({code.name: code for code in _TABLE})


def retriable(code: str) -> Retriable:
    """Return whether it can help to send a refund again that failed with this code."""
    known = CODES.get(code)
    return known.retriable or Retriable.UNKNOWN if known is not None else Retriable.UNKNOWN


def may_be_an_echo(code: str) -> bool:
    """Return whether a refusal may be caused by an earlier, doubtful attempt of the same refund."""
    known = CODES.get(code)
    return known is None or not known.never_an_echo


def proves_no_earlier(code: str, *, proven_absent: bool) -> bool:
    """Return whether a refusal after a doubt settles the refund as failed.

    `proven_absent` says that what was read proved the earlier attempt absent. If only a person says
    so, a card that was lost since does not show what that attempt did.
    """
    known = CODES.get(code)
    if known is None or not known.never_an_echo:
        return False
    return proven_absent or known.is_of_the_request


def is_of_one_payment(code: str) -> bool:
    """Return whether a 429 with this code concerns one payment; others concern the rate limit."""
    known = CODES.get(code)
    return known is not None and known.of_one_payment


def counted(code: str) -> str:
    """Return the name under which an answer's code is counted.

    The code itself if it is known, else `other`.
    """
    return code if code in CODES or code == DONE else OTHER
