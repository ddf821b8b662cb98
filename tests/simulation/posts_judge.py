"""What must hold of each request as it leaves.

Whose claim, which key and body, and what came of those before.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.simulation.known import Known, Post
    from worker.model.request import RefundRequest
    from worker.rules.attempts import Rules

Broken = Callable[[str, str, str], None]


class PostsJudge:
    """Judges the requests of one world."""

    def __init__(self, broken: Broken, rules: Rules) -> None:
        self._broken = broken
        self._rules = rules
        self._keys: dict[str, tuple[str, str, bytes]] = {}

    def leaves(self, post: Post, known: Known, durable_body: str | None, now_ms: int) -> None:
        """Judge a request at the moment at which its first byte leaves, by what lies in Redis."""
        record, refund_id = known.record, post.refund_id
        if not any(_says(post.body, asked, post.generation) for asked in known.asked):
            self._broken("unasked", refund_id, f"no caller asked for {post.body!r}")
        first = self._keys.setdefault(post.key, (refund_id, post.generation, post.body))
        if first != (refund_id, post.generation, post.body):
            self._broken("body", refund_id, "one key, two contents")
        same = [earlier for earlier in known.posts if earlier.generation == post.generation]
        if same and (same[0].key, same[0].body) != (post.key, post.body):
            self._broken("key", refund_id, "another key or body than the attempt before")
        stage = record.get("stage")
        if stage == "sending":
            if now_ms > int(record.get("next_check_at") or 0):
                self._broken("claim", refund_id, "sent after the lease had lapsed")
        elif not self._was_overtaken(post, known, now_ms):
            self._broken("claim", refund_id, f"sent without a standing claim, in {stage}")
        if stage == "settled":
            return
        if record.get("generation") not in {None, post.generation}:
            self._broken(
                "generation", refund_id, f"sends {post.generation}, the record stands at {record}"
            )
        if (
            durable_body is None
            or durable_body.encode() != post.body
            or record.get("idempotency_key") != post.key
        ):
            self._broken(
                "durable", refund_id, "body or key were not in Redis before the first byte"
            )
        self._judge_resend(post, same)

    def _was_overtaken(self, post: Post, known: Known, now_ms: int) -> bool:
        """Tell whether a request left in good order although its refund is not being sent any more.

        An earlier request's late proof has come between this worker's last question and the first
        byte, under a lease that stands: no worker can know of it.
        """
        return (
            known.record.get("stage") in {"processing", "settled"}
            and known.lease_end is not None
            and now_ms <= known.lease_end
            and known.proven_at >= post.asked_at
        )

    def _judge_resend(self, post: Post, earlier: Sequence[Post]) -> None:
        if not any(one.is_doubtful for one in earlier):
            return
        if self._rules.idempotency == "verify":
            self._broken(
                "unproven", post.refund_id, "sent again after a doubt without a proof of absence"
            )
            return
        # By no clock of ours: the provider forgets a key by its own.
        age = post.left_at - earlier[0].left_at
        if age > self._rules.key_window.total_seconds():
            self._broken(
                "window", post.refund_id, f"sent again {age:.0f} s after the first attempt"
            )


def _says(body: bytes, asked: RefundRequest, generation: str) -> bool:
    """Return whether a request says what its caller asked for, and nothing else."""
    wanted: dict[str, object] = {"payment_intent": asked.payment_intent}
    if asked.amount is not None:
        wanted["amount"] = str(asked.amount)
    if asked.reason is not None:
        wanted["reason"] = asked.reason
    own = {"refund_id": asked.refund_id, "refund_generation": generation}
    return bool(json.loads(body) == wanted | {"metadata": {**asked.metadata, **own}})
