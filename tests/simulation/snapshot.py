"""What the judge reads after every step, in one script.

Records, histories, payments, batches, indexes.
"""

from __future__ import annotations

from typing import Final

from tests.simulation import batch_judge

BUCKETS: Final = (
    "queued",
    "queued.bulk",
    "sending",
    "waiting",
    "in_doubt",
    "processing",
    "review",
    "succeeded",
    "failed",
    "canceled",
)
FIELDS: Final = (
    "stage",
    "status",
    "version",
    "generation",
    "next_check_at",
    "amount",
    "currency",
    "provider_refund_id",
    "evidence",
    "all_remaining",
    "first_attempt_at",
    "doubt_since",
    "operator_says",
    "idempotency_key",
    "fingerprint",
    "batch_id",
    "held",
    "attempts",
    "error_code",
    "error_message",
    "payment_intent",
    "contradicted_by",
    "updated_at",
    "asked_currency",
    "failure_reason",
    "provider_status",
    "hinted",
    "hints_used",
    "prior_refund_ids",
    "metadata",
    "metadata_erased_at",
)
_NAMES: Final = ", ".join(f"'{name}'" for name in FIELDS)
SNAPSHOT: Final = f"""
local P, i = ARGV[1], 5
local out = {{redis.call('ZRANGE', P .. 'callbacks', 0, -1)}}
for _ = 1, tonumber(ARGV[2]) do
  local id = ARGV[i]
  out[#out + 1] = redis.call('HMGET', P .. 'refund:' .. id, {_NAMES})
  out[#out + 1] = redis.call('LRANGE', P .. 'history:' .. id, ARGV[i + 1], -1)
  i = i + 2
end
for _ = 1, tonumber(ARGV[3]) do
  local pi = ARGV[i]
  out[#out + 1] = redis.call('HMGET', P .. 'payment:' .. pi, 'lock', 'open')
  out[#out + 1] = redis.call('ZRANGE', P .. 'waiters:' .. pi, 0, -1)
  out[#out + 1] = redis.call('ZRANGE', P .. 'doubts:' .. pi, 0, -1)
  i = i + 1
end
{batch_judge.SNAPSHOT}
out[#out + 1] = redis.call('HMGET', P .. 'clock', 'at', 'ahead')
out[#out + 1] = redis.call('ZRANGE', P .. 'due', 0, -1, 'WITHSCORES')
for _, name in ipairs({{{", ".join(f"'{name}'" for name in BUCKETS)}}}) do
  out[#out + 1] = redis.call('ZRANGE', P .. 'index:' .. name, 0, -1, 'WITHSCORES')
end
out[#out + 1] = redis.call('ZRANGE', P .. 'rechecks', 0, -1, 'WITHSCORES')
return out
"""
