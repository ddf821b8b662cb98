"""What test refunds ask of a provider, with what, and where they may be sent."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final, Literal
from urllib.parse import urlsplit

from worker.errors import GuardRefused
from worker.model.request import RefundRequest
from worker.settings import LIVE_HOST, Settings

TEST_HOST: Final = "apitest.wooshpay.com"
"""The provider's own test system: what it honours is taken to hold for its live one."""
TEST_KEYS: Final = ("sk_test_", "rk_test_")
ID_PREFIX: Final = "probe-"
MAX_AMOUNT: Final = 3
MAX_POSTS: Final = 6
"""Test refunds that may leave: three where all goes well, and three more where the provider answers with 5xx."""
POSTS_WITHOUT_KEYS: Final = 3

FailureKind = Literal["key", "refused", "away"]


class Question(StrEnum):
    """What is asked of the provider."""

    KEY = "key_honoured"
    GUARD = "other_body_refused"
    ERROR = "stored_5xx_replayed"
    REFUND = "refund_readable"
    LIST = "list_shows_refund_id"
    TOTALS = "totals_move"
    PENDING = "pending_in_totals"


WORDS: Final[Mapping[Question, str]] = {
    Question.KEY: "the same key and bytes again move nothing",
    Question.GUARD: "other bytes under a used key are refused",
    Question.ERROR: "a 5xx is kept under its key and replayed",
    Question.REFUND: "a refund can be read by its id",
    Question.LIST: "a payment's refunds are listed, with our id",
    Question.TOTALS: "the payment's refunded total moves",
    Question.PENDING: "pending refunds are in that total",
}


class Verdict(StrEnum):
    """How a question was answered; only `yes` and `no` were seen."""

    YES = "yes"
    NO = "no"
    UNCLEAR = "unclear"
    NOT_SEEN = "not seen"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """An answer, and what was seen."""

    verdict: Verdict
    evidence: str


Findings = Mapping[Question, Finding]


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """One probe: on which payment, how many minor units a test refund, and the name they are recognised by."""

    payment_intent: str
    amount: int
    run: str

    @classmethod
    def new(cls, payment_intent: str, amount: int) -> Order:
        """Return an order with a name of its own; raises `InvalidRequest` for what can be no refund."""
        run = f"{ID_PREFIX}{datetime.now(UTC):%Y%m%d%H%M%S}-{secrets.token_hex(3)}"
        order = cls(payment_intent=payment_intent, amount=amount, run=run)
        order.request(1)
        return order

    def request(self, number: int) -> RefundRequest:
        """Return the request of one test refund."""
        return RefundRequest(refund_id=f"{self.run}-{number}", payment_intent=self.payment_intent, amount=self.amount)


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """Why a probe came to no end: the key, the provider's refusal, or a provider that is away; one sentence."""

    sort: FailureKind
    text: str


def guard(settings: Settings) -> str:
    """Return the key where it is a test key for a test address, before anything is connected.

    Raises `GuardRefused` for anything that could move real money, `SettingsError` without a key.
    """
    host = (urlsplit(settings.api_url).hostname or "").rstrip(".")
    if settings.is_live or host == LIVE_HOST:
        raise GuardRefused(
            "a probe makes refunds and never runs with a live key or the live address: "
            f"use a test key with REFUNDS_API_URL=https://{TEST_HOST}; nothing was sent"
        )
    key = settings.require_provider()
    if not key.startswith(TEST_KEYS):
        raise GuardRefused(
            "a probe makes refunds, and this key does not say that it is a test key (sk_test_…): nothing was sent"
        )
    return key
