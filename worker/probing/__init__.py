"""What small test refunds showed of a provider: the questions, the settings that follow, where the answers are kept.

Asking moves test money outside the records; `acting` does it. This part only judges and keeps, and loads no provider
client. Whatever was not shown counts as no.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from worker.connections import redis_errors
from worker.errors import GuardRefused
from worker.model import from_ms, rfc3339, to_ms
from worker.request import RefundRequest
from worker.settings import LIVE_HOST, Settings
from worker.store import Store

TEST_HOST: Final = "apitest.wooshpay.com"
"""The provider's own test system: what it honours is taken to hold for its live one."""
TEST_KEYS: Final = ("sk_test_", "rk_test_")
ID_PREFIX: Final = "probe-"
MAX_AMOUNT: Final = 3
MAX_POSTS: Final = 6
"""Test refunds that may leave: three where all goes well, and three more where the provider answers with 5xx."""
POSTS_WITHOUT_KEYS: Final = 3

Sort = Literal["key", "refused", "away"]


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

    sort: Sort
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What a probe did and saw. `spent` is known to have moved; `uncertain` may have, both in minor units."""

    order: Order
    host: str
    posts: int
    refunds: tuple[str, ...]
    spent: int
    uncertain: int
    currency: str | None
    findings: Findings
    problem: Problem | None

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "run": self.order.run,
            "host": self.host,
            "payment_intent": self.order.payment_intent,
            "amount": self.order.amount,
            "currency": self.currency,
            "posts": self.posts,
            "refunds": list(self.refunds),
            "spent": self.spent,
            "may_have_been_spent": self.uncertain,
            "findings": {
                question.value: {"answer": found.verdict.value, "evidence": found.evidence}
                for question, found in self.findings.items()
            },
            "settings": {advice.variable: advice.value for advice in advise(self.findings)},
            "problem": None if self.problem is None else self.problem.text,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Advice:
    """A setting that follows, and why."""

    variable: str
    value: str
    why: str


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


def _verdict(findings: Findings, question: Question) -> Verdict:
    found = findings.get(question)
    return Verdict.NOT_SEEN if found is None else found.verdict


def advise(findings: Findings) -> tuple[Advice, ...]:
    """Return the settings that follow; what was not shown leaves the cautious one."""
    told = {question: _verdict(findings, question) for question in Question}
    keyed = told[Question.KEY] is Verdict.YES and told[Question.GUARD] is Verdict.YES
    if keyed:
        trust = "the key made one refund of two requests, and other bytes under it were refused"
    elif told[Question.KEY] is Verdict.NO:
        trust = "the same key moved money twice: a resend is a second refund"
    else:
        trust = "it was not shown that a key stands for one refund"
    if told[Question.LIST] is Verdict.YES:
        readback, seen = "list", "a refund is found by its metadata.refund_id"
    elif told[Question.TOTALS] is Verdict.NO:
        readback, seen = "none", "neither a list nor a total shows a refund: a person decides every doubt"
    else:
        readback, seen = "totals", "no usable list; the payment's total is what is left to look at"
    counted = told[Question.PENDING] is Verdict.YES and told[Question.TOTALS] is Verdict.YES
    if counted:
        proof = "a pending refund was in the total at once: an unchanged total proves absence"
    elif told[Question.PENDING] is Verdict.NO:
        proof = "a pending refund was not in the total: an unchanged total proves nothing"
    else:
        proof = "it was not seen whether pending refunds are in the total"
    return (
        Advice(variable="REFUNDS_IDEMPOTENCY", value="trust" if keyed else "verify", why=trust),
        Advice(variable="REFUNDS_READBACK", value=readback, why=seen),
        Advice(variable="REFUNDS_TOTALS", value="proof" if counted else "hint", why=proof),
        Advice(
            variable="REFUNDS_KEY_WINDOW_HOURS",
            value="23",
            why="not measured, which would take a day: 23 suits keys that are kept for 24 h; ask the provider",
        ),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """The answers of the latest probe that came to its end."""

    at: datetime
    host: str
    findings: Findings

    def speaks_for(self, settings: Settings) -> bool:
        """Tell whether it was asked of the settings' provider, or of the test system that stands for its live one."""
        return self.host == settings.provider_host or (settings.provider_host == LIVE_HOST and self.host == TEST_HOST)


