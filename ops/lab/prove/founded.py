"""Whether a refund that ended `failed` had a reason to.

A refusal, or a failure, that the provider itself knows of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from ops.lab.prove.evidence import Evidence, Post

REFUSALS: Final = frozenset({400, 402, 403, 404, 422})
# With any other fault on it, no whole refusal has left the provider.
_WHOLE: Final = frozenset({None, "http_403", "wrong_resource_after", "slow_drip_after"})
_COUNTED: Final = frozenset({"refused", "may_have_happened", "idempotency_mismatch"})
"""What an attempt that is taken off the budget was seen as."""


def unfounded(
    evidence: Evidence, refund_id: str, history: Sequence[Mapping[str, Any]]
) -> str | None:
    """Return what is wrong with a refund's having failed, None where there was a reason for it."""
    record = evidence.records[refund_id]
    code = record.get("error_code")
    posts = [post for post in evidence.posts if post.refund_id == refund_id]
    if refund_id in evidence.failed_there or any(_is_refusal(evidence, post) for post in posts):
        return None
    if code == "currency_mismatch" and not posts:
        # A guard of the product's own, before anything was sent.
        return None
    if code == "budget_spent" and _verdicts(history) >= evidence.max_attempts:
        return None
    answered = [post.answered for post in posts]
    return (
        f"{record['status']} as {code}, and nobody refused it: its POSTs were answered {answered}"
    )


def _is_refusal(evidence: Evidence, post: Post) -> bool:
    """Tell whether the provider has refused this very refund; a refused key is no such thing."""
    if post.answered not in REFUSALS or post.fault not in _WHOLE:
        return False
    return not any(begin <= post.at <= end for begin, end in evidence.refused)


def _verdicts(history: Sequence[Mapping[str, Any]]) -> int:
    return sum(entry["from"] == "sending" and entry.get("seen") in _COUNTED for entry in history)
