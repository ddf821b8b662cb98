"""Task results in plain words: how a task left its refunds, as Flower shows it.

Results hold ids and codes only. They state what the worker knows from its last reply of the store;
nothing is read for them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from worker.model.redaction import without_secrets
from worker.model.refund import Refund, Stage, Status
from worker.model.request import scrubbed
from worker.model.steps import Step

_CODE: Final = re.compile(r"[A-Za-z0-9_.-]{1,60}")
_WORDS: Final = MappingProxyType(
    {
        Stage.QUEUED: "queued",
        Stage.SENDING: "sending",
        Stage.WAITING: "waiting",
        Stage.IN_DOUBT: "in doubt",
        Stage.PROCESSING: "processing",
        Stage.REVIEW: "in review",
    }
)
_HELD: Final = MappingProxyType(
    {
        "paused": "paused",
        "parked": "key refused",
        "account": "account not confirmed",
        "behind": "Redis has forgotten claims",
        "blocked": "rate limited",
        "batch": "batch on hold",
        "narrow": "the file starts with a few rows at a time",
        "locked": "another refund of the payment is in progress",
        "no_body": "its stored request is gone",
    }
)
"""Reasons of refused claims that only have to wait, in plain words."""
_EVERYONES: Final = MappingProxyType(
    {"credentials_refused": "key refused", "rate_limited": "rate limited"}
)
"""Codes of answers that concern every refund."""
_KEPT_BACK: Final = MappingProxyType(
    {
        "currency_unconfirmed": "currency not confirmed",
        "account_lost": "account not confirmed",
        **_EVERYONES,
    }
)


@dataclass(frozen=True, slots=True)
class Ending:
    """The result of handling one refund: a plain word, and the reason if one is known."""

    word: str
    reason: str = ""
    common: bool = False
    """Whether the reason is one of a few that hold back many refunds at once.

    Summaries then count by it, too.
    """

    def __str__(self) -> str:
        return f"{self.word} ({self.reason})" if self.reason else self.word

    @property
    def kind(self) -> str:
        """Return the name under which a summary counts this ending."""
        return str(self) if self.common else self.word

    @property
    def begun(self) -> bool:
        """Return whether work on the refund was begun."""
        return self.word != _GIVEN_BACK


_GIVEN_BACK: Final = "given back"

UNKNOWN: Final = Ending("unknown id")
OVERTAKEN: Final = Ending("changed meanwhile")
"""The refund was changed elsewhere since it was read, and its current state was not read."""
CONTRADICTED: Final = Ending("contradicts the record")
STORE_AWAY: Final = Ending("not known", "Redis away", common=True)
NOT_SAFE: Final = Ending(_GIVEN_BACK, "Redis may forget it", common=True)
NOT_BEGUN: Final = Ending("not begun", "Redis may forget it", common=True)
CONFLICT: Final = Ending("rejected", "exists with other contents")
PUT_BACK: Final = Ending("not accepted yet", "its message is queued again", common=True)
NO_IDS: Final = Ending("rejected", "not a list of ids")


def given_back(*, stopping: bool, provider_away: bool) -> Ending:
    """Return the ending of a refund that was not begun and that another message brings again."""
    reason = "worker stopping" if stopping else "provider away" if provider_away else ""
    return Ending(_GIVEN_BACK, reason, common=True)


def broken(error: BaseException) -> Ending:
    """Return the ending after an unforeseen error.

    Only the error's type, because the log has the rest.
    """
    return Ending("handling failed", type(error).__name__)


def rejected(codes: Iterable[str]) -> Ending:
    """Return the ending of an invalid request, with the codes of the broken rules."""
    return Ending("rejected", ", ".join(dict.fromkeys(codes)))


def standing(refund: Refund | None) -> Ending:
    """Return the ending of a refund for which nothing was done, based on its record."""
    if refund is None:
        return UNKNOWN
    return _at(refund.stage, refund.status, refund.error_code)


def not_claimed(result: str, refund: Refund | None) -> Ending:
    """Return the ending after a claim refused with `result`, from the record it returned."""
    held = _HELD.get(result)
    if refund is None or held is None:
        return standing(refund)
    return Ending(_WORDS[refund.stage], held, common=True)


def postponed(refund: Refund, code: str) -> Ending:
    """Return the ending of an unsent refund whose payment was unreadable or did not confirm it."""
    return Ending(_WORDS[refund.stage], _KEPT_BACK.get(code, "payment unreadable"), common=True)


def saved(step: Step, result: str) -> Ending:
    """Return the ending for a save's `result`; it describes the step only if the step was saved."""
    match result:
        case "saved":
            code = step.label if step.to is Stage.REVIEW else step.changes.get("error_code")
            return _at(step.to, step.status, code)
        case "missing":
            return UNKNOWN
        case "contradicts":
            return CONTRADICTED
        case _:
            return OVERTAKEN


def _at(stage: Stage, status: Status, code: str | None) -> Ending:
    if stage is Stage.SETTLED:
        return (
            Ending(status.value, _plain(code)) if status is Status.FAILED else Ending(status.value)
        )
    if stage not in {Stage.WAITING, Stage.REVIEW}:
        return Ending(_WORDS[stage])
    return Ending(_WORDS[stage], _plain(code), common=stage is Stage.WAITING and code in _EVERYONES)


def _plain(code: str | None) -> str:
    """Return a code that is safe to show; the provider's own codes may contain anything."""
    if code is None:
        return ""
    if code in _EVERYONES:
        return _EVERYONES[code]
    return code if _CODE.fullmatch(code) and scrubbed(code) == code else "another code"


def summary(endings: Mapping[str, Ending]) -> str:
    """Return a summary of a message's refunds.

    For one refund its id and ending, for several the count of each kind.
    """
    if len(endings) == 1:
        return "".join(
            f"{without_secrets(refund_id)}: {ending}" for refund_id, ending in endings.items()
        )
    kinds = Counter(ending.kind for ending in endings.values())
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()) or "no refunds"