_FIELDS: Final = ("probe_at", "probe_host", "probe_results")


def keep(store: Store, report: Report, at: datetime) -> None:
    """Keep a report's answers beside the flags; the next one takes their place."""
    values: dict[Any, Any] = {
        "probe_at": str(to_ms(at)),
        "probe_host": report.host,
        "probe_results": json.dumps(report.as_dict() | {"at": rfc3339(at)}, separators=(",", ":")),
    }
    with redis_errors(store.place):
        store.redis.hset(store.key("meta"), mapping=values)
    store.confirm()


def read(store: Store) -> Kept | None:
    """Return the kept answers, None where none can be read; raises `StoreUnavailable`."""
    with redis_errors(store.place):
        values: Any = store.redis.hmget(store.key("meta"), *_FIELDS)
    at, host, results = values
    try:
        findings = {
            Question(name): Finding(verdict=Verdict(found["answer"]), evidence=str(found["evidence"]))
            for name, found in json.loads(results or "{}")["findings"].items()
        }
        return Kept(at=from_ms(int(at)), host=str(host), findings=findings)
    except (ValueError, KeyError, TypeError, AttributeError):
        # Never asked, or written by another version with other questions: both show nothing.
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Gap:
    """A setting that assumes more than was shown; `denied` where the contrary was."""

    setting: str
    cautious: str
    text: str
    denied: bool


_ASSUMED: Final = (
    (
        "REFUNDS_IDEMPOTENCY=trust",
        "REFUNDS_IDEMPOTENCY=verify",
        (Question.KEY, Question.GUARD),
        "sends again what may have happened",
    ),
    ("REFUNDS_TOTALS=proof", "REFUNDS_TOTALS=hint", (Question.PENDING,), "takes an unchanged total for proof"),
    ("REFUNDS_READBACK=list", "REFUNDS_READBACK=totals", (Question.LIST,), "looks for refunds in a list"),
)


def gaps(settings: Settings, kept: Kept | None) -> Iterator[Gap]:
    """Yield the settings that assume what the kept answers do not show of the settings' provider."""
    chosen = {
        f"REFUNDS_IDEMPOTENCY={settings.idempotency}",
        f"REFUNDS_TOTALS={settings.totals}",
        f"REFUNDS_READBACK={settings.readback}",
    }
    findings: Findings = kept.findings if kept is not None and kept.speaks_for(settings) else {}
    for setting, cautious, questions, does in _ASSUMED:
        lacking = [question for question in questions if _verdict(findings, question) is not Verdict.YES]
        if setting not in chosen or not lacking:
            continue
        denied = [question for question in lacking if _verdict(findings, question) is Verdict.NO]
        if denied:
            text = f"{setting} {does}, but the probe found: {findings[denied[0]].evidence}"
        else:
            text = f"{setting} {does}, and no probe has shown that {' and that '.join(WORDS[each] for each in lacking)}"
        yield Gap(setting=setting, cautious=cautious, text=text, denied=bool(denied))


def live_warning(settings: Settings, kept: Kept | None) -> str | None:
    """Return what must be said before live money moves on trust that nothing supports; None where all is well."""
    if not settings.is_live or settings.idempotency != "trust":
        return None
    lacking = next((gap for gap in gaps(settings, kept) if gap.setting == "REFUNDS_IDEMPOTENCY=trust"), None)
    return None if lacking is None else f"REAL MONEY MAY MOVE TWICE: {lacking.text}"
