"""The questions of a probe, the test refunds that answer them, and a guard on where those go."""

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
"""The provider's test system. What it honours is taken to hold for the live one."""
TEST_KEYS: Final = ("sk_test_", "rk_test_")
ID_PREFIX: Final = "probe-"
MAX_AMOUNT: Final = 3
MAX_POSTS: Final = 6
"""Most test refunds of a probe: three if all goes well, three more if the provider answers 5xx."""
POSTS_WITHOUT_KEYS: Final = 3

FailureKind = Literal["key", "refused", "away"]


class Question(StrEnum):
    """A question about the provider's behaviour."""

    KEY = "key_honoured"
    GUARD = "other_body_refused"
    ERROR = "stored_5xx_replayed"
    REFUND = "refund_readable"
    LIST = "list_shows_refund_id"
    TOTALS = "totals_move"
    PENDING = "pending_in_totals"


WORDS: Final[Mapping[Question, str]] = {
    Question.KEY: "the same key and bytes again move no money",
    Question.GUARD: "other bytes under a used key are refused",
    Question.ERROR: "a 5xx is stored under its key and replayed",
    Question.REFUND: "a refund can be read by its id",
    Question.LIST: "a payment's refunds are listed, with our id",
    Question.TOTALS: "the payment's refunded total moves",
    Question.PENDING: "pending refunds are in that total",
}


class Verdict(StrEnum):
    """The answer to a question. `yes` and `no` were observed; the others prove nothing."""

    YES = "yes"
    NO = "no"
    UNCLEAR = "unclear"
    NOT_SEEN = "not seen"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """An answer and its evidence."""

    verdict: Verdict
    evidence: str


Findings = Mapping[Question, Finding]


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """One probe: its payment, minor units of each test refund, and the prefix of the refund ids."""

    payment_intent: str
    amount: int
    run: str

    @classmethod
    def new(cls, payment_intent: str, amount: int) -> Order:
        """Return an order with a unique name.

        Raises `InvalidRequest` if its refunds would be invalid.
        """
        run = f"{ID_PREFIX}{datetime.now(UTC):%Y%m%d%H%M%S}-{secrets.token_hex(3)}"
        order = cls(payment_intent=payment_intent, amount=amount, run=run)
        order.request(1)
        return order

    def request(self, number: int) -> RefundRequest:
        """Return the request of one test refund."""
        return RefundRequest(
            refund_id=f"{self.run}-{number}", payment_intent=self.payment_intent, amount=self.amount
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """Why a probe stopped early: a refused key, a refusal, or an unavailable provider.

    `text` is one sentence.
    """

    sort: FailureKind
    text: str


def guard(settings: Settings) -> str:
    """Return the key if it is a test key and the address is not the live one. Connects to nothing.

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
            "a probe makes refunds, and this key is not a test key (sk_test_…): nothing was sent"
        )
    return key
