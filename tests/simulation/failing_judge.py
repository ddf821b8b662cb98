"""Why a refund may be told to have failed: somebody who can know has said so.

Everybody's trouble is no reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

from worker.rules.attempts import Rules

REFUSALS: Final = frozenset({400, 402, 403, 404, 422})
"""Answers by which the provider refuses this very refund."""
KEY_REFUSED: Final = 401
VERDICTS: Final = frozenset({"may_have_happened", "refused", "idempotency_mismatch"})
"""What an attempt was seen as that is taken off the budget."""
NOT_DONE_AT_PROVIDER: Final = frozenset({"failed", "canceled"})


def why_it_may_not_fail(
    last: Mapping[str, Any],
    answered: Sequence[int | None],
    made: Sequence[str],
    verdicts: int,
    age_ms: int | None,
    rules: Rules,
    *,
    mismatch: bool,
) -> str | None:
    """Return what is wrong with a refund's end in `failed` that no person has decided, None where
    it is right.

    `last` is the move of its history by which it ended; `answered` holds the status of each whole
    reply to its requests of this generation, None where none came; `made` the statuses of what the
    provider made for it; `verdicts` counts attempts of which its history says that they may have
    happened or were refused; `age_ms` counts from the first attempt, None where that is not known;
    `mismatch` tells whether its payment is in another currency than it states.
    """
    if last["label"] == "budget_spent":
        if last.get("http_status") == KEY_REFUSED:
            return "given up while the key was refused, which is everybody's trouble"
        too_young = age_ms is not None and age_ms < rules.max_age / timedelta(milliseconds=1)
        if too_young and verdicts < rules.max_attempts:
            return f"given up after {verdicts} verdicts and {age_ms} ms"
        return None
    if last["label"] == "currency_mismatch" and mismatch and not answered:
        # A guard of the product's own, before anything was sent.
        return None
    if NOT_DONE_AT_PROVIDER.intersection(made) or REFUSALS.intersection(answered):
        return None
    return (
        f"{last['label']}: nobody has refused it, its requests were answered with {list(answered)}"
    )
