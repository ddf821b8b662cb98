-- Which record has a refund of the provider, and what contradicts a record. Comes after _payment.lua.

-- A refund of the provider belongs to one record of the whole installation, whatever its payment. The payment's hash
-- names its owners too, for readers.
local function owner_of(provider_refund_id) return redis.call('GET', P .. 'owner:' .. provider_refund_id) end
-- Let the keys of the refunds of the provider that a record owns live on without end, or with `expires` as long as a
-- settled refund. If only a person named the provider's refund, it may be another record's: only its owner does this.
-- `done` is one whose key is right already. Comes after the first write, so a key of another type must not stop it.
local OWNED = {'provider_refund_id', 'contradicted_by', 'prior_refund_ids', 'set_aside_ids'}
local function keep_owners(id, r, expires, done)
  for _, field in ipairs(OWNED) do
    for provider_refund_id in string.gmatch(r[field] or '', '%S+') do
      local key = P .. 'owner:' .. provider_refund_id
      if provider_refund_id ~= done and redis.pcall('GET', key) == id then
        if expires then redis.call('PEXPIRE', key, RETENTION) else redis.call('PERSIST', key) end
      end
    end
  end
end
-- `write_payment` writes it in the payment's hash. With `expires` the owner's key lives as long as a settled refund.
local function own(payment_intent, provider_refund_id, id, expires)
  local key = P .. 'owner:' .. provider_refund_id
  if expires then redis.call('SET', key, id, 'PX', RETENTION) else redis.call('SET', key, id) end
  payment_of(payment_intent).written['owner:' .. provider_refund_id] = id
end

-- Once a record has expired, no person can resolve its contradiction, and it would be counted for ever. A later move keeps
-- a record for longer. An error, as of a key of another type, has no entries.
local function forget_contradictions()
  local open = P .. 'contradicted'
  local old = redis.pcall('ZRANGEBYSCORE', open, '-inf', int(NOW - number(RETENTION)), 'LIMIT', 0, 100)
  for _, id in ipairs(old) do
    if redis.call('EXISTS', P .. 'refund:' .. id) == 0 then redis.call('ZREM', open, id) end
  end
end

-- Record that a refund of the provider contradicts a record, or with '' that a person has resolved that. The record
-- also owns the provider's refund then, so that no other record takes it.
local function contradict(id, payment_intent, provider_refund_id)
  local open = P .. 'contradicted'
  if provider_refund_id == '' then
    redis.call('ZREM', open, id)
    return
  end
  forget_contradictions()
  redis.call('ZADD', open, int(NOW), id)
  count('contradicted', 1)
  if not owner_of(provider_refund_id) then own(payment_intent, provider_refund_id, id) end
end
