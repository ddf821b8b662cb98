"""Stores the findings of a probe, and lists the settings that they do not support."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from worker.model.times import from_ms, rfc3339, to_ms
from worker.probing.advice import _verdict
from worker.probing.questions import TEST_HOST, WORDS, Finding, Findings, Question, Verdict
from worker.probing.report import Report
from worker.settings import LIVE_HOST, Settings
from worker.store.connection import redis_errors
from worker.store.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptAnswers:
    """The answers of the latest probe that came to its end."""

    at: datetime
    host: str
    findings: Findings

    def speaks_for(self, settings: Settings) -> bool:
        """Return whether the probe ran on the settings' provider.

        If that is the live provider, its test system counts too.
        """
        return self.host == settings.provider_host or (
            settings.provider_host == LIVE_HOST and self.host == TEST_HOST
        )


_FIELDS: Final = ("probe_at", "probe_host", "probe_results")


def keep(store: Store, report: Report, at: datetime) -> None:
    """Store a report's answers beside the flags, in place of those of the probe before."""
    values: dict[Any, Any] = {
        "probe_at": str(to_ms(at)),
        "probe_host": report.host,
        "probe_results": json.dumps(report.as_dict() | {"at": rfc3339(at)}, separators=(",", ":")),
    }
    with redis_errors(store.address):
        store.redis.hset(store.key("meta"), mapping=values)
    store.confirm()


def read(store: Store) -> KeptAnswers | None:
    """Return the kept answers, None if none can be read; raises `StoreUnavailable`."""
    with redis_errors(store.address):
        values: Any = store.redis.hmget(store.key("meta"), *_FIELDS)
    at, host, results = values
    try:
        findings = {
            Question(name): Finding(
                verdict=Verdict(found["answer"]), evidence=str(found["evidence"])
            )
            for name, found in json.loads(results or "{}")["findings"].items()
        }
        return KeptAnswers(at=from_ms(int(at)), host=str(host), findings=findings)
    except (ValueError, KeyError, TypeError, AttributeError):
        # No probe ran, or another version with other questions wrote the answers: both show
        # nothing.
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class UnprovenSetting:
    """A setting that assumes more than was shown; `denied` if the contrary was shown."""

    setting: str
    cautious: str
    text: str
    denied: bool


_ASSUMED: Final = (
    (
        "REFUNDS_IDEMPOTENCY=trust",
        "REFUNDS_IDEMPOTENCY=verify",
        (Question.KEY, Question.GUARD),
        "sends a refund again that may have happened",
    ),
    (
        "REFUNDS_TOTALS=proof",
        "REFUNDS_TOTALS=hint",
        (Question.PENDING,),
        "takes an unchanged total for proof",
    ),
    (
        "REFUNDS_READBACK=list",
        "REFUNDS_READBACK=totals",
        (Question.LIST,),
        "looks for refunds in a list",
    ),
)


def gaps(settings: Settings, kept: KeptAnswers | None) -> Iterator[UnprovenSetting]:
    """Yield settings that assume what the kept answers do not show of the settings' provider."""
    chosen = {
        f"REFUNDS_IDEMPOTENCY={settings.idempotency}",
        f"REFUNDS_TOTALS={settings.totals}",
        f"REFUNDS_READBACK={settings.readback}",
    }
    findings: Findings = kept.findings if kept is not None and kept.speaks_for(settings) else {}
    for setting, cautious, questions, does in _ASSUMED:
        lacking = [
            question for question in questions if _verdict(findings, question) is not Verdict.YES
        ]
        if setting not in chosen or not lacking:
            continue
        denied = [question for question in lacking if _verdict(findings, question) is Verdict.NO]
        if denied:
            text = f"{setting} {does}, but the probe found: {findings[denied[0]].evidence}"
        else:
            text = (
                f"{setting} {does}, and no probe has shown that"
                f" {' and that '.join(WORDS[each] for each in lacking)}"
            )
        yield UnprovenSetting(setting=setting, cautious=cautious, text=text, denied=bool(denied))


def live_warning(settings: Settings, kept: KeptAnswers | None) -> str | None:
    """Return the warning for live mode under `trust` that no probe supports.

    None if there is nothing to warn of.
    """
    if not settings.is_live or settings.idempotency != "trust":
        return None
    lacking = next(
        (gap for gap in gaps(settings, kept) if gap.setting == "REFUNDS_IDEMPOTENCY=trust"), None
    )
    return None if lacking is None else f"REAL MONEY MAY MOVE TWICE: {lacking.text}"
