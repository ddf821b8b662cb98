"""Records in which every text that others wrote is one text, to see it shown as text only."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from worker.store import audit

if TYPE_CHECKING:
    from tests.support.page_door import PageDoor

VIEWS: Final = (
    "/page",
    "/page/refunds",
    "/page/refunds/order-1",
    "/page/refunds/order-2",
    "/page/review",
    "/page/batches",
    "/page/batches/season",
    "/page/reversed",
    "/page/callbacks",
    "/page/audit",
)
"""The views that show such a text."""
_ASKED: Final = ("payment_intent", "currency", "asked_currency", "reason")
"""The fields that a request states; those of a settled refund are checked as they are read."""
_TEXTS: Final = (
    "provider_refund_id",
    "provider_status",
    "failure_reason",
    "error_code",
    "error_message",
    "evidence",
    "idempotency_key",
    "possible_refund_id",
    "prior_refund_ids",
    "set_aside_ids",
    "hinted",
    "operator_says",
    "operator_by",
    "operator_code",
)
"""The other fields of a refund that the provider or a person fills."""
_OWN: Final = frozenset({"from", "to", "status"})
"""The fields of a move that only the product fills."""


def plant(door: PageDoor, text: str) -> None:
    """Write refunds, a batch, callbacks, switches and actions whose texts are all `text`."""
    store, redis = door.refunds.store, door.refunds.store.redis
    now = int(store.time().timestamp() * 1000)
    door.records.in_review("order-1")
    door.records.failed("order-2", payment_intent="pi_2")
    for refund_id in ("order-1", "order-2"):
        _replace_history(door, refund_id, text)
        fields: dict[Any, Any] = dict.fromkeys(_TEXTS, text) | {"batch_id": "season"}
        redis.hset(store.key(f"refund:{refund_id}"), mapping=fields)
    asked: dict[Any, Any] = dict.fromkeys(_ASKED, text) | {"metadata": json.dumps({text: text})}
    redis.hset(store.key("refund:order-1"), mapping=asked)
    more: dict[Any, Any] = {"contradicted_by": text, "reversed_at": str(now)}
    redis.hset(store.key("refund:order-2"), mapping=more)
    redis.zadd(store.key("reversed"), {"order-2": now})
    redis.zadd(store.key("contradicted"), {"order-2": now})
    batch: dict[Any, Any] = {"rows": 2, "state": "paused", "paused_at": str(now), "invalid": 1}
    batch |= {"paused_by": text, "file": text, "digest": text, f"total:{text}": 5}
    redis.hset(store.key("batch:season"), mapping=batch)
    redis.zadd(store.key("batches"), {"season": now})
    redis.zadd(store.key("workers"), {text: now})
    redis.zadd(store.key("outages"), {text: now})
    switches: dict[Any, Any] = {"paused": str(now), "paused_by": text}
    switches |= {"callbacks": str(now), "callbacks_by": text}
    redis.hset(store.key("meta"), mapping=switches)
    redis.zadd(store.key("callback-endpoints"), {"shop": now})
    endpoint: dict[Any, Any] = {"paused_at": str(now), "paused_by": text}
    redis.hset(store.key("callback-endpoint:shop"), mapping=endpoint)
    redis.zadd(store.key("callback-dead:shop"), {text: now})
    tried: dict[Any, Any] = {"member": text, "error": text, "reply": text}
    redis.xadd(store.key("callback-log:shop"), tried)
    deed = audit.Deed(by=text, via="api", address=text, action=text, target=text, note=text)
    audit.carry_out(store, deed, lambda: None)


def _replace_history(door: PageDoor, refund_id: str, text: str) -> None:
    redis, key = door.refunds.store.redis, door.refunds.store.key(f"history:{refund_id}")
    moves: Any = redis.lrange(key, 0, -1)
    for place, move in enumerate(moves):
        entry = json.loads(move)
        # What a move adds, such as a note, is added to each.
        entry |= {"by": text, "note": text, "code": text, "seen": text}
        entry |= {
            name: text
            for name, value in entry.items()
            if isinstance(value, str) and name not in _OWN
        }
        redis.lset(key, place, json.dumps(entry))
